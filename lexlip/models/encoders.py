"""The two towers: any timm image model and any Hugging Face BERT, each giving token states (B, L, D).

The image tower keeps every token, CLS too, and ends in a LayerNorm of its own. It reads any size that the patch
divides.
"""

import copy
import sys
from pathlib import Path
from typing import Any

import timm
import torch
from einops import rearrange
from timm.layers import DropPath
from timm.models import load_state_dict
from timm.models.beit import Beit
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, BertModel
from transformers.models.bert.modeling_bert import BertEncoder

from lexlip.errors import CheckpointError, ConfigError
from lexlip.models.config import OFFICIAL_NAMES, text_dropout
from lexlip.models.long_texts import corner_mask, insert_corners
from lexlip.models.positions import GridBias
from lexlip.models.source import ask_hub, check_source, load_reason
from lexlip.models.trust import VIT_KWARGS, refusal, shown


class ImageEncoder(nn.Module):
    """A timm model cut before its pooling.

    Args:
        name: timm name, "hf-hub:owner/name", "local-dir:PATH", or one of the official configs' names.
        image_size: side in pixels of the images that positions are made for.
        kwargs: passed to `timm.create_model`; only what shapes a tower (`lexlip.models.trust`).
        pretrained: True: weights from the hub; False: none; a path: that weights file.
        norm_eps: of every LayerNorm.

    Raises:
        ConfigError: the model has no token or map features, or the weights file is missing.
    """

    backbone: Any
    rel_pos: str = (
        "2d"  # one of `REL_POS`: how position tables are read at another size, here and as weights are loaded
    )

    def __init__(
        self, name: str, image_size: int, kwargs: dict | None = None, pretrained: bool | str = False,
        norm_eps: float = 1e-12,
    ):  # fmt: skip
        super().__init__()
        self.backbone = _create(OFFICIAL_NAMES.get(name, name), image_size, kwargs or {}, pretrained)
        self.width: int = self.backbone.num_features
        self.norm = nn.LayerNorm(self.width)
        for owner in (self.backbone, getattr(self.backbone, "head", self.backbone)):
            own = getattr(owner, "norm", None)
            if isinstance(own, nn.LayerNorm) and own.normalized_shape == (self.width,):
                # The tower's own last norm goes on as ours, so that pretrained features are normalised once.
                self.norm.load_state_dict(own.state_dict())
                owner.norm = nn.Identity()
                break
        for unused in ("head", "fc_norm"):  # parts after the features: weights that no gradient would reach
            if isinstance(getattr(self.backbone, unused, None), nn.Module):
                setattr(self.backbone, unused, nn.Identity())
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = norm_eps
        if isinstance(self.backbone, Beit):
            self.backbone.patch_embed.strict_img_size = False
            if self.backbone.rel_pos_bias is None and self.backbone.blocks[0].attn.window_size is not None:
                self.backbone.rel_pos_bias = GridBias([block.attn for block in self.backbone.blocks])
        patch = getattr(getattr(self.backbone, "patch_embed", None), "patch_size", None)
        self.patch: int | None = patch[0] if isinstance(patch, tuple) else patch  # its side in pixels

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) normalised pixels of any float type to (B, L, width) token states."""
        # A model in half precision takes float32 images. Channels last, so the patches' convolution gives its map token
        # by token, which is how the blocks read it.
        pixels = pixels.to(self.norm.weight.dtype).contiguous(memory_format=torch.channels_last)
        bias = getattr(self.backbone, "rel_pos_bias", None)
        if isinstance(bias, GridBias) and self.patch is not None:
            bias.grid = (pixels.shape[-2] // self.patch, pixels.shape[-1] // self.patch)
            bias.rel_pos = self.rel_pos
        states = self.backbone.forward_features(pixels)
        if states.ndim == 4:
            last = states.shape[-1] == self.width and states.shape[1] != self.width
            states = rearrange(states, "b h w d -> b (h w) d" if last else "b d h w -> b (h w) d")
        return self.norm(states)

    def set_drop_path(self, rate: float) -> None:
        """Stochastic depth in training: from 0 at the first block to `rate` at the last, linearly (Huang et al., 2016).

        Raises:
            ConfigError: a positive rate, and the tower is no BEiT or ViT.
        """
        blocks = getattr(self.backbone, "blocks", ())
        if not blocks or not all(hasattr(block, "drop_path1") for block in blocks):
            if rate:
                raise ConfigError(f"drop_path_rate={rate}: {type(self.backbone).__name__} has no blocks to leave out")
            return
        for number, block in enumerate(blocks):
            own = rate * number / max(1, len(blocks) - 1)
            block.drop_path1 = DropPath(own) if own else nn.Identity()
            block.drop_path2 = DropPath(own) if own else nn.Identity()


def _create(name: str, image_size: int, kwargs: dict, pretrained: bool | str) -> Any:
    file = pretrained if isinstance(pretrained, str) else None
    if file and not Path(file).is_file():
        raise ConfigError(f"vit_pretrained={file}: no such weights file")
    if wrong := refusal(kwargs, VIT_KWARGS, "vit_kwargs."):
        raise ConfigError(f"vit={shown(name)}: {wrong}")
    if pretrained is True or name.startswith("hf-hub:"):  # whose library would try for minutes
        ask_hub()
    extra = {"num_classes": 0, "global_pool": "", "pretrained": pretrained is True}
    # ViT takes any size when asked to, BEiT is taught by GridAttention, convolutional models ask for none.
    for sizes in ({"img_size": image_size, "dynamic_img_size": True}, {"img_size": image_size}, {}):
        try:
            model = timm.create_model(name, **{**extra, **sizes, **kwargs})
            break
        except Exception as error:  # a shape that cannot be ends in whatever the arithmetic of its tower raises
            if isinstance(error, TypeError) and sizes and "unexpected keyword argument" in str(error):
                continue
            wanted = f"vit={name}, vit_pretrained={pretrained}, image_size={image_size}, vit_kwargs={kwargs}"
            raise ConfigError(f"timm cannot build or load {wanted}: {load_reason(error, name)}") from error
    if not hasattr(model, "forward_features"):
        raise ConfigError(f"vit={name}: this timm model gives no token or map features")
    if file:
        _load_file(model, file)
    return model


def _load_file(model: Any, file: str) -> None:
    """Load a timm weights file strictly, its classifier aside; positions are resampled by timm."""
    head = model.pretrained_cfg.get("classifier") or ()
    unused = ("fc_norm.", *(f"{name}." for name in ((head,) if isinstance(head, str) else head)))
    try:
        state = load_state_dict(file, weights_only=True)
        fit = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
        result = model.load_state_dict(fit(state, model) if fit else state, strict=False)
    except Exception as error:  # pickle, zip, safetensors and torch each raise their own kinds
        raise ConfigError(f"vit_pretrained={file} does not load into this tower: {error}") from error
    # A tower that pooled before its last norm has none here; ours then starts fresh.
    missing = [name for name in result.missing_keys if not name.startswith("norm.")]
    extra = [name for name in result.unexpected_keys if not name.startswith(unused)]
    if missing or extra:
        raise ConfigError(
            f"vit_pretrained={file} does not fit this tower; not in the file: {missing[:3]}, "
            f"not in the tower: {extra[:3]}"
        )


class TextEncoder(nn.Module):
    """BERT without its pooler.

    Args:
        config: of the BERT; `attention_probs_dropout_prob` and `hidden_dropout_prob` hold the dropout.
        corner_tokens: C; the last C entries of the config's vocabulary are corners, see `lexlip.models.long_texts`.
    """

    def __init__(self, config: BertConfig, corner_tokens: int = 0):
        super().__init__()
        self.corner_tokens = corner_tokens
        self.bert = _fresh_bert(config, corner_tokens)
        self.width: int = config.hidden_size

    @property
    def config(self) -> BertConfig:
        return self.bert.config

    @property
    def word_embeddings(self) -> Tensor:
        """(V, D) table E, without the corner tokens."""
        table = self.bert.embeddings.word_embeddings.weight
        return table[: -self.corner_tokens] if self.corner_tokens else table

    def embed(self, ids: Tensor) -> Tensor:
        """(B, L) token ids to (B, L, D) input embeddings, positions and LayerNorm included."""
        positions = torch.arange(ids.shape[1], device=ids.device)[None]
        positions = positions + self.corner_tokens * (positions > 0)  # those after [CLS] are the corners'
        return self.bert.embeddings(input_ids=ids, position_ids=positions)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """(B, L) token ids and their mask, 0 at padding, to (B, L, D) token states; no corner has a part in them."""
        return _run_layers(self.bert.encoder, self.embed(ids), mask)

    def with_corners(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Like `forward`, to (B, L + C, D) states of [CLS], the corners and the word pieces."""
        first = self.config.vocab_size - self.corner_tokens
        states = self.bert.embeddings(input_ids=insert_corners(ids, first, self.corner_tokens))
        return _run_layers(self.bert.encoder, states, corner_mask(mask, self.corner_tokens))


