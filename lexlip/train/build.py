"""From a config to a model, and back: which towers a run trains, and which keys a model decides."""

from __future__ import annotations

import copy
import logging
from typing import Any, TypeVar

from transformers import BertConfig, PreTrainedTokenizerBase

from lexlip.errors import ConfigError
from lexlip.models.config import ModelConfig, text_dropout
from lexlip.models.dense import DenseLIP
from lexlip.models.encoders import pretrained_bert
from lexlip.models.frozen.config import FrozenConfig
from lexlip.models.hub import check_head
from lexlip.models.lexlip import LexLIP
from lexlip.models.long_texts import fit_text_tables
from lexlip.models.tokenizer import check_tokenizer
from lexlip.models.trust import TEXT
from lexlip.models.two_tower import TwoTowers
from lexlip.models.weights import check_text, fit, fit_words, known_config, model_weights
from lexlip.train.config import Config, base, check_patch

log = logging.getLogger(__name__)

HEAD_WIDTH = 64  # of an attention head, where no key says how many there are
DERIVED = ("patch_size", "input_image_embed_size", "input_text_embed_size", "hidden_size", "num_heads")
LEXICON_KEYS = ("inactive_terms", "activation", "own_weights", "joint_dim")
SHAPE_KEYS = (  # the same in `Config` and `ModelConfig`
    "vit", "vit_kwargs", "image_size", "image_norm_eps", "max_text_len", "corner_tokens", "sentence_sep",
    *LEXICON_KEYS,
)  # fmt: skip
DENSE_KEYS = ("embed_dim", "text_pooler", "image_projection")
Model = TypeVar("Model", bound=TwoTowers)


def build_model(
    kind: type[Model], config: Config, tokenizer: PreTrainedTokenizerBase | None = None,
    known: ModelConfig | None = None,
) -> Model:  # fmt: skip
    """A model with the towers' pretrained weights where the config asks for them.

    Args:
        kind: `LexLIP` or `DenseLIP`.
        tokenizer: for strings; its length is the vocabulary of a fresh text tower where `vocab_size` is None.
        known: the config of weights that will replace all of these, so that nothing pretrained is fetched.

    Raises:
        ConfigError: a tower cannot be built or loaded, or its width, patch or vocabulary contradicts a key.
    """
    bert, corners = None, config.corner_tokens
    if known is not None:
        if known.corner_tokens not in (0, corners):
            raise ConfigError(
                f"corner_tokens={corners}, but the weights have {known.corner_tokens}; set "
                f"corner_tokens={known.corner_tokens}"
            )
        text = BertConfig(**{**known.text, **text_dropout(config.drop_rate), "vocab_size": known.vocab_size})
    elif config.text_pretrained:
        bert = pretrained_bert(config.text_model or config.tokenizer, config.drop_rate)
        text = copy.deepcopy(bert.config)
    else:
        text = _fresh_bert(config, tokenizer)
    text.vocab_size += corners
    if known is not None or bert is not None:  # what was trained on shorter texts is stretched
        text.max_position_embeddings = max(text.max_position_embeddings, config.max_text_len)
    text_shape = {name: getattr(text, name) for name in TEXT}
    shape = ModelConfig(head=kind.head, text=text_shape, **{name: getattr(config, name) for name in _shape_keys(kind)})
    if not issubclass(kind, DenseLIP):
        shape.text_side = config.head_text
    model = kind(shape, tokenizer, config.vit_pretrained if known is None else False)
    model.image_encoder.rel_pos = config.rel_pos
    if bert is not None:
        state = bert.bert.state_dict()
        fresh = model.text_encoder.bert.state_dict()
        fit_text_tables(state, fresh, config.max_text_len, config.trained_positions)
        model.text_encoder.bert.load_state_dict(state)
    model.start_head(bert)
    if isinstance(model, LexLIP):
        model.set_lexicon_head(config.lexicon_head)
    check_towers(model, config)
    return model


def as_trained(config: Config) -> Config:
    """The config with what the weights were trained with, in place of defaults, so that it says what is built.

    A dense head beside the lexicon that nothing would train is left out, since it would no longer fit the towers.

    Raises:
        ConfigError: `eval_head` is dense, and there will be no dense head.
        CheckpointError: the weights cannot be read.
    """
    source, usual = config.load_path or config.resume_from, base()
    known = known_config(source, trust_sources=True) if source else None
    if not isinstance(known, ModelConfig) or known.head != LexLIP.head:
        return config
    found: dict[str, Any] = {key: getattr(known, key) for key in LEXICON_KEYS}
    found["head_text"] = known.text_side
    taken = {key: value for key, value in found.items() if getattr(config, key) == usual[key] != value}
    if "joint_dim" in taken and config.load_path and not config.test_only and not config.loss_names.get("dense"):
        dropped = taken.pop("joint_dim")
        log.info("the dense head of %s is left out: nothing trains it; joint_dim=%s keeps it", source, dropped)
    if config.eval_head == "dense" and not (config.joint_dim or taken.get("joint_dim")):
        raise ConfigError(
            f"eval_head=dense: {source} has no dense head, or nothing trains it; set joint_dim and loss_names.dense, "
            "or test_only=True with a model that has one"
        )
    if taken:
        log.info("taken from %s: %s", source, ", ".join(f"{key}={value}" for key, value in taken.items()))
    return config.changed(**taken)


