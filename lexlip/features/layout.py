"""The folder of a cache, and what one shard holds.

    features.json                    towers, tokenizer, data, widths; a run with others is refused
    tokenizer/                       the lexicon's
    train-images/shard-00000.arrow   photos: number, id, (L, D) float16
    train-images/shard-00000.json    size and blake2b of the shard
    train-texts/shard-00000.arrow    captions: number of the photo, text, word pieces, their states, the pooled vector

Letters: L image tokens, D width of a tower, P its pooled width, T word pieces of a caption. A shard is one record
batch, so that its columns are numpy arrays in the mapped file.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from lexlip.errors import FeaturesError
from lexlip.index.shards import run_metadata
from lexlip_data.errors import DataError, one_line
from lexlip_data.sources.files import require_file
from lexlip_data.sources.ipc_bounds import require_proportion

FACTS = "features.json"
TOKENIZER = "tokenizer"
FORMAT = 1
MOST_ROWS = 1 << 20  # of a shard
KINDS = ("images", "texts")
_LARGEST = 10_000_000  # bytes of features.json


def part_folder(folder: Path, split: str, kind: str) -> Path:
    """Where the shards of a split's images or texts lie."""
    return folder / f"{split}-{kind}"


@dataclass(frozen=True)
class Widths:
    """Numbers per photo and word piece: tokens L and width of the image tower, width and pooled width of the text's."""

    tokens: int
    image: int
    text: int
    pooled: int

    def schema(self, kind: str) -> pa.Schema:
        half, photo = pa.float16(), pa.int64()
        if kind == "images":
            return pa.schema(
                {"image": photo, "image_id": pa.string(), "features": pa.list_(half, self.tokens * self.image)}
            )
        return pa.schema(
            {
                "image": photo, "caption": pa.string(), "terms": pa.list_(pa.int32()),
                "states": pa.list_(pa.list_(half, self.text)), "pooled": pa.list_(half, self.pooled),
            }
        )  # fmt: skip


def fixed(rows: np.ndarray) -> pa.Array:
    """(n, width) as a column of lists of one length."""
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(rows).reshape(-1)), rows.shape[1])


class ImageShard(NamedTuple):
    """`image` (n,) int64, ascending; `ids`, n strings; `features` (n, L, D) float16, in the mapped file."""

    image: np.ndarray
    ids: pa.Array
    features: np.ndarray


class TextShard(NamedTuple):
    """Of n captions with S word pieces together: `offsets` (n + 1,), `terms` (S,), `states` (S, D), `pooled` (n, P)."""

    image: np.ndarray
    captions: pa.Array
    offsets: np.ndarray
    terms: np.ndarray
    states: np.ndarray
    pooled: np.ndarray


def read_facts(folder: Path) -> dict:
    """What features.json of a folder says.

    Raises:
        FeaturesError: it cannot be read.
    """
    path = folder / FACTS
    try:
        require_file(path)
        if path.stat().st_size > _LARGEST:
            raise ValueError("too large")
        return json.loads(path.read_text(encoding="utf-8"))
    except (DataError, OSError, ValueError, RecursionError) as error:
        raise FeaturesError(f"{path} cannot be read ({one_line(error)}); name a new folder and cache again") from error


