"""Validation and test: what they collect, batch by batch, what they make of it, and the module that logs it.

B rows, V terms or dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch.nn.functional as F
from torch import Tensor

from lexlip.evaluate import eccv, recall
from lexlip.evaluate.grounding import content_terms, terms_of_images
from lexlip.models.terms import own_terms
from lexlip.models.two_tower import TwoTowers
from lexlip.train.config import Config
from lexlip.train.step import Tensors, total
from lexlip.utils.files import write_json
from lexlip_data.loading.batch import Batch
from lexlip_data.loading.datamodule import CaptionDataModule


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
        coco_ids: Mapping[str, eccv.CocoIds] | None = None,
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
                metrics[name]["eccv"] = eccv.eccv_metrics(kinds["image"], kinds["text"], coco_ids[name])
        return metrics


class EvaluatedModule(pl.LightningModule):
    """A module's validation and test; a subclass says what it computes of a batch, and where it stands."""

    config: Config
    model: TwoTowers

    def __init__(self) -> None:
        super().__init__()
        self.test_metrics: dict[str, dict] = {}
        self.collected = Collected()
        self._coco_ids: dict[str, eccv.CocoIds] = {}  # of the test split, where the config asks for them

    def compute_losses(self, batch: Batch) -> Tensors:
        """All losses of a batch of pairs."""
        raise NotImplementedError

    def vectors_of(self, kind: str, batch: Batch) -> Tensor:
        """(B, V) vectors of the "image" or "text" side of a batch."""
        raise NotImplementedError

    @property
    def _data(self) -> CaptionDataModule:
        return self.trainer.datamodule  # type: ignore[attr-defined]  # Lightning sets it

    def _log_losses(self, stage: str, losses: Tensors, rows: int) -> None:
        values = {f"{stage}/{name}": value.detach() for name, value in losses.items()}
        how: dict[str, Any] = {"batch_size": rows, "sync_dist": stage != "train", "add_dataloader_idx": False}
        self.log_dict(values, **how)
        self.log(f"{stage}/loss", total(values.values()), prog_bar=True, **how)

    def validation_step(self, batch: Batch, batch_index: int, dataloader_idx: int = 0) -> None:
        stage = "test" if self.trainer.testing else "val"
        name, kind = self._data.eval_names(stage)[dataloader_idx]
        if kind == "pairs":
            self._log_losses(stage, self.compute_losses(batch), len(batch["image_id"]))
            return
        self.collected.add(name, kind, self.vectors_of(kind, batch), batch, words=self.vocabulary is not None)

    test_step = validation_step

    @property
    def vocabulary(self) -> dict[str, int] | None:
        """The ids of a lexicon's word pieces; None for dense vectors, and without a tokenizer."""
        if self.config.head == "dense" or self.model.tokenizer is None:
            return None
        return self.model.tokenizer.get_vocab()

    @property
    def term_ids(self) -> Tensor | None:
        """The term of each column of `encode`'s vectors; None where the column is the term's id."""
        return None

    def _evaluation_metrics(self) -> dict[str, dict]:
        """Metrics per data set; every process computes the same."""
        if self.config.fast_dev_run:  # a few batches of images and captions need not belong together
            self.collected = Collected()
        top_k = self.config.eval_top_k if self.config.eval_head == "lexicon" else []  # dense vectors have no terms
        cuts = (top_k, self.config.eval_folds) if self.trainer.testing else ([], 0)
        again = getattr(self.model, "cut_to_length_one", False)  # a dense model's vectors are not cut
        return self.collected.metrics(self.vocabulary, *cuts, again, self._coco_ids)

    def on_test_start(self) -> None:
        if self.config.eccv:  # before anything is encoded, which takes minutes
            self._coco_ids = {name: eccv.CocoIds(sources) for name, sources in self._data.sources("test").items()}

    def on_validation_epoch_end(self) -> None:
        metrics = self._evaluation_metrics()
        if not metrics:
            return
        for name, row in metrics.items():
            for side in ("t2i", "i2t"):
                self.log_dict({f"val/{name}/{side}_{key}": value for key, value in row[side].items()})
            self.log_dict({f"val/{name}/active_terms_{side}": n for side, n in row["active_terms"].items()})
            if "grounding" in row:
                self.log(f"val/{name}/grounded_images", row["grounding"]["images"])
        self.log("val/rsum", sum(row["rsum"] for row in metrics.values()) / len(metrics), prog_bar=True)
        first = metrics[self._data.eval_names("val")[0][0]]
        self.log("val/first_r1", first["t2i"]["R@1"] + first["i2t"]["R@1"])

    def on_test_epoch_end(self) -> None:
        self.test_metrics = self._evaluation_metrics()
        if self.trainer.is_global_zero:
            print(recall.table(self.test_metrics), recall.words(self.test_metrics), sep="\n")
            if self.config.eccv:
                print(eccv.table(self.test_metrics))
            if self.config.metrics_file:
                write_json(self.test_metrics, self.config.metrics_file)
