"""A folder of files that are photos to a made-up encoder, and what an index of them must hold."""

import hashlib

import numpy as np
import pytest

from lexlip.index import Index, SparseRows
from lexlip.index.origin import ModelStamp
from lexlip.index.store import read_manifest
from lexlip.index.stored import stored_rows
from lexlip.sync.photos import PhotoRoots
from lexlip_data.errors import BrokenSample
from lexlip_data.sources.skipped import Skipped

WEIGHTS = (0.25, 0.5, 1.0)  # which any codebook holds as they are


def vector_of(data):
    """Some terms and weights that follow from a file's bytes; None for a broken file."""
    if data.startswith(b"broken"):
        return None
    digest = hashlib.blake2b(data, digest_size=8).digest()
    return {byte % 50: WEIGHTS[byte % 3] for byte in digest}


class FakeEncoder:
    """As `lexlip.encode.vectors.CorpusEncoder`."""

    def __init__(self, name="fake"):
        self.stamp = ModelStamp(name, "", name * 8)
        self.encoded, self.top_k = [], None

    def __call__(self, top_k):
        self.top_k = top_k
        return self

    def windows(self, corpus, windows):
        for start, stop in windows:
            ids, bags, skipped = [], [], []
            for number in range(start, stop):
                try:
                    id, data = corpus.image(number)
                    self.encoded.append(id)
                    bag = vector_of(data)
                    if bag is None:
                        raise BrokenSample("broken on purpose")
                    ids.append(id)
                    bags.append(bag)
                except BrokenSample as error:
                    name = corpus.name(number)
                    skipped.append(Skipped(name, name, getattr(error, "kind", "broken"), str(error)))
            yield SparseRows.from_bags(bags, ids), skipped


def content(index):
    """id -> {term: weight} of an index; an id comes once."""
    found = {}
    for rows in stored_rows(Index.open(index)):
        for id, terms, weights in rows.documents():
            assert id not in found
            found[id] = dict(zip(terms.tolist(), np.asarray(weights, float).tolist()))
    return found


def wanted(folder, prefix=""):
    """What an index of a folder must hold."""
    files = [path for path in folder.rglob("*.jpg") if path.is_file()]
    vectors = {prefix + path.relative_to(folder).as_posix(): vector_of(path.read_bytes()) for path in files}
    return {id: vector for id, vector in vectors.items() if vector is not None}


@pytest.fixture
def encoder():
    return FakeEncoder()


@pytest.fixture
def make_encoder():
    return FakeEncoder


@pytest.fixture
def held():
    return content


@pytest.fixture
def due():
    return wanted


@pytest.fixture
def photos(tmp_path):
    """Twelve files, some of them below a folder, one of them broken; all of them a day old."""
    import os

    folder = tmp_path / "photos"
    for number in range(12):
        path = folder / ("sub" if number % 3 else "") / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"broken" if number == 7 else b"photo %d" % number)
        os.utime(path, (1_700_000_000 + number, 1_700_000_000 + number))
    return folder


@pytest.fixture
def photo_path():
    """The file of an id by an index's folder."""
    return lambda index, id: PhotoRoots(read_manifest(index).sources).path(id)
