"""Random training batches as the collator makes them."""

from __future__ import annotations

import torch
from torch import Tensor

from lexlip.train.config import Config


def random_batch(config: Config, lengths: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """Pairs of noise and random words, the captions with both maskings.

    Args:
        config: of a run; its image_size, max_text_len, vocab_size and masking probabilities count.
        lengths: (B,) word pieces of each caption.
        generator: of all numbers.
    """
    rows, padded, size = len(lengths), config.max_text_len, config.image_size
    ids = torch.randint(5, config.vocab_size, (rows, padded), generator=generator)
    mask = (torch.arange(padded) < lengths[:, None]).long()
    batch = {"text_ids": ids * mask, "text_mask": mask}
    for side, probability in (("encoder", config.mlm_prob), ("decoder", config.decoder_mlm_prob)):
        hidden = (torch.rand(rows, padded, generator=generator) < probability) & (mask == 1)
        hidden[:, 1] = True  # at least one
        batch[f"{side}_ids"] = (ids * mask).masked_fill(hidden, 4)
        batch[f"{side}_labels"] = ids.masked_fill(~hidden, -100)
    images = torch.randn(rows, 3, size, size, generator=generator)
    return {**batch, "image": images, "image_id": torch.arange(rows)}
