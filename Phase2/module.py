"""Phase 2, momentum lexicon-contrastive pre-training, and fine-tuning: a query against past keys.

B pairs, K past keys, V terms. Keys are the momentum encoder's normalised vectors (MoCo, He et al., CVPR 2020).
Momentum encoder and queues move once per optimiser step, in training only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from timm.utils import ModelEmaV3
from torch import Tensor

from lexlip.errors import ConfigError
from lexlip.models.lexlip import LexLIP
from lexlip.train.config import Config, check_patch
from lexlip.train.lexicon import LexiconModule
from lexlip.train.losses import queue_contrastive
from lexlip.train.sparsity import SIDES
from lexlip.train.step import Tensors, split_batch
from lexlip.utils.distributed import gather_many, gather_rows, sum_over_ranks, world_size
from lexlip_data.loading.batch import Batch
from Phase2.key_queue import KeyQueue


class StepKeys(NamedTuple):
    """The momentum encoder's normalised vectors of a batch: (B, V) each, without gradient."""

    text: Tensor
    image: Tensor


class Phase2Module(LexiconModule):
    """Model, its momentum encoder, and one queue of past keys per modality."""

    name = "Phase2"

    def __init__(self, config: Config, model: LexLIP):
        super().__init__(config, model)
        check_patch(config.image_size, model.image_encoder.patch, dynamic=config.DR)
        # Checkpoints have the momentum encoder and the queues by these names.
        tokenizer, model.tokenizer = model.tokenizer, None  # one copy of it is enough
        self.twin = ModelEmaV3(model, decay=config.momentum, foreach=True).requires_grad_(False)
        model.tokenizer = tokenizer
        half = config.num_gpus and config.trainer_precision != "32-true"
        dtype = torch.float16 if half else torch.float32
        self.text_ring = KeyQueue(config.queue_size, model.config.vocab_size, dtype)
        self.image_ring = KeyQueue(config.queue_size, model.config.vocab_size, dtype)

    @property
    def momentum_encoder(self) -> LexLIP:
        """The model whose weights follow those that are trained."""
        return self.twin.module

    @property
    def queues(self) -> dict[str, KeyQueue]:
        """Past keys by their side, "text" and "image"."""
        return {"text": self.text_ring, "image": self.image_ring}

    @classmethod
    def decided_by_state(cls, state: Mapping[str, Tensor]) -> dict:
        queue = {"queue_size": len(state["text_ring.keys"])} if state else {}
        return {"training_mode": "con", "loss_names": {"contrastive": 1}, **queue}

    @classmethod
    def check_config(cls, config: Config) -> None:
        if config.training_mode != "con":
            raise ConfigError(
                f"training_mode={config.training_mode}: Phase 2 is contrastive; add task_contrastive_train, or run "
                "the lexicon bottleneck in Phase1/"
            )
        if config.queue_size < config.batch_size and not config.test_only:
            raise ConfigError(
                f"queue_size={config.queue_size} is smaller than batch_size={config.batch_size}: a step's keys "
                f"would push each other out; set queue_size={config.batch_size} or more"
            )
        if config.long_captions:
            raise ConfigError(
                f"long_captions={config.long_captions}: Phase 2 has no long texts; train them in Phase1/ with "
                "task_long_caption_train, or set long_captions=0"
            )
        check_patch(config.image_size, config.patch_size, dynamic=config.DR)
        super().check_config(config)

    @classmethod
    def all_used(cls, config: Config) -> bool:
        return "contrastive" in cls.trained_groups(config) and config.head_text != "lookup"

    def train(self, mode: bool = True) -> Phase2Module:
        super().train(mode)
        self.twin.eval()  # keys without dropout
        return self

    def prepare(self, batch: Batch) -> tuple[Batch, StepKeys]:
        """Choose the step's resolution and make its keys."""
        batch = self.with_choices(batch)
        if self.training and self.config.DR and self._coin():
            side = self.config.image_size // 2
            image = F.interpolate(batch["image"], (side, side), mode="bicubic", antialias=True, align_corners=False)
            batch = {**batch, "image": image}
        return batch, self._keys(batch)

    def _coin(self) -> bool:
        """Half of the steps, the same on every process and after resuming."""
        return bool(np.random.default_rng([self.config.seed, self.global_step]).integers(2))

    @torch.no_grad()
    def _keys(self, batch: Batch) -> StepKeys:
        split = split_batch(batch, self.config.rows_at_once)
        parts = [self.encode_pairs(self.momentum_encoder, part, trained=False)[0] for part in split]
        return StepKeys(*(torch.cat([part[side] for part in parts]) for side in ("text", "image")))

    def encode(self, batch: Batch, context: StepKeys, vectors_only: bool = False) -> tuple[Tensors, Tensors]:
        vectors, losses, _ = self.encode_pairs(self.model, batch)
        return vectors, losses

    def batch_losses(self, vectors: Tensors, batch: Batch, context: StepKeys) -> Tensors:
        rows = sum_over_ranks(vectors["text"].new_tensor(float(len(batch["image_id"])))) / world_size()
        losses = []
        for side, other in (("text", "image"), ("image", "text")):
            negatives, ids = self.queues[other].negatives()
            same = batch["image_id"][:, None] == ids[None, :] if self.config.mask_same_image else None
            key = getattr(context, other)
            losses.append(queue_contrastive(vectors[side], key, negatives, self.config.temperature, same).sum() / rows)
        return {
            "contrastive_loss": self.with_cuts((losses[0] + losses[1]) / 2, vectors, batch),
            "flops_loss": self.sparsity.loss({side: [vectors[side]] for side in SIDES}, self.step_in_training),
            **self.taught_losses(vectors, batch),
        }

    def before_first_step(self, batch: Batch) -> None:
        super().before_first_step(batch)
        if self.config.start_terms_text or self.config.start_terms_image:
            self.twin.set(self.model)

    def after_step(self, batch: Batch, context: StepKeys) -> None:
        self.twin.update(self.model)
        rows, dtype = batch.get("rows_of_ranks"), self.text_ring.keys.dtype  # exchanged as they are stored
        keys = gather_many([context.text.to(dtype), context.image.to(dtype)], rows)
        ids = gather_rows(batch["image_id"], rows)
        for queue, key in zip(self.queues.values(), keys, strict=True):
            queue.push(key, ids)
