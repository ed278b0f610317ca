"""The loader against a bare loop of the decoder, and against a loader as it is usually written.

    python benchmarks/data.py DATA/flickr8k DATA/coco_mini --json data.json

A folder holds NAME_train.tsv or COCO's annotations/captions_train2017.json, and the images; without one the images are
made. Each is converted first, with datasets/convert.py.

bare loop, the yardstick: Pillow opens each JPEG, decodes it in draft mode to RGB, resizes and crops it, and returns it
as an 8-bit array, one image after the other; no captions, no batches. The ratio is the fraction of its rate that the
loader reaches with all that training needs: images from Arrow files, captions, tokens, both masks, ids, whole batches.
simplejpeg: the same, but photos that have the wanted size already are decoded by simplejpeg, as the loader does too.
usual loader: what ViLT's and METER's data sets do: whole decode, floats in the worker, one caption tokenised at a time.

All in one process and one thread, in turn, by the CPU time of the process: images per second and core. Then three
epochs with worker processes, and the memory that these hold after each.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import runpy
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import checkout
import harness
import numpy as np
import simplejpeg
import torch
from harness import Options
from memory import memory_of
from PIL import Image
from torchvision import transforms as tv
from transformers import AutoTokenizer

from lexlip_data.loading.datamodule import CaptionDataModule
from lexlip_data.loading.memory import keep_freed_memory
from lexlip_data.sources.arrow import ArrowSource

EPOCHS = 3


def converted(folder: Path, out: Path, most: int) -> str:
    """Arrow files and a vocabulary of a folder's training split under `out`; its name."""
    name = folder.name.replace("_", "")
    if (folder / "annotations").is_dir():
        layout = ["coco-captions", "--root", str(folder)]
    else:
        layout = ["tsv", "--root", str(folder.parent), "--split", "train"]
        name = folder.name
    common = ["--out", str(out), "--quiet"]
    convert([*layout, "--name", name, "--max-images", str(most), *common])
    convert(["vocab", "--data", str(out), "--name", name, "--out", str(out / "vocab")])
    return name


def convert(command: list[str]) -> None:
    main = runpy.run_path(str(checkout.ROOT / "datasets" / "convert.py"))["main"]
    if status := main(command):
        raise SystemExit(f"datasets/convert.py {' '.join(command)}: status {status}")


def made_up(folder: Path, images: int) -> Path:
    """JPEGs of 640 x 480 with something to see, five captions each, in the TSV layout."""
    rng = np.random.default_rng(0)
    words = ["a", "dog", "cat", "red", "runs", "on", "grass", "near", "two", "people", "water", "boat"]
    root = folder / "made"
    root.mkdir()
    rows = ["title\tfilepath\timage_id"]
    for i in range(images):
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        coarse.resize((640, 480), Image.Resampling.BICUBIC).save(root / f"{i}.jpg", quality=90)
        rows += [f"{' '.join(rng.choice(words, 10))}\t{i}.jpg\t{i}" for _ in range(5)]
    (root / "made_train.tsv").write_text("\n".join(rows) + "\n")
    return root


def data_module(out: Path, name: str, options: Options, workers: int = 0) -> CaptionDataModule:
    config = {
        "datasets": [name], "data_root": str(out), "image_size": options.more["size"], "num_workers": workers,
        "batch_size": options.more["batch"], "per_gpu_batchsize": options.more["batch"], "num_gpus": 0,
    }  # fmt: skip
    return CaptionDataModule(config, AutoTokenizer.from_pretrained(out / "vocab"), mlm=True)


# --- the paths: each yields the sizes of its batches ---


def bare_loop(blobs: list[bytes], size: int, fastest: bool = False) -> Iterator[int]:
    resize = tv.Resize(size, interpolation=tv.InterpolationMode.BICUBIC)
    crop = tv.CenterCrop(size)
    for blob in blobs:
        image = Image.open(io.BytesIO(blob))
        if fastest and image.size == (size, size) and image.format == "JPEG" and image.mode == "RGB":
            simplejpeg.decode_jpeg(blob, "RGB")
            yield 1
            continue
        image.draft("RGB", (2 * size, 2 * size))
        image.load()
        if image.mode != "RGB":
            image = image.convert("RGB")
        np.array(crop(resize(image)))
        yield 1


def loader(module: CaptionDataModule) -> Iterator[int]:
    for batch in module.train_dataloader():
        yield len(batch["image"])


