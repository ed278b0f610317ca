"""What the benchmark needs of a model, for the models of this project and for open_clip's."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Protocol

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from lexlip.errors import UserError
from lexlip.models.auto import load_folder_of_any_head
from lexlip.models.source import ask_hub, load_reason

OPEN_CLIP = "open_clip:"
WITH_WEIGHTS = ("hf-hub:", "local-dir:")  # open_clip's names that say where the weights are


class PairEncoder(Protocol):
    """A model of images and long texts."""

    name: str  # as the user gave it
    context: int  # tokens of a text that it reads
    transform: Callable[[Image.Image], Tensor]  # to what `images` takes; picklable for loader processes

    def images(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) transformed images to (B, width) normalised vectors."""

    def texts(self, texts: Sequence[str]) -> tuple[Tensor, int]:
        """Texts to (B, width) normalised vectors, and how many of them were longer than the context."""


def load_encoder(name: str, pretrained: str | None, device: str, trust_sources: bool = False) -> PairEncoder:
    """A model folder, a name on the hub, or "open_clip:NAME".

    Args:
        pretrained: open_clip's name of the weights, or a file of them.
        device: where it runs.
        trust_sources: of a model folder, as `LexLIP.from_pretrained`.

    Raises:
        UserError: it cannot be loaded; weights named for a model folder, or none for an open_clip model.
    """
    if name.startswith(OPEN_CLIP):
        return OpenClipEncoder(name.removeprefix(OPEN_CLIP), pretrained, device)
    if pretrained is not None:
        raise UserError(f"--pretrained {pretrained} belongs to open_clip models; {name} has its own weights")
    return FolderEncoder(name, device, trust_sources)


class FolderEncoder:
    """A model folder of either head.

    Raises:
        UserError: it holds no tokenizer.
    """

    def __init__(self, folder: str, device: str, trust_sources: bool = False):
        self.model = load_folder_of_any_head(folder, trust_sources).to(device)
        if self.model.tokenizer is None:
            raise UserError(f"{folder} holds no tokenizer; put the files of its tokenizer into it")
        self.name, self.context = folder, self.model.context
        self.transform = self.model.image_transform()

    def images(self, pixels: Tensor) -> Tensor:
        return self.model.encode_image(pixels)

    def texts(self, texts: Sequence[str]) -> tuple[Tensor, int]:
        return self.model.encode_text(texts), self.model.cut_texts(texts)


def _quick_gelu(open_clip: ModuleType, name: str, pretrained: str | None) -> bool:
    """Whether the weights were trained with QuickGELU, as OpenAI's were: the architecture's name does not say."""
    known = open_clip.get_pretrained_cfg(name.replace("/", "-"), pretrained) if pretrained else None
    return bool((known or {}).get("quick_gelu"))


class OpenClipEncoder:
    """A model of open_clip, by its name and the name or file of its weights.

    Raises:
        UserError: open_clip is not installed, knows no such model or weights, or no weights were named.
    """

    def __init__(self, name: str, pretrained: str | None, device: str):
        try:
            import open_clip
        except ImportError as error:
            raise UserError(f"open_clip:{name} needs open_clip: pip install -e '.[open_clip]'") from error
        if pretrained is None and not name.startswith(WITH_WEIGHTS):
            raise UserError(f"open_clip:{name} without --pretrained would be random; name its weights, such as openai")
        if not Path(pretrained or name).exists():
            ask_hub()
        try:
            self.model, _, self.transform = open_clip.create_model_and_transforms(
                name, pretrained=pretrained, device=device, force_quick_gelu=_quick_gelu(open_clip, name, pretrained)
            )
            self.tokenizer = open_clip.get_tokenizer(name)
        except Exception as error:  # pickle, zip, safetensors and torch each raise their own kinds
            raise UserError(
                f"open_clip cannot load {name} with --pretrained {pretrained}: {load_reason(error, pretrained or name)}"
            ) from error
        self.name = f"{OPEN_CLIP}{name}, {pretrained}" if pretrained else OPEN_CLIP + name
        self.device, self.context = device, self.tokenizer.context_length
        self.padding = getattr(getattr(self.tokenizer, "tokenizer", None), "pad_token_id", None) or 0
        self.model.eval()

    @torch.no_grad()
    def images(self, pixels: Tensor) -> Tensor:
        return F.normalize(self.model.encode_image(pixels.to(self.device)).float(), dim=-1)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> tuple[Tensor, int]:
        ids = self.tokenizer(list(texts))
        # With room for one token more, the ids of a text that had to be cut change: its end token, which may be the
        # padding token too, moves, or a token that was cut comes in.
        longer = self.tokenizer(list(texts), context_length=self.context + 1)
        cut = (longer[:, :-1] != ids).any(1) | (longer[:, -1] != self.padding)
        return F.normalize(self.model.encode_text(ids.to(self.device)).float(), dim=-1), int(cut.sum())
