"""Phase 1's losses against the equations written out, its modes and its weights."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from lexlip.models.lexlip import LexLIP
from lexlip.train.build import build_model
from lexlip.train.losses import in_batch_contrastive
from Phase1.decoder import WeakenedDecoder
from Phase1.module import Phase1Module


@pytest.fixture
def build(make_config, livelier, without_trainer):
    def make(**changes):
        config = make_config(**changes)
        torch.manual_seed(0)
        return without_trainer(livelier(Phase1Module(config, build_model(LexLIP, config))).train())

    return make


def written_out(module, batch, contrastive):
    """All five parts with full logits and plain loops, from the method's table."""
    model, mask = module.model, batch["text_mask"]
    padding = mask[..., None] == 0
    text = model.text_head(model.text_encoder(batch["text_ids"], mask)).masked_fill(padding, -1e6)
    image = model.image_head(model.image_encoder(batch["image"]))
    masked = model.text_head(model.text_encoder(batch["encoder_ids"], mask))
    table = model.text_encoder.bert.embeddings.word_embeddings.weight.detach()
    bags = {
        "i2t": torch.softmax(image.max(1).values, -1) @ table,
        "t2t": torch.softmax(masked.masked_fill(padding, -1e6).max(1).values, -1) @ table,
    }
    losses = {
        "self_t_mlm_loss": F.cross_entropy(masked.flatten(0, 1), batch["encoder_labels"].flatten(), ignore_index=-100)
    }
    for name, bag in bags.items():
        states = torch.cat([bag[:, None], model.text_encoder.embed(batch["decoder_ids"])[:, 1:]], dim=1)
        logits = model.text_head(module.decoder.layers(states, mask))
        losses[f"{name}_mlm_loss"] = F.cross_entropy(
            logits.flatten(0, 1), batch["decoder_labels"].flatten(), ignore_index=-100
        )
    r_text = F.normalize(torch.log1p(F.relu(text)).max(1).values, dim=-1)
    r_image = F.normalize(torch.log1p(F.relu(image)).max(1).values, dim=-1)
    losses["contrastive_loss"] = contrastive(r_text, r_image, batch["image_id"], 1 / 0.05)
    losses["flops_loss"] = 0.002 * sum(r.abs().mean(0).square().sum() for r in (r_text, r_image))
    return losses


@pytest.mark.parametrize("ids", [None, [1, 1, 2, 3, 2, 1]], ids=["images", "same_images"])
def test_losses_and_gradients_are_the_equations(build, make_batch, gradients_of, contrastive_by_loops, ids):
    module, batch = build(), make_batch(ids=ids)
    wanted = written_out(module, batch, contrastive_by_loops)
    sum(wanted.values()).backward()
    wanted_gradients = gradients_of(module)
    module.zero_grad()
    losses = module.compute_losses(batch)
    assert set(losses) == set(wanted)
    for name, value in wanted.items():
        torch.testing.assert_close(losses[name], value, rtol=1e-4, atol=1e-5, msg=name)
    sum(losses.values()).backward()
    gradients = gradients_of(module)
    assert set(gradients) == set(wanted_gradients)
    for name, value in wanted_gradients.items():
        torch.testing.assert_close(gradients[name], value, rtol=1e-3, atol=1e-5 + 1e-4 * float(value.abs().max()))


def test_gradient_checkpointing_reaches_both_towers_and_changes_no_gradient(build, make_batch, gradients_of):
    gradients = []
    for asked in (False, True):
        module = build(gradient_checkpointing=asked)
        towers = module.model.image_encoder.backbone.grad_checkpointing, module.model.text_encoder.bert
        assert (towers[0], towers[1].is_gradient_checkpointing) == (asked, asked)
        sum(module.compute_losses(make_batch()).values()).backward()
        gradients.append(gradients_of(module))
    torch.testing.assert_close(*gradients)


def test_same_image_negatives_count_when_asked_for(build, make_batch):
    batch = make_batch(ids=[1, 1, 2, 3, 2, 1])
    masked, counted = build(), build(mask_same_image=False)
    alone = build().compute_losses(make_batch())  # all ids different: nothing to mask
    value = counted.compute_losses(batch)["contrastive_loss"].item()
    assert value == pytest.approx(alone["contrastive_loss"].item(), rel=1e-5)
    assert masked.compute_losses(batch)["contrastive_loss"].item() < value  # fewer negatives, smaller loss


PARTS = {
    "bottle": {"self_t_mlm_loss", "i2t_mlm_loss", "t2t_mlm_loss"},
    "con": {"contrastive_loss", "flops_loss"},
    "both": {"self_t_mlm_loss", "i2t_mlm_loss", "t2t_mlm_loss", "contrastive_loss", "flops_loss"},
}


@pytest.mark.parametrize("mode", PARTS)
def test_training_modes(build, make_batch, mode):
    module = build(training_mode=mode)
    losses, everything = module.compute_losses(make_batch()), build().compute_losses(make_batch())
    assert set(losses) == PARTS[mode]
    for name, value in losses.items():
        assert value.item() == pytest.approx(everything[name].item(), rel=1e-5)
    assert hasattr(module, "decoder") == (mode != "con")
    assert Phase1Module.masks_needed(module.config) == (mode != "con")


def test_contrastive_mode_needs_no_masked_captions(build, make_batch):
    batch = {k: v for k, v in make_batch().items() if not k.startswith(("encoder", "decoder"))}
    module = build(training_mode="con", per_gpu_batchsize=2)
    module.training_step(batch, 0)
    assert set(module.logged) >= {"train/contrastive_loss", "train/loss"}


