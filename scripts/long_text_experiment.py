"""Dense and lexicon heads, trained on short captions only or on long ones too, queried with short and with long texts.

    python scripts/long_text_experiment.py [--out runs/long_text] [--seeds 0,1,2] [key=value]

Flickr8k with the image tower of configs/flickr8k_small.yaml (docs/RESULTS.md says how its files are made) and a text
tower 128 wide: the same towers, data in the same order, steps, context of 128 tokens and starting weights for all. A
short query is one caption, a long one an image's five captions joined; the gallery is the val split. Prints mean and
standard deviation over the seeds, what each variant gains over short captions in the same seed, and writes
results.json. A run that is finished is not trained again; one that was stopped goes on. Further key=value go to the
training and win.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "datasets")]

from lexlip_data.command import interrupt_in_one_line, run_command  # noqa: E402

if __name__ == "__main__":
    interrupt_in_one_line()

import numpy as np  # noqa: E402
import torch  # noqa: E402

from lexlip.convert.export import export_checkpoint  # noqa: E402
from lexlip.errors import UserError  # noqa: E402
from lexlip.evaluate.recall import CUTOFFS, SparseVectors, retrieval_metrics  # noqa: E402
from lexlip.models.auto import load_folder_of_any_head  # noqa: E402
from lexlip.models.two_tower import TwoTowers  # noqa: E402
from lexlip.models.weights import read  # noqa: E402
from lexlip.utils.files import write_json  # noqa: E402
from lexlip_data.loading.datamodule import CaptionDataModule  # noqa: E402
from lexlip_data.loading.long_captions import long_texts  # noqa: E402
from lexlip_data.loading.transforms import normalise  # noqa: E402
from lexlip_data.sources.source import hash_id  # noqa: E402

HEADS = ("dense", "lexicon")
VARIANTS = {
    "short": {"long_captions": 0, "corner_tokens": 0},
    "lotlip": {"long_captions": 1, "corner_tokens": 2},
    "plain": {"long_captions": 1, "corner_tokens": 0},  # long texts as one more caption, without corners
}
SHARED = {
    "exp_name": "long_text", "max_text_len": 128, "text_positions": 128, "input_text_embed_size": 128,
    "hidden_size": 128, "num_heads": 2, "batch_size": 32, "per_gpu_batchsize": 32, "max_steps": 500, "eval_top_k": [],
    "val_check_interval": 1.0, "keep_checkpoints": 1, "resume_from": "auto",
}  # fmt: skip
QUERIES = ("short", "long")
SIDES = ("t2i", "i2t")
NAMES = [f"R@{k}" for k in CUTOFFS]


def main(arguments: list[str] | None = None) -> int:
    """Train what is missing, evaluate, print the table; returns the exit status."""
    options = _options(arguments)
    results: dict[str, dict[str, list[dict]]] = {}
    for seed in options.seeds:
        for head in HEADS:
            for variant in options.variants:
                name, run = f"{head}_{variant}", f"{head}_{variant}_seed{seed}"
                file = options.out / "metrics" / f"{run}.json"
                config = {**SHARED, **VARIANTS[variant], "more": options.keys}
                if not file.is_file():
                    metrics = _evaluate(_train(head, variant, seed, options), options.out / "models" / run)
                    write_json({"keys": config, **metrics}, file)
                saved = json.loads(file.read_text())
                if saved.get("keys") != config:
                    raise UserError(f"{file} is of a run with another config; remove it or give another --out")
                for queries in QUERIES:
                    results.setdefault(name, {}).setdefault(queries, []).append(saved[queries])
    summary, gains = _summary(results), _summary(_gains(results))
    content = {"seeds": options.seeds, "summary": summary, "gains": gains, "runs": results}
    write_json(content, options.out / "results.json")
    print(_table(summary, f"recall, %: mean and standard deviation of {len(options.seeds)} seeds"))
    if gains:
        print(_table(gains, "\ngain over short captions alone, points, seed by seed"))
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/long_text"))
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--variants", type=_variants, default=["short", "plain", "lotlip"], help=", ".join(VARIANTS))
    parser.add_argument("keys", nargs="*", metavar="key=value", help="for the training")
    return parser.parse_args(arguments)


def _variants(text: str) -> list[str]:
    names = text.split(",")
    if wrong := sorted(set(names) - set(VARIANTS)):
        raise argparse.ArgumentTypeError(f"{wrong[0]!r} is none of {', '.join(VARIANTS)}")
    return names


def _train(head: str, variant: str, seed: int, options: argparse.Namespace) -> Path:
    """One run; its last checkpoint."""
    version = f"{head}_{variant}"
    run = {"head": head, "seed": seed, "log_dir": str(options.out), "version": version}
    config = {**SHARED, **VARIANTS[variant], **run}
    words = [sys.executable, str(ROOT / "Phase1" / "run.py"), "with", "task_long_caption_train", "flickr8k_small"]
    # After the towers' own losses, which belong to both phases.
    words += ["loss_names.i2t=0", "loss_names.t2t=0", "loss_names.self_t=0"]
    subprocess.run([*words, *(f"{key}={value!r}" for key, value in config.items()), *options.keys], check=True)
    return options.out / f"{SHARED['exp_name']}_seed{seed}" / version / "checkpoints" / "last.ckpt"


@torch.no_grad()
def _evaluate(path: Path, folder: Path) -> dict[str, dict]:
    """Recall on val with both kinds of queries."""
    export_checkpoint(path, folder)
    model = load_folder_of_any_head(folder)
    config = read(path)["hyper_parameters"]["config"]
    changes = {"max_text_len": model.config.max_words, "num_workers": 0, "get_recall_metric": True}
    data = CaptionDataModule({**config, **changes}, model.tokenizer)
    data.setup("validate")
    images, short = [], []
    for (_, kind), loader in zip(data.eval_names("val"), data.val_dataloader(), strict=True):
        for batch in loader:
            if kind == "image":
                images.append(_rows(model.encode_image(normalise(batch["image"])), batch["image_id"], len(images)))
            else:
                vectors = model.encode_text(batch["text_ids"], batch["text_mask"])
                short.append(_rows(vectors, batch["image_id"], len(short)))
    texts = {"short": SparseVectors.concatenate(short), "long": _long_queries(model, data)}
    gallery = SparseVectors.concatenate(images)
    return {queries: retrieval_metrics(gallery, vectors) for queries, vectors in texts.items()}


def _long_queries(model: TwoTowers, data: CaptionDataModule) -> SparseVectors:
    rng, parts = np.random.default_rng(0), []
    for source in (source for group in data.sources("val").values() for source in group):
        for start in range(0, len(source), 100):
            part = range(start, min(start + 100, len(source)))
            vectors = model.encode_text([long_texts(source, i, 1, False, rng)[0] for i in part])
            ids = torch.tensor([hash_id(source.name, source.image_id(i)) for i in part])
            parts.append(_rows(vectors, ids, len(parts)))
    return SparseVectors.concatenate(parts)


def _rows(vectors: torch.Tensor, ids: torch.Tensor, part: int) -> SparseVectors:
    return SparseVectors.from_dense(vectors, ids, torch.arange(len(ids)) + (part << 32))


def _gains(results: dict) -> dict:
    """Recall minus that of the same head and seed with short captions only."""

    def minus(row: dict, base: dict) -> dict:
        return {side: {name: row[side][name] - base[side][name] for name in NAMES} for side in SIDES}

    gains = {}
    for name, row in results.items():
        head, variant = name.split("_")
        base = results.get(f"{head}_short")
        if base is not None and variant != "short":
            gains[name] = {
                queries: [minus(one, other) for one, other in zip(row[queries], base[queries], strict=True)]
                for queries in QUERIES
            }
    return gains


def _summary(results: dict) -> dict:
    return {name: {queries: _spread(rows) for queries, rows in row.items()} for name, row in results.items()}


def _spread(rows: list[dict]) -> dict[str, dict[str, list[float]]]:
    """Mean and standard deviation over the seeds of every recall."""
    numbers = {side: {name: [row[side][name] for row in rows] for name in NAMES} for side in SIDES}
    return {
        side: {name: [statistics.fmean(v), statistics.stdev(v) if len(v) > 1 else 0.0] for name, v in values.items()}
        for side, values in numbers.items()
    }


def _table(summary: dict, title: str) -> str:
    names = "".join(f"{name:>14}" for name in NAMES)
    lines = [title, f"{'':24}{'text to image':^42}{'image to text':^42}", f"{'':16}{'queries':8}" + names * 2]
    for queries in QUERIES:
        for name, row in summary.items():
            cells = (row[queries][side][at] for side in SIDES for at in NAMES)
            lines.append(f"{name:16}{queries:8}" + "".join(f"{mean:8.2f} ±{spread:4.2f}" for mean, spread in cells))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run_command(main, (UserError, subprocess.CalledProcessError)))
