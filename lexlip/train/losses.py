"""The equations of LexLIP (Luo et al., ICCV 2023), each once, as pure tensor functions.

B captions and images of a batch, V terms of the vocabulary, K past keys, N masked positions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lexlip.utils.distributed import sum_over_ranks, world_size


def with_gradient(loss: Tensor, factor: float) -> Tensor:
    """A loss of the same value whose gradient is multiplied."""
    return loss if factor == 1 else factor * loss + (1 - factor) * loss.detach()


def masked_lm(logits: Tensor, labels: Tensor, total: Tensor | float) -> Tensor:
    """Cross-entropy of (N, V) logits at the masked positions alone with the (N,) true ids, summed and divided.

    The divisor is `global_count`: masked positions of the global batch, per process.
    """
    return F.cross_entropy(logits.float(), labels, reduction="sum") / total


def global_count(labels: Tensor) -> Tensor:
    """Of (B, L) labels, -100 where nothing is masked: masked positions of the global batch, per process, at least 1."""
    return (sum_over_ranks((labels != -100).sum().float()) / world_size()).clamp(min=1.0)


def flops(vectors: Tensor, threshold: int = 0, rows_of_a_mean: int | None = None) -> Tensor:
    """FLOPS regulariser of Paria et al. (ICLR 2020): sum over terms of (mean over the batch of |r_v|) squared.

    Takes the (B, V) normalised vectors of this process; the mean is over all processes. With a threshold only vectors
    with more active terms count, the others as 0: those that are short already are left alone (the l0 mask of
    OpenSearch's inference-free models). With `rows_of_a_mean` the mean is over so many consecutive rows at a time, and
    the result is the mean of all these, as in the official code.
    """
    if rows_of_a_mean is None:
        return _mean_of_long(vectors, threshold).square().sum()
    parts = _long_ones(vectors, threshold).split(rows_of_a_mean)
    count = sum_over_ranks(vectors.new_tensor(float(len(parts)))).detach() / world_size()
    return torch.stack([part.mean(0).square().sum() for part in parts]).sum() / count


def mean_l1(vectors: Tensor, threshold: int = 0) -> Tensor:
    """Mean L1 norm of (B, V) vectors over all processes; `threshold` as in `flops`."""
    return _mean_of_long(vectors, threshold).sum()


def _mean_of_long(vectors: Tensor, threshold: int) -> Tensor:
    """(V,) mean over the batch of |r_v|."""
    rows = sum_over_ranks(vectors.new_tensor(float(len(vectors))).detach())
    return sum_over_ranks(_long_ones(vectors, threshold).sum(0)) / rows


def _long_ones(vectors: Tensor, threshold: int) -> Tensor:
    """(B, V) |r_v|, 0 where a vector has no more active terms than the threshold."""
    sizes = vectors.abs()
    return sizes * ((vectors != 0).sum(1, keepdim=True) > threshold) if threshold else sizes


def ramp(step: int, warmup: int) -> float:
    """Fraction of FLOPS's weight at a step: it grows with the square over `warmup` steps (Paria et al., ICLR 2020).

    Vectors that are pulled to zero before they mean something learn little: first come good ones, then sparse ones.
    """
    return min(1.0, (step + 1) / warmup) ** 2 if warmup else 1.0


def in_batch_contrastive(text: Tensor, image: Tensor, temperature: float | Tensor, ids: Tensor | None = None) -> Tensor:
    """Symmetric InfoNCE over the global batch (LexLIP, contrastive part of Phase 1).

    Args:
        text, image: (B, V) normalised vectors of the global batch; row i of both belong together.
        temperature: divides the dot products.
        ids: (B,) image ids; other rows with the same id are no negatives. None: all of them are.
    """
    return symmetric_contrastive(text @ image.T, temperature, ids)


def symmetric_contrastive(scores: Tensor, temperature: float | Tensor, ids: Tensor | None = None) -> Tensor:
    """`in_batch_contrastive` of the (B, B) dot products of texts, in rows, and images."""
    scores = scores / temperature
    if ids is not None:
        same = (ids[:, None] == ids[None, :]).fill_diagonal_(False)
        scores = scores.masked_fill(same, float("-inf"))
    target = torch.arange(len(scores), device=scores.device)
    return (F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)) / 2


def score_distillation(
    scores: Tensor, taught: Tensor, temperature: float, taught_temperature: float | None = None
) -> Tensor:
    """KL divergence of a batch's scores from another model's, over each row and each column, averaged.

    Args:
        scores: (B, B) cosines of the model that learns.
        taught: (B, B) cosines of the model that teaches, without gradient.
        temperature: divides both, or the former alone where the latter have a `taught_temperature`.
    """
    losses = []
    for own, given in ((scores, taught), (scores.T, taught.T)):
        wanted = F.log_softmax(given / (taught_temperature or temperature), dim=1)
        losses.append(F.kl_div(F.log_softmax(own / temperature, dim=1), wanted, log_target=True, reduction="batchmean"))
    return (losses[0] + losses[1]) / 2


def cut_scores(texts: Tensor, images: Tensor, k: int) -> Tensor:
    """Cosines of (B, V) texts and (C, V) images, non-negative, after each is cut to its k heaviest terms; (B, C).

    On a CPU the sums run over the k terms alone, which takes a fifth of the time of a product over all of them.
    """
    if k >= texts.shape[1]:
        return F.normalize(texts, dim=-1) @ F.normalize(images, dim=-1).T
    (weights, terms), (others, places) = texts.topk(k, dim=-1), images.topk(k, dim=-1)
    weights, others = F.normalize(weights, dim=-1), F.normalize(others, dim=-1)
    columns = torch.zeros_like(images).scatter(1, places, others).T  # (V, C)
    if texts.device.type == "cpu":
        return F.embedding_bag(terms, columns.contiguous(), per_sample_weights=weights, mode="sum")
    return torch.zeros_like(texts).scatter(1, terms, weights) @ columns


def queue_contrastive(
    queries: Tensor, positives: Tensor, negatives: Tensor, temperature: float, excluded: Tensor | None = None
) -> Tensor:
    """InfoNCE of each query's own key against past keys, one value per query (LexLIP Phase 2; MoCo, eq. 1).

    Args:
        queries: (B, V) normalised vectors, with gradient.
        positives: (B, V) key of each query, without gradient.
        negatives: (K, V) past keys, without gradient; K may be 0.
        temperature: divides the dot products.
        excluded: (B, K) true where a past key belongs to the query's own image.

    Returns:
        (B,) losses.
    """
    positive = (queries * positives).sum(1, keepdim=True)  # (B, 1)
    # The keys may be stored in 16 bits: the queries come to them, since K is much larger than B.
    negative = (queries.to(negatives.dtype) @ negatives.T).float()  # (B, K)
    if excluded is not None:
        negative = negative.masked_fill(excluded, float("-inf"))
    scores = torch.cat([positive, negative], dim=1) / temperature
    return scores.logsumexp(1) - scores[:, 0]
