"""Photos as nodes of LlamaIndex: the retriever takes the query syntax of `lexlip search`.

from llamaindex_retriever import LexLIPRetriever
LexLIPRetriever("photos.index").retrieve("a dog on the beach -cat")
"""

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.schema import ImageNode, NodeWithScore, QueryBundle

from lexlip.search.retriever import PhotoSearch


class LexLIPRetriever(BaseRetriever):
    """The k best photos of an index, with their files and scores."""

    def __init__(self, index: str, k: int = 10):
        super().__init__()
        self._search, self._k = PhotoSearch(index), k

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [
            NodeWithScore(
                node=ImageNode(
                    id_=str(found.id), text=" ".join(found.words), image_path=found.path, metadata=found.metadata
                ),
                score=found.score,
            )
            for found in self._search(query_bundle.query_str, self._k)
        ]
