"""Official checkpoints through the command: by their numbers, by their names, and what is refused."""

import numpy as np
import official_tiny
import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint

from lexlip import LexLIP
from lexlip.cli import main
from lexlip.convert.names import translate
from lexlip.convert.official import _resample, import_official
from lexlip.errors import CheckpointError
from Phase1.module import Phase1Module
from Phase2.module import Phase2Module

PHASES = {1: Phase1Module, 2: Phase2Module}


@pytest.fixture(scope="module", params=[1, 2], ids=["phase1", "phase2"])
def official(request, shared, tmp_path_factory):
    """A golden checkpoint imported through the command line, with its inputs and outputs."""
    checkpoint, outputs = (shared("golden", f"Phase{request.param}_tiny_11.{end}") for end in ("ckpt", "npz"))
    out = tmp_path_factory.mktemp("official") / "imported"
    assert main(["import-official", str(checkpoint), str(out), "--text-heads", "4"]) == 0
    with np.load(outputs) as arrays:
        values = {name: torch.from_numpy(arrays[name]) for name in arrays.files if arrays[name].dtype.kind in "fi"}
    return request.param, out, values


def test_an_imported_folder_gives_the_official_vectors(official):
    _, out, values = official
    model = LexLIP.from_pretrained(out)
    text = model.lexicon_text(values["ids"], values["mask"])
    torch.testing.assert_close(text, values["text_lex"], rtol=0, atol=1e-4)
    torch.testing.assert_close(model.lexicon_image(values["img"]), values["image_lex"], rtol=0, atol=1e-4)


def test_an_imported_folder_gives_the_official_losses(official):
    phase, out, values = official
    module = PHASES[phase].from_model(out)
    batch = {
        "image": values["img"], "text_ids": values["ids"], "text_mask": values["mask"], "encoder_ids": values["e_ids"],
        "encoder_labels": values["e_lab"], "decoder_ids": values["d_ids"], "decoder_labels": values["d_lab"],
        "image_id": torch.arange(6),
    }  # fmt: skip
    losses = {name: float(value.detach()) for name, value in module.compute_losses(batch).items()}
    losses["contrastive_loss"] += losses.pop("flops_loss")
    wanted = {name: float(value) for name, value in values.items() if name.endswith("_loss")}
    assert losses == pytest.approx(wanted, abs=1e-4)
    if phase == 2:
        module.after_step(*module.prepare(batch))
        torch.testing.assert_close(module.text_ring.keys[18:], values["text_keys"], rtol=0, atol=1e-5)
        torch.testing.assert_close(module.image_ring.keys[18:], values["image_keys"], rtol=0, atol=1e-5)
        assert int(module.text_ring.position) == int(values["ptr"][0])


def test_every_official_parameter_is_used_or_named(official, shared, tmp_path, capsys):
    phase, _, _ = official
    path = shared("golden", f"Phase{phase}_tiny_11.ckpt")
    content = torch.load(path, weights_only=True)
    capsys.readouterr()
    main(["import-official", str(path), str(tmp_path / "again"), "--text-heads", "4"])
    named = {line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("  ")}
    assert named and named <= set(content["state_dict"])
    assert not any(name.startswith("image_transformer") and name.endswith("weight") for name in named)
    content["state_dict"]["text_transformer.extra.weight"] = torch.zeros(2)
    torch.save(content, tmp_path / "more.ckpt")
    assert main(["import-official", str(tmp_path / "more.ckpt"), str(tmp_path / "no"), "--text-heads", "4"]) == 2
    assert "text_transformer.extra.weight" in capsys.readouterr().err
    del content["state_dict"]["text_transformer.extra.weight"]
    del content["state_dict"]["text_transformer.bert.embeddings.LayerNorm.weight"]
    torch.save(content, tmp_path / "less.ckpt")
    assert main(["import-official", str(tmp_path / "less.ckpt"), str(tmp_path / "no"), "--text-heads", "4"]) == 2
    assert "embeddings.LayerNorm.weight" in capsys.readouterr().err


