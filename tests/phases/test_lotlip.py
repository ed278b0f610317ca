"""LoTLIP checkpoints in training: an import goes on, is exported and evaluated."""

import pytest
import torch
from PIL import Image

from lexlip import DenseLIP
from lexlip.cli import main
from lexlip.train.build import decided_by
from lexlip.train.dense import DenseModule
from Phase1.module import Phase1Module


def test_an_imported_folder_goes_on_training(lotlip_release, tmp_path, make_batch, without_trainer):
    torch.save(lotlip_release()[-1], tmp_path / "small.pt")
    main(["import-lotlip", str(tmp_path / "small.pt"), str(tmp_path / "out")])
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
    learning_rate, lotlip_release, start, tiny_data, tmp_path
):
    pytest.importorskip("sacred")
    torch.save(lotlip_release(vocab_size=tiny_data["words"] + 2)[-1], tmp_path / "small.pt")
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


@pytest.mark.parametrize("patch", [16, 32])
def test_the_named_configs_are_the_releases_towers(patch):
    from lexlip.train.config import Config, base, named

    checked = Config.checked({**base(), **named()[f"lotlip{patch}_base224"], "training_mode": "con"})
    assert checked.corner_tokens == 2
    assert checked.vit.startswith(f"vit_base_patch{patch}_224") and checked.patch_size == patch
