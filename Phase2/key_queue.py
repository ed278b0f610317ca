"""The queue of past keys that Phase 2 draws its negatives from.

K keys of V numbers: at K = 11,520 and V = 30,522 each queue takes 0.7 GB in 16 bits, 1.4 GB in 32.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class KeyQueue(nn.Module):
    """The last `size` = K keys, V numbers of a dtype each, with their image ids; new ones overwrite the oldest."""

    keys: Tensor
    ids: Tensor
    position: Tensor  # () where the next key goes
    filled: Tensor  # () slots that hold a key

    def __init__(self, size: int, vocab_size: int, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.size = size
        self.register_buffer("keys", torch.zeros(size, vocab_size, dtype=dtype))
        self.register_buffer("ids", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("position", torch.zeros((), dtype=torch.int64))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def push(self, keys: Tensor, ids: Tensor) -> None:
        """Store (B, V) keys and their (B,) image ids, wrapping around at the end.

        Raises:
            ValueError: more keys than the queue holds.
        """
        if len(keys) > self.size:
            raise ValueError(f"{len(keys)} keys do not fit into a queue of {self.size}; set queue_size larger")
        slots = (self.position + torch.arange(len(keys), device=keys.device)) % self.size
        self.keys[slots] = keys.to(self.keys.dtype)
        self.ids[slots] = ids
        self.position.copy_((self.position + len(keys)) % self.size)
        self.filled.copy_((self.filled + len(keys)).clamp(max=self.size))

    @torch.no_grad()
    def fill_with_noise(self, generator: torch.Generator) -> None:
        """Random normalised keys of no image in every slot, as in the official code."""
        for slots in torch.arange(self.size).split(1024):  # a slice at a time: Gaussian numbers come in 32 bits
            self.keys[slots] = F.normalize(torch.randn(len(slots), self.keys.shape[1], generator=generator), dim=1).to(
                self.keys.dtype
            )
        self.ids.fill_(-1)
        self.filled.fill_(self.size)

    def negatives(self) -> tuple[Tensor, Tensor]:
        """The keys that are there, (n, V), and their image ids, (n,); views, n grows up to K."""
        count = int(self.filled)
        return self.keys[:count], self.ids[:count]
