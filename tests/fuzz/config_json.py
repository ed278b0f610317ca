"""Model folders with a hostile config.json: each is opened and, if that works, used.

    python -m tests.fuzz.config_json --files 1000 --seed 0
    python -m tests.fuzz.config_json --only 137         # one file again, with its message

Each file is the config of a small model (BEiT, ViT, ConvNeXt, a dense one) with one to three changes, of one family:
"values" (another value of any type and size), "sizes" (numbers that a tower could have), "names" (of towers, leading
elsewhere too), "arguments" (of timm and transformers that do more than give a shape), "fields" (missing, unknown, of
another place), "text" (damaged JSON), "mild" (what changes no shape). About a second per file.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from tests.fuzz.common import in_process, opening, table

SECONDS, MEGABYTES = (
    5,
    1024,
)  # the most for opening and using one; memory beyond that of an idle process
TEXT = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 16, "type_vocab_size": 2, "initializer_range": 0.02, "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}  # fmt: skip
SMALL = {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
BASE: dict[str, dict] = {
    "beit": {"vit": "beit_base_patch16_224", "vit_kwargs": {**SMALL, "init_values": 0.5}},
    "vit": {"vit": "vit_tiny_patch16_224", "vit_kwargs": SMALL},
    "convnext": {"vit": "convnext_atto", "vit_kwargs": {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}},
    "dense": {"vit": "beit_base_patch16_224", "vit_kwargs": SMALL, "head": "dense", "embed_dim": 8},
}
VALUES = [
    None, True, False, 0, 1, -1, 2, 3, 7, 16, 17, 10**6, 10**9, 10**12, -(10**12), 2**31, 2**63, 10**400, 0.5, -0.5,
    1e-300,
    1e300, float("inf"), float("-inf"), float("nan"), "", "x", "16", "é\u2028\x00", "a" * 10**5, "../..", "/etc/passwd",
    [],
    [1], [1] * 1000, [[[]]], {}, {"a": 1}, {"vocab_size": 1}, "os.system", "\ud800", [10**9, 10**9], [None], ["x"],
]  # fmt: skip
SIZES = [
    0,
    1,
    2,
    3,
    4,
    8,
    12,
    15,
    16,
    24,
    31,
    32,
    33,
    40,
    48,
    64,
    224,
    256,
    511,
    512,
    1000,
    4096,
    65536,
    1 << 20,
    1 << 24,
]
NAMES = [
    "hf-hub:owner/name", "hf_hub:owner/name", "HF-HUB:a/b", "local-dir:.", "local-dir:/etc", "timm/beit@hf", "timm/x",
    ".",
    "/etc/passwd", "../m", "http://127.0.0.1:9/x", "https://huggingface.co/a", "beit_base_patch16_224.no_such_tag",
    "beit_base_patch16_224:tag", "vit_gigantic_patch14_224", "resnet50", "convnext_xxlarge", "efficientnet_b0",
    "no_such",
    "google/vit-base-patch16-384", "eva_giant_patch14_224", "swin_tiny_patch4_window7_224", "coat_mini",
    "naflexvit_base",
    "vit_base_patch16_224\n", "file:///etc/passwd", "s3://a/b", "C:\\x", "a" * 2000,
]  # fmt: skip
ARGUMENTS: dict[str, Any] = {
    "pretrained": True, "pretrained_cfg": {"url": "http://127.0.0.1:9/a.pth"}, "pretrained_strict": False,
    "pretrained_cfg_overlay": {"url": "http://127.0.0.1:9/a.pth", "source": "url"},
    "checkpoint_path": "model.safetensors",
    "cache_dir": "cache", "features_only": True, "out_indices": [0], "url": "http://127.0.0.1:9", "hf_hub_id": "a/b",
    "scriptable": True, "exportable": True, "no_jit": True, "feature_cls": "x", "kwargs_filter": ["a"],
    "device": "cuda",
    "dtype": "float16", "norm_layer": "layernorm", "act_layer": "gelu", "block_fn": "x",
    "auto_map": {"AutoModel": "x.Y"},
    "_attn_implementation": "kernels-community/flash", "quantization_config": {"load_in_8bit": True},
    "img_size": 64,
    "trust_remote_code": True, "_name_or_path": "a/b", "torch_dtype": "os.system", "num_classes": 10,
    "global_pool": "avg",
}  # fmt: skip


def places(config: dict) -> list[tuple[dict, str]]:
    """Every field of a config, as what holds it and its name."""
    parts = [part for part in (config.get("text"), config.get("vit_kwargs")) if isinstance(part, dict)]
    inner = [(part, name) for part in parts for name in part]
    return [(config, name) for name in config] + inner


def change_values(draw: random.Random, config: dict) -> str:
    owner, name = draw.choice(places(config))
    owner[name] = draw.choice(VALUES)
    return json.dumps(config)


def change_sizes(draw: random.Random, config: dict) -> str:
    numbers = [(owner, name) for owner, name in places(config) if isinstance(owner[name], (int, list))]
    owner, name = draw.choice(numbers)
    old = owner[name]
    size = draw.choice(SIZES)
    owner[name] = [size if draw.random() < 0.5 else entry for entry in old] if isinstance(old, list) else size
    return json.dumps(config)


def change_mildly(draw: random.Random, config: dict) -> str:
    """What changes no shape, and images of another size."""
    text, kwargs = config["text"], config["vit_kwargs"]
    for _ in range(2):
        owner, name, values = draw.choice(
            [
                (config, "image_size", [8, 16, 32, 48, 64, 96, 33, 1024]), (config, "image_norm_eps", [0, 1e-6, 1.0]),
                (config, "max_text_len", [2, 5, 16]), (config, "sentence_sep", [True, False]),
                (text, "hidden_dropout_prob", [0, 0.5, 1]), (text, "layer_norm_eps", [1e-5, 0]),
                (text, "num_attention_heads", [1, 2, 4, 16, 3]), (text, "hidden_act", ["relu", "silu"]),
                (text, "pad_token_id", [None, 1, 39]), (kwargs, "drop_rate", [0, 0.5]),
                (kwargs, "drop_path_rate", [0.1, 1]), (config, "vit", [f"{config.get('vit')}.a_tag"]),
            ]
        )  # fmt: skip
        owner[name] = draw.choice(values)
    return json.dumps(config)


def change_names(draw: random.Random, config: dict) -> str:
    config["vit"] = draw.choice(NAMES)
    if draw.random() < 0.7:
        config["vit_kwargs"] = {}
    return json.dumps(config)


def change_arguments(draw: random.Random, config: dict) -> str:
    name = draw.choice(sorted(ARGUMENTS))
    draw.choice([config["vit_kwargs"], config["vit_kwargs"], config["text"], config])[name] = ARGUMENTS[name]
    return json.dumps(config)


def change_fields(draw: random.Random, config: dict) -> str:
    owner, name = draw.choice(places(config))
    value = owner.pop(name)
    if draw.random() < 0.5:
        (other, other_name) = draw.choice(places(config))
        other[draw.choice([other_name, name, f"{name}_", "wings", "self", "__init__"])] = value
    return json.dumps(config)


def change_text(draw: random.Random, config: dict) -> str:
    text = json.dumps(config, indent=draw.choice([None, 2]))
    at, end = sorted(draw.randrange(len(text)) for _ in range(2))
    return draw.choice(
        [
            text[:at], text[:at] + draw.choice('{}[]",:\x000e-') + text[at + 1 :], text[:at] + text[end:],
            text + text, "[" * 10**5, '{"a":' * 10**5, "null", "[]", "5", "", text.replace(":", ": 1", 1), f"[{text}]",
            text.replace("40", "9" * 5000, 1), text[:at] + text[at:end] * 3 + text[end:], "\ufeff" + text,
        ]
    )  # fmt: skip


FAMILIES: dict[str, Callable[[random.Random, dict], str]] = {
    "values": change_values, "sizes": change_sizes, "names": change_names, "arguments": change_arguments,
    "fields": change_fields, "text": change_text, "mild": change_mildly,
}  # fmt: skip


def damaged(number: int, seed: int) -> tuple[str, str, str]:
    """The base, the family and the content of a config.json."""
    draw = random.Random(f"{seed}:{number}")
    base = sorted(BASE)[number % len(BASE)]
    family = list(FAMILIES)[(number // len(BASE)) % len(FAMILIES)]
    config = {**fresh(base), "text": dict(TEXT), "vit_kwargs": dict(BASE[base]["vit_kwargs"])}
    for _ in range(draw.choice([0, 0, 0, 1])):  # further changes, of kinds that keep it JSON
        try:
            draw.choice([change_values, change_sizes])(draw, config)
            places(config)
        except (TypeError, AttributeError):  # a part that others lie in is gone
            break
    if not all(isinstance(config[part], dict) for part in ("text", "vit_kwargs")):
        return base, "values", json.dumps(config)
    return base, family, FAMILIES[family](draw, config)


def fresh(base: str) -> dict:
    """A whole config, as `save_pretrained` writes it."""
    shape = {"image_size": 32, "text": TEXT, "image_norm_eps": 1e-12, "max_text_len": 8, "corner_tokens": 0}
    rest = {"sentence_sep": False, "head": "lexicon", "embed_dim": None, "text_pooler": False, "image_projection": True}
    return {**shape, **rest, **BASE[base]}


def fuzz(numbers: Iterable[int], seed: int, scratch: Path) -> Iterator[tuple[int, str, str, str, float, float]]:
    """Number, family, outcome, message, seconds and megabytes of each file."""
    import torch
    from PIL import Image

    from lexlip import ModelConfig
    from lexlip.errors import UserError
    from lexlip.models.auto import load_folder_of_any_head, model_class
    from lexlip_data.convert.vocabulary import build_tokenizer

    torch.set_num_threads(1)
    build_tokenizer(["red dot beside a ring on the green box"], scratch / "words", 40)
    from lexlip.models.tokenizer import open_tokenizer

    for base in BASE:
        config = ModelConfig(**fresh(base))
        model_class(config)(config, open_tokenizer(scratch / "words")).save_pretrained(scratch / base)
        load_folder_of_any_head(scratch / base)  # whatever is loaded late is loaded once, before the forks
    held = in_process(lambda: ("opened", ""), SECONDS, 1 << 20)[3]  # of a process that does nothing
    for number in numbers:
        base, family, content = damaged(number, seed)
        folder = scratch / "input" / "m"
        shutil.copytree(scratch / base, folder)
        (folder / "config.json").write_text(content, encoding="utf-8", errors="surrogatepass")

        def use(folder: Path = folder) -> None:
            model = load_folder_of_any_head(folder)
            vectors = model.encode_text(["red dot", "box"])
            vectors @ model.encode_image([Image.new("RGB", (40, 30), "red")]).T

        def work(folder: Path = folder, use: Callable[[], None] = use) -> tuple[str, str]:
            import os

            os.chdir(folder.parent)
            return opening(use, folder.parent, (UserError,))

        outcome, message, seconds, megabytes = in_process(work, 10 * SECONDS, held + MEGABYTES)
        if outcome in ("opened", "refused") and seconds > SECONDS:
            outcome = "hang"
        yield number, family, outcome, message, seconds, megabytes - held
        shutil.rmtree(folder.parent)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="the number of one file")
    options = parser.parse_args()
    numbers = range(options.files) if options.only is None else [options.only]
    rows: dict[str, Counter] = {}
    longest = largest = 0.0
    with tempfile.TemporaryDirectory(prefix="fuzz") as scratch:
        for number, family, outcome, message, seconds, megabytes in fuzz(numbers, options.seed, Path(scratch)):
            rows.setdefault(family, Counter())[outcome] += 1
            longest, largest = max(longest, seconds), max(largest, megabytes)
            if outcome not in ("opened", "refused") or options.only is not None:
                print(f"file {number}, {family}: {outcome}, {seconds} s, {megabytes:.0f} MB\n{message}\n", flush=True)
    print(table(rows, "changed"))
    print(f"\nlongest {longest:.1f} s, most memory beyond that of the libraries {largest:.0f} MB")
    return 0 if all(set(counts) <= {"opened", "refused"} for counts in rows.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
