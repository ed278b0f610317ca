"""The commands around checkpoints: lexlip import-official, -lotlip, -sparse-encoder, export, export-onnx."""

import argparse
from collections.abc import Callable
from pathlib import Path

from lexlip.models.source import check_source
from lexlip.utils.options import trust_option
from lexlip.utils.paths import check_input, check_output


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Hook the commands into the parser of the `lexlip` command."""

    def add(name: str, source: str, run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text)

        def checked(options: argparse.Namespace) -> None:
            check_input(source, getattr(options, source), folder=source == "folder")
            check_output("out", options.out, folder=True)
            run(options)

        command.add_argument(source, type=Path)
        command.add_argument("out", type=Path)
        command.set_defaults(run=checked)
        return command

    official = add(
        "import-official", "checkpoint", _import_official, "turn a checkpoint of the official code into a model folder"
    )
    official.add_argument("--text-heads", type=int, help="attention heads of the text tower (default: width / 64)")
    official.add_argument("--image-heads", type=int, help="of the image tower (default: as in the position table)")
    official.add_argument("--tokenizer", help="hub name or folder of the tokenizer, saved along")
    official.add_argument(
        "--rel-pos", choices=("2d", "official"), default="2d",
        help="how positions trained at 224 px are brought to a fine-tuned 384 px",
    )  # fmt: skip

    lotlip = add("import-lotlip", "checkpoint", _import_lotlip, "turn a checkpoint of LoTLIP into a model folder")
    lotlip.add_argument("--corner-tokens", type=int, default=2, help="how many of its last words are corners")
    lotlip.add_argument("--tokenizer", help="hub name or folder of the tokenizer, saved along: bert-base-uncased")

    sparse = commands.add_parser("import-sparse-encoder", help="a SPLADE of sentence-transformers as a model folder")
    sparse.add_argument("name", help="folder, or name on the hub")
    sparse.add_argument("out", type=Path)
    tower = "timm name of the image tower, which is to be trained (default: %(default)s)"
    sparse.add_argument("--vit", default="vit_base_patch16_224", help=tower)
    sparse.add_argument("--vit-pretrained", action="store_true", help="fetch the image tower's weights")
    sparse.add_argument("--image-size", type=int, default=224, help="pixels a side (default: 224)")
    sparse.set_defaults(run=_import_sparse_encoder)

    export = add("export", "checkpoint", _export, "turn a checkpoint of either phase into a model folder")
    export.add_argument("--tokenizer", help="hub name or folder, for checkpoints that hold none")
    export.add_argument("--phase-state", action="store_true", help="also keep decoder, or momentum encoder and queues")

    export.add_argument("--features", type=Path, metavar="DIR", help="frozen towers: the cache, if it was moved")
    export.add_argument("--embed-towers", action="store_true", help="frozen towers: also write them into the folder")
    storage = export.add_mutually_exclusive_group()
    storage.add_argument("--half", action="store_true", help="frozen towers: numbers in 16 bits")
    storage.add_argument("--int8", action="store_true", help="frozen towers: those of towers in 8 bits, others in 16")
    trust_option(export)
    onnx = add("export-onnx", "folder", _export_onnx, "both towers of a model folder as ONNX files, checked")
    trust_option(onnx)


def _import_official(options: argparse.Namespace) -> None:
    from lexlip.convert.export import write_folder
    from lexlip.convert.official import import_official

    imported = import_official(
        options.checkpoint, options.text_heads, options.image_heads, options.tokenizer, options.rel_pos
    )
    model, config = imported.model, imported.model.config
    write_folder(model, options.out, imported.state, f"Phase{imported.phase}")
    heads = f"{config.text['num_attention_heads']} text heads, {config.vit_kwargs['num_heads']} image heads"
    print(f"Phase {imported.phase} model: {_size(model)}, {config.image_size} px, {heads} -> {options.out}")
    for reason in sorted(set(imported.unused.values())):
        names = sorted(name for name, why in imported.unused.items() if why == reason)
        print(f"not used, {reason}:", *names, sep="\n  ")


def _import_lotlip(options: argparse.Namespace) -> None:
    from lexlip.convert.lotlip import import_lotlip

    model = import_lotlip(options.checkpoint, options.corner_tokens, options.tokenizer)
    model.save_pretrained(options.out)
    config = model.config
    print(
        f"dense model: {_size(model)}, {config.image_size} px, {config.vocab_size} words and "
        f"{config.corner_tokens} corner tokens, {config.embed_dim} numbers per vector -> {options.out}"
    )


def _import_sparse_encoder(options: argparse.Namespace) -> None:
    check_source("", options.name)
    check_output("out", options.out, folder=True)
    from lexlip.convert.sparse_encoder import import_sparse_encoder

    model = import_sparse_encoder(options.name, options.vit, options.image_size, options.vit_pretrained)
    model.save_pretrained(options.out)
    tower = "pretrained" if options.vit_pretrained else "random"
    print(
        f"text tower and head of {options.name}, image tower {options.vit} ({tower}, its head to be trained): "
        f"{_size(model)}, {model.config.vocab_size} words -> {options.out}"
    )


def _size(model) -> str:
    return f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:.1f}M parameters"


def _export(options: argparse.Namespace) -> None:
    from lexlip.convert.export import export_checkpoint
    from lexlip.convert.frozen import export_frozen
    from lexlip.models.frozen.config import FrozenConfig
    from lexlip.models.towers.packed import Storage
    from lexlip.models.weights import known_config

    if isinstance(known_config(options.checkpoint, options.trust_sources), FrozenConfig):
        storage: Storage = "int8" if options.int8 else "half" if options.half else "full"
        export_frozen(options.checkpoint, options.out, options.features, options.embed_towers, storage)
    else:
        export_checkpoint(
            options.checkpoint, options.out, options.tokenizer, options.phase_state, options.trust_sources
        )
    print(f"{options.checkpoint} -> {options.out}")


def _export_onnx(options: argparse.Namespace) -> None:
    from lexlip.convert.onnx import export_onnx

    for file, difference in export_onnx(options.folder, options.out, options.trust_sources).items():
        print(f"{file}: largest difference from torch {difference:.1e}")
