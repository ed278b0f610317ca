"""lexlip explain: which patches of an image, which word pieces of a text, give a word its weight."""

from __future__ import annotations

import argparse
from pathlib import Path

from lexlip.errors import EncodingError, UserError
from lexlip.models.source import check_source
from lexlip.pretrained import DEFAULT
from lexlip.utils.images import image_of_file
from lexlip.utils.options import trust_option
from lexlip.utils.paths import check_input

HEAVIEST = 5  # words, where none are named


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Hook `explain` into the parser of the `lexlip` command."""
    command = commands.add_parser("explain", help="where a weight comes from: patches of an image, words of a text")
    command.add_argument(
        "--model", default=DEFAULT, help=f"model folder, or a name on the hub (default: {DEFAULT}, which comes along)"
    )
    trust_option(command)
    what = command.add_mutually_exclusive_group(required=True)
    what.add_argument("--image", type=Path, metavar="FILE", help="an image")
    what.add_argument("--text", help="a text")
    command.add_argument(
        "--words", metavar="A,B", help=f"words of the model's vocabulary (default: the {HEAVIEST} heaviest)"
    )
    command.add_argument("--out", type=Path, metavar="FILE", help="of --image: a PNG or JPEG of the heat maps")
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    if options.out is not None and options.text is not None:
        raise UserError("--out: heat maps are of an --image; what a text's words add is printed")
    if options.out is not None and options.out.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise UserError(f"--out {options.out}: its name must end in .png or .jpg")
    if options.out is not None and not options.out.absolute().parent.is_dir():
        raise UserError(f"--out {options.out}: there is no folder {options.out.absolute().parent}")
    check_input("--image", options.image)
    check_source("--model ", options.model)
    from lexlip.models.lexlip import LexLIP
    from lexlip.models.retrieval import LexiconModel

    model = LexLIP.from_pretrained(options.model, trust_sources=options.trust_sources)
    if not isinstance(model, LexiconModel):
        raise EncodingError(f"{options.model} is a dense model, whose vectors have no words")
    words = [word.strip() for word in options.words.split(",")] if options.words is not None else None
    if options.text is not None:
        _explain_text(model, options.text, words)
    else:
        _explain_image(model, options.image, words, options.out)


def _explain_text(model, text: str, words: list[str] | None) -> None:
    if words is None:
        words = [word for word, _ in model.lexicon(model.encode_text(text), HEAVIEST)[0]]
    if not words:
        raise EncodingError(f"{text!r} has no word of this model's vocabulary")
    found = model.attribute_text(text, words)
    totals = found.weights.amax(1) if found.pooling == "max" else found.weights.sum(1)
    width = max(map(len, found.pieces))
    for word, row, total in zip(words, found.weights.tolist(), totals.tolist(), strict=True):
        print(f"{total:.4f}  {word}  ({'the largest' if found.pooling == 'max' else 'the sum'} of)")
        for piece, weight in zip(found.pieces, row, strict=True):
            if weight:
                print(f"    {weight:.4f}  {piece:<{width}}".rstrip())


def _explain_image(model, path: Path, words: list[str] | None, out: Path | None) -> None:
    from lexlip.explain.heat import figure

    image = image_of_file(path)
    if model.patch_pooling is None:
        raise EncodingError("this model's image side says nothing of patches; docs/MODELS.md says which do")
    vector = model.encode_image(image, normalize=False)
    if words is None:
        words = [word for word, _ in model.lexicon(vector, HEAVIEST)[0]]
    if not words:
        raise EncodingError(f"{path} has no word of this model; name some with --words")
    maps = model.attribute(image, words)
    names = model.tokenizer.get_vocab()
    weights = [float(vector[0, names[word]]) for word in words]
    rows, columns = maps.shape[1:]
    for word, weight, place in zip(words, weights, maps.flatten(1).argmax(1).tolist(), strict=True):
        row, column = divmod(place, columns)
        print(f"{weight:.4f}  {word}  row {row + 1} of {rows}, column {column + 1} of {columns}")
    if out is not None:
        labels = [f"{word}  {weight:.2f}" for word, weight in zip(words, weights, strict=True)]
        figure(image, labels, maps.cpu().numpy(), model.seen(image.size)).save(out)
