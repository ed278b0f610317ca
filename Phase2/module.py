"""Phase 2, momentum lexicon-contrastive pre-training, and fine-tuning: a query against past keys.

B pairs, K past keys, V terms. Keys are the momentum encoder's normalised vectors (MoCo, He et al., CVPR 2020).
Momentum encoder and queues move once per optimiser step, in training only; keys of the config take back the official
code's ways, once per micro-batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from lexlip.train.step import Tensors, rows_from, split_batch
from lexlip.utils.distributed import gather_many, gather_rows, rank, sum_over_ranks, world_size
from lexlip_data.loading.batch import Batch
from Phase2.key_queue import KeyQueue
from Phase2.own_keys import Keys, rows_by_micro_batch, with_step_keys


class StepKeys(NamedTuple):
    """The momentum encoder's normalised vectors of a batch: (B, V) each, without gradient."""

    text: Tensor
    image: Tensor
    pushed: Sequence[Keys] = ()  # the same of all processes by micro-batch, where these are negatives too


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
        if config.queue_start == "noise":
            for number, queue in enumerate(self.queues.values()):
                queue.fill_with_noise(torch.Generator().manual_seed(2 * config.seed + number))

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
        if config.DR_coin == "micro_batch" and config.per_gpu_batchsize % config.rows_at_once:
            raise ConfigError(
                f"grad_cache_chunk={config.grad_cache_chunk} must divide per_gpu_batchsize={config.per_gpu_batchsize} "
                "with DR_coin=micro_batch: what is encoded at once has one resolution"
            )
        check_patch(config.image_size, config.patch_size, dynamic=config.DR)
        super().check_config(config)

    @classmethod
    def all_used(cls, config: Config) -> bool:
        lexicon = "contrastive" in cls.trained_groups(config) and config.head_text != "lookup"
        return lexicon and super().all_used(config)

    def train(self, mode: bool = True) -> Phase2Module:
        super().train(mode)
        self.twin.train(mode and self.config.momentum_dropout)
        return self

    def prepare(self, batch: Batch) -> tuple[Batch, StepKeys]:
        """Choose the step's resolution and make its keys."""
        batch = self.with_choices(batch)
        if self.training and self.config.DR:
            batch = self._at_a_resolution(batch)
        keys = self._keys(batch)
        if self.training and self.config.queue_update == "micro_batch":
            keys = keys._replace(pushed=self._exchanged(keys, batch, self.config.per_gpu_batchsize))
        return batch, keys

    def _at_a_resolution(self, batch: Batch) -> Batch:
        """Half of the steps, or micro-batches, at half the size: the same on every process and after resuming."""
        rows, size = len(batch["image_id"]), self.config.per_gpu_batchsize
        if self.config.DR_coin == "micro_batch":
            coins = np.random.default_rng([self.config.seed, self.global_step]).integers(2, size=-(-rows // size))
            small = torch.from_numpy(coins.repeat(size)[:rows] > 0)
            return {**batch, "small": small}  # on the CPU: nothing waits for the GPU to say which size it is
        return _halved(batch) if self._coin() else batch

    def _coin(self) -> bool:
        return bool(np.random.default_rng([self.config.seed, self.global_step]).integers(2))

    @torch.no_grad()
    def _keys(self, batch: Batch) -> StepKeys:
        moved = self.training and self.config.momentum_update == "micro_batch"
        # As many as the process with the most rows has, so that momentum encoders stay the same.
        most = max(_rows_of_ranks(batch)) if moved else len(batch["image_id"])
        size, parts = self.config.per_gpu_batchsize if moved else most, []
        for group in (rows_from(batch, start, size) for start in range(0, most, size)):
            for part in split_batch(group, self.config.rows_at_once):
                parts.append(self.encode_pairs(self.momentum_encoder, _at_its_size(part), trained=False)[0])
            if moved:
                self.twin.update(self.model)
        text, image = (torch.cat([part[side] for part in parts]) for side in ("text", "image"))
        return StepKeys(text, image)

    def _exchanged(self, keys: StepKeys, batch: Batch, size: int) -> list[Keys]:
        """The keys of all processes by micro-batches of so many rows of each, as the queues store them."""
        dtype, start, parts = self.text_ring.keys.dtype, 0, []
        for rows in rows_by_micro_batch(_rows_of_ranks(batch), size):
            own = slice(start, start := start + rows[rank()])
            text, image = gather_many([keys.text[own].to(dtype), keys.image[own].to(dtype)], rows)
            parts.append(Keys(text, image, gather_rows(batch["image_id"][own], rows)))
        return parts

    def encode(self, batch: Batch, context: StepKeys, vectors_only: bool = False) -> tuple[Tensors, Tensors]:
        vectors, losses, _ = self.encode_pairs(self.model, _at_its_size(batch))
        return vectors, losses

    def batch_losses(self, vectors: Tensors, batch: Batch, context: StepKeys) -> Tensors:
        rows = sum_over_ranks(vectors["text"].new_tensor(float(len(batch["image_id"])))) / world_size()
        losses = []
        for side, other in (("text", "image"), ("image", "text")):
            negatives, ids, excluded = *self.queues[other].negatives(), None
            if context.pushed:
                own = (context.pushed, len(batch["image_id"]), self.config.per_gpu_batchsize)
                negatives, ids, excluded = with_step_keys(self.queues[other], other, *own)
            if self.config.mask_same_image:
                same = batch["image_id"][:, None] == ids[None, :]
                excluded = same if excluded is None else same | excluded
            scored = vectors[side], getattr(context, other), negatives
            losses.append(queue_contrastive(*scored, self.config.temperature, excluded).sum() / rows)
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
        if self.config.momentum_update == "step":
            self.twin.update(self.model)
        whole = max(_rows_of_ranks(batch))
        for keys in context.pushed or self._exchanged(context, batch, whole):
            for side, queue in self.queues.items():
                queue.push(getattr(keys, side), keys.ids)


def _at_its_size(batch: Batch) -> Batch:
    """A micro-batch at the resolution that its coin has chosen."""
    return _halved(batch) if "small" in batch and bool(batch["small"][0]) else batch


def _halved(batch: Batch) -> Batch:
    """A batch with images of half the height and width."""
    images = batch["image"]
    size = (images.shape[-2] // 2, images.shape[-1] // 2)
    return {**batch, "image": F.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False)}


def _rows_of_ranks(batch: Batch) -> Sequence[int]:
    """Rows of every process."""
    known = batch.get("rows_of_ranks")
    return known or gather_rows(torch.tensor([len(batch["image_id"])], device=batch["image_id"].device)).tolist()
