"""docs/ARCHITECTURE.md: short enough to be read, and its example of a new loss is applied and trained."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "ARCHITECTURE.md"
STEP = """
import sys
import torch
from lexlip.models.lexlip import LexLIP
from lexlip.train.build import build_model
from lexlip.train.config import Config, base
from Phase1.module import Phase1Module

sys.path.insert(0, "tests")
import tiny

values = {**base(), **tiny.MODEL, "vocab_size": 40, "training_mode": "con", "batch_size": 4, "per_gpu_batchsize": 4}
batch = {
    "image": torch.randn(4, 3, 32, 32), "text_ids": torch.randint(5, 40, (4, 6)), "image_id": torch.arange(4),
    "text_mask": torch.ones(4, 6, dtype=torch.long),
}
for weight in (0, 0.1):
    values["loss_names"] = {"contrastive": 1, "l1": weight}
    torch.manual_seed(0)
    config = Config.checked(values)
    module = Phase1Module(config, build_model(LexLIP, config)).eval()
    losses = module.compute_losses(batch)
    sum(losses.values()).backward()
    l1 = losses.get("l1_loss")
    print(sorted(losses), None if l1 is None else round(float(l1), 4))
    if weight:
        model = module.model
        r = [model.encode_text(batch["text_ids"], batch["text_mask"]), model.encode_image(batch["image"])]
        assert abs(float(l1) - 0.1 * sum(float(x.sum(1).mean()) for x in r)) < 1e-4
"""


def test_the_page_is_short():
    assert len(PAGE.read_text().splitlines()) <= 150


def test_the_example_of_a_new_loss_works(tmp_path):
    (diff,) = re.findall(r"```diff\n(.*?)```", PAGE.read_text(), re.DOTALL)
    changed = [line for line in diff.splitlines() if re.match(r"[-+](?![-+])", line)]
    assert len(changed) <= 20 and set(re.findall(r"^\+\+\+ b/(.*)$", diff, re.MULTILINE)) == {
        "configs/base.yaml", "lexlip/train/losses.py", "Phase1/module.py",
    }  # fmt: skip
    for folder in ("lexlip", "Phase1", "configs", "datasets", "tests"):
        skip = shutil.ignore_patterns("__pycache__", "fixtures")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=skip)
    # Outside of any repository, so that git changes the copies.
    environment = {**os.environ, "GIT_CEILING_DIRECTORIES": str(tmp_path.parent)}
    applied = subprocess.run(
        ["git", "apply", "-"], input=diff, cwd=tmp_path, env=environment, capture_output=True,
        text=True,
    )  # fmt: skip
    assert applied.returncode == 0, applied.stderr
    environment["PYTHONPATH"] = os.pathsep.join((str(tmp_path), str(tmp_path / "datasets")))
    done = subprocess.run(
        [sys.executable, "-c", STEP], cwd=tmp_path, env=environment, capture_output=True, text=True
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    without, with_l1 = done.stdout.splitlines()
    assert without == "['contrastive_loss', 'flops_loss'] None"
    assert with_l1.startswith("['contrastive_loss', 'flops_loss', 'l1_loss'] ") and float(with_l1.split()[-1]) > 0
