"""What both phases share beyond `RetrievalModule`: two towers with lexicon heads, whose words are to be few and right.

B pairs, V terms.
"""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lexlip.errors import ConfigError
from lexlip.models.lexicon_head import keep_heaviest
from lexlip.models.lexlip import LexLIP
from lexlip.models.terms import own_terms, terms_of_kinds
from lexlip.ops.max_logits import saturate
from lexlip.train.batch_norm import statistics_kept
from lexlip.train.config import Config, base
from lexlip.train.grounding import controlled, drawn_expansion, push
from lexlip.train.joint import Teacher, joint_losses
from lexlip.train.module import RetrievalModule
from lexlip.train.sparsity import SIDES, bias_shift
from lexlip.train.step import Tensors, split_batch, total
from lexlip.utils.distributed import gather_many, gather_rows, sum_over_ranks, world_size
from lexlip_data.loading.batch import Batch


class LexiconModule(RetrievalModule):
    """Base of both phases."""

    model: LexLIP
    loss_groups: ClassVar = {
        **RetrievalModule.loss_groups, "push_loss": "push", "dense_loss": "dense", "distill_loss": "distill",
    }  # fmt: skip

    def __init__(self, config: Config, model: LexLIP):
        super().__init__(config, model)
        self.teacher: Teacher | None = None
        if config.teacher and not config.test_only:
            self.teacher = Teacher(config.teacher, model.vocab_size, config.image_size)

    @classmethod
    def trained_groups(cls, config: Config) -> set[str]:
        taught = config.joint_dim or config.teacher
        return super().trained_groups(config) - (set() if taught else {"distill"})

    @classmethod
    def ignored_weights(cls, config: Config) -> dict[str, float]:
        weight = config.loss_names.get("distill", 0)
        untaught = {"distill": weight} if weight and not (config.joint_dim or config.teacher) else {}
        return {**super().ignored_weights(config), **untaught}

    @classmethod
    def all_used(cls, config: Config) -> bool:
        """Of what a lexicon may have besides towers and heads: numbers of own terms, and a dense head."""
        groups = cls.trained_groups(config)
        own = not config.own_weights or groups & {"contrastive", "distill"}
        return bool(own and (not config.joint_dim or groups & {"dense", "distill"}))

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
        dense = config.loss_names.get("dense", 0)
        if not config.test_only and bool(config.joint_dim) != bool(dense):
            raise ConfigError(
                f"joint_dim={config.joint_dim} with loss_names.dense={dense}: a dense head needs both, such as "
                "joint_dim=256 loss_names.dense=1"
            )
        if not config.test_only and config.teacher and "distill" not in cls.trained_groups(config):
            raise ConfigError(
                f"teacher={config.teacher}, but nothing learns from it: set loss_names.distill above 0, such as "
                "loss_names.distill=1, and a training_mode with contrastive losses, or leave teacher out"
            )
        both = config.test_only or (config.joint_dim and config.loss_names.get("distill"))
        if config.joint_weights != base()["joint_weights"] and not both:
            raise ConfigError(
                f"joint_weights={config.joint_weights} weigh what teaches both heads: set joint_dim and "
                "loss_names.distill with it, or leave it out"
            )
        if config.eval_head == "dense" and not (config.joint_dim or config.load_path):
            raise ConfigError(
                "eval_head=dense: there is no dense head; set joint_dim, or load_path to a model with one"
            )
        super().check_config(config)

    # --- words ---

    def with_choices(self, batch: Batch) -> Batch:
        """A batch with what is decided once per step: which expansions are allowed, and the rows of all processes."""
        if self.trained_groups(self.config) & {"push"}:
            rows = sum_over_ranks(torch.tensor(float(len(batch["image_id"])), device=self.device)) / world_size()
            batch = {**batch, "pairs": rows}
        if self.teacher is not None:
            parts = [self.teacher.vectors(part) for part in split_batch(batch, self.config.rows_at_once)]
            batch = {**batch, **{name: torch.cat([part[name] for part in parts]) for name in parts[0]}}  # type: ignore[typeddict-item]
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

    def encode_pairs(
        self, model: LexLIP, batch: Batch, with_logits: bool = False, trained: bool = True
    ) -> tuple[Tensors, Tensors, Tensor | None]:
        """Both sides of a batch.

        Args:
            with_logits: also give the images' largest logits.
            trained: with the dense head's vectors and the losses of these rows; not for keys.

        Returns:
            Normalised vectors by name, (B, V), those of the dense head (B, joint_dim); the push, if it is trained; the
            images' (B, V) largest logits or None.
        """
        pushed, joint = trained and "pairs" in batch, trained and model.config.joint_dim > 0
        states = text_states = logits = None
        if with_logits or pushed or joint:
            states = model.image_encoder(batch["image"])
            logits = model.image_head.max_logits(states)
        image = model.lexicon_image(batch["image"]) if logits is None else saturate(logits, model.config.activation)
        ids, mask = batch["text_ids"], batch["text_mask"]
        if joint:
            text_states = model.text_encoder(ids, mask)
        text = self.controlled(model.lexicon_text(ids, mask, text_states), batch)
        vectors = {"text": text, "image": image}
        if states is not None and text_states is not None:
            vectors |= {"dense_text": model.dense_text(text_states), "dense_image": model.dense_image(states)}
        losses = {}
        if pushed and logits is not None:
            own = text.detach() * self.own_terms(batch)
            losses["push_loss"] = push(logits, image, own, self.config.push_floor).sum() / batch["pairs"]
        return {name: F.normalize(vector, dim=-1) for name, vector in vectors.items()}, losses, logits

    def taught_losses(self, vectors: Tensors, batch: Batch) -> Tensors:
        """What a dense head and a teacher add, of the global batch; {} without either. See `joint_losses`."""
        sides = dict(vectors)
        if "teacher_text" in batch:
            sides |= {"teacher_text": batch["teacher_text"], "teacher_image": batch["teacher_image"]}
        if not sides.keys() & {"dense_text", "teacher_text"}:
            return {}
        rows, scores = batch.get("rows_of_ranks"), {}
        for name in ("", "dense_", "teacher_"):
            if f"{name}text" in sides:
                text, image = gather_many([sides[f"{name}text"], sides[f"{name}image"]], rows)
                scores[name] = text @ image.T
        ids = gather_rows(batch["image_id"], rows) if self.config.mask_same_image else None
        return joint_losses(scores[""], scores.get("dense_"), scores.get("teacher_"), self.config, ids)

    def vectors_of(self, kind: str, batch: Batch) -> Tensor:
        if self.config.eval_head == "lexicon":
            return super().vectors_of(kind, batch)
        if kind == "image":
            return self.model.vectors_of_pixels(batch["image"], "dense")
        return self.model.vectors_of_ids(batch["text_ids"], batch["text_mask"], "dense")

    @property
    def vocabulary(self) -> dict[str, int] | None:
        return super().vocabulary if self.config.eval_head == "lexicon" else None

    # --- few of them ---

    def with_cuts(self, whole: Tensor, vectors: Tensors, batch: Batch) -> Tensor:
        """Mean of a contrastive loss and, for each k of `train_top_k`, of that in the batch of vectors cut to k terms.

        So the heaviest terms alone learn to find the pair, as vectors that are cut for an index must (after Matryoshka
        representations, Kusupati et al., 2022, whose prefixes are heaviest terms here).
        """
        losses = [whole]
        for k in self.sparsity.cuts(self.step_in_training):
            cut = {name: keep_heaviest(vector, k) for name, vector in vectors.items() if "dense" not in name}
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
