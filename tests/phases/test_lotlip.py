"""LoTLIP checkpoints: real names, real sizes, random weights, against timm and transformers by themselves."""

import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import BertConfig, BertModel

from lexlip import DenseLIP
from lexlip.cli import main
from lexlip.convert.lotlip import import_lotlip
from lexlip.train.build import decided_by
from lexlip.train.config import Config, base, named
from lexlip.train.dense import DenseModule
from Phase1.module import Phase1Module


def random_release(patch, vision, text, embed_dim):
    """The parts of a release as its authors' code builds them, and their open_clip-style state dict."""
    torch.manual_seed(0)
    trunk = timm.create_model(f"vit_base_patch{patch}_224", num_classes=0, global_pool="token", **vision).eval()
    bert = BertModel(BertConfig(**text), add_pooling_layer=True).eval()
    proj = torch.nn.Linear(bert.config.hidden_size, embed_dim, bias=False)
    state = {f"visual.trunk.{name}": value for name, value in trunk.state_dict().items()}
    state |= {f"text.transformer.{name}": value for name, value in bert.state_dict().items()}
    state["text.transformer.embeddings.position_ids"] = torch.arange(bert.config.max_position_embeddings)[None]
    state |= {"text.proj.weight": proj.weight.detach(), "logit_scale": torch.tensor(4.25)}
    return trunk, bert, proj, state


SMALL = (
    16,
    {"embed_dim": 64, "depth": 2, "num_heads": 1, "img_size": 32},
    {
        "vocab_size": 122, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1,
        "intermediate_size": 96, "max_position_embeddings": 40,
    },
    64,
)  # fmt: skip


def text_features(bert, proj, ids, corners):
    """[CLS] of plain transformers over the corners and padding, with LoTLIP's rule as a mask, pooled and projected."""
    pad, length = 0, ids.shape[1]
    allowed = torch.zeros(len(ids), length, length, dtype=torch.bool)
    for row, words in enumerate(ids):
        for i in range(length):
            for j in range(length):
                word = j > corners and words[j] != pad
                allowed[row, i, j] = word or (i == j if i <= corners else j == 0)
    bias = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
    states = bert.encoder(bert.embeddings(input_ids=ids), attention_mask=bias[:, None]).last_hidden_state
    return F.normalize(proj(torch.tanh(bert.pooler.dense(states[:, 0]))), dim=-1)


