"""Search a folder of photos by text. The first search encodes the photos and builds an index; later ones reuse it.

    python examples/search_photos.py MODEL PHOTOS "a dog catches a ball"    # after pip install -e .

MODEL is a model folder or a name on the Hugging Face hub. To index new photos, delete the folder PHOTOS/lexlip.index.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from lexlip import LexLIP
from lexlip.encode.files import FolderImages
from lexlip.index import Hit, Index, SparseRows, build


def encoded(model: LexLIP, photos: Path, batch_size: int = 256) -> Iterator[SparseRows]:
    """Sparse vectors of all photos, a batch at a time, so that memory does not grow with the folder."""
    files = FolderImages(photos)  # by their content, whatever their names end in
    print(*files.notes, sep="\n", end="\n" * bool(files.notes), file=sys.stderr)  # what is no photo, or not read
    for start in range(0, len(files), batch_size):
        names = [files.name(i) for i in range(start, min(start + batch_size, len(files)))]
        yield SparseRows.from_dense(model.encode_image([photos / name for name in names]), ids=names)


def search(model_name: str, photos: Path, query: str, k: int = 5) -> list[tuple[Hit, list[str]]]:
    """The best k photos, each with the terms it shares with the query."""
    model = LexLIP.from_pretrained(model_name)
    folder = photos / "lexlip.index"
    if not folder.exists():
        build(folder, encoded(model, photos))
    index = Index.open(folder, model=model)
    return [(hit, [term.word for term in index.explain(query, hit.id)]) for hit in index.search(query, k)]


if __name__ == "__main__":
    for hit, terms in search(sys.argv[1], Path(sys.argv[2]), sys.argv[3]):
        print(f"{hit.score:.3f}  {hit.id}  {' '.join(terms[:6])}")
