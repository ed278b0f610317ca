"""What a batch holds: the one place that says which names there are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    from torch import Tensor


class Batch(TypedDict, total=False):
    """Rows of one process. B rows, L tokens of the longest caption, K long texts of a pair, M tokens of the longest.

    Pairs have images and texts, evaluation loads one or the other; every batch has `image_id` and `sample`.
    """

    image: Tensor  # (B, 3, H, W) uint8; normalised float on the device
    text_ids: Tensor  # (B, L) int64
    text_mask: Tensor  # (B, L) int64, 0 at padding
    long_ids: Tensor  # (B, K, M) int64, with long_captions=K
    long_mask: Tensor  # (B, K, M)
    encoder_ids: Tensor  # (B, L) int64, the caption masked for the text tower; Phase 1
    encoder_labels: Tensor  # (B, L) int64, -100 where nothing is masked
    decoder_ids: Tensor  # (B, L), masked for the weakened decoder
    decoder_labels: Tensor  # (B, L)
    text_states: Tensor  # (B, L, D) of a frozen text tower; batches of cached features, whose `image` is (B, L, D) too
    text_pooled: Tensor  # (B, D) its sentence vectors
    expanded: Tensor  # (B, 1 or V) 1 where a caption may be expanded, or have a term, in this step; of features (B,)
    small: Tensor  # (B,) bool on the CPU: at half the size, where each micro-batch of a step has a resolution
    teacher_text: Tensor  # (B, D) normalised vectors of a frozen dense model, and teacher_image
    teacher_image: Tensor
    pairs: Tensor  # () rows of the global batch per process, where a loss needs them
    image_id: Tensor  # (B,) int64, the same number for the same image everywhere
    order: Tensor  # (B,) int64, position in the whole split; evaluation
    caption_number: Tensor  # (B,) int64, which caption of its image
    sample: Sequence[tuple[str, str, int]]  # data set, image id, caption number of each row
    skipped: Sequence[str]  # "data set/image id: reason" of samples that were left out
    rows_of_ranks: Sequence[int]  # B of every process, set by the training step once they know it
