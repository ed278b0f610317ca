"""Model folders and checkpoints are data: what they may ask for; nothing is fetched, run or allocated first."""

import inspect
import json
import socket

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from timm.models import beit, convnext, eva, resnet, vision_transformer
from timm.models import swin_transformer as swin

from lexlip import LexLIP
from lexlip.cli import main
from lexlip.convert.export import export_checkpoint
from lexlip.errors import CheckpointError, ConfigError
from lexlip.models import encoders
from lexlip.models.sizes import BESIDE, on_meta
from lexlip.models.tokenizer import open_tokenizer
from lexlip.models.trust import VIT_KWARGS, check_config
from lexlip.models.weights import known_config, model_weights, phase_state
from Phase1.module import Phase1Module


@pytest.fixture
def offline(monkeypatch):
    """Fails where something opens a connection."""

    def refuse(*given):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def folder(make_worded, tmp_path):
    make_worded().save_pretrained(tmp_path / "m")
    return tmp_path / "m"


@pytest.fixture
def checkpoint(make_model, make_config, tmp_path):
    """Writes a checkpoint as Phase 1 does, with changes to its model's config."""
    module = Phase1Module(make_config(), make_model())

    def write(**changes):
        content = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams), "tokenizer": {}}
        content["hyper_parameters"]["model"] = {**module.hparams["model"], **changes}
        torch.save(content, tmp_path / "a.ckpt")
        return tmp_path / "a.ckpt"

    return write


def change(folder, part=None, **values):
    config = json.loads((folder / "config.json").read_text())
    (config[part] if part else config).update(values)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def refused(action, *given, **others) -> str:
    with pytest.raises(CheckpointError) as caught:
        action(*given, **others)
    return str(caught.value)


