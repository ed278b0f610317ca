"""Photos as documents of LangChain: the retriever takes the query syntax of `lexlip search`.

from langchain_retriever import LexLIPRetriever
LexLIPRetriever("photos.index").invoke("a dog on the beach -cat")
"""

from typing import Any

from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever

from lexlip.search.retriever import PhotoSearch


class LexLIPRetriever(BaseRetriever):
    """The k best photos of an index, with their files and scores."""

    k: int = 10
    search: Any = None

    def __init__(self, index: str, k: int = 10, **options: Any):
        super().__init__(k=k, **options)
        self.search = PhotoSearch(index)

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        return [
            Document(page_content=" ".join(found.words), id=str(found.id), metadata=found.metadata)
            for found in self.search(query, self.k)
        ]
