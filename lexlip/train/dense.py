"""Training of the dense model: symmetric InfoNCE over the whole batch with a learned temperature.

It has no phases; `head=dense` starts it from either command line.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lexlip.errors import ConfigError
from lexlip.models.dense import MAX_SCALE, DenseLIP
from lexlip.train.config import WORD_KEYS, Config
from lexlip.train.module import RetrievalModule
from lexlip.train.step import Tensors
from lexlip_data.loading.batch import Batch


class LearnedTemperature(RetrievalModule):
    """Symmetric InfoNCE with a learned temperature, of which `encode` gives each row a copy as the vector "scale".

    A parameter that only the losses over the batch used would get its gradient outside of the micro-batches that
    gradient caching and the averaging over processes know of.
    """

    loss_groups = {"contrastive_loss": "contrastive"}

    @property
    def scale(self) -> torch.nn.Parameter:
        """() logarithm of what multiplies the cosines."""
        raise NotImplementedError

    def temperature(self, vectors: Tensors) -> Tensor:
        """() of the rows' copies."""
        return (-vectors["scale"].mean()).exp()

    def batch_losses(self, vectors: Tensors, batch: Batch, context: None) -> Tensors:
        return {"contrastive_loss": self.contrastive(vectors, batch, self.temperature(vectors))}

    @torch.no_grad()
    def after_step(self, batch: Batch, context: None) -> None:
        self.scale.clamp_(0, MAX_SCALE)


class DenseModule(LearnedTemperature):
    """A `DenseLIP` and its one loss."""

    name = "Dense"
    model_class = DenseLIP
    model: DenseLIP

    @property
    def scale(self) -> torch.nn.Parameter:
        return self.model.logit_scale

    @classmethod
    def check_config(cls, config: Config) -> None:
        if config.training_mode != "con":
            raise ConfigError(
                f"training_mode={config.training_mode}: the dense head has the contrastive loss alone; add "
                "task_dense_contrastive_train, or set training_mode=con"
            )
        for key in ("train_top_k", "eval_top_k"):
            if getattr(config, key):
                raise ConfigError(f"{key}={getattr(config, key)}: dense vectors have no terms to cut; set {key}=[]")
        for key in (
            "inactive_terms", *WORD_KEYS, "expansion_control", "target_terms_text", "target_terms_image",
        ):  # fmt: skip
            if getattr(config, key):
                raise ConfigError(f"{key}={getattr(config, key)} belongs to the lexicon head; leave it out")
        if config.DR:
            raise ConfigError("DR=True belongs to Phase 2 with the lexicon head; set DR=False")
        super().check_config(config)

    def encode(self, batch: Batch, context: None, vectors_only: bool = False) -> tuple[Tensors, Tensors]:
        text = F.normalize(self.model.vectors_text(batch["text_ids"], batch["text_mask"]), dim=-1)
        image = F.normalize(self.model.vectors_image(batch["image"]), dim=-1)
        return {"text": text, "image": image, "scale": self.scale.expand(len(text)), **self.long_vectors(batch)}, {}