def vocabulary_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Differs for tokenizers that number their word pieces differently."""
    words = json.dumps(sorted(tokenizer.get_vocab().items()))
    return hashlib.blake2b(words.encode(), digest_size=16).hexdigest()


def digest_of(path: Path) -> dict:
    """Size and checksum of a file."""
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
        return {"bytes": file.tell(), "blake2b": digest.hexdigest()}


def check_digest(path: Path, whole: bool) -> None:
    """Compare a shard with the size, and if `whole` the checksum, that were written beside it.

    Raises:
        FeaturesError: naming the shard.
    """
    beside = path.with_suffix(".json")
    try:
        require_file(path)
        require_file(beside)
        if beside.stat().st_size > 1000:
            raise ValueError("too long")
        wanted = json.loads(beside.read_text(encoding="utf-8"))
        found = digest_of(path) if whole else {"bytes": os.stat(path).st_size}
        if any(wanted[key] != value for key, value in found.items()):
            raise damaged(path, "it is not what was written")
    except (DataError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, FeaturesError):
            raise
        raise damaged(path, f"its size and checksum in {beside.name} cannot be compared: {error}") from error


def damaged(path: Path, why: object) -> FeaturesError:
    return FeaturesError(f"{path} is damaged ({one_line(why)}); remove it and run the same `lexlip cache` again")


def read_shard(path: Path, widths: Widths, kind: str, run: str, shard: int, shards: int, limits: Limits):
    """Map one shard: an `ImageShard`, or a `TextShard`.

    Raises:
        FeaturesError: it is not a whole shard of this run, or a number in it points outside.
    """
    try:
        with pa.memory_map(str(path), "r") as source:  # what is read keeps the map open
            reader = pa.ipc.open_file(source, options=pa.ipc.IpcReadOptions(use_threads=False))
            require_proportion(source, path)
            if not reader.schema.equals(widths.schema(kind)):
                raise ValueError(f"its columns are {one_line(reader.schema.remove_metadata(), 500)}")
            wanted = {key: value.encode() for key, value in run_metadata(run, shard, shards).items()}
            if dict(reader.schema.metadata or {}) != wanted:
                raise ValueError("it is of another run, or another shard's file")
            if reader.num_record_batches != 1:
                raise ValueError(f"{reader.num_record_batches} record batches, not 1")
            batch = reader.get_batch(0)
        batch.validate(full=True)
        if batch.num_rows > limits.rows or any(_nulls(column) for column in batch.columns):
            raise ValueError(f"{batch.num_rows} rows, or a cell without a value")
        return (_images if kind == "images" else _texts)(batch, widths, limits)
    except (pa.ArrowException, OSError, ValueError, KeyError, IndexError) as error:
        raise damaged(path, error) from error


class Limits(NamedTuple):
    """Rows of the shard, images of the split, entries of the vocabulary: nothing in a shard may be beyond."""

    rows: int
    images: int
    terms: int


def _nulls(column: pa.Array) -> int:
    nested = hasattr(column, "values") and column.type != pa.string()
    return column.null_count + (_nulls(column.flatten()) if nested else 0)


def _matrix(column: pa.Array, rows: int, width: int) -> np.ndarray:
    return column.flatten().to_numpy(zero_copy_only=True).reshape(rows, width)


def _images(batch: pa.RecordBatch, widths: Widths, limits: Limits) -> ImageShard:
    image = batch.column("image").to_numpy()
    _within(image, limits.images, "a photo's number")
    if (np.diff(image) <= 0).any():
        raise ValueError("photos out of order")
    features = _matrix(batch.column("features"), len(image), widths.tokens * widths.image)
    return ImageShard(image, batch.column("image_id"), features.reshape(-1, widths.tokens, widths.image))


def _texts(batch: pa.RecordBatch, widths: Widths, limits: Limits) -> TextShard:
    image, terms, states = (batch.column(name) for name in ("image", "terms", "states"))
    offsets = terms.offsets.to_numpy()
    if not np.array_equal(offsets, states.offsets.to_numpy()) or offsets[0] != 0:
        raise ValueError("word pieces and states do not agree")
    _within(image.to_numpy(), limits.images, "a photo's number")
    _within(terms.flatten().to_numpy(), limits.terms, "a word piece")
    return TextShard(
        image.to_numpy(), batch.column("caption"), offsets, terms.flatten().to_numpy(),
        _matrix(states.flatten(), int(offsets[-1]), widths.text),
        _matrix(batch.column("pooled"), len(image), widths.pooled),
    )  # fmt: skip


def _within(numbers: np.ndarray, stop: int, what: str) -> None:
    if len(numbers) and not (0 <= numbers.min() and numbers.max() < stop):
        raise ValueError(f"{what} is {numbers.min()} or {numbers.max()}, not from 0 to {stop - 1}")
