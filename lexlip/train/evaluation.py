"""What an evaluation collects, batch by batch, and what it makes of it.

B rows, V terms or dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from lexlip.evaluate import recall
from lexlip.evaluate.eccv import CocoIds, eccv_metrics
from lexlip.evaluate.grounding import content_terms, terms_of_images
from lexlip.models.terms import own_terms
from lexlip_data.loading.batch import Batch


class Collected:
    """Vectors of images and captions by data set, of this process until `metrics` gathers them."""

    def __init__(self) -> None:
        self.parts: dict[tuple[str, str], list[recall.SparseVectors]] = {}

    def add(self, name: str, kind: str, vectors: Tensor, batch: Batch, words: bool) -> None:
        """Take a batch's (B, V) vectors of one "image" or "text"; with `words` their terms, too."""
        self._keep(name, kind, F.normalize(vectors, dim=-1), batch)
        if words and kind == "text":
            self._keep(name, "words", own_terms(batch["text_ids"], batch["text_mask"], vectors.shape[1]), batch)

    def _keep(self, name: str, kind: str, vectors: Tensor, batch: Batch) -> None:
        rows = recall.SparseVectors.from_dense(vectors, batch["image_id"], batch["order"])
        self.parts.setdefault((name, kind), []).append(rows)

    def metrics(
        self, vocabulary: dict[str, int] | None, top_k: list[int], folds: int, cut_to_length_one: bool = False,
        coco_ids: Mapping[str, CocoIds] | None = None,
    ) -> dict[str, dict]:  # fmt: skip
        """`recall.evaluate` of each data set, the same on every process; what was collected is forgotten.

        Args:
            coco_ids: of data sets of which ECCV Caption and CxC are wanted too.
        """
        sets: dict[str, dict[str, recall.SparseVectors]] = {}
        for (name, kind), parts in sorted(self.parts.items()):
            sets.setdefault(name, {})[kind] = recall.SparseVectors.concatenate(parts).gathered()
        self.parts.clear()
        metrics = {}
        for name, kinds in sets.items():
            words = None
            if vocabulary is not None and "words" in kinds:
                words = terms_of_images(kinds["image"].ids, kinds["words"]), content_terms(vocabulary)
            metrics[name] = recall.evaluate(kinds["image"], kinds["text"], top_k, folds, words, cut_to_length_one)
            if coco_ids and name in coco_ids:
                metrics[name]["eccv"] = eccv_metrics(kinds["image"], kinds["text"], coco_ids[name])
        return metrics
