"""Photos as documents of Haystack: the component takes the query syntax of `lexlip search`.

from haystack_retriever import LexLIPRetriever
LexLIPRetriever("photos.index").run("a dog on the beach -cat")["documents"]
"""

from haystack import Document, component

from lexlip.search.retriever import PhotoSearch


@component
class LexLIPRetriever:
    """The top_k best photos of an index, with their files and scores."""

    def __init__(self, index: str, top_k: int = 10):
        self.search, self.top_k = PhotoSearch(index), top_k

    @component.output_types(documents=list[Document])
    def run(self, query: str, top_k: int | None = None) -> dict[str, list[Document]]:
        found = self.search(query, top_k or self.top_k)
        return {
            "documents": [
                Document(id=str(hit.id), content=" ".join(hit.words), meta=hit.metadata, score=hit.score)
                for hit in found
            ]
        }