def texts(vocab, length, context):
    """Padded token ids without corners and their mask, and those with corners that LoTLIP's tokenizer gives."""
    generator = torch.Generator().manual_seed(1)
    words = torch.randint(5, vocab, (3, length), generator=generator)
    words[1, length // 2 :], words[2, 3:] = 0, 0
    corners = torch.tensor([[vocab, vocab + 1]] * 3)
    padded = torch.zeros(3, context - length - 2, dtype=torch.long)
    return words, (words != 0).long(), torch.cat([words[:, :1], corners, words[:, 1:], padded], dim=1)


@pytest.mark.slow
@pytest.mark.parametrize("patch", [16, 32])
def test_a_release_of_real_size_gives_the_features_of_plain_transformers(patch, tmp_path):
    trunk, bert, proj, state = random_release(patch, {}, {"vocab_size": 30524}, 768)
    torch.save(
        {"epoch": 1, "state_dict": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "c.pt"
    )
    model = import_lotlip(tmp_path / "c.pt")
    words, mask, full = texts(30522, 60, 128)
    with torch.no_grad():
        wanted = text_features(bert, proj, full, 2)
        images = torch.randn(2, 3, 224, 224)
        vectors = F.normalize(trunk(images), dim=-1)
    torch.testing.assert_close(model.encode_text(words, mask), wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(model.encode_image(images), vectors, rtol=0, atol=1e-5)
    assert float(model.logit_scale.detach()) == 4.25
    assert (model.config.image_size, model.config.max_text_len, model.config.vocab_size) == (224, 128, 30522)


@pytest.fixture
def small(tmp_path):
    release = random_release(*SMALL)
    torch.save(release[-1], tmp_path / "small.pt")
    return release, tmp_path / "small.pt"


def test_the_command_makes_a_folder_that_gives_the_release_s_features(small, tmp_path, capsys):
    (trunk, bert, proj, _), path = small
    assert main(["import-lotlip", str(path), str(tmp_path / "out")]) == 0
    assert "120 words and 2 corner tokens, 64 numbers" in capsys.readouterr().out
    model = DenseLIP.from_pretrained(tmp_path / "out")
    words, mask, full = texts(120, 20, 40)
    with torch.no_grad():
        wanted, image = text_features(bert, proj, full, 2), F.normalize(trunk(torch.ones(1, 3, 32, 32)), dim=-1)
    torch.testing.assert_close(model.encode_text(words, mask), wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(model.encode_image(torch.ones(1, 3, 32, 32)), image, rtol=0, atol=1e-5)


def test_an_imported_folder_goes_on_training(small, tmp_path, make_batch, without_trainer):
    main(["import-lotlip", str(small[1]), str(tmp_path / "out")])
    module = without_trainer(DenseModule.from_model(tmp_path / "out", drop_rate=0.0, learning_rate=0.1), 0.05).train()
    batch = make_batch(vocab=120)
    losses = [float(module.compute_losses(batch)["contrastive_loss"].detach())]
    for _ in range(5):
        module.training_step(batch, 0)
    losses.append(float(module.compute_losses(batch)["contrastive_loss"].detach()))
    assert losses[1] < losses[0]


def urban1k(root):
    for name in ("1", "2"):
        for folder in ("image", "caption"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 36), (100 * int(name), 0, 0)).save(root / "image" / f"{name}.jpg")
        (root / "caption" / f"{name}.txt").write_text("A red dot. A blue ring.")
    return str(root)


@pytest.mark.parametrize("learning_rate", [0.0, 1e-2])
def test_by_commands_an_import_evaluates_goes_on_training_and_evaluates_again(
    learning_rate, start, tiny_data, tmp_path
):
    patch, vision, text, embed_dim = SMALL
    *_, state = random_release(patch, vision, {**text, "vocab_size": tiny_data["words"] + 2}, embed_dim)
    torch.save(state, tmp_path / "small.pt")
    imported, sets = str(tmp_path / "imported"), ["--urban1k", urban1k(tmp_path / "Urban1k"), "--device", "cpu"]
    assert main(["import-lotlip", str(tmp_path / "small.pt"), imported, "--tokenizer", tiny_data["tokenizer"]]) == 0
    assert main(["eval-long-text", "--model", imported, *sets]) == 0

    before = DenseLIP.from_pretrained(imported)
    towers = {**decided_by(before), "vocab_size": tiny_data["words"], "drop_rate": 0.0}
    done = start(
        Phase1Module, ["task_long_caption_train"], **towers, load_path=imported, max_steps=2,
        learning_rate=learning_rate,
    )  # fmt: skip
    trained = str(tmp_path / "trained")
    assert main(["export", str(done.folder / "checkpoints" / "last.ckpt"), trained]) == 0
    after = DenseLIP.from_pretrained(trained)
    assert main(["eval-long-text", "--model", trained, *sets]) == 0
    texts = ["A red dot. A blue ring.", "a box"]
    same = torch.equal(after.encode_text(texts), before.encode_text(texts))
    moved = [name for name, value in after.state_dict().items() if not torch.equal(value, before.state_dict()[name])]
    assert (same, bool(moved)) == ((True, False) if learning_rate == 0 else (False, True))
    assert (after.config.corner_tokens, after.config.text_pooler, after.config.embed_dim) == (2, True, 64)


def test_what_does_not_fit_is_refused_by_name(small, tmp_path, capsys):
    (*_, state), path = small

    def refused(change, *options):
        torch.save(change, tmp_path / "other.pt")
        assert main(["import-lotlip", str(tmp_path / "other.pt"), str(tmp_path / "no"), *options]) == 2
        assert not (tmp_path / "no").exists()
        return capsys.readouterr().err

    assert "visual.conv1.weight" in refused({**state, "visual.conv1.weight": torch.zeros(1)})
    assert "no LoTLIP checkpoint" in refused({"weight": torch.zeros(1)})
    less = {name: value for name, value in state.items() if name != "text.transformer.pooler.dense.bias"}
    assert "text_pooler.bias: not in the file" in refused(less)
    assert "--corner-tokens 122" in refused(state, "--corner-tokens", "122")
    wrong = {**state, "text.transformer.encoder.layer.1.output.dense.bias": torch.zeros(3)}
    assert "layer.1.output.dense.bias: (3,) in the file" in refused(wrong)


@pytest.mark.parametrize("patch", [16, 32])
def test_the_named_configs_are_the_releases_towers(patch):
    checked = Config.checked({**base(), **named()[f"lotlip{patch}_base224"], "training_mode": "con"})
    assert checked.corner_tokens == 2
    assert checked.vit.startswith(f"vit_base_patch{patch}_224") and checked.patch_size == patch
