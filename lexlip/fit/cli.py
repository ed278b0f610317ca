"""lexlip fit: a lexicon model from captioned images and two public towers."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from lexlip.errors import UserError
from lexlip_data.errors import one_line


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Hook `fit` into the parser of the `lexlip` command."""
    from lexlip.features.cli import data_options

    command = commands.add_parser("fit", help="train lexicon heads on frozen public towers, from your captioned images")
    data_options(command)
    command.add_argument("--out", type=Path, required=True, help="model folder")
    command.add_argument(
        "--work", type=Path, metavar="DIR", help="cache and runs; the same command goes on there (default: OUT.work)"
    )
    command.add_argument(
        "--head-text", choices=("contextual", "lookup"), default="contextual",
        help="lookup: texts are looked up in a table, so that queries need no text tower (default: contextual)",
    )  # fmt: skip
    command.add_argument("--embed-towers", action="store_true", help="write the towers into the model folder too")
    storage = command.add_mutually_exclusive_group()
    storage.add_argument("--half", action="store_true", help="numbers in 16 bits")
    storage.add_argument("--int8", action="store_true", help="those of embedded towers in 8 bits, others in 16")
    command.add_argument("--steps", type=int, help="of each training (default: by the number of images)")
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    work = options.work or options.out.with_name(options.out.name + ".work")
    for name in ("data", "image", "text"):
        if not getattr(options, name):
            raise UserError(f"--{name} is missing")
    if options.out.is_dir() and any(options.out.iterdir()) and not (options.out / "config.json").exists():
        raise UserError(f"{options.out} holds other files; name a new folder with --out")
    if options.steps is not None and options.steps < 1:
        raise UserError(f"--steps {options.steps}: at least 1")
    from lexlip.evaluate.recall import table
    from lexlip.features.cli import write_cache
    from lexlip.fit.cost import training_cost
    from lexlip.fit.report import write_report
    from lexlip.fit.run import fit_heads, last_checkpoint, plans
    from lexlip.train.callbacks.interruption import Stopped
    from lexlip.utils.devices import usable_device

    overrides: dict = {"head_text": options.head_text, **({"max_steps": options.steps} if options.steps else {})}
    device = usable_device(options.device)

    def tell(data: dict, image: Any, text: Any) -> None:
        wanted = plans(len(data["train"]), options.seed, overrides)
        left = {
            head: keys
            for head, keys in wanted.items()
            if not last_checkpoint(head, work, options.seed, keys["max_steps"]).exists()
        }
        if left:
            print(training_cost(left, data["train"], image.tokens, text.lexicon, device), flush=True)

    features = work / "features"
    if not write_cache(options, features, tell).complete:
        raise UserError("other processes are still at work on the cache; start this command again when they are done")

    try:
        model, metrics = fit_heads(
            features, work, options.out, seed=options.seed, embed_towers=options.embed_towers,
            storage="int8" if options.int8 else "half" if options.half else "full", overrides=overrides, device=device,
        )  # fmt: skip
    except Stopped as stopped:
        print(f"{stopped}; the same command goes on", file=sys.stderr)
        sys.exit(stopped.code)
    report, photos = write_report(model, metrics, features, options, work)
    for photo in photos:
        print(f"{one_line(photo.id)}: {', '.join(f'{word} {weight:.2f}' for word, weight in photo.words)}")
    if metrics:
        print(table(metrics))
        words = metrics["lexicon"]["grounding"]
        print(
            f"{words['images']:.0f}% of the photos have a word of their captions among their ten heaviest terms "
            f"(captions of another photo: {words['chance_images']:.0f}%)"
        )
    if not options.embed_towers:
        print("its towers lie elsewhere: open it with --trust-sources (trust_sources=True), or add --embed-towers")
    print(f"model:  {options.out}    (LexLIP.from_pretrained, lexlip encode/search/serve --model)\nreport: {report}")
