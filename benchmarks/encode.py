"""Encoding captions and photos: ours against other libraries with the same towers and weights.

    python benchmarks/encode.py --json encode.json

Captions: `LexLIP.encode_text` against sentence-transformers' `SparseEncoder`, a BERT and its masked-word head with
random weights in both; the caption lengths are drawn like those of COCO. Photos: `LexLIP.encode_image` against what an
open_clip user runs: open_clip's transform of each photo, batches of `--batch`, the same tower and head under no_grad.
Both get PIL images in memory. A path gives all vectors, dense; they must agree.
"""

from __future__ import annotations

import functools
import importlib.util
import tempfile

import checkout
import harness
import numpy as np
import torch
from harness import Options, Subject
from PIL import Image

from lexlip.convert.sparse_encoder import import_sparse_encoder
from lexlip.models.lexlip import LexLIP

WORDS = 30_522
SIZES = ("captions", "photos", "hidden", "layers", "vit", "image_size", "batch")


@functools.lru_cache(maxsize=1)
def models(hidden: int, layers: int, vit: str, size: int) -> tuple[object, LexLIP]:
    """A SparseEncoder with random weights, and the model folder's class around the same."""
    from sentence_transformers import SparseEncoder
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: n for n, word in enumerate([*special, *(f"w{n}" for n in range(WORDS - len(special)))])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), special))
    with tempfile.TemporaryDirectory() as folder:
        shape = {"num_attention_heads": max(1, hidden // 64), "intermediate_size": 4 * hidden}
        bert = BertConfig(vocab_size=WORDS, hidden_size=hidden, num_hidden_layers=layers, **shape)
        BertForMaskedLM(bert).save_pretrained(folder)
        PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=64, **names).save_pretrained(folder)
        encoder = SparseEncoder(folder, device="cpu")  # a plain BERT becomes a SPLADE with maxima
        encoder.save_pretrained(f"{folder}/splade")
        return encoder, import_sparse_encoder(f"{folder}/splade", vit, size)


def captions(count: int) -> list[str]:
    """Of 8 to 30 words, most of them of ten or so, as COCO's are."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.gamma(4.0, 1.2, count) + 6, 8, 30).astype(int)
    return [" ".join(f"w{n}" for n in rng.integers(0, WORDS - 5, length)) for length in lengths]


def photos(count: int) -> list[Image.Image]:
    """Of 640 x 480 pixels."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (count, 15, 20, 3), dtype=np.uint8)
    return [Image.fromarray(pixels).resize((640, 480)) for pixels in small]


def _models(options: Options) -> tuple[object, LexLIP]:
    more = options.more
    return models(more["hidden"], more["layers"], more["vit"], more["image_size"])


def build_captions(which: str, options: Options) -> Subject:
    encoder, model = _models(options)
    texts, batch = captions(options.more["captions"]), options.more["batch"]
    if which == "fast":
        return Subject(lambda: [model.encode_text(texts, normalize=False, batch_size=batch)])
    theirs = lambda: encoder.encode(texts, batch_size=batch, convert_to_sparse_tensor=False, show_progress_bar=False)
    return Subject(lambda: [theirs()])


def build_photos(which: str, options: Options) -> Subject:
    from open_clip.transform import image_transform

    model, images, batch = _models(options)[1], photos(options.more["photos"]), options.more["batch"]
    if which == "fast":
        return Subject(lambda: [model.encode_image(images, normalize=False, batch_size=batch)])
    size, (mean, std) = options.more["image_size"], _normalisation(model)
    transform = image_transform(size, is_train=False, mean=mean, std=std)

    @torch.no_grad()
    def run() -> list[torch.Tensor]:
        parts = [images[begin : begin + batch] for begin in range(0, len(images), batch)]
        return [torch.cat([model.lexicon_image(torch.stack([transform(image) for image in part])) for part in parts])]

    return Subject(run)


def _normalisation(model: LexLIP) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of the model's own transform, which is shown two colours."""
    shown = [model.image_transform()(Image.new("RGB", (64, 64), (value,) * 3))[:, 0, 0] for value in (0, 255)]
    std = 1 / (shown[1] - shown[0])
    return (-shown[0] * std).tolist(), std.tolist()


def main(arguments: list[str] | None = None) -> list[dict]:
    parser = harness.parser(__doc__)
    parser.set_defaults(repeats=3, device="cpu", threads=1)
    parser.add_argument("--captions", type=int, default=1000)
    parser.add_argument("--photos", type=int, default=64)
    parser.add_argument("--hidden", type=int, default=128, help="width of BERT")
    parser.add_argument("--layers", type=int, default=2, help="of BERT")
    parser.add_argument("--vit", default="vit_small_patch16_224", help="image tower, timm's name")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=64)
    options = harness.options(parser, arguments)
    if options.cuda or options.dtype != "float32":
        parser.error("this compares on the CPU, in float32")
    missing = [name for name in ("sentence_transformers", "open_clip") if importlib.util.find_spec(name) is None]
    if missing:
        parser.error(f"{' and '.join(missing)} to compare with: pip install sentence-transformers open_clip_torch")
    rows = []
    for name, build in (("captions", build_captions), ("photos", build_photos)):
        row = harness.compare(name, build, options)
        ours, theirs = (build(which, options).run()[0] for which in harness.PATHS)
        row["difference"] = float((ours - theirs).abs().max())
        row["agrees"] = row["difference"] < 2e-2 if name == "photos" else row["difference"] < 1e-3
        count = options.more[name]
        row |= {"per_second": count / row["fast"], "per_second_reference": count / row["textbook"]}
        row["notes"] = [f"{row['per_second']:.0f} a second against {row['per_second_reference']:.0f}"]
        rows.append({**row, **{name: options.more[name] for name in SIZES}})
    harness.report(rows, options)
    return rows


if __name__ == "__main__":
    checkout.run(main)
