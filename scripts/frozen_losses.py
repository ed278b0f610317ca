"""What each loss is worth to lexicon heads on frozen towers: one command, one table.

    python scripts/frozen_losses.py FEATURES --seeds 0,1,2 [--out runs/frozen_losses] [key=value]

FEATURES is a folder of `lexlip cache` with a val split. The plain recipe is InfoNCE and FLOPS of constant weight; each
variant adds one thing to it, the last ones all of them, which is what `lexlip fit` does. All variants of a seed have
the same starting weights, batches and steps; the dense reference of a seed is trained once.

Prints the sum of the six recalls, of whole vectors and of those cut to their k heaviest terms, active terms, the terms
that a caption and an image share (times the images: the postings that a query reads) and the share of images with a
word of their captions among their ten heaviest; mean and standard deviation over the seeds. Writes the table
(`--table`) after each training. A training that is finished is not done again; one that was stopped goes on. Further
key=value go to every lexicon and win.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "datasets")]

from lexlip.errors import UserError  # noqa: E402
from lexlip.utils.files import write_json  # noqa: E402
from lexlip_data.command import run_command  # noqa: E402

WITHOUT_TEACHER = {"contrastive": 1, "i2t": 0, "t2t": 0, "self_t": 0, "distill": 0}
PLAIN = {
    "loss_names": WITHOUT_TEACHER, "train_top_k": [], "flops_warmup": 0, "expansion_start": 1.0, "expansion_end": 1.0,
}  # fmt: skip
VARIANTS: dict[str, dict] = {
    "plain": PLAIN,
    "ramp of FLOPS": {**PLAIN, "flops_warmup": 0.5},
    "ramp, FLOPS of images 1.5": {**PLAIN, "flops_warmup": 0.5, "flops_weight_image": 1.5},
    "threshold of 64 terms": {**PLAIN, "flops_threshold": 64},
    "log1p twice": {**PLAIN, "activation": "log1p_twice"},
    "target of 64 terms": {**PLAIN, "target_terms_text": 64, "target_terms_image": 64},
    "vectors cut to 64 and 24": {**PLAIN, "train_top_k": [64, 24]},
    "the same, annealed from 256": {**PLAIN, "train_top_k": [64, 24], "top_k_start": 256},
    "dense teacher": {**PLAIN, "loss_names": {**WITHOUT_TEACHER, "distill": 3}},
    "control of the expansion": {**PLAIN, "expansion_start": 0.3},
    "lookup": {**PLAIN, "head_text": "lookup"},
    "all": {},
    "all, lookup": {"head_text": "lookup"},
}
CUTS = [64, 32, 16, 8]


def main(arguments: list[str] | None = None) -> int:
    """Train what is missing, print and write the table; returns the exit status."""
    options = _options(arguments)
    results: dict[str, list[dict[str, float]]] = {name: [] for name in ["dense reference", *options.variants]}
    table = ""
    for seed in options.seeds:
        dense = _dense(options, seed)
        results["dense reference"].append(_measured(options, dense, options.out / f"dense_seed{seed}.json", "dense"))
        for name in options.variants:
            results[name].append(_variant(options, name, seed, dense))
            table = _table(results, options)  # after each training, so that a stopped command leaves what there is
            options.table.parent.mkdir(parents=True, exist_ok=True)
            options.table.write_text(table)
    write_json({"seeds": options.seeds, "runs": results}, options.out / "results.json")
    print(table)
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("features", type=Path, help="folder of `lexlip cache`, with a val split")
    parser.add_argument("--out", type=Path, default=Path("runs/frozen_losses"))
    parser.add_argument("--table", type=Path, help="default: OUT/table.md")
    parser.add_argument("--seeds", type=lambda text: [int(part) for part in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--variants", type=_names, default=list(VARIANTS), help="; ".join(VARIANTS))
    parser.add_argument("keys", nargs="*", metavar="key=value", help="for every lexicon")
    options = parser.parse_intermixed_args(arguments)
    options.table = options.table or options.out / "table.md"
    return options


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(";")]
    if wrong := sorted(set(names) - set(VARIANTS)):
        raise argparse.ArgumentTypeError(f"{wrong[0]!r} is none of: {'; '.join(VARIANTS)}")
    return names


def _dense(options: argparse.Namespace, seed: int) -> Path:
    from lexlip.fit.run import train_heads

    return train_heads("dense", options.features, options.out, _size_keys(options, "dense") | {"seed": seed})


def _size_keys(options: argparse.Namespace, head: str) -> dict:
    """The keys that the size of the data sets, and those of the command line, as far as both heads have them."""
    from lexlip.features.store import FeatureStore
    from lexlip.fit.settings import keys_of, settings_for
    from lexlip.train.words import read_words

    given = read_words(options.keys, {})[0]
    if head == "dense":
        given = {key: value for key, value in given.items() if key in ("max_steps", "batch_size", "per_gpu_batchsize")}
    return {**keys_of(settings_for(len(FeatureStore(options.features).split("train").image_ids)), head), **given}


def _variant(options: argparse.Namespace, name: str, seed: int, dense: Path) -> dict[str, float]:
    from lexlip.fit.run import train_heads

    own = "".join(c if c.isalnum() else "_" for c in name)
    keys = {**VARIANTS[name], **_size_keys(options, "lexicon"), "seed": seed, "teacher": str(dense)}
    last = train_heads("lexicon", options.features, options.out / own, keys)
    return _measured(options, last, options.out / f"{own}_seed{seed}.json", "lexicon")


def _measured(options: argparse.Namespace, checkpoint: Path, file: Path, head: str) -> dict[str, float]:
    """The table's numbers of a checkpoint, from the file that holds them already or from the val split."""
    from lexlip.convert.frozen import read_heads
    from lexlip.features.store import FeatureStore
    from lexlip.fit.evaluate import evaluated

    if file.is_file():
        return json.loads(file.read_text())
    store = FeatureStore(options.features)
    model, split = read_heads(checkpoint, store), store.split("val")
    metrics = evaluated(model, split, head, CUTS)
    found = {"sum": metrics["rsum"]}
    if head == "lexicon":
        found |= {f"{k} terms": metrics["pruned"][str(k)]["rsum"] for k in CUTS}
        found |= {f"terms, {side}": number for side, number in metrics["active_terms"].items()}
        found["shared"] = metrics["shared_terms"]
        found["grounded"] = metrics["grounding"]["images"]
    write_json(found, file)
    return found


def _table(results: dict[str, list[dict[str, float]]], options: argparse.Namespace) -> str:
    columns = ["sum", *(f"{k} terms" for k in CUTS), "terms, text", "terms, image", "shared", "grounded"]
    lines = [
        f"`python scripts/frozen_losses.py FEATURES --seeds {','.join(map(str, options.seeds))}"
        f"{''.join(f' {key}' for key in options.keys)}`",
        "",
        f"| variant | seeds | {' | '.join(columns)} |",
        f"| --- | --- | {' | '.join('---' for _ in columns)} |",
    ]
    for variant, runs in results.items():
        if runs:
            cells = " | ".join(_spread([run[name] for run in runs]) if name in runs[0] else "" for name in columns)
            lines.append(f"| {variant} | {len(runs)} | {cells} |")
    return "\n".join(lines) + "\n"


def _spread(values: list[float]) -> str:
    return f"{statistics.fmean(values):.1f} ± {statistics.stdev(values) if len(values) > 1 else 0.0:.1f}"


if __name__ == "__main__":
    sys.exit(run_command(main, (UserError,)))
