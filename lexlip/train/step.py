"""The exact training step: one loss over the whole batch, however it is split.

A batch that does not fit is cut into micro-batches and gradient-cached (Gao et al., RepL4NLP 2021): all of them are
encoded without graph, the losses over the whole batch are taken of all vectors, then each micro-batch is encoded again
with graph and receives its part of the gradient. Loss and gradient are those of one large batch. The price is the
second encoding, about a third more time.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import reduce

import torch
from torch import Tensor

from lexlip_data.loading.batch import Batch

Tensors = dict[str, Tensor]
Encode = Callable[[Batch, bool], tuple[Tensors, Tensors]]


def cached_backward(
    encode: Encode,
    batch_losses: Callable[[Tensors], Tensors],
    micro_batches: Sequence[Batch],
    backward: Callable[[Tensor, bool], None] = lambda loss, last: loss.backward(),
) -> Tensors:
    """Leave in every parameter's `.grad` the gradient of the summed losses of all micro-batches together.

    Args:
        encode: `encode(micro_batch, vectors_only)` gives vectors by name, (rows, ...) each, and the losses that need
            no other row. With `vectors_only` the losses may be left out. It is called twice for each micro-batch, with
            the same random state, unless there is only one.
        batch_losses: losses by name of the vectors of the whole batch.
        micro_batches: consecutive rows of the batch.
        backward: `backward(loss, last)`; `last` says that no further call follows in this step.

    Returns:
        All losses by name, detached; their sum is what the gradient is of.
    """
    if len(micro_batches) == 1:
        vectors, losses = encode(micro_batches[0], False)
        losses = {**losses, **batch_losses(vectors)}
        backward(total(losses.values()), True)
        return {name: value.detach() for name, value in losses.items()}

    device = micro_batches[0]["image_id"].device
    states, encoded = [], []
    with torch.no_grad():
        for part in micro_batches:
            states.append(_random_state(device))
            encoded.append(encode(part, True)[0])
    torch.clear_autocast_cache()  # 16-bit copies of weights made without graph would give these no gradient
    cached = {name: torch.cat([vectors[name] for vectors in encoded]).detach().requires_grad_() for name in encoded[0]}
    losses = batch_losses(cached)
    if losses:
        with torch.autocast(device.type, enabled=False):
            total(losses.values()).backward()
    gradients = {name: value.grad for name, value in cached.items() if value.grad is not None}
    losses = {name: value.detach() for name, value in losses.items()}

    start = 0
    for part, state in zip(micro_batches, states, strict=True):
        last, after = part is micro_batches[-1], _random_state(device)
        _set_random_state(state, device)  # the same dropout as in the first encoding
        vectors, local = encode(part, False)
        if not last:
            _set_random_state(after, device)
        stop = start + len(part["image_id"])
        # The gradient of this sum is the cached gradient of the vectors, carried on into the towers.
        carried = [(vectors[name] * gradient[start:stop]).sum() for name, gradient in gradients.items()]
        backward(total([*carried, *local.values()]), last)
        for name, value in local.items():
            losses[name] = losses.get(name, 0) + value.detach()
        start = stop
    return losses


def split_batch(batch: Batch, rows: int) -> Iterator[Batch]:
    """Consecutive micro-batches of at most so many rows."""
    for start in range(0, len(batch["image_id"]), rows):
        yield rows_from(batch, start, rows)


def rows_from(batch: Batch, start: int, rows: int) -> Batch:
    """At most so many rows of a batch, maybe none; what has no rows goes along whole."""
    return {
        name: value[start : start + rows] if isinstance(value, Tensor) and value.ndim else value
        for name, value in batch.items()
    }  # type: ignore[return-value]  # the same names with the same types


def total(losses: Iterable[Tensor]) -> Tensor:
    """The sum of at least one loss."""
    return reduce(torch.add, losses)


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_random_state(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
