"""Image towers: what of a tower is taken (its view), and several of them side by side."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from lexlip.errors import ConfigError, EncodingError
from lexlip.models.attribution import MAX, MEAN, Pooling, grid_of
from lexlip.models.towers.frozen import FrozenTower
from lexlip.models.towers.reference import Reference, check_reference, parse, split_references
from lexlip_data.sources.images import to_rgb


def load_image_tower(
    reference: str | Sequence[str], *, trust_sources: bool = True, folder: str | Path | None = None
) -> ImageTower:
    """A frozen image tower by reference, or several side by side.

    Args:
        reference: as in docs/FROZEN.md; several joined by " + " or as a list: features concatenated along D.
        trust_sources: False: refuse what would be fetched by name and what lies outside `folder`.
        folder: that relative paths begin from.

    Raises:
        UserError: the reference is unknown, its library is not installed, or its files cannot be used.
    """
    if not trust_sources:
        check_reference(reference, folder)
    towers = [_load_one(parse(part, folder), trust_sources) for part in split_references(reference)]
    return towers[0] if len(towers) == 1 else SideBySide(towers)


def _load_one(reference: Reference, trust_sources: bool) -> FrozenImageTower:
    # Each library is imported when it is asked for: open_clip is optional, and all are slow to load.
    if reference.kind == "timm":
        from lexlip.models.towers.timm_images import load_timm

        backbone: ImageBackbone = load_timm(reference)
    elif reference.kind == "open_clip":
        from lexlip.models.towers.open_clip_images import load_open_clip
        from lexlip.models.towers.open_clip_side import check_architecture

        if not trust_sources:
            check_architecture(reference)
        backbone = load_open_clip(reference)
    elif reference.kind == "hf":
        from lexlip.models.towers.hf_images import load_hf

        backbone = load_hf(reference)
    else:
        raise ConfigError(f"tower {reference}: sentence-transformers folders hold text towers; take hf: for images")
    return FrozenImageTower(reference, backbone)


class ImageOutputs(NamedTuple):
    """What a backbone gives.

    Attributes:
        states: (B, P + L, D) token states, or the cells of a feature map row by row; None if only `pooled` is there.
        prefix: P tokens before those of patches: [CLS], registers.
        pooled: (B, D'); None where the model has none.
    """

    states: Tensor | None
    prefix: int
    pooled: Tensor | None


class ImageBackbone(nn.Module):
    """A library's image model.

    Attributes:
        transform: an image to (3, H, W) float32; picklable.
        preprocessing: what `transform` does, as JSON.
        has_cls: whether the first token is a [CLS].
        default: view that is taken where none is named.
    """

    transform: Callable[[Image.Image], Tensor]
    preprocessing: dict
    has_cls: bool
    default: str

    def forward(self, pixels: Tensor, pooled: bool) -> ImageOutputs:
        """(B, 3, H, W) to its outputs; `pooled` says whether that one is wanted, or the states."""
        raise NotImplementedError


class FrozenImageTower(FrozenTower):
    """An image tower around a library's model, always in evaluation mode. B batch, L image tokens, D its width.

    Attributes:
        reference: loads the same tower again.
        width, tokens: D and L of `features`.
        transform: what `preprocess` does; small, and picklable for loader processes.

    Raises:
        ConfigError: the model lacks the view, or its preprocessing gives images of several sizes.
    """

    def __init__(self, reference: Reference, backbone: ImageBackbone):
        super().__init__()
        self.backbone = backbone
        self.view = reference.view or backbone.default
        self.reference = str(replace(reference, view=self.view))
        self.transform = backbone.transform
        if "cls" in self.view and not backbone.has_cls:
            raise ConfigError(f"tower {self.reference}: this model has no [CLS] token; take #mean or #patches")
        self.freeze()
        shapes = [tuple(self.preprocess(Image.new("RGB", size)).shape) for size in ((96, 64), (64, 96))]
        if shapes[0] != shapes[1]:
            raise ConfigError(
                f"tower {self.reference}: its preprocessing gives images of several sizes, {shapes[0]} and "
                f"{shapes[1]}; set crop_size, or height and width of size, in its preprocessing config"
            )
        probe = self.features(torch.zeros(1, *shapes[0]))
        self.pixels: tuple[int, ...] = shapes[0]
        self.tokens, self.width = probe.shape[1:]

    def preprocess(self, image: Image.Image) -> Tensor:
        """An image to what `features` takes a stack of: (3, H, W) float32."""
        return self.transform(to_rgb(image))

    @torch.no_grad()
    def features(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) preprocessed images to (B, L, D) float32; L is 1 for pooled, cls and mean."""
        return _take(self._outputs(pixels, self.view == "pooled"), self.view, self.reference).float()

    def _outputs(self, pixels: Tensor, pooled: bool) -> ImageOutputs:
        # Channels last: on a CPU a convolutional tower takes three quarters of the time.
        return self.backbone(pixels.to(self.device, self.dtype, memory_format=torch.channels_last), pooled)

    @property
    def pooling(self) -> Pooling | None:
        """What becomes of its patches: "max" where the heads get all of them, "mean", or None where none are left."""
        return {"patches": MAX, "mean": MEAN, "cls+mean": MEAN}.get(self.view)  # type: ignore[return-value]

    @torch.no_grad()
    def cells(self, pixels: Tensor) -> Tensor:
        """(B, 3, H', W') to (B, H, W, D): the features of each patch, of which `features` are all, or the mean.

        Raises:
            EncodingError: `pooling` is None, or the tokens make no grid.
        """
        if self.pooling is None:
            raise EncodingError(
                f"tower {self.reference}: its #{self.view} says nothing of patches; heads on #mean or #patches do"
            )
        states, prefix, _ = self._outputs(pixels, False)
        assert states is not None  # or `features` had been refused
        cells = states[:, prefix:]
        if self.view == "cls+mean":
            cells = torch.cat([states[:, :1].expand_as(cells), cells], -1)
        return cells.float().unflatten(1, grid_of(cells.shape[1], *self.pixels[1:]))

    def facts(self) -> dict:
        """What decides about the features, as JSON: reference, hash of the weights, preprocessing."""
        return {
            "reference": self.reference, "weights": self.weights_hash, "preprocessing": self.backbone.preprocessing,
            "pixels": list(self.pixels),
        }  # fmt: skip


def _take(outputs: ImageOutputs, view: str, reference: str) -> Tensor:
    """(B, L, D) of what a backbone gave."""
    states, prefix, pooled = outputs
    if view == "pooled":
        if pooled is None:
            raise ConfigError(f"tower {reference}: this model has no pooled output; take #cls, #mean or #patches")
        return pooled[:, None]
    if states is None or states.shape[1] <= prefix:
        raise ConfigError(f"tower {reference}: this model gives no token states; take #pooled")
    if view == "patches":
        return states[:, prefix:]
    parts = {"cls": lambda: states[:, :1], "mean": lambda: states[:, prefix:].mean(1, keepdim=True)}
    return torch.cat([parts[name]() for name in view.split("+")], -1)


class SideBySide(nn.Module):
    """Several image towers used as one `FrozenImageTower`: their features concatenated along D.

    Each has a preprocessing of its own, so a preprocessed image is all of theirs in one row of numbers.

    Raises:
        ConfigError: their numbers of tokens differ.
    """

    def __init__(self, towers: Sequence[FrozenImageTower]):
        super().__init__()
        self.towers: Any = nn.ModuleList(towers)
        self.reference = " + ".join(tower.reference for tower in towers)
        counts = {tower.reference: tower.tokens for tower in towers}
        if len(set(counts.values())) > 1:
            raise ConfigError(
                "towers side by side must give equally many tokens: "
                + ", ".join(f"{name} gives {count}" for name, count in counts.items())
            )
        self.width = sum(tower.width for tower in towers)
        self.tokens = towers[0].tokens
        self.transform = _AllTransforms([tower.transform for tower in towers])
        self._shapes = [torch.Size(tower.pixels) for tower in towers]

    def preprocess(self, image: Image.Image) -> Tensor:
        return self.transform(to_rgb(image))

    def features(self, pixels: Tensor) -> Tensor:
        return torch.cat([tower.features(part) for tower, part in self._parts(pixels)], -1)

    def _parts(self, pixels: Tensor) -> list[tuple[Any, Tensor]]:
        parts = pixels.split([shape.numel() for shape in self._shapes], 1)
        return [(tower, part.unflatten(1, shape)) for tower, part, shape in zip(self.towers, parts, self._shapes)]

    @property
    def pooling(self) -> Pooling | None:
        """As that of each tower; None where they differ."""
        kinds = {tower.pooling for tower in self.towers}
        return kinds.pop() if len(kinds) == 1 else None

    def cells(self, pixels: Tensor) -> Tensor:
        """As `FrozenImageTower.cells`.

        Raises:
            EncodingError: a tower has no patches, or others than the first.
        """
        cells = [tower.cells(part) for tower, part in self._parts(pixels)]
        if self.pooling is None or len({each.shape[1:3] for each in cells}) > 1:
            raise EncodingError(f"towers {self.reference}: their patches are not the same, so none is an image's")
        return torch.cat(cells, -1)

    def facts(self) -> dict:
        facts = [tower.facts() for tower in self.towers]
        weights = hashlib.sha256(" ".join(fact["weights"] for fact in facts).encode()).hexdigest()
        return {"reference": self.reference, "weights": weights, "towers": facts}


ImageTower = FrozenImageTower | SideBySide


class _AllTransforms:
    def __init__(self, transforms: list[Callable[[Image.Image], Tensor]]):
        self.transforms_of_towers = transforms

    def __call__(self, image: Image.Image) -> Tensor:
        return torch.cat([transform(image).flatten() for transform in self.transforms_of_towers])
