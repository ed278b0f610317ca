"""lexlip eval-long-text: some or all sets of the benchmark, with one model.

The options of LoTLIP's own command are taken too, so that its command lines run with another program's name.
"""

import argparse
import re
from pathlib import Path

from lexlip.errors import UserError
from lexlip.models.source import local_source
from lexlip.utils.options import trust_option
from lexlip.utils.paths import check_output
from lexlip_data.convert.arguments import whole

CLIP = re.compile(r"(ViT-|RN\d)[\w-]+")  # open_clip's models, as LoTLIP's command names them
THEIR_NOTES = Path("dataloaders/imageinwords")  # where LoTLIP's code finds IIW's annotations


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Hook `eval-long-text` into the parser of the `lexlip` command."""
    command = commands.add_parser("eval-long-text", help="recall on DCI, IIW, ShareGPT4V and Urban1k")
    command.add_argument("--model", required=True, help="model folder, name on the hub, or open_clip:NAME")
    trust_option(command)
    command.add_argument("--pretrained", help="weights of an open_clip model: their name, or a file")
    command.add_argument("--dci", "--dci-retrieval", type=Path, help="folder that holds densely_captioned_images")
    command.add_argument("--iiw", "--iiw-retrieval", type=Path, help="folder that holds docci, docci_aar and dci")
    command.add_argument("--iiw-anno", type=Path, help="folder of */data.jsonl (default: that of --iiw)")
    command.add_argument(
        "--share4v", "--share4v-retrieval", type=Path, help="folder that ShareGPT4V's image paths start from"
    )
    command.add_argument("--share4v-anno", type=Path, help="share4v_sam_10k.json")
    command.add_argument(
        "--share4v-val-num", "--share4v_val_num", type=_counts, default=[1000, 10000],
        help="how many entries (default: 1000,10000)",
    )  # fmt: skip
    command.add_argument("--urban1k", "--urban1k-retrieval", type=Path, help="folder that holds image and caption")
    command.add_argument("--cache-dir", help=argparse.SUPPRESS)  # of LoTLIP's command
    command.add_argument("--allow-missing", action="store_true", help="count what is missing instead of refusing")
    command.add_argument("--batch-size", type=whole(1), default=64)
    command.add_argument("--workers", type=int, default=0, help="processes that decode images (default: none)")
    command.add_argument("--device", help="cpu, cuda, ... (default: cuda where there is one)")
    command.add_argument("--metrics-file", type=Path, help="also write the numbers to this JSON file")
    command.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    check_output("--metrics-file", options.metrics_file)
    _as_lotlip_names_them(options)
    if not options.model.startswith("open_clip:"):
        local_source(options.model, "--model ")
    from lexlip.evaluate.long_text.encoders import load_encoder
    from lexlip.evaluate.long_text.evaluate import evaluate, refuse_missing, table
    from lexlip.utils.devices import usable_device
    from lexlip.utils.files import write_json

    if options.workers < 0:
        raise UserError(f"--workers {options.workers}: 0 or more")
    device = usable_device(options.device)
    sets = _sets(options)
    if not options.allow_missing:
        refuse_missing(sets)
    encoder = load_encoder(options.model, options.pretrained, str(device), options.trust_sources)
    print(f"{encoder.name}, texts of up to {encoder.context} tokens")
    results = {
        pairs.name: evaluate(pairs, encoder, options.batch_size, options.workers, options.allow_missing)
        for pairs in sets
    }
    print(table(results))
    if options.metrics_file:
        write_json({"model": encoder.name, "context": encoder.context, "sets": results}, options.metrics_file)


def _as_lotlip_names_them(options: argparse.Namespace) -> None:
    """Read what LoTLIP's command line means.

    Raises:
        UserError: it names LoTLIP's own model, which has to be imported first, or a folder of towers.
    """
    if options.model.startswith("lotlip_"):
        raise UserError(
            f"--model {options.model}: import its weights once, `lexlip import-lotlip {options.pretrained or 'FILE'} "
            "FOLDER --tokenizer bert-base-uncased`, then give --model FOLDER without --pretrained and --cache-dir"
        )
    if options.cache_dir is not None:
        raise UserError(f"--cache-dir {options.cache_dir}: no towers are read from there; leave it out")
    if options.pretrained is not None and CLIP.fullmatch(options.model) and not Path(options.model).exists():
        options.model = f"open_clip:{options.model}"
    if options.iiw is not None and options.iiw_anno is None and THEIR_NOTES.is_dir():
        if not any(options.iiw.glob("*/data.jsonl")):
            print(f"annotations of IIW from {THEIR_NOTES}")
            options.iiw_anno = THEIR_NOTES


def _sets(options: argparse.Namespace) -> list:
    from lexlip.evaluate.long_text import layouts

    if (options.share4v is None) != (options.share4v_anno is None):
        raise UserError("--share4v and --share4v-anno go together: the images' folder and share4v_sam_10k.json")
    if options.iiw_anno is not None and options.iiw is None:
        raise UserError("--iiw-anno needs --iiw, the images' folder")
    sets = []
    if options.dci is not None:
        sets.append(layouts.read_dci(options.dci))
    if options.iiw is not None:
        sets.append(layouts.read_iiw(options.iiw, options.iiw_anno))
    if options.share4v is not None:
        paths = options.share4v, options.share4v_anno
        sets += [layouts.read_share4v(*paths, count) for count in options.share4v_val_num]
    if options.urban1k is not None:
        sets.append(layouts.read_urban1k(options.urban1k))
    if not sets:
        raise UserError("no set was named; give --dci, --iiw, --share4v with --share4v-anno, or --urban1k")
    return sets


def _counts(text: str) -> list:
    return [whole(1)(part) for part in text.split(",")]
