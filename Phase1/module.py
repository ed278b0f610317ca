"""Phase 1, lexicon-bottlenecked pre-training: self_t + i2t + t2t + contrastive, weight 1 each by default.

B pairs, L tokens, V vocabulary.
"""

from __future__ import annotations

from torch import Tensor

from lexlip.models.lexicon_head import lexicon_bottleneck
from lexlip.models.lexlip import LexLIP
from lexlip.train.config import TRAINING_MODES
from lexlip.train.losses import flops, masked_lm
from lexlip.train.module import RetrievalModule
from lexlip.train.step import global_count
from Phase1.decoder import WeakenedDecoder


class Phase1Module(RetrievalModule):
    """Model and weakened decoder; `training_mode` bottle, con or both says which losses apply."""

    def __init__(self, keys: dict, model: LexLIP):
        super().__init__(keys, model)
        self.parts = self.trained_parts(keys)
        if self.parts & {"i2t", "t2t"}:  # without them it would only be unused weights
            self.decoder = WeakenedDecoder(model.text_encoder, keys["decoder_layers"])

    @staticmethod
    def trained_parts(keys: dict) -> set[str]:
        """The losses of the mode that have a weight."""
        return {part for part in TRAINING_MODES[keys["training_mode"]] if keys["loss_names"].get(part)}

    @classmethod
    def all_used(cls, keys: dict) -> bool:
        parts = cls.trained_parts(keys)  # without these, the image tower or the text tower's layers do nothing
        return bool(parts & {"contrastive", "i2t"}) and bool(parts & {"contrastive", "self_t", "t2t"})

    @classmethod
    def keys_of_state(cls, state: dict[str, Tensor]) -> dict:
        layers = {name.split(".")[4] for name in state}  # decoder.layers.encoder.layer.N...
        return {"training_mode": "both", **({"decoder_layers": len(layers)} if layers else {})}

    @classmethod
    def masks_needed(cls, keys: dict) -> bool:
        return keys["training_mode"] != "con"

    def prepare(self, batch: dict) -> dict:
        if not self.masks_needed(self.keys):
            return batch
        counts = {f"{side}_count": global_count(batch[f"{side}_labels"]) for side in ("encoder", "decoder")}
        return {**batch, **counts}

    def encode(self, batch: dict, vectors_only: bool = False) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        vectors, pooled = {}, {}
        contrastive = "contrastive" in self.parts
        if contrastive or ("i2t" in self.parts and not vectors_only):
            pooled["i2t"] = self.model.image_head.max_logits(self.model.image_encoder(batch["image"]))
        if contrastive:
            states = self.model.text_encoder(batch["text_ids"], batch["text_mask"])
            text = self.model.text_head.max_logits(states, batch["text_mask"])
            vectors = {"text": self.retrieval_vectors(text), "image": self.retrieval_vectors(pooled["i2t"])}
            vectors |= self.long_vectors(batch)
        if vectors_only or not self.parts - {"contrastive"}:
            return vectors, {}

        losses = {}
        head, mask = self.model.text_head, batch["text_mask"]
        if self.parts & {"self_t", "t2t"}:
            hidden = head.transform(self.model.text_encoder(batch["encoder_ids"], mask))
            if "self_t" in self.parts:
                at = batch["encoder_labels"] != -100
                logits = head.decoder(hidden[at])
                losses["self_t_mlm_loss"] = masked_lm(logits, batch["encoder_labels"][at], batch["encoder_count"])
            if "t2t" in self.parts:
                pooled["t2t"] = head.pool(hidden, mask)
        if self.parts & {"i2t", "t2t"}:
            at = batch["decoder_labels"] != -100
            embeddings = self.model.text_encoder.embed(batch["decoder_ids"])
            for part in sorted(self.parts & {"i2t", "t2t"}):
                bottleneck = lexicon_bottleneck(pooled[part], self.model.text_encoder.word_embeddings)
                logits = head(self.decoder(embeddings, mask, bottleneck)[at])
                losses[f"{part}_mlm_loss"] = masked_lm(logits, batch["decoder_labels"][at], batch["decoder_count"])
        return vectors, losses

    def global_losses(self, vectors: dict[str, Tensor], batch: dict) -> dict[str, Tensor]:
        if not vectors:
            return {}
        texts = [vectors["text"], *(vectors["long"].unbind(1) if "long" in vectors else ())]
        text_flops = sum(flops(text) for text in texts) / len(texts)
        whole = self.contrastive(vectors, batch, self.keys["temperature"])
        return {
            "contrastive_loss": self.with_cuts(whole, vectors, batch),
            "flops_loss": self.flops_weight() * (text_flops + flops(vectors["image"])),
        }
