"""What a user does with a data set, each with the outcome that it has: "read", "skipped" (and listed) or "refused".

Anything else, an exception that is no DataError among them, is raised, and counts as a crash.
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

from lexlip_data.command import run_command
from lexlip_data.convert import cli
from lexlip_data.convert.check import check_folder
from lexlip_data.errors import DataError
from lexlip_data.loading.datamodule import CaptionDataModule
from lexlip_data.sources.arrow import ArrowSource, find_arrow_files
from lexlip_data.sources.images import open_image
from lexlip_data.sources.skipped import read_lists

CONFIG = {
    "datasets": ["mine"], "image_size": 32, "batch_size": 2, "per_gpu_batchsize": 2,
    "train_transform_keys": ["vit_randaug"], "num_workers": 0, "num_gpus": 0,
}  # fmt: skip
USES = {"tsv": ("convert", "train", "evaluate"), "arrow": ("train", "evaluate", "check")}  # JSON: convert alone


class Unclear(Exception):
    """Refused, but in a message that helps nobody; or accepted, but not all of it is there."""


def use(name: str, layout: str, folder: Path, tokenizer: object) -> tuple[str, str]:
    """Do it. Returns (outcome, message)."""
    if name == "convert":
        return _convert(layout, folder)
    try:
        if name == "check":
            return _check(folder)
        return (_train if name == "train" else _evaluate)(folder, tokenizer)
    except DataError as error:
        return "refused", _clear(str(error), folder)


def _clear(message: str, folder: Path) -> str:
    """A message is one line and names a file of the data set, one of its rows, or the data set's image."""
    if len(message.splitlines()) != 1 or len(message) > 5000:
        raise Unclear(f"not one line: {message[:1000]!r}")
    if not any(word in message for word in (str(folder), "mine/", "mine_", "row ")):
        raise Unclear(f"names nothing: {message!r}")
    return message


def _train(folder: Path, tokenizer: object) -> tuple[str, str]:
    module = CaptionDataModule({**CONFIG, "data_root": str(folder)}, tokenizer, mlm=True)
    module.setup("fit")
    left_out = module.left_out()
    good = 0
    for batch in module.train_dataloader():
        good += len(batch["sample"])
        left_out += batch["skipped"]
        if not len(batch["image"]) == len(batch["text_ids"]) == len(batch["image_id"]) == len(batch["sample"]):
            raise Unclear("a batch whose parts differ in length")
    for line in left_out:
        _clear(line, folder)
    samples = module.steps_per_epoch * CONFIG["batch_size"]
    if good + len(left_out) < samples:
        raise Unclear(f"{good} of {samples} samples, {len(left_out)} listed")
    return ("skipped" if left_out else "read"), "; ".join(left_out)[:500]


def _evaluate(folder: Path, tokenizer: object) -> tuple[str, str]:
    module = CaptionDataModule({**CONFIG, "data_root": str(folder)}, tokenizer)
    module.setup("test")
    for loader in module.test_dataloader():
        order = sorted(number for batch in loader for number in batch["order"].tolist())
        if order != list(range(len(loader.dataset))):
            raise Unclear("evaluation left something out")
    return "read", ""


def _convert(layout: str, folder: Path) -> tuple[str, str]:
    out = folder / "arrow"
    where = {
        "karpathy": ["--json", folder / "dataset_mine.json", "--images", folder / "images"],
        "tsv": ["--root", folder],
        "gcc": ["--root", folder],
    }.get(layout, ["--root", folder])
    name = [] if layout == "gcc" else ["--name", "mine"]
    command = [layout, *where, *name, "--out", out, "--workers", 0, "--quiet", "--shards", 2]
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        status = run_command(lambda: cli.run([str(word) for word in command]))
    if status:
        if not errors.getvalue().startswith("error: "):
            raise Unclear(f"status {status}, {errors.getvalue()!r}")
        return "refused", _clear(errors.getvalue().removeprefix("error: ").rstrip("\n"), folder)
    listed = []
    for split in check_folder(out):
        if split.problems:
            raise Unclear(f"converted, but {split.problems}")
        listed += read_lists(out, split.prefix)
        source = ArrowSource("mine", "train", find_arrow_files(out, split.prefix))
        for i in range(len(source)):
            open_image(source.image_bytes(i))
    return ("skipped" if listed else "read"), "; ".join(map(str, listed))[:500]


def _check(folder: Path) -> tuple[str, str]:
    problems = [_clear(problem, folder) for split in check_folder(folder) for problem in split.problems]
    return ("refused" if problems else "read"), "; ".join(problems)[:500]
