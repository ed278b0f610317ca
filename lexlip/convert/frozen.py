"""Heads on frozen towers out of a checkpoint into a model folder, with the towers if that is wanted."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from lexlip.errors import CheckpointError
from lexlip.features.store import FeatureStore
from lexlip.features.vocabulary import read_vocabulary
from lexlip.models.frozen.config import FrozenConfig
from lexlip.models.frozen.model import FrozenLexLIP, without_places
from lexlip.models.frozen.table import with_table
from lexlip.models.towers import load_image_tower, load_text_tower
from lexlip.models.towers.embed import embed_tower
from lexlip.models.towers.packed import Storage
from lexlip.models.weights import check_shape, fit, known_config, model_weights, read


def export_frozen(
    path: str | Path, out: str | Path, features: str | Path | None = None, embed_towers: bool = False,
    storage: Storage = "full",
) -> FrozenLexLIP:  # fmt: skip
    """A checkpoint of heads on frozen towers as a model folder; a trained lookup side becomes a table.

    Args:
        features: the cache that it was trained on; None: where it was then.
        embed_towers: also write the towers, so that the folder needs nothing from outside.
        storage: of the heads (16 bits for "int8" too) and of embedded towers.

    Raises:
        CheckpointError: no checkpoint of this kind.
        FeaturesError: the cache is not there.
    """
    content = read(path)
    store = FeatureStore(features or content["hyper_parameters"]["config"]["features"])
    model = read_heads(path, store)
    if model.config.text_head == "lookup":
        model = with_table(model, read_vocabulary(store.folder, len(store.tokenizer)).words)
    return write_frozen(model, out, embed_towers, storage)


def read_heads(path: str | Path, store: FeatureStore) -> FrozenLexLIP:
    """The heads of a checkpoint.

    Raises:
        CheckpointError: it holds none.
    """
    config = known_config(path)
    if not isinstance(config, FrozenConfig):
        raise CheckpointError(f"{path} holds no heads on frozen towers")
    weights = model_weights(path)
    check_shape(FrozenLexLIP, config, weights, path, path)
    model = FrozenLexLIP(config, store.tokenizer)
    fit(model, weights, path)
    return model.eval()


def write_frozen(
    model: FrozenLexLIP, out: str | Path, embed_towers: bool = False, storage: Storage = "full"
) -> FrozenLexLIP:
    """`save_pretrained`, with the towers if that is wanted."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    if embed_towers:
        for side in ("image", "text"):
            if getattr(model.config, f"{side}_tower"):
                reference = embed_tower(getattr(model, f"{side}_tower"), out, side, storage)
                load = load_image_tower if side == "image" else partial(load_text_tower, lexicon=model.tokenizer)
                stored = load(reference, folder=out).facts()["weights"]  # which also shows that it loads
                setattr(model.config, f"{side}_tower", reference)
                facts = without_places(model.config.tower_facts.get(side, {}))  # of no use to anybody else
                model.config.tower_facts[side] = {**facts, "reference": reference, "stored": stored}
        model.config.embedded = [side for side in ("image", "text") if getattr(model.config, f"{side}_tower")]
    if storage != "full":
        model.half()
    model.save_pretrained(out)
    return model.float()