def _fresh_bert(config: BertConfig, corner_tokens: int) -> BertModel:
    """A BERT whose last vocabulary entries are corners.

    All else starts with the numbers that it would have without them, so that models with and without can be compared.
    """
    config = copy.deepcopy(config)
    config.vocab_size -= corner_tokens
    bert = BertModel(config, add_pooling_layer=False)
    if corner_tokens:
        with torch.random.fork_rng(devices=()), torch.no_grad():
            words = bert.embeddings.word_embeddings.weight
            corners = torch.empty(corner_tokens, config.hidden_size).normal_(std=config.initializer_range)
            bert.embeddings.word_embeddings = nn.Embedding.from_pretrained(
                torch.cat([words, corners.to(words)]), freeze=False, padding_idx=config.pad_token_id
            )
        bert.config.vocab_size += corner_tokens
    return bert


def pretrained_bert(name: str, drop_rate: float) -> BertForMaskedLM:
    """A BERT and its masked-language-model head, by hub name or folder.

    Raises:
        ConfigError: it cannot be loaded, or it is no BERT.
    """
    try:
        check_source("text_model=", name, "a folder with config.json and weights")
        return BertForMaskedLM.from_pretrained(
            name, trust_remote_code=False, attn_implementation="sdpa", **text_dropout(drop_rate)
        )
    except CheckpointError as error:
        raise ConfigError(f"{error}, or set text_pretrained=False for a fresh BERT") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"no BERT weights could be loaded from {name!r}: {load_reason(error, name)}. "
            "Give text_model=FOLDER with config.json and weights, or text_pretrained=False for a fresh one."
        ) from error


class BertStack(nn.Module):
    """So many fresh BERT layers, of the shape of a text tower's, over given input embeddings."""

    def __init__(self, config: BertConfig, layers: int):
        super().__init__()
        config = copy.deepcopy(config)
        config.num_hidden_layers = layers
        config._attn_implementation = "sdpa"  # a whole BertModel would choose it itself
        self.encoder = BertEncoder(config)
        for module in self.encoder.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=config.initializer_range)
                nn.init.zeros_(module.bias)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """(B, L, D) embeddings and their (B, L) mask, 0 at padding, to (B, L, D)."""
        return _run_layers(self.encoder, states, mask)


def _run_layers(encoder: BertEncoder, states: Tensor, mask: Tensor) -> Tensor:
    """BERT layers over (B, L, D) embeddings and their (B, L) mask, 0 at padding, or (B, L, L) of who sees whom.

    The mask is made once, in the attention's own dtype, and without asking the GPU whether anything is padded.
    """
    device = states.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype
    bias = torch.zeros_like(mask, dtype=dtype).masked_fill_(mask == 0, torch.finfo(dtype).min)
    return encoder(states, attention_mask=bias[:, None] if mask.ndim == 3 else bias[:, None, None, :]).last_hidden_state