def usual_loader(source: ArrowSource, tokenizer, order: list[int], size: int, batch: int) -> Iterator[int]:
    """As ViLT and METER have it: see the module's docstring. Masks as transformers' own collator makes them."""
    from transformers import DataCollatorForLanguageModeling

    transform = tv.Compose([
        tv.Resize(size, interpolation=tv.InterpolationMode.BICUBIC), tv.CenterCrop(size), tv.ToTensor(),
        tv.Normalize([0.5] * 3, [0.5] * 3),
    ])  # fmt: skip
    mask = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.3)
    for start in range(0, len(order), batch):
        images, texts = [], []
        for i in order[start : start + batch]:
            images.append(transform(Image.open(io.BytesIO(source.image_bytes(i))).convert("RGB")))
            texts.append(tokenizer(source.caption(i, 0), padding="max_length", truncation=True, max_length=40))
        torch.stack(images)
        for _ in range(2):
            mask([{"input_ids": text["input_ids"]} for text in texts])
        yield len(images)


# --- timing ---


def in_turn(paths: dict[str, Callable[[], Iterator[int]]], options: Options) -> dict[str, float]:
    """CPU seconds per image of each path: median over repeats in turn."""
    times: dict[str, list[float]] = {name: [] for name in paths}
    for repeat in range(-options.warmups, options.repeats):
        for name in sorted(paths, reverse=repeat % 2 == 1):
            start = time.process_time()
            count = sum(paths[name]())
            seconds = time.process_time() - start
            if repeat >= 0:
                times[name].append(seconds / count)
    return {name: statistics.median(values) for name, values in times.items()}


def with_workers(module: CaptionDataModule) -> dict:
    """Three epochs with worker processes: images per second and memory of the processes at the end of each."""
    loader, rates, memory = module.train_dataloader(), [], []
    for epoch in range(EPOCHS):
        module.train_sampler.set_epoch(epoch)
        start, count = time.perf_counter(), 0
        for batch in loader:
            count += len(batch["image"])
        rates.append(count / (time.perf_counter() - start))
        del batch
        processes = ["self", *(process.pid for process in multiprocessing.active_children())]
        # What processes share is counted in parts.
        memory.append(sum(memory_of(process, "Pss", "smaps_rollup") for process in processes))
    return {"pictures_per_second": rates, "memory_bytes": memory}


def rows_of(folder: Path, options: Options) -> list[dict]:
    size = options.more["size"]
    with tempfile.TemporaryDirectory(prefix="data_benchmark") as scratch:
        out = Path(scratch) / "arrow"
        name = converted(folder or made_up(Path(scratch), options.more["pictures"]), out, options.more["pictures"])
        module = data_module(out, name, options)
        (source,) = module.sources("train")[name]
        # Each image once; the loader goes through all pairs, so through every image as often as it has captions.
        order = np.random.default_rng(0).permutation(len(source)).tolist()
        blobs = [bytes(source.image_bytes(i)) for i in order]
        times = in_turn(
            {
                "bare": lambda: bare_loop(blobs, size),
                "simplejpeg": lambda: bare_loop(blobs, size, fastest=True),
                "loader": lambda: loader(module),
                "usual": lambda: usual_loader(source, module.collator.tokenizer, order, size, options.more["batch"]),
            },
            options,
        )
        epochs = with_workers(data_module(out, name, options, options.more["workers"]))
    about = {"device": harness.device_name(options), "pictures": len(source), "size": size, **harness.versions(options)}
    against = {
        "bare": ("of bare loop, Pillow", "Pillow, draft mode"),
        "simplejpeg": ("of bare loop, simplejpeg", f"simplejpeg for {size} x {size}, else Pillow, draft mode"),
        "usual": ("of usual loader", "Pillow"),
    }
    rows = [
        {"name": f"{folder.name if folder else 'made'}, {what}", "fast": times["loader"], "textbook": times[key],
         "ratio": times[key] / times["loader"], "decoder": decoder, "yardstick": key == "bare", **about}
        for key, (what, decoder) in against.items()
    ]  # fmt: skip
    grown = (epochs["memory_bytes"][-1] - epochs["memory_bytes"][0]) / 2**20
    rates = ", ".join(f"{rate:.0f}" for rate in epochs["pictures_per_second"])
    note = f"the yardstick; {options.more['workers']} workers: {rates} images/s, {grown:+.1f} MiB over {EPOCHS} epochs"
    rows[0] |= {**epochs, "notes": [note]}
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("folders", nargs="*", type=Path, help="of images and captions; none: made-up ones")
    parser.add_argument("--size", type=int, default=224, help="side of the images that a path returns")
    parser.add_argument("--batch", type=int, default=64, help="images per batch")
    parser.add_argument("--pictures", type=int, default=400, help="at most; the first of a folder")
    parser.add_argument("--workers", type=int, default=1, help="processes of the three epochs")
    parser.set_defaults(threads=1, device="cpu")
    options = harness.options(parser, arguments)
    # As in a loader's workers, and for all paths alike: freed memory is kept, and the tokenizer has no threads.
    keep_freed_memory()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    rows = [row for folder in options.more["folders"] or [None] for row in rows_of(folder, options)]
    harness.report(rows, options)


if __name__ == "__main__":
    checkout.run(main)
