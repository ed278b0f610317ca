"""An index as a transformer of PyTerrier, for its pipelines and experiments.

import pyterrier as pt
from lexlip.integrations.pyterrier import LexLIPRetriever
retriever = LexLIPRetriever("photos.index", model="model_folder", k=100)
pt.Experiment([retriever], topics, qrels, ["recip_rank", "ndcg_cut_10"])
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyterrier as pt

from lexlip.errors import IndexingError
from lexlip.index import Index
from lexlip.index.queries import bag_of_encoded


class LexLIPRetriever(pt.Transformer):
    """Topics (qid, query) to results (and docno, score, rank from 0), `k` documents each at most, best first.

    Args:
        index: an index, or its folder.
        model: its folder or name; None: the index was opened with one.
        k: documents per query.
    """

    def __init__(self, index: Index | str | Path, model: str | Path | None = None, k: int = 1000):
        super().__init__()
        self.index = index if isinstance(index, Index) else Index.open(index, model)
        self.k = k

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """The results of each topic.

        Raises:
            IndexingError: the index was opened without a model.
        """
        if self.index.model is None:
            raise IndexingError("texts as queries need a model: LexLIPRetriever(index, model=FOLDER)")
        topics = inp[["qid", "query"]]
        vectors = self.index.model.encode_text(topics["query"].astype(str).tolist())
        found = self.index.search_batch([bag_of_encoded(vector) for vector in vectors], self.k) if len(topics) else []
        rows = [
            (qid, query, str(hit.id), hit.score, rank)
            for (qid, query), hits in zip(topics.itertuples(index=False), found)
            for rank, hit in enumerate(hits)
        ]
        return pd.DataFrame(rows, columns=["qid", "query", "docno", "score", "rank"])
