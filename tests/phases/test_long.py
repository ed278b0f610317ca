"""Training on long captions: a vector per corner token, one loss term per feature, a locked image tower."""

import pytest
import tiny
import torch
import torch.nn.functional as F

from lexlip.errors import ConfigError
from lexlip.train.build import build_model
from lexlip.train.dense import DenseModule
from Phase1.module import Phase1Module
from Phase2.module import Phase2Module

HEADS = {"lexicon": Phase1Module, "dense": DenseModule}


@pytest.fixture
def build(make_config, livelier, without_trainer):
    def make(head, learning_rate=0.0, **changes):
        usual = {"corner_tokens": 2, "long_captions": 2, "max_text_len": 12, "embed_dim": 12, "clip_grad": 0.0}
        changes = {**usual, **changes}
        config = make_config(head=head, training_mode="con", **changes)
        torch.manual_seed(0)
        model = livelier(build_model(HEADS[head].model_class, config))
        return without_trainer(HEADS[head](config, model).train(), learning_rate)

    return make


@pytest.fixture
def batch(make_batch):
    """Two long texts per pair, of different lengths."""
    g = torch.Generator().manual_seed(5)
    lengths = torch.randint(4, 10, (6, 2, 1), generator=g)
    mask = (torch.arange(9) < lengths).long()
    return {**make_batch(ids=[1, 1, 2, 3, 4, 5]), "long_ids": torch.randint(5, 40, (6, 2, 9)) * mask, "long_mask": mask}


def test_a_corner_s_lexicon_vector_is_the_maximum_over_the_words_by_its_weights(build, batch):
    """Written out word by word from the states of the text tower."""
    model = build("lexicon").model.eval()
    ids, mask = batch["long_ids"][:, 0], batch["long_mask"][:, 0]
    with torch.no_grad():
        found = model.vectors_long(ids, mask)
        states = model.text_encoder.with_corners(ids, mask)
        assert found.shape == (6, 3, 40)
        torch.testing.assert_close(found[:, 0], model.lexicon_text(ids, mask))
        for row in range(6):
            n = int(mask[row].sum())
            words = states[row, 3 : 3 + n - 1]
            dots = torch.stack([states[row, 1 + j] @ words.T / 4 for j in range(2)])  # 4: the root of the width 16
            weights = dots.exp() / dots.exp().sum(0)
            for j in range(2):
                logits = [
                    model.text_head.decoder(weight * model.text_head.transform(word))
                    for weight, word in zip(weights[j], words, strict=True)
                ]
                wanted = torch.log1p(F.relu(torch.stack(logits).max(0).values))
                torch.testing.assert_close(found[row, 1 + j], wanted, rtol=1e-4, atol=1e-5)


def test_the_dense_vectors_are_those_of_cls_and_the_corners(build, batch):
    model = build("dense", text_pooler=True).model.eval()
    ids, mask = batch["long_ids"][:, 0], batch["long_mask"][:, 0]
    with torch.no_grad():
        found, states = model.vectors_long(ids, mask), model.text_encoder.with_corners(ids, mask)
        for feature in range(3):
            torch.testing.assert_close(found[:, feature], model.project_text(states[:, feature]))
        torch.testing.assert_close(found[:, 0], model.vectors_text(ids, mask))


@pytest.mark.parametrize("head", HEADS)
def test_the_loss_is_the_mean_over_all_features(build, batch, head):
    """1 short and 2 x (1 + 2) long ones, each against the image as if it were alone."""
    module = build(head)
    losses = module.compute_losses(batch)
    vectors, _ = module.encode(batch, None)
    assert vectors["long"].shape[:2] == (6, 6)
    flat = module.model.vectors_long(batch["long_ids"][:, 1], batch["long_mask"][:, 1])
    torch.testing.assert_close(vectors["long"][:, 3:], F.normalize(flat, dim=-1))
    alone = [
        module.batch_losses({**vectors, "text": text, "long": text[:, None][:, :0]}, batch, None)
        for text in (vectors["text"], *vectors["long"].unbind(1))
    ]
    assert len(alone) == 7
    for name, value in losses.items():
        wanted = sum(loss[name] for loss in alone) / 7
        assert float(value.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5), name


@pytest.mark.parametrize("head", HEADS)
def test_micro_batches_change_neither_losses_nor_gradients(build, batch, gradients_of, head):
    whole, parts = build(head), build(head, per_gpu_batchsize=2, batch_size=6)
    losses = whole.compute_losses(batch)
    sum(losses.values()).backward()
    parts.training_step(batch, 0)
    for name, value in losses.items():
        assert parts.logged[f"train/{name}"] == pytest.approx(float(value.detach()), rel=1e-4)
    ours, wanted = gradients_of(parts), gradients_of(whole)
    assert ours.keys() == wanted.keys() == {name for name, _ in whole.named_parameters()}
    for name, value in wanted.items():
        assert float((ours[name] - value).abs().max()) < 1e-4 * float(value.abs().max()) + 1e-7, name
    table = ours["model.text_encoder.bert.embeddings.word_embeddings.weight"]
    assert (table[40:].abs().sum(1) > 0).all()  # the corners learn


@pytest.mark.parametrize("head", HEADS)
def test_without_corners_a_long_text_is_one_feature(build, batch, head):
    module = build(head, corner_tokens=0)
    vectors, _ = module.encode(batch, None)
    ids, mask = batch["long_ids"][:, 0], batch["long_mask"][:, 0]
    torch.testing.assert_close(vectors["long"][:, 0], F.normalize(module.model.vectors_text(ids, mask), dim=-1))
    assert vectors["long"].shape[1] == 2


@pytest.mark.parametrize("head", HEADS)
def test_a_locked_image_tower_stays_while_its_head_learns(build, batch, head):
    module = build(head, learning_rate=0.1, lock_image=True, **tiny.CONVOLUTIONAL)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    module.train().training_step(batch, 0)
    moved = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    assert not any(name.startswith("model.image_encoder.") for name in moved)  # its batch norms' statistics neither
    assert any(name.startswith(("model.image_head.", "model.image_projection.")) for name in moved)
    assert any(name.startswith("model.text_encoder.") for name in moved)


def test_phase_2_has_no_long_texts(make_config):
    with pytest.raises(ConfigError, match="long_captions=1.*Phase1"):
        Phase2Module.check_config(make_config(training_mode="con", long_captions=1))
