"""lexlip classify: which of some labels the images of a folder show."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from lexlip.errors import UserError
from lexlip.models.source import check_source
from lexlip.pretrained import DEFAULT
from lexlip.utils.options import trust_option
from lexlip.utils.paths import check_input
from lexlip_data.errors import DataError, one_line


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Hook `classify` into the parser of the `lexlip` command."""
    command = commands.add_parser("classify", help="which of some labels images show, without an example of any")
    command.add_argument("--images", type=Path, required=True, metavar="DIR", help="all images under a folder")
    command.add_argument(
        "--labels", type=Path, metavar="FILE", help="one a line (default: none; each image's heaviest words are told)"
    )
    command.add_argument("--model", default=DEFAULT, help=f"model folder, or a name on the hub (default: {DEFAULT})")
    trust_option(command)
    command.add_argument("--templates", type=Path, metavar="FILE", help="prompts, one a line, {} for the label")
    command.add_argument(
        "--words", action="store_true", help="by the weights of the labels' own words, without prompts"
    )
    command.add_argument(
        "--truth", metavar="FILE",
        help="table of image and label, for the accuracy (default: folders named as labels, where there are some)",
    )  # fmt: skip
    command.add_argument("-k", type=int, default=5, help="labels of an image (default: 5)")
    command.add_argument("--batch-size", type=int, default=64, help="images at once (default: 64)")
    command.add_argument("--device", help="cpu, cuda, ... (default: a GPU where there is one)")
    command.add_argument("--json", action="store_true", help="JSON instead of lines")
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    check_input("--images", options.images, folder=True)
    check_input("--labels", options.labels)
    check_input("--templates", options.templates)
    check_input("--truth", Path(options.truth) if options.truth else None)
    for name in ("k", "batch_size"):
        if getattr(options, name) < 1:
            raise UserError(f"{name}={getattr(options, name)}: at least 1")
    if options.labels is None and (options.words or options.templates or options.truth):
        raise UserError("--words, --templates and --truth need --labels")
    if options.words and options.templates:
        raise UserError("--words takes no --templates: no text is encoded")
    check_source("--model ", options.model)
    from lexlip.classify import run
    from lexlip.encode.files import FolderImages
    from lexlip.models.lexlip import LexLIP
    from lexlip.utils.devices import usable_device

    labels = run.read_lines(options.labels, "labels") if options.labels else []
    templates = run.read_lines(options.templates, "templates") if options.templates else run.TEMPLATES
    run.check_templates(templates)
    truth = run.truth_of_table(Path(options.truth), labels) if options.truth else None
    model = LexLIP.from_pretrained(options.model, trust_sources=options.trust_sources)
    model = model.to(usable_device(options.device)).eval()
    corpus = FolderImages(options.images)
    broken: dict[str, str] = {}
    if not len(corpus):
        raise DataError(f"{options.images}: no images in it")
    for note in corpus.notes:
        print(one_line(note), file=sys.stderr)
    of_labels = None
    if labels:
        of_labels = run.word_vectors(model, labels) if options.words else run.label_vectors(model, labels, templates)
    results = []
    for names, vectors in run.encoded_images(model, corpus, options.batch_size, broken):
        if of_labels is None:
            words = model.lexicon(vectors, options.k)
            pairs = (zip(*row) if row else ((), ()) for row in words)
            results += [run.Classified(name, *map(tuple, pair)) for name, pair in zip(names, pairs)]
        else:
            results += run.classify(vectors, names, labels, of_labels, max(options.k, 5))
    if truth is None and labels:
        truth = run.truth_of_folders([result.name for result in results], labels)
    numbers = run.accuracy(results, truth) if truth else None
    _tell(options, results, broken, numbers)


def _tell(options: argparse.Namespace, results: list, broken: dict[str, str], numbers: dict | None) -> None:
    for name, why in broken.items():
        print(f"{one_line(options.images / name)}: {one_line(why)}", file=sys.stderr)
    shown = [asdict(result) for result in results]
    for result in shown:
        result["labels"], result["scores"] = result["labels"][: options.k], result["scores"][: options.k]
    if options.json:
        print(json.dumps({"images": shown, "accuracy": numbers, "broken": broken}, indent=2))
        return
    for result in shown:
        labels = "  ".join(f"{label} {score:.3f}" for label, score in zip(result["labels"], result["scores"]))
        print(f"{one_line(result['name'])}: {one_line(labels, 10_000)}")
    if numbers is not None:
        print(f"top-1 {numbers['top1']:.1%}, top-5 {numbers['top5']:.1%} of {numbers['images']:,} images")