def test_what_contradicts_itself_or_lacks_a_part_is_named(shared, tmp_path, capsys):
    content = torch.load(shared("golden", "Phase1_tiny_11.ckpt"), weights_only=True)
    layer = "image_transformer.beit.encoder.layer.0"
    bias = "text_transformer.cls.predictions.bias"
    for change, message in (
        ({bias: content["state_dict"][bias] + 1}, f"{bias} and text_transformer.cls.predictions.decoder.bias"),
        ({f"{layer}.attention.attention.key.weight": None}, "lacks image_transformer.beit.encoder.layer.0.attention"),
        ({f"{layer}.intermediate.dense.weight": None}, f"lacks '{layer}.intermediate.dense.weight', which every"),
    ):
        state = {name: value for name, value in {**content["state_dict"], **change}.items() if value is not None}
        torch.save({**content, "state_dict": state}, tmp_path / "other.ckpt")
        assert main(["import-official", str(tmp_path / "other.ckpt"), str(tmp_path / "no"), "--text-heads", "4"]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("option, heads", [("--text-heads", "3"), ("--text-heads", "0"), ("--image-heads", "5")])
def test_heads_must_divide_the_width(shared, tmp_path, capsys, option, heads):
    path = shared("golden", "Phase1_tiny_11.ckpt")
    assert main(["import-official", str(path), str(tmp_path / "no"), option, heads]) == 2
    assert f"{option} {heads} does not divide" in capsys.readouterr().err


def test_the_official_resampling_is_one_line_over_the_flattened_table():
    table = torch.arange(12.0)[:, None].repeat(1, 2)  # a grid of 2: 9 offsets and three rows of CLS
    fitted = _resample(table, 2, 4, "official")
    rows = 7 * 7 + 3
    assert fitted.shape == (rows, 2)
    scale = (rows + 0.1) / 12
    # Where each new row lies in the old table, half-pixel centres.
    position = np.clip((np.arange(rows) + 0.5) / scale - 0.5, 0, 11)
    position[-3:] = position[9:12]  # CLS is read at the numbers of the old table's rows
    np.testing.assert_allclose(fitted[:, 0].numpy(), position, atol=1e-4)
    for way in ("2d", "official"):
        assert torch.equal(_resample(table, 2, 2, way), table)


def test_every_pair_of_tokens_has_the_official_bias_at_a_larger_size(tmp_path):
    """Patch to patch, CLS to patch, patch to CLS and CLS to CLS, as the layers add it, by the official code's rule."""
    weights, old, new = official_tiny.weights(grid=4), 4, 6
    torch.save(
        official_tiny.checkpoint(weights, ModelCheckpoint, image_size=new * official_tiny.PATCH), tmp_path / "a.ckpt"
    )
    model = import_official(tmp_path / "a.ckpt", text_heads=2, rel_pos="official").model
    bias = model.image_encoder.backbone.rel_pos_bias
    bias.grid = (new, new)
    for layer, given in enumerate(bias()):
        name = f"image_transformer.beit.encoder.layer.{layer}.attention.attention.relative_position_bias"
        table = weights[f"{name}.relative_position_bias_table"].double().numpy()
        rows, first = (2 * new - 1) ** 2 + 3, (2 * old - 1) ** 2
        scale = (rows + 0.1) / len(table)
        place = np.clip((np.arange(rows, dtype=np.float32) + 0.5) * np.float32(1 / scale) - 0.5, 0, len(table) - 1)
        line = np.stack([np.interp(place, np.arange(len(table)), column) for column in table.T], axis=1)
        y, x = np.divmod(np.arange(new * new), new)
        wanted = np.empty((2, new * new + 1, new * new + 1))
        offset = (y[:, None] - y + new - 1) * (2 * new - 1) + (x[:, None] - x + new - 1)
        wanted[:, 1:, 1:] = line[offset].transpose(2, 0, 1)
        wanted[:, 0, 1:], wanted[:, 1:, 0] = line[first][:, None], line[first + 1][:, None]
        wanted[:, 0, 0] = line[first + 2]
        np.testing.assert_allclose(given[0].detach().numpy(), wanted, rtol=0, atol=1e-6)


def test_the_official_resampling_makes_nothing_smaller(tmp_path):
    torch.save(official_tiny.checkpoint(official_tiny.weights(), ModelCheckpoint, image_size=16), tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="--rel-pos official: .* never to 2 x 2; leave the option out"):
        import_official(tmp_path / "a.ckpt", text_heads=2, rel_pos="official")


def test_the_first_pattern_that_matches_a_whole_name_counts():
    one, two = torch.tensor(1.0), torch.tensor(2.0)
    names = {r"a\.norm\.(.*)": r"norm.\1", r"a\.(\w+)": r"other.\1"}
    state, reasons = translate({"a.norm.x": one, "a.b": two, "a.ids": one}.items(), names, {r".*\.ids": "counted"}, "f")
    assert state == {"norm.x": one, "other.b": two} and reasons == {"a.ids": "counted"}
    with pytest.raises(CheckpointError, match="f holds parameters that no part of the model takes: a.b.c"):
        translate([("a.b.c", one)], names, {}, "f")