def started_model(kind: type[Model], config: Config, tokenizer: PreTrainedTokenizerBase | None = None) -> Model:
    """`build_model`, with the weights of `load_path` where there is one; the config is one of `as_trained`.

    Raises:
        ConfigError: as `build_model`.
        CheckpointError: the weights cannot be read, or are of another model.
    """
    weights, known = {}, None
    if source := config.load_path or config.resume_from:
        # Read before the towers are built: a wrong file is refused before anything is fetched.
        # Only its text tower is taken over; the image tower is the one that this run's config names.
        weights, known = model_weights(source), known_config(source, trust_sources=True)
        if known is not None:
            check_head(kind, known, source)
            check_text(known, weights, source)
    assert not isinstance(known, FrozenConfig)  # which `check_text` refuses
    model = build_model(kind, config, tokenizer, known)
    if config.load_path:
        # What was trained on such lengths already must not be cut back to `trained_positions`.
        long_enough = known is not None and known.max_text_len >= config.max_text_len
        trained = None if long_enough else config.trained_positions
        fit_text_tables(weights, model.state_dict(), config.max_text_len, trained)
        fit_words(weights, model.state_dict(), config.inactive_terms)
        if not config.joint_dim:
            weights = {name: value for name, value in weights.items() if not name.startswith("joint_")}
        fit(model, weights, config.load_path)
    return model


def _shape_keys(kind: type[TwoTowers]) -> tuple[str, ...]:
    return SHAPE_KEYS + DENSE_KEYS if issubclass(kind, DenseLIP) else SHAPE_KEYS


def _fresh_bert(config: Config, tokenizer: PreTrainedTokenizerBase | None) -> BertConfig:
    width = config.fresh_width
    most = max(1, width // HEAD_WIDTH)
    vocab_size = config.vocab_size or (len(tokenizer) if tokenizer is not None else None)
    if vocab_size is None:
        raise ConfigError("vocab_size=None: a fresh text tower needs a tokenizer or a vocab_size")
    return BertConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        num_hidden_layers=config.text_layers,
        num_attention_heads=config.num_heads or next(n for n in range(most, 0, -1) if width % n == 0),
        intermediate_size=int(width * config.mlp_ratio),
        max_position_embeddings=config.text_positions,
        **text_dropout(config.drop_rate),
    )


def check_towers(model: TwoTowers, config: Config) -> None:
    """Refuse keys that contradict the towers, naming the key and the value that fits."""
    facts = {
        "input_image_embed_size": model.image_encoder.width,
        "input_text_embed_size": model.text_encoder.width,
        "hidden_size": model.text_encoder.width,
        "vocab_size": model.config.vocab_size,
        "num_heads": model.text_encoder.config.num_attention_heads,
        "patch_size": model.image_encoder.patch,
    }
    for key, fact in facts.items():
        if fact is not None and getattr(config, key) not in (None, fact):
            raise ConfigError(
                f"{key}={getattr(config, key)}, but the towers that were built have {fact}; set {key}={fact}"
            )
    if config.vocab_size is None and model.tokenizer is not None:
        check_tokenizer(config.tokenizer, model.config.vocab_size, model.tokenizer)
    check_patch(config.image_size, model.image_encoder.patch)
    positions = model.text_encoder.config.max_position_embeddings
    if config.max_text_len > positions:
        raise ConfigError(f"max_text_len={config.max_text_len}, but the text tower has {positions} positions")


def decided_by(model: TwoTowers) -> dict:
    """The keys of a config that a model decides; those that only restate its towers are None."""
    shape = model.config
    keys = {name: getattr(shape, name) for name in ("head", "vocab_size", *_shape_keys(type(model)))}
    keys |= {"head_text": shape.text_side}
    keys |= dict.fromkeys(DERIVED) | {"vit_pretrained": False, "text_pretrained": False}
    keys |= {"text_layers": shape.text["num_hidden_layers"], "drop_rate": shape.text["hidden_dropout_prob"]}
    return keys | {"training_mode": "con"} if isinstance(model, DenseLIP) else keys
