"""Phase 2: keys, momentum encoder, queues, dynamic resolution, and what comes from a checkpoint."""

import logging

import pytest
import torch
import torch.nn.functional as F

from lexlip.models.lexicon_head import keep_heaviest
from lexlip.models.lexlip import LexLIP
from lexlip.train.build import build_model
from lexlip.train.losses import in_batch_contrastive
from Phase1.module import Phase1Module
from Phase2.module import Phase2Module


@pytest.fixture
def build(make_config, livelier, without_trainer):
    def make(learning_rate=0.0, **changes):
        config = make_config(**{"training_mode": "con", "queue_size": 8, **changes})
        torch.manual_seed(0)
        module = Phase2Module(config, livelier(build_model(LexLIP, config)))
        return without_trainer(module.train(), learning_rate)

    return make


def parameters(module):
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def written_out(module, batch):
    """The two directions and FLOPS, one query at a time."""
    model, momentum_encoder = module.model, module.momentum_encoder
    encode = {
        "text": lambda m: F.normalize(m.lexicon_text(batch["text_ids"], batch["text_mask"]), dim=-1),
        "image": lambda m: F.normalize(m.lexicon_image(batch["image"]), dim=-1),
    }
    queries = {side: function(model) for side, function in encode.items()}
    with torch.no_grad():
        keys = {side: function(momentum_encoder) for side, function in encode.items()}
    total = 0
    for side, other in (("text", "image"), ("image", "text")):
        queue = module.queues[other]
        for i, query in enumerate(queries[side]):
            past = [k for k in range(int(queue.filled)) if queue.ids[k] != batch["image_id"][i]]
            scores = torch.stack([query @ keys[other][i]] + [query @ queue.keys[k] for k in past]) / 0.05
            total = total - torch.log_softmax(scores, 0)[0]
    flops = sum(r.abs().mean(0).square().sum() for r in queries.values())
    return total / (2 * len(batch["image_id"])), 0.002 * flops