HOSTILE = {
    "pretrained": True, "pretrained_cfg": "x", "pretrained_cfg_overlay": {"url": "http://127.0.0.1:9/x.pth"},
    "checkpoint_path": "weights.bin", "cache_dir": "/tmp/x", "features_only": True, "url": "http://127.0.0.1:9",
    "hf_hub_id": "a/b", "scriptable": True, "exportable": True, "no_jit": True, "device": "cuda:7", "block": "Block",
    "__class__": "x",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_arguments_of_timm_that_are_no_shape_are_refused_by_name(folder, checkpoint, make_config, name, offline):
    before = sorted(folder.rglob("*"))
    message = refused(LexLIP.from_pretrained, change(folder, "vit_kwargs", **{name: HOSTILE[name]}))
    assert f"{folder / 'config.json'}: vit_kwargs.{name} is not among the arguments" in message.replace("'", "")
    kwargs = {**tiny.MODEL["vit_kwargs"], name: HOSTILE[name]}
    for action in (known_config, lambda path: export_checkpoint(path, folder.parent / "out", tokenizer=str(folder))):
        assert name in refused(action, checkpoint(vit_kwargs=kwargs))
    with pytest.raises(ConfigError, match=name):  # typed by the user: it would make checkpoints that nobody can open
        encoders.ImageEncoder("beit_base_patch16_224", 32, kwargs)
    assert sorted(folder.rglob("*")) == before and not (folder.parent / "out").exists()


@pytest.mark.parametrize(
    ("part", "name", "value", "told"),
    [
        ("vit_kwargs", "depth", 10**9, "whole number from 0 to 512"),
        ("vit_kwargs", "depth", True, "depth=True"),
        ("vit_kwargs", "depth", [1] * 17, "up to 16"),
        ("vit_kwargs", "embed_dim", "16", "embed_dim=16"),
        ("vit_kwargs", "drop_path_rate", 1e400, "drop_path_rate=inf"),
        ("vit_kwargs", "act_layer", "os.system('x')", "short name"),
        ("vit_kwargs", "in_chans", 1, "in_chans=1"),
        ("text", "num_hidden_layers", 10**9, "num_hidden_layers=1000000000"),
        ("text", "vocab_size", 10**12, "vocab_size=1000000000000"),
        ("text", "vocab_size", -5, "vocab_size=-5"),
        ("text", "hidden_act", "os.system", "hidden_act=os.system"),
        ("text", "_attn_implementation", "kernels-community/x", "_attn_implementation"),
        ("text", "pad_token_id", 10**6, "pad_token_id"),
        (None, "image_size", 10**6, "image_size=1000000"),
        (None, "image_size", 32.0, "image_size=32.0"),
        (None, "vit", 5, "vit=5: it must be a timm name"),
        (None, "vit", "../beit", "no name of a timm model"),
        (None, "vit", "http://127.0.0.1:9/x", "no name of a timm model"),
        (None, "vit_kwargs", [1], "vit_kwargs=[1]"),
        (None, "text", None, "text=None"),
        (None, "head", ["lexicon"], "lexicon, dense"),
        (None, "max_text_len", 1000, "16 positions"),
        (None, "corner_tokens", 4000, "no word"),
    ],
)  # fmt: skip
def test_values_of_another_kind_are_refused(folder, part, name, value, told, offline):
    message = refused(LexLIP.from_pretrained, change(folder, part, **{name: value}))
    assert f"{folder / 'config.json'}: " in message and told in message and "\n" not in message


@pytest.mark.parametrize("name", ["hf-hub:owner/name", "hf_hub:owner/name", "local-dir:/etc"])
def test_names_that_lead_elsewhere_are_followed_on_request_alone(folder, name, offline, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(encoders.timm, "create_model", lambda name, **given: asked.append(name) or 1 / 0)
    message = refused(LexLIP.from_pretrained, change(folder, vit=name))
    for part in (str(folder / "config.json"), name, "trust_sources=True", "--trust-sources"):
        assert part in message
    assert main(["export-onnx", str(folder), str(folder.parent / "out")]) == 2 and not asked
    assert name in capsys.readouterr().err
    refused(LexLIP.from_pretrained, folder, trust_sources=True)
    assert asked == [name]


def test_a_training_takes_nothing_of_the_image_tower_out_of_a_checkpoint(checkpoint, make_config):
    path = str(checkpoint(vit="local-dir:/nowhere"))
    module = Phase1Module.from_config(make_config(load_path=path))
    assert module.model.config.vit == "beit_base_patch16_224"
    text = {**module.model.config.text, "num_hidden_layers": 12}
    message = refused(Phase1Module.from_config, make_config(load_path=str(checkpoint(text=text))))
    assert "encoder.layer.10." in message and "absent in the weights" in message


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("text", "hidden_size", 65536), ("text", "num_hidden_layers", 512), ("text", "vocab_size", 1 << 24),
        ("text", "intermediate_size", 1 << 18), ("vit_kwargs", "depth", 512), ("vit_kwargs", "embed_dim", 65536),
        (None, "image_size", 4096), ("vit_kwargs", "mlp_ratio", 1e6),
    ],
)  # fmt: skip
def test_sizes_are_compared_before_anything_is_allocated(folder, part, name, value):
    """What torch would allocate shows in the largest storage that it is asked for."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        entries = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.device.type != "meta":
                self.entries = max(self.entries, out.numel())
            return out

    state = torch.get_rng_state()
    with Largest() as largest:
        message = refused(LexLIP.from_pretrained, change(folder, part, **{name: value}))
    assert str(folder) in message and largest.entries < 1 << 20
    assert torch.equal(state, torch.get_rng_state())


def test_a_header_that_claims_too_much_is_refused(folder):
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    for broken in (b"\xff" * 8 + whole[8:], (1 << 27).to_bytes(8, "little") + whole[8:], whole[:-1], whole[:5]):
        file.write_bytes(broken)
        assert str(folder) in refused(LexLIP.from_pretrained, folder)
    weights = {"text_ring.keys": torch.zeros(10**9, 0)}
    save_file(weights, folder / "phase2.safetensors")
    assert "text_ring.keys of shape [1000000000, 0]" in refused(phase_state, folder, "Phase2")


def test_half_a_model_in_whole_numbers_is_refused(folder):
    weights = load_file(folder / "model.safetensors")
    name = next(iter(weights))
    save_file({**weights, name: weights[name].to(torch.int64)}, folder / "model.safetensors")
    assert f"{name}: torch.int64 in the file" in refused(LexLIP.from_pretrained, folder)
    save_file({key: value.to(torch.float16) for key, value in weights.items()}, folder / "model.safetensors")
    assert LexLIP.from_pretrained(folder).device.type == "cpu"


@pytest.mark.parametrize(
    "hollow",
    [
        lambda value: torch.zeros(1).expand(10**6, 10**6),
        lambda value: torch.empty(10**6, 10**6, device="meta"),
        lambda value: torch.sparse_coo_tensor(torch.zeros(2, 1), torch.ones(1), (10**6, 10**6)),
        lambda value: torch.zeros(10**9, 0),
    ],
    ids=["expanded", "meta", "sparse", "empty"],
)
def test_tensors_that_claim_more_than_the_file_holds_are_refused(make_model, tmp_path, hollow):
    state = {f"model.{name}": value for name, value in make_model().state_dict().items()}
    state["model.text_head.decoder.weight"] = hollow(None)
    torch.save({"state_dict": state}, tmp_path / "a.ckpt")
    message = refused(model_weights, tmp_path / "a.ckpt")
    assert "text_head.decoder.weight" in message and "not stored number by number" in message


def test_many_tensors_of_one_storage_are_refused(tmp_path):
    one = torch.zeros(1 << 18)
    torch.save({"state_dict": {f"model.{n}": one for n in range(200)}}, tmp_path / "a.ckpt")
    assert (tmp_path / "a.ckpt").stat().st_size < BESIDE / 100
    assert "its tensors would take" in refused(model_weights, tmp_path / "a.ckpt")


def test_a_compressed_checkpoint_is_refused(checkpoint, tmp_path):
    import zipfile

    with zipfile.ZipFile(checkpoint()) as old, zipfile.ZipFile(tmp_path / "z.ckpt", "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.namelist():
            new.writestr(entry, old.read(entry))
    assert "is compressed" in refused(model_weights, tmp_path / "z.ckpt")


@pytest.mark.parametrize("kept", [None, {}, {"config": {}}, {"model": {}}, {"config": 1, "model": {}}, "text"])
def test_other_names_count_only_beside_what_a_phase_writes(make_model, tmp_path, kept):
    state = {f"model.{name}": value for name, value in make_model().state_dict().items()} | {"x": torch.zeros(1)}
    torch.save({"state_dict": state, "hyper_parameters": kept}, tmp_path / "a.ckpt")
    assert "no hyper_parameters" in refused(model_weights, tmp_path / "a.ckpt")


@pytest.mark.parametrize("content", ["[" * 10**5, "1" * 5000, "[1]", "5", "{", "\udcff", " " * (2 << 20)])
def test_a_config_that_is_none(folder, content):
    (folder / "config.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    message = refused(LexLIP.from_pretrained, folder)
    assert str(folder / "config.json") in message and "\n" not in message


@pytest.mark.parametrize("auto_map", [{"AutoTokenizer": ["tok.Evil", "tok.Evil"]}, ["tok.Evil", None], {}])
def test_a_tokenizers_code_is_never_run_nor_asked_about(folder, monkeypatch, auto_map):
    monkeypatch.setattr("builtins.input", lambda *given: pytest.fail("a question on the terminal"))
    trace = folder.parent / "ran"
    (folder / "tok.py").write_text(f"open({str(trace)!r}, 'w')\nclass Evil: pass\n")
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "auto_map": auto_map}))
    for action in (LexLIP.from_pretrained, open_tokenizer):
        assert f"{file} names code to run (auto_map)" in refused(action, folder)
    assert not trace.exists()


def test_a_broken_tokenizer_is_one_line(folder):
    for content in ("{}", "[]", '{"model": {"type": "WordPiece"}}', "\x00"):
        (folder / "tokenizer.json").write_text(content)
        message = refused(LexLIP.from_pretrained, folder)
        assert str(folder) in message and "\n" not in message


@pytest.mark.parametrize("files", [{"../x.json": "{}"}, {"a/b.txt": ""}, {"tok.py": ""}, {"x.json": 3}, [1], {1: ""}])
def test_tokenizer_files_of_a_checkpoint_have_plain_names(checkpoint, tmp_path, files):
    path = checkpoint()
    content = torch.load(path, weights_only=True)
    torch.save({**content, "tokenizer": files}, path)
    assert "its tokenizer" in refused(export_checkpoint, path, tmp_path / "out")


@pytest.mark.parametrize(
    "kind",
    [beit.Beit, vision_transformer.VisionTransformer, eva.Eva, convnext.ConvNeXt, resnet.ResNet, swin.SwinTransformer],
)  # fmt: skip
def test_every_plain_argument_of_the_usual_towers_passes(kind):
    """Those that take a class or a device aside, which no file can name."""
    classes = {"embed_layer", "block_fn", "block", "block_args", "device", "dtype"}
    for name, parameter in inspect.signature(kind.__init__).parameters.items():
        if name == "self" or name in classes or parameter.kind is parameter.VAR_KEYWORD:
            continue
        default = parameter.default
        if default is not parameter.empty and not isinstance(default, type):
            assert VIT_KWARGS[name].holds(default), (name, default)
        assert name in VIT_KWARGS


def test_what_was_written_passes(make_model, tmp_path):
    dense = {"head": "dense", "training_mode": "con", "embed_dim": 8}
    for changes in ({}, tiny.CONVOLUTIONAL, dense, {"corner_tokens": 2}):
        model = make_model(**changes)
        check_config(model.config, "here")
        model.save_pretrained(tmp_path / "m")
        type(model).from_pretrained(tmp_path / "m")


def test_without_a_kernel_for_shapes_alone_the_model_is_not_built():
    def build():
        raise NotImplementedError("aten::_unique2: no kernel for meta")

    assert on_meta(build, "here") is None
