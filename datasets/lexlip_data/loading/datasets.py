"""What one sample is: an (image, caption) pair in training, an image or a caption in evaluation.

Letters: N images of the mixture, P pairs. Costs 8 bytes per image for the offsets; a sample costs its decode.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import KW_ONLY, dataclass, replace

import numpy as np
from torch.utils.data import Dataset

from lexlip_data.errors import BrokenSample, DataError, one_line
from lexlip_data.loading.long_captions import long_texts
from lexlip_data.loading.rng import isolated, sample_seed
from lexlip_data.loading.transforms import build_pixels, is_random
from lexlip_data.sources.images import USUAL, Reading, open_pixels
from lexlip_data.sources.source import Source, hash_id, locate


class _Mixture:
    """Images and pairs of several sources, numbered consecutively."""

    def __init__(self, sources: Sequence[Source]):
        self.sources = list(sources)
        self._image_ends = np.cumsum([len(source) for source in self.sources], dtype=np.int64)
        counts = [np.zeros(0, dtype=np.int64), *(source.caption_counts for source in self.sources)]
        self._pair_ends = np.cumsum(np.concatenate(counts), dtype=np.int64)
        self.n_pairs = int(self._pair_ends[-1]) if len(self._pair_ends) else 0

    # A spawned worker counts again rather than receive the array: it is as large as the data set is.
    def __reduce__(self) -> tuple:
        return _Mixture, (self.sources,)

    def image(self, i: int) -> tuple[Source, int]:
        """Image i of the mixture -> (source, image of that source)."""
        k, local = locate(self._image_ends, i)
        return self.sources[k], local

    def pair(self, index: int) -> tuple[Source, int, int]:
        """Pair -> (source, image of that source, number of the caption)."""
        if not 0 <= index < self.n_pairs:
            raise IndexError(f"pair {index} of {self.n_pairs}")
        i, number = locate(self._pair_ends, index)
        return *self.image(i), number


@dataclass(eq=False)
class CaptionPairs(Dataset):
    """Every (image, caption) pair of a mixture of data sets.

    A sample is {"image": uint8 (3, H, W), "caption": str, "image_id": int, "sample": (data set, image id, caption
    number), "seed": int}; a broken one gives {"skipped": "data set/image id: reason"} unless strict. With
    long_captions also {"long": list of so many str}.
    """

    sources: Sequence[Source]
    transform_keys: str | list[str]  # see `lexlip_data.loading.transforms`
    image_size: int  # side of the images, in pixels
    seed: int = 0  # with epoch and index it decides all randomness of a sample
    _: KW_ONLY
    strict: bool = False  # a broken sample is an error (evaluation) instead of a skipped one (training)
    long_captions: int = 0  # how many long texts a pair gets
    sub_captions: bool = False  # whether parts of them, see `lexlip_data.loading.long_captions`
    reading: Reading = USUAL

    def __post_init__(self) -> None:
        self.mixture = _Mixture(self.sources)
        self.transform = build_pixels(self.transform_keys, self.image_size)
        self.random = is_random(self.transform_keys)
        if self.random:  # what is augmented has its own size: operations count in its pixels
            self.reading = replace(self.reading, reduced=False)

    def __len__(self) -> int:
        return self.mixture.n_pairs

    def __getitem__(self, key: int | tuple[int, int]) -> dict:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        source, i, number = self.mixture.pair(index)
        seed = sample_seed(self.seed, epoch, index)
        try:
            identity = _identity(source, i, number)
            caption = source.caption(i, number)
            image = open_pixels(source.image_bytes(i), self.image_size, self.reading)
            with isolated(seed) if self.random else nullcontext():
                pixels = self.transform(image)
            sample = {"image": pixels, "caption": caption, **identity, "seed": seed}
            if self.long_captions:
                rng = np.random.default_rng(seed)
                sample["long"] = long_texts(source, i, self.long_captions, self.sub_captions, rng)
            return sample
        except BrokenSample as error:
            if self.strict:
                raise _named(error, source, i) from error
            return {"skipped": f"{source.name}/{_id_or_place(source, i)}: {one_line(error)}"}


class EvalImages(Dataset):
    """Each image once: {"image": uint8 (3, H, W), "image_id": int, "order": int, "sample": ...}.

    Rows that repeat an image_id are one image, the first of them. `order` numbers the images of the whole split
    and is the same for any number of processes. A broken image is an error that names it.
    """

    def __init__(
        self, sources: Sequence[Source], transform_keys: str | list[str], image_size: int, reading: Reading = USUAL
    ):
        if is_random(transform_keys):
            raise DataError(f"val_transform_keys {transform_keys}: evaluation must not be random, take vit")
        self.mixture = _Mixture(sources)
        self.image_size, self.reading = image_size, reading
        self.transform = build_pixels(transform_keys, image_size)
        hashes = []
        for source in self.mixture.sources:
            for i in range(len(source)):
                with _errors_named(source, i):
                    hashes.append(hash_id(source.name, source.image_id(i)))
        self.kept = np.sort(np.unique(np.array(hashes, dtype=np.int64), return_index=True)[1])

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, order: int) -> dict:
        source, i = self.mixture.image(int(self.kept[order]))
        with _errors_named(source, i):
            image = open_pixels(source.image_bytes(i), self.image_size, self.reading)
            return {"image": self.transform(image), "order": order, **_identity(source, i, 0)}


class EvalTexts(Dataset):
    """Each caption once: {"caption": str, "image_id": int, "order": int, "sample": (data set, image id, number)}."""

    def __init__(self, sources: Sequence[Source]):
        self.mixture = _Mixture(sources)

    def __len__(self) -> int:
        return self.mixture.n_pairs

    def by_length(self, orders: Sequence[int]) -> np.ndarray:
        """These captions, the longest first: a batch needs little padding, and the first one takes the most memory."""
        lengths = np.fromiter((len(self[order]["caption"]) for order in orders), np.int64, len(orders))
        return np.asarray(orders, dtype=np.int64)[np.argsort(-lengths, kind="stable")]

    def __getitem__(self, order: int) -> dict:
        source, i, number = self.mixture.pair(int(order))
        with _errors_named(source, i):
            return {**_identity(source, i, number), "caption": source.caption(i, number), "order": int(order)}


def _identity(source: Source, i: int, number: int) -> dict:
    image_id = source.image_id(i)
    return {"image_id": hash_id(source.name, image_id), "sample": (source.name, image_id, number)}


def _id_or_place(source: Source, i: int) -> str:
    """What to call an image in a message: its id may be what is broken."""
    try:
        return one_line(source.image_id(i), 200)
    except BrokenSample:
        return f"[{one_line(source.where(i))}]"


def _named(error: BrokenSample, source: Source, i: int) -> BrokenSample:
    return type(error)(
        f"data set {source.name}, split {source.split}, image {_id_or_place(source, i)}: {one_line(error)} "
        f"[{one_line(source.where(i))}]; evaluation replaces nothing: repair the file or remove its row"
    )


@contextmanager
def _errors_named(source: Source, i: int) -> Iterator[None]:
    try:
        yield
    except BrokenSample as error:
        raise _named(error, source, i) from error
