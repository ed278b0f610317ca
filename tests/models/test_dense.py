"""The dense model as users hold it: vectors, folders, and that neither head is taken for the other."""

import json

import pytest
import tiny
import torch
import torch.nn.functional as F

from lexlip import DenseLIP, LexLIP
from lexlip.errors import CheckpointError, ConfigError
from lexlip.models import hub
from lexlip.models.auto import load_folder_of_any_head
from lexlip.train.build import DERIVED, build_model, decided_by


@pytest.fixture
def model(make_model):
    return make_model(head="dense", embed_dim=12, drop_rate=0.3)


def test_vectors_are_the_projected_cls_states(model, make_batch):
    batch = make_batch()
    with torch.no_grad():
        model.eval()
        states = model.text_encoder.bert(input_ids=batch["text_ids"], attention_mask=batch["text_mask"])
        text = states.last_hidden_state[:, 0] @ model.text_projection.weight.T
        image = model.image_encoder(batch["image"])[:, 0] @ model.image_projection.weight.T
    found = model.encode_text(batch["text_ids"], batch["text_mask"], normalize=False)
    torch.testing.assert_close(found, text, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.encode_image(batch["image"], normalize=False), image)
    torch.testing.assert_close(model.encode_image(batch["image"]), F.normalize(image, dim=-1))
    assert found.shape == (6, 12) and found.dtype == torch.float32


def test_both_heads_start_with_the_same_towers(make_config):
    towers = []
    for head in (LexLIP, DenseLIP):
        torch.manual_seed(4)
        state = build_model(head, make_config(head=head.head)).state_dict()
        towers.append({name: value for name, value in state.items() if "_encoder." in name})
    assert towers[0].keys() == towers[1].keys() and len(towers[0]) > 20
    assert all(torch.equal(value, towers[1][name]) for name, value in towers[0].items())


def test_the_pooler_comes_before_the_projection(make_model, make_batch):
    model = make_model(head="dense", text_pooler=True).eval()
    batch = make_batch()
    with torch.no_grad():
        cls = model.text_encoder(batch["text_ids"], batch["text_mask"])[:, 0]
        text = torch.tanh(cls @ model.text_pooler.weight.T + model.text_pooler.bias) @ model.text_projection.weight.T
    torch.testing.assert_close(model.encode_text(batch["text_ids"], batch["text_mask"], normalize=False), text)


def test_without_image_projection_the_tower_gives_the_vector(make_config, make_batch):
    model = build_model(DenseLIP, make_config(head="dense", embed_dim=16, image_projection=False)).eval()
    with torch.no_grad():
        image = model.image_encoder(make_batch()["image"])[:, 0]
    torch.testing.assert_close(model.encode_image(make_batch()["image"], normalize=False), image)
    with pytest.raises(ConfigError, match="embed_dim=12.*set embed_dim=16"):
        build_model(DenseLIP, make_config(head="dense", embed_dim=12, image_projection=False))


def test_a_convolutional_tower_gives_the_mean_of_its_tokens(make_model, make_batch):
    model = make_model(head="dense", **tiny.CONVOLUTIONAL).eval()
    images = make_batch(size=64)["image"]
    with torch.no_grad():
        vectors = model.image_encoder(images).mean(1) @ model.image_projection.weight.T
    torch.testing.assert_close(model.encode_image(images, normalize=False), vectors)


def test_a_saved_model_comes_back(make_config, make_worded, make_batch, tiny_data, tmp_path):
    config, model = make_config(head="dense", vocab_size=tiny_data["words"]), make_worded(head="dense").eval()
    model.save_pretrained(tmp_path / "m")
    again = load_folder_of_any_head(tmp_path / "m")
    assert type(again) is DenseLIP and again.config == model.config and not again.training
    assert torch.equal(again.encode_image(make_batch()["image"]), model.encode_image(make_batch()["image"]))
    assert torch.equal(again.encode_text(["red dot"]), model.encode_text(["red dot"]))
    assert json.loads((tmp_path / "m" / "config.json").read_text())["head"] == "dense"
    kept = {name: value for name, value in decided_by(again).items() if name not in ("vit_kwargs", *DERIVED)}
    assert kept == {name: getattr(config, name) if name != "training_mode" else "con" for name in kept}


@pytest.mark.parametrize(("saved", "wrong"), [(DenseLIP, LexLIP), (LexLIP, DenseLIP)])
def test_the_wrong_head_is_refused_in_one_line(make_config, tmp_path, saved, wrong):
    build_model(saved, make_config(head=saved.head)).save_pretrained(tmp_path / "m")
    with pytest.raises(CheckpointError) as caught:
        wrong.from_pretrained(tmp_path / "m")
    message = str(caught.value)
    assert f"{tmp_path / 'm'} holds a model with the {saved.head} head" in message
    assert saved.__name__ in message and "\n" not in message


def test_a_folder_without_a_head_is_from_before_there_were_two(make_config, tmp_path):
    build_model(LexLIP, make_config()).save_pretrained(tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    for name in ("head", "embed_dim", "text_pooler", "image_projection"):
        del config[name]
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    assert type(load_folder_of_any_head(tmp_path / "m")) is LexLIP


def test_an_unknown_head_is_refused(make_config, tmp_path):
    build_model(LexLIP, make_config()).save_pretrained(tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps({**config, "head": "square"}))
    with pytest.raises(CheckpointError, match="config.json.*square.*lexicon, dense"):
        load_folder_of_any_head(tmp_path / "m")


def test_a_saved_folder_says_how_to_load_this_head(model, tmp_path):
    model.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "DenseLIP.from_pretrained" in card and "sparse-retrieval" not in card and ".lexicon(" not in card


def test_a_name_on_the_hub_is_fetched_whatever_its_head(model, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path)

    def download(name, allow_patterns):
        assert set(allow_patterns) == {"*.json", "*.safetensors", "*.txt", "*.model"}  # never code, never a pickle
        return {"owner/name": str(tmp_path)}[name]

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert isinstance(load_folder_of_any_head("owner/name"), DenseLIP)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="no/such/name is neither a model folder nor could it be fetched"):
        load_folder_of_any_head("no/such/name")
