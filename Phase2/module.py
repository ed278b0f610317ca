"""Phase 2, momentum lexicon-contrastive pre-training, and fine-tuning: a query against past keys.

B pairs, K past keys, V vocabulary. Keys are the momentum twins' normalised vectors. Twins and rings move once per
optimiser step, in training only.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from timm.utils import ModelEmaV3
from torch import Tensor

from lexlip.errors import ConfigError
from lexlip.models.lexlip import LexLIP
from lexlip.train.losses import flops, queue_contrastive
from lexlip.train.module import RetrievalModule
from lexlip.train.step import split_batch
from lexlip.utils.distributed import gather_pair, gather_rows, sum_over_ranks, world_size
from Phase2.negatives import KeyRing


class Phase2Module(RetrievalModule):
    """Model, its momentum twin, and one ring of past keys per modality."""

    def __init__(self, keys: dict, model: LexLIP):
        super().__init__(keys, model)
        tokenizer, model.tokenizer = model.tokenizer, None  # one copy of it is enough
        self.twin = ModelEmaV3(model, decay=keys["momentum"], foreach=True).requires_grad_(False)
        model.tokenizer = tokenizer
        half = keys["num_gpus"] and str(keys["precision"]) not in ("32", "32-true")
        dtype = torch.float16 if half else torch.float32
        self.text_ring = KeyRing(keys["queue_size"], model.config.vocab_size, dtype)
        self.image_ring = KeyRing(keys["queue_size"], model.config.vocab_size, dtype)

    @classmethod
    def keys_of_state(cls, state: dict[str, Tensor]) -> dict:
        ring = {"queue_size": len(state["text_ring.keys"])} if state else {}
        return {"training_mode": "con", "loss_names": {"contrastive": 1}, **ring}

    @classmethod
    def check_keys(cls, keys: dict) -> None:
        if keys["training_mode"] != "con":
            raise ConfigError(
                f"training_mode={keys['training_mode']}: Phase 2 is contrastive; add task_contrastive_train, or run "
                "the lexicon bottleneck in Phase1/"
            )
        if keys["queue_size"] < keys["batch_size"] and not keys["test_only"]:
            raise ConfigError(
                f"queue_size={keys['queue_size']} is smaller than batch_size={keys['batch_size']}: a step's keys "
                f"would push each other out; set queue_size={keys['batch_size']} or more"
            )
        if keys["long_captions"]:
            raise ConfigError(
                f"long_captions={keys['long_captions']}: Phase 2 has no long texts; train them in Phase1/ with "
                "task_long_caption_train, or set long_captions=0"
            )
        size, patch = keys["image_size"], keys["patch_size"]
        if keys["DR"] and patch and (size % 2 or size // 2 % patch):
            raise ConfigError(
                f"DR=True also needs half of image_size={size} to be a multiple of patch_size={patch}; "
                f"{2 * patch * max(1, round(size / 2 / patch))} would do, or set DR=False"
            )

    def train(self, mode: bool = True) -> Phase2Module:
        super().train(mode)
        self.twin.eval()  # keys without dropout
        return self

    def prepare(self, batch: dict) -> dict:
        """Choose the step's resolution and make its keys."""
        if self.training and self.keys["DR"] and self._coin():
            side = self.keys["image_size"] // 2
            image = F.interpolate(batch["image"], (side, side), mode="bicubic", antialias=True, align_corners=False)
            batch = {**batch, "image": image}
        return {**batch, **self._keys(batch)}

    def _coin(self) -> bool:
        """Half of the steps, the same on every process and after resuming."""
        return bool(np.random.default_rng([self.keys["seed"], self.global_step]).integers(2))

    @torch.no_grad()
    def _keys(self, batch: dict) -> dict[str, Tensor]:
        twin, parts = self.twin.module, []
        for part in split_batch(batch, self.rows_per_pass):
            text = twin.lexicon_text(part["text_ids"], part["text_mask"])
            image = twin.lexicon_image(part["image"])
            parts.append((F.normalize(text, dim=-1), F.normalize(image, dim=-1)))
        text, image = (torch.cat(side) for side in zip(*parts, strict=True))
        return {"text_key": text, "image_key": image}

    def encode(self, batch: dict, vectors_only: bool = False) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        image = self.model.lexicon_image(batch["image"])
        text = self.model.lexicon_text(batch["text_ids"], batch["text_mask"])
        return {"text": F.normalize(text, dim=-1), "image": F.normalize(image, dim=-1)}, {}

    def global_losses(self, vectors: dict[str, Tensor], batch: dict) -> dict[str, Tensor]:
        rows = sum_over_ranks(vectors["text"].new_tensor(float(len(batch["image_id"])))) / world_size()
        losses = []
        for query, other, ring in (("text", "image", self.image_ring), ("image", "text", self.text_ring)):
            negatives, ids = ring.negatives()
            same = batch["image_id"][:, None] == ids[None, :] if self.keys["mask_same_image"] else None
            each = queue_contrastive(vectors[query], batch[f"{other}_key"], negatives, self.keys["temperature"], same)
            losses.append(each.sum() / rows)
        return {
            "contrastive_loss": self.with_cuts((losses[0] + losses[1]) / 2, vectors, batch),
            "flops_loss": self.flops_weight() * (flops(vectors["text"]) + flops(vectors["image"])),
        }

    def after_step(self, batch: dict) -> None:
        self.twin.update(self.model)
        rows, dtype = batch.get("rows_of_ranks"), self.text_ring.keys.dtype  # exchanged as they are stored
        text, image = gather_pair(batch["text_key"].to(dtype), batch["image_key"].to(dtype), rows)
        ids = gather_rows(batch["image_id"], rows)
        self.text_ring.push(text, ids)
        self.image_ring.push(image, ids)
