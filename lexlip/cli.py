"""The `lexlip` command: checkpoints, model folders, indexes.

lexlip import-official CKPT OUT    a checkpoint of the official code
lexlip import-lotlip CKPT OUT      a checkpoint of LoTLIP
lexlip export CKPT OUT             a checkpoint of this code
lexlip export-onnx FOLDER OUT      both towers as ONNX files
lexlip encode --model M --out DIR  pictures or texts as vectors
lexlip index ACTION INDEX          build, add, delete, merge, info, verify, export
lexlip search --index INDEX TEXT   or a picture, or a bag of words
lexlip serve --index I --model M   the same over HTTP
lexlip eval-long-text --model ...  recall on DCI, IIW, ShareGPT4V, Urban1k
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lexlip.encode.cli import add_commands as add_encode
from lexlip.errors import UserError
from lexlip.evaluate.long_text.cli import add_commands as add_long_text
from lexlip.index.cli import add_commands
from lexlip.serve.cli import add_commands as add_serve


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status, 2 for a mistake told in one line, 1 for what a command found wrong."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options) or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("lexlip", description="Checkpoints, model folders and indexes of LexLIP.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    official = commands.add_parser("import-official", help="turn a checkpoint of the official code into a model folder")
    official.add_argument("checkpoint", type=Path)
    official.add_argument("out", type=Path)
    official.add_argument("--text-heads", type=int, help="attention heads of the text tower (default: width / 64)")
    official.add_argument("--image-heads", type=int, help="of the image tower (default: as in the position table)")
    official.add_argument("--tokenizer", help="hub name or folder of the tokenizer, saved along")
    official.add_argument(
        "--rel-pos", choices=("2d", "official"), default="2d",
        help="how positions trained at 224 px are brought to a fine-tuned 384 px",
    )  # fmt: skip
    official.set_defaults(run=_import_official)

    lotlip = commands.add_parser("import-lotlip", help="turn a checkpoint of LoTLIP into a model folder")
    lotlip.add_argument("checkpoint", type=Path)
    lotlip.add_argument("out", type=Path)
    lotlip.add_argument("--corner-tokens", type=int, default=2, help="how many of its last words are corners")
    lotlip.add_argument("--tokenizer", help="hub name or folder of the tokenizer, saved along: bert-base-uncased")
    lotlip.set_defaults(run=_import_lotlip)

    export = commands.add_parser("export", help="turn a checkpoint of either phase into a model folder")
    export.add_argument("checkpoint", type=Path)
    export.add_argument("out", type=Path)
    export.add_argument("--tokenizer", help="hub name or folder, for checkpoints that hold none")
    export.add_argument("--phase-state", action="store_true", help="also keep decoder, or twins and rings")
    export.set_defaults(run=_export)

    onnx = commands.add_parser("export-onnx", help="both towers of a model folder as ONNX files, checked")
    onnx.add_argument("folder", type=Path)
    onnx.add_argument("out", type=Path)
    onnx.set_defaults(run=_export_onnx)
    add_encode(commands)
    add_commands(commands)
    add_serve(commands)
    add_long_text(commands)
    return parser


def _import_official(options: argparse.Namespace) -> None:
    from lexlip.convert.export import write_folder
    from lexlip.convert.official import import_official

    found = import_official(
        options.checkpoint, options.text_heads, options.image_heads, options.tokenizer, options.rel_pos
    )
    write_folder(found.model, options.out, found.state, found.phase)
    millions = sum(p.numel() for p in found.model.parameters()) / 1e6
    config = found.model.config
    heads = f"{config.text['num_attention_heads']} text heads, {config.vit_kwargs['num_heads']} image heads"
    print(f"Phase {found.phase} model: {millions:.1f}M parameters, {config.image_size} px, {heads} -> {options.out}")
    for reason in sorted(set(found.unused.values())):
        names = sorted(name for name, why in found.unused.items() if why == reason)
        print(f"not used, {reason}:", *names, sep="\n  ")


def _import_lotlip(options: argparse.Namespace) -> None:
    from lexlip.convert.lotlip import import_lotlip

    model = import_lotlip(options.checkpoint, options.corner_tokens, options.tokenizer)
    model.save_pretrained(options.out)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    config = model.config
    print(
        f"dense model: {millions:.1f}M parameters, {config.image_size} px, {config.vocab_size} words and "
        f"{config.corner_tokens} corner tokens, {config.embed_dim} numbers per vector -> {options.out}"
    )


def _export(options: argparse.Namespace) -> None:
    from lexlip.convert.export import export_checkpoint

    export_checkpoint(options.checkpoint, options.out, options.tokenizer, options.phase_state)
    print(f"{options.checkpoint} -> {options.out}")


def _export_onnx(options: argparse.Namespace) -> None:
    from lexlip.convert.onnx import export_onnx

    for file, difference in export_onnx(options.folder, options.out).items():
        print(f"{file}: largest difference from torch {difference:.1e}")


if __name__ == "__main__":
    sys.exit(main())
