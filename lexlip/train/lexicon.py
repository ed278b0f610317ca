"""What both phases share beyond `RetrievalModule`: two towers with lexicon heads, whose words are to be few and right.

B pairs, V terms.
"""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from lexlip.errors import ConfigError
from lexlip.models.lexicon_head import keep_heaviest
from lexlip.models.lexlip import LexLIP
from lexlip.models.terms import own_terms, terms_of_kinds
from lexlip.train.batch_norm import statistics_kept
from lexlip.train.config import Config
from lexlip.train.grounding import controlled, drawn_expansion, push
from lexlip.train.module import RetrievalModule
from lexlip.train.sparsity import SIDES, bias_shift
from lexlip.train.step import Tensors, split_batch, total
from lexlip.utils.distributed import sum_over_ranks, world_size
from lexlip_data.loading.batch import Batch


class LexiconModule(RetrievalModule):
    """Base of both phases."""

    model: LexLIP
    loss_groups: ClassVar = {**RetrievalModule.loss_groups, "push_loss": "push"}

    @classmethod
    def check_config(cls, config: Config) -> None:
        if config.expansion_control and config.long_captions:
            raise ConfigError(
                f"expansion_control={config.expansion_control} with long_captions={config.long_captions}: long texts "
                "are not controlled; leave one of them out"
            )
        for key in ("own_weights", "head_text"):
            if (value := getattr(config, key)) not in (False, "contextual") and config.long_captions:
                raise ConfigError(f"{key}={value} with long_captions={config.long_captions}: leave one of them out")
        if config.head_text == "lookup" and not (config.own_weights and "special" in config.inactive_terms):
            raise ConfigError(
                "head_text=lookup weighs a text's own words alone; set own_weights=True and "
                "inactive_terms='[\"special\"]' with it"
            )
        super().check_config(config)

    # --- words ---

    def with_choices(self, batch: Batch) -> Batch:
        """A batch with what is decided once per step: which expansions are allowed, and the rows of all processes."""
        if self.trained_groups(self.config) & {"push"}:
            rows = sum_over_ranks(torch.tensor(float(len(batch["image_id"])), device=self.device)) / world_size()
            batch = {**batch, "pairs": rows}
        if not (self.training and self.config.expansion_control):
            return batch
        terms = self.model.vocab_size if self.config.expansion_control == "terms" else 1
        return {**batch, "expanded": drawn_expansion(self.config, batch, self.step_now, self.total_steps, terms)}

    @cached_property
    def special(self) -> Tensor | None:
        """(V,) true for special tokens, which are nobody's own terms; None without a tokenizer."""
        if self.model.tokenizer is None:
            return None
        return terms_of_kinds(self.model.tokenizer.get_vocab(), ["special"], self.model.vocab_size).to(self.device)

    def own_terms(self, batch: Batch) -> Tensor:
        """(B, V) 1 for the terms of each caption."""
        own = own_terms(batch["text_ids"], batch["text_mask"], self.model.vocab_size)
        return own if self.special is None else own.masked_fill(self.special, 0.0)

    def controlled(self, weights: Tensor, batch: Batch) -> Tensor:
        """(B, V) weights of captions, without the expansions that this step does not allow."""
        return controlled(weights, self.own_terms(batch), batch["expanded"]) if "expanded" in batch else weights

    def push_loss(self, logits: Tensor, image: Tensor, text: Tensor, batch: Batch) -> Tensor:
        """`push` of these rows, divided by the rows of the global batch per process."""
        own = text.detach() * self.own_terms(batch)
        return push(logits, image, own, self.config.push_floor).sum() / batch["pairs"]

    # --- few of them ---

    def with_cuts(self, whole: Tensor, vectors: Tensors, batch: Batch) -> Tensor:
        """Mean of a contrastive loss and, for each k of `train_top_k`, of that in the batch of vectors cut to k terms.

        So the heaviest terms alone learn to find the pair, as vectors that are cut for an index must (after Matryoshka
        representations, Kusupati et al., 2022, whose prefixes are heaviest terms here).
        """
        losses = [whole]
        for k in self.sparsity.cuts(self.step_in_training):
            cut = {name: keep_heaviest(vector, k) for name, vector in vectors.items()}
            losses.append(self.contrastive(cut, batch, self.config.temperature))
        return total(losses) / len(losses)

    def before_first_step(self, batch: Batch) -> None:
        """With `start_terms_text` or `_image`: shift a head's biases, so that the first batch has so many active terms.

        On average, that is. The shift is one number, which the softmax of the masked-language losses does not see.
        """
        for side in SIDES:
            if (terms := getattr(self.config, f"start_terms_{side}")) is None:
                continue
            head = getattr(self.model, f"{side}_head")
            with torch.no_grad(), statistics_kept(self):
                parts = split_batch(batch, self.config.rows_at_once)
                logits = torch.cat([self._largest_logits(side, part) for part in parts])
                head.decoder.bias += bias_shift(logits, terms)

    def _largest_logits(self, side: str, batch: Batch) -> Tensor:
        if side == "image":
            return self.model.image_head.max_logits(self.model.image_encoder(batch["image"]))
        states = self.model.text_encoder(batch["text_ids"], batch["text_mask"])
        return self.model.text_head.max_logits(states, batch["text_mask"])
