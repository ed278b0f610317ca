"""The reference: both phases' steps as the formulas read, on the weights of the project's own modules.

It does what the official code does: attention written out, with a gather of the position bias in every layer; logits of
every token for every term, for the heads and for the masked word pieces alike; captions padded to 40 tokens; the queue
cloned for every use; momentum encoder and weights moved one tensor at a time.

B pairs, L tokens, V vocabulary, K keys of the queue.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lexlip.models.lexicon_head import LexiconHead, lexicon_bottleneck
from lexlip.ops.fused import PADDING_LOGIT
from lexlip.train.losses import flops, in_batch_contrastive
from lexlip.train.module import RetrievalModule


@contextmanager
def written_out(module: nn.Module) -> Iterator[None]:
    """Attention without the fused kernel, position biases gathered layer by layer, for a while."""
    undo = []

    def change(owner: object, name: str, value: object) -> None:
        undo.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)

    configs = set()
    for part in list(module.modules()):
        if hasattr(part, "fused_attn"):
            change(part, "fused_attn", False)
        if getattr(part, "rel_pos_bias", None) is not None:
            change(part, "rel_pos_bias", None)
        config = getattr(part, "config", None)
        if hasattr(config, "_attn_implementation") and id(config) not in configs:
            configs.add(id(config))
            change(config, "_attn_implementation", "eager")
    try:
        yield
    finally:
        for owner, name, value in reversed(undo):
            setattr(owner, name, value)


def logits(head: LexiconHead, states: Tensor, mask: Tensor | None = None) -> Tensor:
    """(B, L, V), padding pushed down."""
    every = head(states)
    return every if mask is None else every + padding(mask, every.dtype)


def padding(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, L, 1) to add to logits of `dtype`, which adding numbers of 32 bits would widen."""
    return (mask[:, :, None] == 0).to(dtype) * max(PADDING_LOGIT, torch.finfo(dtype).min)


def term_weights(every: Tensor) -> Tensor:
    """(B, L, V) logits to (B, V) retrieval vectors, normalised."""
    pooled = torch.relu(every).max(dim=1).values
    return F.normalize(torch.log(1 + pooled.float()), dim=-1)


def masked_lm_loss(every: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy over (B, L, V), positions without a label left out at the end."""
    return F.cross_entropy(every.flatten(0, 1).float(), labels.flatten(), ignore_index=-100)


def phase1_losses(module: RetrievalModule, batch: dict) -> dict[str, Tensor]:
    """All parts of Phase 1's loss."""
    model, mask = module.model, batch["text_mask"]
    image = logits(model.image_head, model.image_encoder(batch["image"]))
    masked = model.text_head(model.text_encoder(batch["encoder_ids"], mask))
    text = logits(model.text_head, model.text_encoder(batch["text_ids"], mask), mask)
    padded = masked + padding(mask, masked.dtype)
    losses = {"self_t_mlm_loss": masked_lm_loss(masked, batch["encoder_labels"])}
    embeddings = model.text_encoder.embed(batch["decoder_ids"])
    for part, every in (("i2t", image), ("t2t", padded)):
        bottleneck = lexicon_bottleneck(every.max(dim=1).values, model.text_encoder.word_embeddings)
        decoded = model.text_head(module.decoder(embeddings, mask, bottleneck))
        losses[f"{part}_mlm_loss"] = masked_lm_loss(decoded, batch["decoder_labels"])
    text, image = term_weights(text), term_weights(image)
    losses["contrastive_loss"] = in_batch_contrastive(text, image, module.config.temperature)
    losses["flops_loss"] = module.config.flops_weight * (flops(text) + flops(image))
    return losses


class Queue:
    """K keys as the columns of a (V, K) matrix in 32 bits, and the position of the next."""

    def __init__(self, keys: Tensor):
        self.keys, self.position = keys, 0

    def push(self, keys: Tensor) -> None:
        """Store (B, V) keys; those beyond the end are lost."""
        rows = min(len(keys), self.keys.shape[1] - self.position)
        self.keys[:, self.position : self.position + rows] = keys.T[:, :rows]
        self.position = (self.position + len(keys)) % self.keys.shape[1] if rows == len(keys) else 0


def phase2_losses(
    module: RetrievalModule, batch: dict, text_queue: Queue, image_queue: Queue
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """All parts of Phase 2's loss, and the step's keys of captions and images."""
    vectors = []
    for model, grad in ((module.model, True), (module.twin.module, False)):
        with torch.set_grad_enabled(grad and torch.is_grad_enabled()):
            text = model.text_encoder(batch["text_ids"], batch["text_mask"])
            vectors.append(term_weights(logits(model.text_head, text, batch["text_mask"])))
            vectors.append(term_weights(logits(model.image_head, model.image_encoder(batch["image"]))))
    text, image, text_key, image_key = vectors
    losses = []
    for query, key, queue in ((text, image_key, image_queue), (image, text_key, text_queue)):
        positive = torch.einsum("bv,bv->b", query, key)[:, None]
        negative = torch.einsum("bv,vk->bk", query, queue.keys.clone().detach())
        scores = torch.cat([positive, negative], dim=1).float() / module.config.temperature
        losses.append(F.cross_entropy(scores, torch.zeros(len(scores), dtype=torch.long, device=scores.device)))
    parts = {
        "contrastive_loss": (losses[0] + losses[1]) / 2,
        "flops_loss": module.config.flops_weight * (flops(text) + flops(image)),
    }
    return parts, text_key, image_key


@torch.no_grad()
def move_momentum_encoder(encoder: nn.Module, model: nn.Module, momentum: float) -> None:
    """One parameter at a time, each into new memory."""
    for theirs, ours in zip(encoder.parameters(), model.parameters(), strict=True):
        theirs.data = theirs.data * momentum + ours.data * (1 - momentum)
