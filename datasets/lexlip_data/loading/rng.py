"""All randomness of a sample is a function of (seed, epoch, index), so batches do not depend on the workers.

A sample's own numbers come from a counter-based generator (SplitMix64; Steele, Lea and Flood 2014), which needs no
state: a whole batch is drawn in one call, and no sample's numbers depend on which others are in its batch.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch

_MASK = (1 << 64) - 1
_STEP = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_State = TypeVar("_State", int, np.ndarray)


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """The 63-bit seed of one sample in one epoch. All three numbers must be >= 0 and below 2**64."""
    state = 0
    for number in (seed, epoch, index):
        state = _mixed(state ^ number)
    return state >> 1


def _mixed(state: _State) -> _State:
    """One step of SplitMix64, of a number or of an array of uint64, which wraps round by itself."""
    z = (state + _STEP) & _MASK
    z = ((z ^ (z >> 30)) * _FIRST) & _MASK
    z = ((z ^ (z >> 27)) * _SECOND) & _MASK
    return z ^ (z >> 31)


def row_seeds(seed: int, step: int, *columns: np.ndarray) -> np.ndarray:
    """(B,) seeds of a step's rows, each named by its numbers in the (B,) integer `columns`: the same in every order."""
    seeds = np.full(len(columns[0]), sample_seed(seed, step, 0), np.uint64)
    for column in columns:
        seeds = _mixed(seeds ^ column.astype(np.int64).view(np.uint64))
    return seeds >> np.uint64(1)


def uniforms(seeds: np.ndarray, stream: int, count: int) -> np.ndarray:
    """Float64 (B, count) random numbers in [0, 1) of the samples with these (B,) integer seeds >= 0.

    The stream, >= 0, is one of a sample's independent sequences; its first numbers are the same for any count < 2**32.
    """
    # The stream goes through the mixer, or sequences of neighbouring seeds would be shifts of each other.
    starts = _mixed(_mixed(np.asarray(seeds).astype(np.uint64)) ^ np.uint64(stream))
    counters = np.arange(count, dtype=np.uint64) * np.uint64(_STEP)
    return (_mixed(starts[:, None] + counters) >> 11) * 2.0**-53


@contextmanager
def isolated(seed: int) -> Iterator[None]:
    """Inside, torch's CPU, numpy's and Python's global generators start from `seed`; afterwards they are as before.

    Costs some 30 microseconds. `torch.manual_seed` would also reseed the GPU's generators, which are not ours to
    disturb; hence the default generator is used directly.
    """
    torch_state = torch.default_generator.get_state()
    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed % 2**32)
        random.seed(seed)
        yield
    finally:
        torch.default_generator.set_state(torch_state)
        np.random.set_state(numpy_state)
        random.setstate(python_state)
