"""Phase 1, lexicon-bottlenecked pre-training: self_t + i2t + t2t + contrastive, weight 1 each by default.

B pairs, L tokens, V terms, D width.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from lexlip.errors import ConfigError
from lexlip.models.lexicon_head import lexicon_bottleneck
from lexlip.models.lexlip import LexLIP
from lexlip.train.config import Config
from lexlip.train.lexicon import LexiconModule
from lexlip.train.losses import global_count, masked_lm
from lexlip.train.step import Tensors
from lexlip_data.loading.batch import Batch
from Phase1.decoder import WeakenedDecoder

BOTTLENECKS = {"i2t", "t2t"}  # the parts that need the weakened decoder
MASKED_LANGUAGE = {"self_t", *BOTTLENECKS}  # training_mode=bottle; con is all else


class Phase1Module(LexiconModule):
    """Model and weakened decoder; `training_mode` bottle, con or both says which losses apply."""

    name = "Phase1"
    loss_groups = {
        **LexiconModule.loss_groups,
        "self_t_mlm_loss": "self_t",
        "i2t_mlm_loss": "i2t",
        "t2t_mlm_loss": "t2t",
    }

    def __init__(self, config: Config, model: LexLIP):
        super().__init__(config, model)
        self.parts = self.trained_groups(config)
        if self.parts & BOTTLENECKS:  # without them it would only be unused weights
            self.decoder = WeakenedDecoder(model.text_encoder, config.decoder_layers)

    @classmethod
    def trained_groups(cls, config: Config) -> set[str]:
        """The losses of the training mode that have a weight."""
        weighted, mode = super().trained_groups(config), config.training_mode
        if mode == "both":
            return weighted
        return weighted & MASKED_LANGUAGE if mode == "bottle" else weighted - MASKED_LANGUAGE

    @classmethod
    def all_used(cls, config: Config) -> bool:
        parts = cls.trained_groups(config)
        lexicon, masked = parts & {"contrastive", "distill"}, parts & {"self_t", "t2t"}
        text = masked or (lexicon and config.head_text != "lookup")  # whose table goes past tower and head
        image = lexicon or parts & {"i2t", "push"}
        return bool(text and image) and super().all_used(config)

    @classmethod
    def masks_needed(cls, config: Config) -> bool:
        return config.training_mode != "con"

    @classmethod
    def decided_by_state(cls, state: Mapping[str, Tensor]) -> dict:
        layers = {name.split(".")[4] for name in state}  # decoder.layers.encoder.layer.N...
        return {"training_mode": "both", **({"decoder_layers": len(layers)} if layers else {})}

    def prepare(self, batch: Batch) -> tuple[Batch, Tensors | None]:
        """Count the masked tokens of the global batch, () each, by which each micro-batch's losses are divided."""
        batch = self.with_choices(batch)
        if not self.masks_needed(self.config):
            return batch, None
        if self.config.loss_rows == "micro_batch":
            return batch, {}
        labels = {"encoder": batch["encoder_labels"], "decoder": batch["decoder_labels"]}
        return batch, {part: global_count(of_part) for part, of_part in labels.items()}

    def _counts(self, batch: Batch, context: Tensors) -> Tensors:
        """What divides the masked-language losses of these rows, () each."""
        if context:
            return context
        # Each micro-batch is encoded alone, and its mean is one of so many of this process.
        parts = self.config.batch_size // self.config.processes // self.config.per_gpu_batchsize if self.training else 1
        labels = {"encoder": batch["encoder_labels"], "decoder": batch["decoder_labels"]}
        return {part: parts * (of_part != -100).sum().clamp(min=1) for part, of_part in labels.items()}

    @classmethod
    def check_config(cls, config: Config) -> None:
        if config.loss_rows == "micro_batch" and config.grad_cache_chunk is not None:
            raise ConfigError(
                f"grad_cache_chunk={config.grad_cache_chunk} with loss_rows=micro_batch: means are of whole "
                "micro-batches; leave it out, or set per_gpu_batchsize to it"
            )
        if config.joint_dim and config.training_mode == "bottle" and not config.test_only:
            raise ConfigError(
                f"joint_dim={config.joint_dim} with training_mode=bottle: nothing trains the dense head; set "
                "training_mode to con or both, or leave joint_dim out"
            )
        super().check_config(config)

    def encode(self, batch: Batch, context: Tensors | None, vectors_only: bool = False) -> tuple[Tensors, Tensors]:
        vectors: Tensors = {}
        losses: Tensors = {}
        pooled: Tensors = {}  # (B, V) largest logits by the bottleneck that they become
        if self.parts - MASKED_LANGUAGE:
            vectors, losses, logits = self.encode_pairs(self.model, batch, with_logits=True)
            vectors |= self.long_vectors(batch)
            assert logits is not None  # as they were asked for
            pooled["i2t"] = logits
        elif "i2t" in self.parts and not vectors_only:
            pooled["i2t"] = self.model.image_head.max_logits(self.model.image_encoder(batch["image"]))
        if vectors_only or context is None:
            return vectors, losses
        return vectors, {**losses, **self._masked_losses(batch, self._counts(batch, context), pooled)}

    def _masked_losses(self, batch: Batch, counts: Tensors, pooled: Tensors) -> Tensors:
        losses: Tensors = {}
        head, mask = self.model.text_head, batch["text_mask"]
        if self.parts & {"self_t", "t2t"}:
            hidden = head.transform(self.model.text_encoder(batch["encoder_ids"], mask))  # (B, L, D)
            if "self_t" in self.parts:
                at = batch["encoder_labels"] != -100
                losses["self_t_mlm_loss"] = masked_lm(
                    head.decoder(hidden[at]), batch["encoder_labels"][at], counts["encoder"]
                )
            if "t2t" in self.parts:
                pooled["t2t"] = head.pool(hidden, mask)
        if self.parts & BOTTLENECKS:
            embeddings = self.model.text_encoder.embed(batch["decoder_ids"])  # (B, L, D)
            for part in sorted(self.parts & BOTTLENECKS):
                bottleneck = self._bottleneck(pooled[part])
                losses[f"{part}_mlm_loss"] = self._decoder_loss(embeddings, batch, bottleneck, counts["decoder"])
                if self.training and (self.step_now + 1) % self.config.log_every == 0:
                    self._note_gain(part, embeddings, batch, bottleneck, counts["decoder"])
        return losses

    def _bottleneck(self, pooled: Tensor) -> Tensor:
        table = self.model.text_encoder.word_embeddings
        return lexicon_bottleneck(pooled, table, self.config.bottleneck_temperature, self.config.bottleneck_norm)

    def _decoder_loss(self, embeddings: Tensor, batch: Batch, bottleneck: Tensor, count: Tensor) -> Tensor:
        labels = batch["decoder_labels"]
        hidden = self.decoder(embeddings, batch["text_mask"], bottleneck)[labels != -100]
        return masked_lm(self.model.text_head(hidden), labels[labels != -100], count)

    @torch.no_grad()
    def _note_gain(self, part: str, embeddings: Tensor, batch: Batch, bottleneck: Tensor, count: Tensor) -> None:
        """How much the decoder loses with another row's bottleneck; 0 if it reads nothing there. Without dropout."""
        self.decoder.eval()
        own, other = (self._decoder_loss(embeddings, batch, b, count) for b in (bottleneck, bottleneck.roll(1, 0)))
        self.decoder.train()
        name = f"bottleneck_gain_{part}"
        self.noted[name] = self.noted.get(name, 0) + other - own

    def batch_losses(self, vectors: Tensors, batch: Batch, context: Tensors | None) -> Tensors:
        if not vectors:
            return {}
        texts = [vectors["text"], *(vectors["long"].unbind(1) if "long" in vectors else ())]
        whole = self.contrastive(vectors, batch, self.config.temperature)
        return {
            "contrastive_loss": self.with_cuts(whole, vectors, batch),
            "flops_loss": self.sparsity.loss({"text": texts, "image": [vectors["image"]]}, self.step_in_training),
            **self.taught_losses(vectors, batch),
        }