def test_losses_are_the_equations_as_the_queues_fill_and_wrap(build, make_batch):
    module = build(learning_rate=0.1)
    for step in range(4):
        batch = make_batch(seed=step, ids=[1, 2, 3, 1 + step, 5, 6])  # images come back: their keys are masked
        contrastive, flops = written_out(module, batch)
        losses = module.compute_losses(batch)
        assert set(losses) == {"contrastive_loss", "flops_loss"}
        torch.testing.assert_close(losses["contrastive_loss"], contrastive, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(losses["flops_loss"], flops, rtol=1e-4, atol=1e-6)
        module.training_step(batch, step)
        for queue in module.queues.values():
            assert int(queue.filled) == min(8, 6 * (step + 1))
            assert int(queue.position) == 6 * (step + 1) % 8


def test_the_mean_is_taken_with_cut_vectors_in_the_batch(build, make_batch):
    module, plain, batch = build(train_top_k=[2]), build(), make_batch(ids=[1, 1, 2, 3, 2, 1])
    vectors = {name: keep_heaviest(rows, 2) for name, rows in plain.encode(batch, None)[0].items()}
    cut = in_batch_contrastive(vectors["text"], vectors["image"], 0.05, batch["image_id"])
    losses, whole = module.compute_losses(batch), plain.compute_losses(batch)
    torch.testing.assert_close(losses["contrastive_loss"], (whole["contrastive_loss"] + cut) / 2, rtol=1e-5, atol=1e-6)
    assert losses["flops_loss"].item() == whole["flops_loss"].item()


def test_the_first_step_has_no_negatives(build, make_batch):
    losses = build().compute_losses(make_batch())
    assert losses["contrastive_loss"].item() == pytest.approx(0, abs=1e-6)
    assert losses["flops_loss"].item() > 0


def test_same_image_keys_are_masked_by_default(build, make_batch):
    module, batch = build(), make_batch()
    module.after_step(*module.prepare(batch))
    assert module.compute_losses({**batch, "image_id": torch.full((6,), 99)})["contrastive_loss"].item() > 0.1
    same = {**batch, "image_id": torch.full((6,), 4)}
    for queue in module.queues.values():
        queue.ids.fill_(4)
    assert module.compute_losses(same)["contrastive_loss"].item() == pytest.approx(0, abs=1e-6)
    module.config = module.config.changed(mask_same_image=False)
    assert module.compute_losses(same)["contrastive_loss"].item() > 0.1


# --- momentum encoder ---


def test_momentum_encoders_start_equal_and_untrained(build):
    module = build()
    copies = dict(module.momentum_encoder.named_parameters())
    for name, value in module.model.named_parameters():
        assert torch.equal(copies[name], value), name
        assert copies[name].data_ptr() != value.data_ptr() and not copies[name].requires_grad
        assert value.requires_grad


def test_momentum_encoders_move_once_per_step_by_the_momentum(build, make_batch):
    """However many micro-batches a step has."""
    for rows in (6, 2):
        module = build(learning_rate=0.5, momentum=0.9, per_gpu_batchsize=rows)
        for step in range(2):
            before = parameters(module.momentum_encoder)
            module.training_step(make_batch(seed=step), step)
            after, live = parameters(module.momentum_encoder), parameters(module.model)
            moved = 0.0
            for name, value in before.items():
                torch.testing.assert_close(after[name], 0.9 * value + 0.1 * live[name], rtol=1e-5, atol=1e-7)
                moved += float((after[name] - value).abs().sum())
            assert moved > 0.001


def test_validation_moves_nothing(build, make_batch):
    module = build().eval()
    module.model.text_head.dense.weight.data += 1  # so that a step of the momentum encoder would show
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with torch.no_grad():
        module.compute_losses(make_batch())
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_keys_are_the_momentum_encoders_normalised_vectors_without_dropout(build, make_batch):
    module, batch = build(drop_rate=0.5, per_gpu_batchsize=4), make_batch()
    for parameter in module.momentum_encoder.parameters():
        parameter.data += 0.01
    (_, one), (_, two) = module.prepare(batch), module.prepare(batch)
    momentum_encoder = module.momentum_encoder
    torch.testing.assert_close(one.text, momentum_encoder.encode_text(batch["text_ids"], batch["text_mask"]))
    torch.testing.assert_close(one.image, momentum_encoder.encode_image(batch["image"]))
    assert torch.equal(one.text, two.text) and not one.text.requires_grad
    assert module.model.training and not momentum_encoder.training
    assert not torch.allclose(one.text, module.model.encode_text(batch["text_ids"], batch["text_mask"]))


def test_the_keys_of_a_step_enter_the_queues_with_their_images(build, make_batch):
    module, batch = build(), make_batch(ids=[9, 8, 7, 6, 5, 4])
    _, keys = module.prepare(batch)
    module.training_step(batch, 0)
    for side, queue in module.queues.items():
        torch.testing.assert_close(queue.keys[:6], getattr(keys, side))
        assert queue.ids[:6].tolist() == [9, 8, 7, 6, 5, 4]


def test_the_tokenizer_is_not_copied_into_the_momentum_encoders(make_config):
    model = build_model(LexLIP, make_config(training_mode="con"), tokenizer=object())
    module = Phase2Module(make_config(training_mode="con"), model)
    assert module.model.tokenizer is not None and module.momentum_encoder.tokenizer is None


# --- dynamic resolution ---


def sizes_seen(module, batch, steps, monkeypatch):
    sizes = []
    for step in range(steps):
        monkeypatch.setattr(type(module), "global_step", step)
        sizes.append(module.prepare(batch)[0]["image"].shape[-1])
    return sizes


@pytest.fixture
def cheap_keys(monkeypatch):
    monkeypatch.setattr(Phase2Module, "_keys", lambda self, batch: {})


def test_half_of_the_steps_are_at_half_the_size(build, make_batch, monkeypatch, cheap_keys):
    module, batch = build(DR=True), make_batch(rows=1)
    sizes = sizes_seen(module, batch, 400, monkeypatch)
    assert set(sizes) == {16, 32}
    assert 160 < sizes.count(16) < 240
    assert sizes == sizes_seen(build(DR=True), batch, 400, monkeypatch)  # a function of seed and step
    assert sizes != sizes_seen(build(DR=True, seed=2), batch, 400, monkeypatch)


def test_never_in_validation_nor_without_the_key(build, make_batch, monkeypatch, cheap_keys):
    batch = make_batch(rows=1)
    assert set(sizes_seen(build(DR=True).eval(), batch, 30, monkeypatch)) == {32}
    assert set(sizes_seen(build(DR=False), batch, 30, monkeypatch)) == {32}


def test_the_small_images_are_the_same_images(build, make_batch, monkeypatch):
    """Smooth images, so that halving them can be done by hand: the mean of each 2 x 2 block, roughly."""
    module = build(DR=True)
    monkeypatch.setattr(Phase2Module, "_coin", lambda self: True)
    ramp = torch.linspace(-1, 1, 32)
    image = torch.stack([ramp[None, :].expand(32, 32), ramp[:, None].expand(32, 32), torch.full((32, 32), 0.5)])
    batch = make_batch()
    batch["image"] = torch.stack([image * scale for scale in (1, -1, 0.5, 0.25, 0, 0.75)])
    prepared, keys = module.prepare(batch)
    by_hand = F.avg_pool2d(batch["image"], 2)
    assert prepared["image"].shape == (6, 3, 16, 16)
    torch.testing.assert_close(prepared["image"], by_hand, rtol=0, atol=0.05)
    assert batch["image"].shape[-1] == 32  # the caller's batch is as it was
    # Query and key see the same small image.
    torch.testing.assert_close(keys.image, module.momentum_encoder.encode_image(prepared["image"]))
    assert set(prepared) == set(batch)


@pytest.mark.parametrize("rows", [6, 2])
def test_a_whole_step_at_half_size(build, make_batch, monkeypatch, rows):
    module = build(DR=True, per_gpu_batchsize=rows)
    monkeypatch.setattr(Phase2Module, "_coin", lambda self: True)
    seen = []
    encode = type(module.model).lexicon_image
    monkeypatch.setattr(LexLIP, "lexicon_image", lambda self, x: seen.append(x.shape[-1]) or encode(self, x))
    module.training_step(make_batch(), 0)
    assert set(seen) == {16}
    for block in module.model.image_encoder.backbone.blocks:
        assert block.attn.relative_position_bias_table.grad is not None


# --- from one phase to the next ---


@pytest.fixture
def phase1_file(make_config, livelier, tmp_path):
    config = make_config()
    torch.manual_seed(3)
    module = livelier(Phase1Module(config, build_model(LexLIP, config)))
    content = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    torch.save(content, tmp_path / "phase1.ckpt")
    return module, str(tmp_path / "phase1.ckpt")


def test_phase_2_starts_from_phase_1_and_so_do_its_momentum_encoders(make_config, phase1_file, caplog):
    source, path = phase1_file
    with caplog.at_level(logging.INFO):
        module = Phase2Module.from_config(make_config(training_mode="con", load_path=path))
    assert any("decoder.*" in line and "not loaded" in line and path in line for line in caplog.messages)
    copies, live = module.momentum_encoder.state_dict(), module.model.state_dict()
    for name, value in source.model.state_dict().items():
        assert torch.equal(live[name], value), name
        assert torch.equal(copies[name], value), name
    assert [int(queue.filled) for queue in module.queues.values()] == [0, 0]


def test_fine_tuning_at_another_size(make_config, phase1_file, livelier, make_batch, tmp_path, caplog):
    config = make_config(training_mode="con", load_path=phase1_file[1])
    source = Phase2Module.from_config(config)
    livelier(source.twin)
    content = {"state_dict": source.state_dict(), "hyper_parameters": dict(source.hparams)}
    torch.save(content, tmp_path / "phase2.ckpt")
    with caplog.at_level(logging.INFO):
        tuned = Phase2Module.from_config(config.changed(image_size=48, load_path=str(tmp_path / "phase2.ckpt")))
    for prefix in ("twin.*", "text_ring.*", "image_ring.*"):
        assert any(prefix in line and "not loaded" in line for line in caplog.messages), prefix
    assert any("resampled to 48 px" in line for line in caplog.messages)
    images = make_batch(size=48)["image"]
    vectors = source.model.encode_image(images)
    torch.testing.assert_close(tuned.model.encode_image(images), vectors, rtol=1e-4, atol=1e-5)
    copies = tuned.momentum_encoder.state_dict()  # of the model that was loaded, not of the file's momentum encoder
    for name, value in tuned.model.state_dict().items():
        assert torch.equal(copies[name], value), name


def test_phase_1_can_start_from_phase_1_too(make_config, phase1_file):
    again = Phase1Module.from_config(make_config(load_path=phase1_file[1]))
    assert torch.equal(again.model.text_head.decoder.weight, phase1_file[0].model.text_head.decoder.weight)


def test_queues_are_stored_in_16_bits_only_where_training_is(make_config):
    for changes, dtype in (
        ({"num_gpus": 1, "precision": 16}, torch.float16),
        ({"num_gpus": 1, "precision": 32}, torch.float32),
        ({"num_gpus": 0, "precision": 16}, torch.float32),
    ):
        config = make_config(training_mode="con", **changes)
        module = Phase2Module(config, build_model(LexLIP, config))
        assert {queue.keys.dtype for queue in module.queues.values()} == {dtype}


def test_weights_of_the_other_phases_losses_are_told_of_where_they_were_set(make_config):
    config = make_config(loss_names={"contrastive": 1, "i2t": 0.5, "t2t": 0, "self_t": 1})
    assert Phase2Module.ignored_weights(config) == {"i2t": 0.5}  # 1 is the default
    assert Phase1Module.ignored_weights(config) == {}
