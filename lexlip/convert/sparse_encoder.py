"""A SPLADE model of sentence-transformers, turned into a model folder: its BERT and MLM head are the text side.

Both pool alike, log(1 + max over the tokens of relu(z)), or that logarithm twice, so `encode_text(normalize=False)`
gives its vectors. The image head starts as a copy of the text head; the image tower is new and has to be trained.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import BertForMaskedLM

from lexlip.errors import CheckpointError
from lexlip.models.config import ModelConfig
from lexlip.models.lexlip import LexLIP
from lexlip.models.tokenizer import check_tokenizer
from lexlip.models.trust import TEXT

ACTIVATIONS = {"relu": "log1p", "log1p_relu": "log1p_twice"}  # theirs: before the one log1p that all have
MODULES = {"Transformer", "MLMTransformer", "SpladePooling"}  # of sentence_transformers; no other has our vectors


def import_sparse_encoder(name: str, vit: str, image_size: int, vit_pretrained: bool = False) -> LexLIP:
    """Read a SparseEncoder.

    Args:
        name: folder, or name on the hub.
        vit: timm name of the image tower, of `image_size` pixels a side.
        vit_pretrained: whether its weights are fetched.

    Returns:
        The model, in evaluation mode.

    Raises:
        CheckpointError: sentence-transformers is not installed, or the model is no SPLADE with maxima over a BERT.
    """
    _check_modules(Path(name))
    try:
        from sentence_transformers import SparseEncoder

        pooling_class = _splade_pooling()
    except ImportError as error:
        raise CheckpointError("this needs sentence-transformers 5 or 6: pip install sentence-transformers") from error
    try:
        encoder = SparseEncoder(name, device="cpu")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{name} cannot be opened as a SparseEncoder: {' '.join(str(error).split())}") from error
    modules = list(encoder)
    bert = getattr(modules[0], "auto_model", None) or getattr(modules[0], "model", None)
    pooling = [module for module in modules if isinstance(module, pooling_class)]
    if len(modules) != 2 or not pooling or not isinstance(bert, BertForMaskedLM):
        kinds = ", ".join(type(module).__name__ for module in modules)
        raise CheckpointError(
            f"{name} is {kinds} over {type(bert).__name__}; only SPLADE models of a BertForMaskedLM can be text towers"
        )
    how = pooling[0].pooling_strategy, pooling[0].activation_function
    if how[0] != "max" or how[1] not in ACTIVATIONS:
        raise CheckpointError(
            f"{name} pools by {how[0]} and {how[1]}; here it is max and {' or '.join(ACTIVATIONS)}, so its vectors "
            "would differ"
        )
    text = {field: getattr(bert.config, field) for field in TEXT}
    length = min(encoder.max_seq_length or bert.config.max_position_embeddings, bert.config.max_position_embeddings)
    config = ModelConfig(
        vit=vit, image_size=image_size, text=text, max_text_len=int(length), activation=ACTIVATIONS[how[1]]
    )
    check_tokenizer(name, config.vocab_size, encoder.tokenizer)
    model = LexLIP(config, encoder.tokenizer, vit_pretrained)
    model.text_encoder.bert.load_state_dict(bert.bert.state_dict())
    model.start_head(bert)
    return model.eval()


def _splade_pooling() -> Any:
    """SpladePooling, which version 6 has in another module than version 5."""
    try:
        from sentence_transformers.sparse_encoder.modules import SpladePooling
    except ImportError:
        from sentence_transformers.sparse_encoder.models import SpladePooling as OlderPooling

        return OlderPooling
    return SpladePooling


def _check_modules(folder: Path) -> None:
    """Refuse a folder of other modules before it is opened: version 5 runs the code that a local folder names."""
    file = folder / "modules.json"
    if not file.is_file():  # a name on the hub, whose code is not trusted, or a plain BERT
        return
    try:
        kinds = [module["type"] for module in json.loads(file.read_text(encoding="utf-8"))]
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{file} is no list of modules with a type each") from error
    for kind in kinds:
        package, _, rest = str(kind).partition(".")
        if package != "sentence_transformers" or rest.rpartition(".")[2] not in MODULES:
            raise CheckpointError(
                f"{file} names {kind!r}; only the library's own {', '.join(sorted(MODULES))} are opened, no other code"
            )
