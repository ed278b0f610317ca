"""An index's documents as they are stored: rows of terms and weights again, to hand on to other engines.

For each batch of documents all postings of their segment are read once; memory is that of the batch and of the ids.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np

from lexlip.index.index import Index
from lexlip.index.runs import DecodedSegment, counting_sort, groups
from lexlip.sparse import SparseRows, take_ids

DOCUMENTS = 1 << 17  # per batch


def stored_rows(
    index: Index, documents: int = DOCUMENTS, only: Collection[int | str] | None = None
) -> Iterator[SparseRows]:
    """All documents that are not deleted, segment by segment, with the weights that scores are made of.

    An engine that does not round them has the same scores; so has an index that is built from them with one bit more
    where the segments have codebooks of their own.

    Args:
        documents: per batch at most.
        only: documents of these ids, as far as the index holds them; None: all.
    """
    for segment in index.segments:
        ids, alive = segment.all_ids(), segment.alive()
        if only is not None:
            places = [place for id in only if (place := segment.ids.find(id)) is not None]
            chosen = np.zeros(len(alive), bool)
            chosen[places] = True
            alive = alive & chosen
        for first in range(0, segment.documents, documents):
            chosen = np.flatnonzero(alive[first : first + documents]) + first
            if not len(chosen):
                continue
            numbers = np.full(segment.documents, -1)
            numbers[chosen] = np.arange(len(chosen))
            batch_ids = take_ids(ids, chosen)
            owners, packed = [np.empty(0, np.int64)], [np.empty(0, np.uint64)]  # term << 16 | bits of the weight
            for terms, offsets, keys in groups([DecodedSegment(segment, numbers)], batch_ids):
                owners.append((keys >> np.uint64(16)).astype(np.int64))
                of_key = np.repeat(terms.astype(np.uint64) << np.uint64(16), np.diff(offsets))
                packed.append(of_key | keys & np.uint64(0xFFFF))
            offsets, values = counting_sort(np.concatenate(packed), np.concatenate(owners), len(chosen))
            yield SparseRows(
                batch_ids, offsets, (values >> np.uint64(16)).astype(np.uint32),
                values.astype(np.uint16).view(np.float16), str(segment.file.path),
            )  # fmt: skip
