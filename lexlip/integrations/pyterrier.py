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
from lexlip.index.queries import bags_of
from lexlip_data.errors import one_line

FOUND = ("docno", "score", "rank")


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
        """The results of each topic; other columns of a topic stay with it.

        Raises:
            IndexingError: the index was opened without a model; a query that is no text.
            pyterrier.validate.InputValidationError: a column is missing.
        """
        pt.validate.columns(inp, includes=["qid", "query"])
        if self.index.model is None:
            raise IndexingError("texts as queries need a model: LexLIPRetriever(index, model=FOLDER)")
        topics = inp.drop(columns=[name for name in FOUND if name in inp])  # those of an earlier search
        queries = topics["query"].tolist()
        for qid, query in zip(topics["qid"], queries):
            if not isinstance(query, str):
                raise IndexingError(f"topic {one_line(qid, 100)}: the query {one_line(query, 100)!r} is no text")
        bags = bags_of(queries, self.index.model, [f"topic {one_line(qid, 100)}" for qid in topics["qid"]])
        found = self.index.search_batch(bags, self.k) if bags else []
        hits = [
            (n, str(hit.id), hit.score, rank) for n, of_topic in enumerate(found) for rank, hit in enumerate(of_topic)
        ]
        results = pd.DataFrame(hits, columns=["topic", *FOUND])
        return topics.reset_index(drop=True).join(results.set_index("topic"), how="inner").reset_index(drop=True)
