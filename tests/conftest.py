"""What several test files share: a tiny model, a tiny batch, a tiny data set. Nothing is downloaded."""

import os
import sys
from pathlib import Path

import pytest
import torch

from lexlip.train.config import Config, base

sys.path.insert(0, str(Path(__file__).parent))  # where tiny.py and runs.py are, which tests import
sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts"))  # fuzzing/png.py

import tiny  # noqa: E402  (found on that path)

torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """Files with slow tests come first: the last one of them would have one process to itself, and the others wait."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch):
    """A run leaves its version number in the environment for the processes that it starts."""
    for name in ("LEXLIP_RUN", "LEXLIP_JOB", "LOCAL_RANK"):
        monkeypatch.setenv(name, "")  # noted by monkeypatch, so that what a test leaves is removed too
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def shared():
    """Finds a file or folder of reference data beside the checkout, or where LEXLIP_SHARED says; skips without it."""
    folder = Path(os.environ.get("LEXLIP_SHARED") or Path(__file__).resolve().parents[2] / "shared")

    def find(*parts: str) -> Path:
        path = folder.joinpath(*parts)
        if not path.exists():
            pytest.skip(f"needs {'/'.join(parts)} of the reference data; LEXLIP_SHARED names their folder")
        return path

    return find


@pytest.fixture
def make_keys():
    """All keys of a tiny model on the CPU; keyword arguments change some."""

    def make(**changes) -> dict:
        keys = {**base(), **tiny.MODEL, "batch_size": 6, "per_gpu_batchsize": 6, "vocab_size": 40}
        unknown = set(changes) - set(keys)
        assert not unknown, unknown
        return {**keys, **changes}

    return make


@pytest.fixture
def make_config(make_keys):
    """The config of a tiny model on the CPU; keyword arguments change some keys, unchecked."""
    return lambda **changes: Config.checked(make_keys()).changed(**changes)


@pytest.fixture
def every_loss_weighed():
    """`loss_names` with a weight of its own for every entry, also for those that base.yaml gives none."""
    return {name: 1 + number / 4 for number, name in enumerate(base()["loss_names"])}


@pytest.fixture
def make_model(make_config, livelier):
    """A tiny `LexLIP`, or one with the head that is asked for; keyword arguments change its config."""
    from lexlip.models.auto import model_class
    from lexlip.train.build import build_model

    def make(tokenizer=None, **changes):
        config = make_config(**changes)
        return livelier(build_model(model_class(config), config, tokenizer))

    return make


@pytest.fixture
def make_worded(make_model, tiny_data):
    """`make_model` with the tokenizer of `tiny_data`, for strings."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_data["tokenizer"])
    return lambda **changes: make_model(tokenizer, vocab_size=tiny_data["words"], **changes)


@pytest.fixture
def livelier():
    """Makes a fresh model's numbers large enough that differences show."""

    def change(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
        return module

    return change


@pytest.fixture
def fresh_compiler():
    """What other tests compiled would count towards torch's limit of compilations for the same code."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.fixture
def make_batch():
    """A training batch as the collator makes it: rows of different lengths, some of the same image."""

    def make(rows: int = 6, length: int = 7, vocab: int = 40, size: int = 32, seed: int = 0, ids=None) -> dict:
        g = torch.Generator().manual_seed(seed)
        text_ids = torch.randint(5, vocab, (rows, length), generator=g)
        lengths = torch.randint(3, length + 1, (rows,), generator=g)
        mask = (torch.arange(length)[None, :] < lengths[:, None]).long()
        text_ids = text_ids * mask
        batch = {
            "image": torch.randn(rows, 3, size, size, generator=g),
            "text_ids": text_ids,
            "text_mask": mask,
            "image_id": torch.arange(rows) * 7 + 3 if ids is None else torch.tensor(ids),
            "skipped": [],
        }
        for side, probability in (("encoder", 0.3), ("decoder", 0.5)):
            hidden = (torch.rand(rows, length, generator=g) < probability) & (mask == 1)
            hidden[:, 1] = True
            hidden[:, 0] = False
            batch[f"{side}_ids"] = text_ids.masked_fill(hidden, 4)
            batch[f"{side}_labels"] = text_ids.masked_fill(~hidden, -100)
        return batch

    return make


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    """A folder with a tokenizer and a data set `tiny` as tables: 8, 4 and 4 images with 2 captions each."""
    from lexlip_data.convert.vocabulary import build_tokenizer

    root = tmp_path_factory.mktemp("tiny_data")
    words = build_tokenizer(tiny.write_tables(root), root / "tokenizer", vocab_size=120)
    return {"root": root, "tokenizer": str(root / "tokenizer"), "words": words}


@pytest.fixture
def lotlip_release():
    """Builds the parts of a LoTLIP release as its authors' code does, and their state dict; by default a small one."""
    import timm
    from transformers import BertConfig, BertModel

    vision = {"embed_dim": 64, "depth": 2, "num_heads": 1, "img_size": 32}
    text = {
        "vocab_size": 122, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1,
        "intermediate_size": 96, "max_position_embeddings": 40,
    }  # fmt: skip

    def build(patch=16, vision=vision, text=text, embed_dim=64, **changed_text):
        torch.manual_seed(0)
        trunk = timm.create_model(f"vit_base_patch{patch}_224", num_classes=0, global_pool="token", **vision).eval()
        bert = BertModel(BertConfig(**{**text, **changed_text}), add_pooling_layer=True).eval()
        proj = torch.nn.Linear(bert.config.hidden_size, embed_dim, bias=False)
        state = {f"visual.trunk.{name}": value for name, value in trunk.state_dict().items()}
        state |= {f"text.transformer.{name}": value for name, value in bert.state_dict().items()}
        state["text.transformer.embeddings.position_ids"] = torch.arange(bert.config.max_position_embeddings)[None]
        state |= {"text.proj.weight": proj.weight.detach(), "logit_scale": torch.tensor(4.25)}
        return trunk, bert, proj, state

    return build


@pytest.fixture(scope="session")
def frozen(tmp_path_factory):
    """Tiny frozen towers, a table of 24 images and the cache of their features; tests only read them.

    `train(head, **changes)` trains heads on it, once for the same arguments, and gives the run; `checkpoint(head)` is
    its last; `folder(head, storage)` the model folder with embedded towers, or without where storage is None.
    """
    import frozen_tiny

    return frozen_tiny.World(tmp_path_factory.mktemp("frozen"))