def test_loss_names_are_weights(build, make_batch):
    plain = build().compute_losses(make_batch())
    weights = {"contrastive": 2, "i2t": 0.5, "t2t": 3, "self_t": 0}
    weighted = build(loss_names=weights).compute_losses(make_batch())
    assert set(weighted) == set(plain) - {"self_t_mlm_loss"}
    factors = {"contrastive_loss": 2, "flops_loss": 2, "i2t_mlm_loss": 0.5, "t2t_mlm_loss": 3}
    for name, factor in factors.items():
        assert weighted[name].item() == pytest.approx(factor * plain[name].item(), rel=1e-5), name


@pytest.mark.parametrize("left", ["self_t", "i2t", "t2t", "contrastive"])
def test_each_part_alone_is_as_among_the_others(build, make_batch, left):
    plain = build().compute_losses(make_batch())
    alone = build(loss_names={left: 1}).compute_losses(make_batch())
    assert set(alone) == {"contrastive_loss", "flops_loss"} if left == "contrastive" else {f"{left}_mlm_loss"}
    for name, value in alone.items():
        assert value.item() == pytest.approx(plain[name].item(), rel=1e-5)


def test_the_weight_of_flops_grows_with_the_square_of_the_step(build, make_batch):
    module, whole = build(flops_warmup=0.4), build().compute_losses(make_batch())["flops_loss"].item()
    module._trainer = SimpleNamespace(estimated_stepping_batches=10)
    module.configure_optimizers()
    module._trainer = None
    for step, fraction in ((0, 1 / 16), (1, 1 / 4), (3, 1), (9, 1)):
        module.loaded_step = step
        assert module.compute_losses(make_batch())["flops_loss"].item() == pytest.approx(fraction * whole, rel=1e-5)
    module.loaded_step = 0
    assert module.eval().compute_losses(make_batch())["flops_loss"].item() == pytest.approx(whole, rel=1e-5)


def cut(vector, k):
    """All but the k largest numbers set to zero, one by one."""
    return torch.stack([value * (sum(other > value for other in vector) < k) for value in vector])


def test_cut_vectors_are_contrasted_as_the_whole_ones_are(build, make_batch):
    module, batch = build(train_top_k=[3, 10**6], training_mode="con"), make_batch(ids=[1, 1, 2, 3, 2, 1])
    vectors, _ = module.encode(batch, None)
    text, image = (torch.stack([cut(row, 3) for row in vectors[side]]) for side in ("text", "image"))
    assert ((text > 0).sum(1) == 3).all() and ((vectors["text"] > 0).sum(1) > 3).all()
    whole = build(training_mode="con").compute_losses(batch)["contrastive_loss"]
    wanted = (2 * whole.item() + in_batch_contrastive(text, image, 0.05, batch["image_id"])) / 3
    torch.testing.assert_close(module.compute_losses(batch)["contrastive_loss"], wanted, rtol=1e-5, atol=1e-6)


def test_temperature_and_weight_of_flops(build, make_batch):
    plain, other = build(), build(temperature=0.5, flops_weight=0.004)
    batch = make_batch()
    vectors, _ = plain.encode(batch, plain.prepare(batch)[1])
    losses = other.compute_losses(batch)
    assert losses["flops_loss"].item() == pytest.approx(2 * plain.compute_losses(batch)["flops_loss"].item(), rel=1e-5)
    wanted = in_batch_contrastive(vectors["text"], vectors["image"], 0.5)
    assert losses["contrastive_loss"].item() == pytest.approx(wanted.item(), rel=1e-5)


def test_the_bottlenecks_gradient_reaches_the_heads_but_not_the_embeddings(build, make_batch):
    """i2t alone: the image side learns through the bag of words; E only through the decoder's input and output."""
    module = build(loss_names={"i2t": 1})
    sum(module.compute_losses(make_batch()).values()).backward()
    assert module.model.image_head.decoder.weight.grad.abs().sum() > 0
    assert module.model.image_encoder.backbone.patch_embed.proj.weight.grad.abs().sum() > 0
    rows = module.model.text_encoder.word_embeddings.grad.abs().sum(1).nonzero().flatten().tolist()
    assert set(rows) <= set(make_batch()["decoder_ids"].flatten().tolist())


def test_the_decoder_sees_the_bottleneck_in_place_of_cls(make_config):
    torch.manual_seed(0)
    encoder = build_model(LexLIP, make_config()).text_encoder
    decoder = WeakenedDecoder(encoder, 2).eval()
    embeddings, mask, bag = torch.randn(2, 5, 16), torch.ones(2, 5, dtype=torch.long), torch.randn(2, 16)
    kept = embeddings.clone()
    out = decoder(embeddings, mask, bag)
    assert torch.equal(embeddings, kept)
    changed = embeddings.clone()
    changed[:, 0] = 99  # what was there does not matter
    assert torch.equal(decoder(changed, mask, bag), out)
    changed[:, 0] = bag
    assert torch.equal(decoder.layers(changed, mask), out)
    assert not torch.allclose(decoder(embeddings, mask, bag + 1), out)
    assert len(decoder.layers.encoder.layer) == 2


def test_validation_pairs_give_the_training_losses_without_dropout(build, make_batch):
    module = build(drop_rate=0.5).eval()
    batch = make_batch()
    with torch.no_grad():
        one, two = module.compute_losses(batch), module.compute_losses(batch)
    assert {k: v.item() for k, v in one.items()} == {k: v.item() for k, v in two.items()}
