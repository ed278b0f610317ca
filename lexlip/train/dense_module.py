"""Training of the dense model: symmetric InfoNCE over the whole batch with a learned temperature.

It has no phases; `head=dense` starts it from either command line.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lexlip.errors import ConfigError
from lexlip.models.dense import MAX_SCALE, DenseLIP, temperature
from lexlip.train.module import RetrievalModule


class DenseModule(RetrievalModule):
    """A `DenseLIP` and its one loss."""

    model_class = DenseLIP
    model: DenseLIP

    @classmethod
    def check_keys(cls, keys: dict) -> None:
        if keys["training_mode"] != "con":
            raise ConfigError(
                f"training_mode={keys['training_mode']}: the dense head has the contrastive loss alone; add "
                "task_dense_contrastive_train, or set training_mode=con"
            )
        for key in ("train_top_k", "eval_top_k"):
            if keys[key]:
                raise ConfigError(f"{key}={keys[key]}: dense vectors have no terms to cut; set {key}=[]")
        if keys["DR"]:
            raise ConfigError("DR=True belongs to Phase 2 with the lexicon head; set DR=False")

    def encode(self, batch: dict, vectors_only: bool = False) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        text = F.normalize(self.model.vectors_text(batch["text_ids"], batch["text_mask"]), dim=-1)
        image = F.normalize(self.model.vectors_image(batch["image"]), dim=-1)
        # One copy per row: a parameter that only the global losses used would get its gradient outside of the passes
        # that gradient caching and the averaging over processes know of.
        scale = self.model.logit_scale.expand(len(text))
        return {"text": text, "image": image, "scale": scale, **self.long_vectors(batch)}, {}

    def global_losses(self, vectors: dict[str, Tensor], batch: dict) -> dict[str, Tensor]:
        return {"contrastive_loss": self.contrastive(vectors, batch, temperature(vectors["scale"].mean()))}

    @torch.no_grad()
    def after_step(self, batch: dict) -> None:
        self.model.logit_scale.clamp_(0, MAX_SCALE)
