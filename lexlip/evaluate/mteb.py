"""A model in MTEB and MIEB (mteb 2): text-image and text-text retrieval, by our index or by dense scores.

    import mteb
    from lexlip.evaluate.mteb import LexLIPSearch
    mteb.evaluate(LexLIPSearch("model_folder"), mteb.get_tasks(tasks=["Flickr30kT2IRetrieval"]))

`LexLIPSearch` answers with an index, so the benchmark measures what is deployed: rounded weights, cut vectors.
`LexLIPEncoder` gives (N, V) vectors to what other kinds of tasks compute themselves; memory grows with N times V.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from mteb._create_dataloaders import create_dataloader
from mteb.models.model_meta import ModelMeta, ScoringFunction
from mteb.types import PromptType
from torch import Tensor

from lexlip.errors import EncodingError
from lexlip.index import Index, SparseRows, build
from lexlip.index.queries import bag_of_encoded
from lexlip.models.fingerprint import fingerprint
from lexlip.models.lexlip import LexLIP
from lexlip.models.retrieval import LexiconModel

QUERIES = 256  # searched at a time


class LexLIPEncoder:
    """mteb's EncoderProtocol; vectors have length 1, scores are their dot products.

    Args:
        model: a model, or its folder or name.
        revision: of a name on the hub; a folder's scores are kept under it. None: the model's fingerprint.
        device: where to encode; None: where the model is.
    """

    def __init__(self, model: LexiconModel | str | Path, revision: str | None = None, *, device: str | None = None):
        self.model = model if isinstance(model, LexiconModel) else LexLIP.from_pretrained(model, revision=revision)
        assert isinstance(self.model, LexiconModel)
        if device is not None:
            self.model.to(device)
        name = "model" if isinstance(model, LexiconModel) else Path(model).name
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        self.mteb_model_meta = ModelMeta(
            loader=None, name=f"lexlip/{name}",
            revision=f"{revision or fingerprint(self.model)[:16]}-{self._settings()}",  # under which mteb keeps scores
            release_date=None, languages=None, n_parameters=parameters, memory_usage_mb=parameters * 4 / 2**20,
            max_tokens=self.model.context, embed_dim=self.model.vocab_size, license=None, open_weights=None,
            public_training_code=None, public_training_data=None, framework=["PyTorch"],
            similarity_fn_name=ScoringFunction.DOT_PRODUCT, use_instructions=False, training_datasets=None,
            modalities=["text", "image"], model_type=["sparse"],
        )  # fmt: skip

    def _settings(self) -> str:
        """What scores depend on besides the model."""
        return "dense"

    def encode(self, inputs: Iterable[dict[str, Any]], **_: Any) -> Tensor:
        """Batches of texts or of images to (N, V) float32 on the CPU.

        Raises:
            EncodingError: a batch with something else, or with both.
        """
        parts = [self._vectors(batch).cpu() for batch in inputs]
        return torch.cat(parts) if parts else torch.zeros(0, self.model.vocab_size)

    def _vectors(self, batch: dict[str, Any]) -> Tensor:
        kinds = [kind for kind in ("text", "image", "audio", "video") if batch.get(kind) is not None]
        if kinds == ["image"]:
            return self.model.encode_image(list(batch["image"]))
        if kinds == ["text"]:
            return self.model.encode_text(list(batch["text"]))
        raise EncodingError(f"documents with {' and '.join(kinds) or 'nothing'}: a text or an image is wanted")

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """(N, M) dot products."""
        return torch.as_tensor(embeddings1) @ torch.as_tensor(embeddings2).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """(N,) dot products of row with row."""
        return (torch.as_tensor(embeddings1) * torch.as_tensor(embeddings2)).sum(-1)


class LexLIPSearch(LexLIPEncoder):
    """mteb's SearchProtocol besides: a corpus becomes an index on disk, and queries search it.

    Args:
        top_k_terms: how many of the heaviest terms of a document are kept; None: all.
        impact_bits: of the index.
    """

    def __init__(
        self, model: LexiconModel | str | Path, revision: str | None = None, *, device: str | None = None,
        top_k_terms: int | None = None, impact_bits: int = 9,
    ):  # fmt: skip
        self.top_k_terms, self.impact_bits = top_k_terms, impact_bits
        super().__init__(model, revision, device=device)
        self._folder: tempfile.TemporaryDirectory | None = None
        self._index: Index | None = None

    def _settings(self) -> str:
        return f"{self.impact_bits}-bits" + (f"-{self.top_k_terms}-terms" if self.top_k_terms is not None else "")

    def index(
        self, corpus: Any, *, task_metadata: Any, encode_kwargs: dict, num_proc: int | None = None, **_: Any
    ) -> None:
        """Encode a corpus and index it, in place of the one before."""
        self._folder = tempfile.TemporaryDirectory(prefix="lexlip-mteb-")
        path = Path(self._folder.name, "index")
        batches = self._loader(corpus, task_metadata, PromptType.document, encode_kwargs, num_proc)
        build(path, self._rows(corpus["id"], batches), impact_bits=self.impact_bits)
        self._index = Index.open(path)

    def _rows(self, ids: Any, batches: Iterable[dict[str, Any]]) -> Iterator[SparseRows]:
        ids, begin = [str(id) for id in ids], 0
        for batch in batches:
            vectors = self._vectors(batch).cpu()
            rows = SparseRows.from_dense(vectors, ids=ids[begin : begin + len(vectors)])
            begin += len(vectors)
            yield rows if self.top_k_terms is None else rows.top_k(self.top_k_terms)

    def search(
        self, queries: Any, *, task_metadata: Any, top_k: int, encode_kwargs: dict, top_ranked: Any = None,
        num_proc: int | None = None, **_: Any,
    ) -> dict[str, dict[str, float]]:  # fmt: skip
        """The best documents of each query with their scores; with `top_ranked`, of its candidates alone."""
        if self._index is None:
            raise EncodingError("call index before search")
        batches = self._loader(queries, task_metadata, PromptType.query, encode_kwargs, num_proc)
        bags = [bag_of_encoded(vector) for batch in batches for vector in self._vectors(batch).cpu()]
        ids, found = [str(id) for id in queries["id"]], {}
        k = len(self._index) if top_ranked is not None else top_k
        for begin in range(0, len(ids), QUERIES):
            of_batch = self._index.search_batch(bags[begin : begin + QUERIES], k)
            for id, hits in zip(ids[begin : begin + QUERIES], of_batch):
                scores = {str(hit.id): hit.score for hit in hits}
                if top_ranked is not None:  # a candidate that shares no term has 0
                    scores = {str(document): scores.get(str(document), 0.0) for document in top_ranked[id]}
                found[id] = scores
        return found

    @staticmethod
    def _loader(data: Any, metadata: Any, prompt: Any, encode_kwargs: dict, num_proc: int | None) -> Any:
        size = encode_kwargs.get("batch_size", 32)
        return create_dataloader(data, task_metadata=metadata, prompt_type=prompt, batch_size=size, num_proc=num_proc)
