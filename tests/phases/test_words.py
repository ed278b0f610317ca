"""Few words, and right ones, in both phases: what a step chooses, that splits do not change it, and what is refused."""

import pytest
import torch
import torch.nn.functional as F
from runs import PHASE1, PHASE2, checkpoint_of
from transformers import AutoTokenizer

from lexlip.errors import ConfigError
from lexlip.index.lookup import TableModel, has_table
from lexlip.models.fingerprint import fingerprint
from lexlip.models.lexlip import LexLIP
from lexlip.train.build import build_model
from lexlip.train.config import base
from lexlip.train.lexicon import LexiconModule
from Phase1.module import Phase1Module
from Phase2.module import Phase2Module

PHASES = {"phase1": Phase1Module, "phase2": Phase2Module}
EVERYTHING = {
    "loss_names": {**base()["loss_names"], "push": 0.7}, "push_floor": 1.0, "own_weights": True,
    "expansion_control": "terms", "expansion_start": 0.5, "expansion_end": 0.5, "penalty_text": "l1",
    "flops_weight_image": 0.3, "flops_threshold": 3, "target_terms_image": 9.0, "train_top_k": [4],
    "bottleneck_temperature": 0.5, "bottleneck_norm": True, "log_every": 1,
}  # fmt: skip


@pytest.fixture
def build(make_config, livelier, without_trainer):
    def make(phase, learning_rate=0.0, **changes):
        changes.setdefault("training_mode", "both" if phase == "phase1" else "con")
        config = make_config(clip_grad=0.0, **changes)
        torch.manual_seed(0)
        module = PHASES[phase](config, livelier(build_model(LexLIP, config)))
        module.sparsity.begin(10)
        return without_trainer(module.train(), learning_rate)

    return make


@pytest.mark.parametrize("rows", [2, 4])
@pytest.mark.parametrize("phase", PHASES)
def test_nothing_of_it_depends_on_the_micro_batches(build, make_batch, gradients_of, phase, rows):
    results = []
    for at_once in (6, rows):
        module = build(phase, per_gpu_batchsize=at_once, **EVERYTHING)
        module.training_step(make_batch(ids=[1, 1, 2, 3, 2, 1]), 0)
        results.append((module.logged, gradients_of(module), module.sparsity.state()))
    (losses, gradients, state), (parts, ours, other) = results
    assert "train/push_loss" in losses and losses["train/push_loss"] > 0
    for name in losses:
        if "bottleneck_gain" not in name:  # which takes another row of the micro-batch
            assert parts[name] == pytest.approx(losses[name], rel=1e-4, abs=1e-7), name
    assert state["image"] == pytest.approx(other["image"]) and state["image"]["mean"] > 0
    for name, value in gradients.items():
        assert float((ours[name] - value).abs().max()) < 1e-4 * float(value.abs().max()) + 1e-6, name


@pytest.mark.parametrize("phase", PHASES)
def test_without_expansion_a_caption_has_its_own_terms_alone(build, make_batch, phase):
    module, batch = build(phase, expansion_control="captions", expansion_start=0.0, expansion_end=0.0), make_batch()
    prepared, context = module.prepare(batch)
    text = module.encode(prepared, context)[0]["text"]
    own = torch.zeros_like(text)
    for row, (ids, mask) in enumerate(zip(batch["text_ids"], batch["text_mask"], strict=True)):
        own[row, ids[mask > 0]] = 1
    free = module.model.encode_text(batch["text_ids"], batch["text_mask"], normalize=False)
    torch.testing.assert_close(text, F.normalize(free * own, dim=-1))
    if phase == "phase2":
        assert not context.text[own == 0].any() and context.text[own > 0].any()
    prepared, context = module.eval().prepare(batch)
    torch.testing.assert_close(module.encode(prepared, context)[0]["text"], F.normalize(free, dim=-1))


def test_the_gain_of_a_bottleneck_is_the_loss_with_anothers_minus_its_own(build, make_batch):
    module, batch = build("phase1", log_every=1, bottleneck_temperature=0.1, bottleneck_norm=True), make_batch()
    module.training_step(batch, 0)
    logits = {
        "i2t": module.model.image_head.max_logits(module.model.image_encoder(batch["image"])),
        "t2t": module.model.text_head.max_logits(
            module.model.text_encoder(batch["encoder_ids"], batch["text_mask"]), batch["text_mask"]
        ),
    }
    gains = []
    for part, pooled in logits.items():
        losses = []
        for bag in (module._bottleneck(pooled), module._bottleneck(pooled.roll(1, 0))):
            states = torch.cat([bag[:, None], module.model.text_encoder.embed(batch["decoder_ids"])[:, 1:]], dim=1)
            found = module.model.text_head(module.decoder.layers(states, batch["text_mask"]))
            losses.append(F.cross_entropy(found.flatten(0, 1), batch["decoder_labels"].flatten(), ignore_index=-100))
        gains.append((losses[1] - losses[0]).item())
        assert module.logged[f"train/bottleneck_gain_{part}"] == pytest.approx(gains[-1], rel=1e-2, abs=2e-6)
    assert max(gains, key=abs) > 1e-4
    quiet = build("phase1", log_every=10)
    quiet.training_step(batch, 0)
    assert not any("gain" in name for name in quiet.logged)


def test_the_bottleneck_by_its_keys(build, make_batch):
    module = build("phase1", bottleneck_temperature=0.5, bottleneck_norm=True)
    pooled = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    bag = (2 * pooled).softmax(-1) @ module.model.text_encoder.word_embeddings
    torch.testing.assert_close(module._bottleneck(pooled), 4 * bag / bag.norm(dim=-1, keepdim=True))  # width 16


@pytest.mark.parametrize("phase", PHASES)
def test_a_run_starts_with_so_many_terms(build, make_batch, phase):
    module, batch = build(phase, start_terms_text=5, start_terms_image=12, per_gpu_batchsize=4), make_batch()
    before = {n: p.clone() for n, p in module.model.named_parameters()}
    module.training_step(batch, 0)
    for side, wanted in (("text", 5), ("image", 12)):
        vectors = module.model.vectors_of_ids(batch["text_ids"], batch["text_mask"], "lexicon")
        vectors = vectors if side == "text" else module.model.lexicon_image(batch["image"])
        assert float((vectors > 0).sum(1).float().mean()) == pytest.approx(wanted, abs=0.5)
    moved = {n: p - before[n] for n, p in module.model.named_parameters() if not torch.equal(p, before[n])}
    assert set(moved) == {"text_head.decoder.bias", "image_head.decoder.bias"}
    assert all((shift.max() - shift.min()).item() < 1e-5 for shift in moved.values())
    if phase == "phase2":
        assert torch.equal(module.momentum_encoder.text_head.decoder.bias, module.model.text_head.decoder.bias)
    module.loaded_step = 1
    now = module.model.text_head.decoder.bias.clone()
    module.training_step(batch, 0)
    assert torch.equal(module.model.text_head.decoder.bias, now)  # the first step of a run alone


def test_texts_by_their_own_terms_and_by_a_table(make_worded, tmp_path):
    plain = make_worded(inactive_terms=["special"])
    texts = ["red dot beside a ring", "the box"]
    ids = plain.tokenizer(texts, padding=True, return_tensors="pt")["input_ids"]
    own = torch.zeros(2, plain.vocab_size).scatter_(1, ids, 1.0)
    own[:, plain.tokenizer.all_special_ids] = 0
    weights = plain.encode_text(texts, normalize=False)
    inner = make_worded(inactive_terms=["special"], head_text="in_context")
    inner.load_state_dict(plain.state_dict())
    torch.testing.assert_close(inner.encode_text(texts, normalize=False), weights * own)

    table = make_worded(inactive_terms=["special", "stop"], own_weights=True, head_text="lookup")
    vectors = table.encode_text(texts)
    assert set(vectors[1].nonzero().flatten().tolist()) == {table.tokenizer.get_vocab()["box"]}
    table.save_pretrained(tmp_path)
    torch.testing.assert_close(LexLIP.from_pretrained(tmp_path).encode_text(texts), vectors)
    assert has_table(tmp_path)
    read = TableModel(tmp_path)
    torch.testing.assert_close(torch.from_numpy(read.encode_text(texts)), vectors)
    assert read.fingerprint == fingerprint(LexLIP.from_pretrained(tmp_path))


@pytest.mark.parametrize("phase", PHASES)
def test_weights_by_the_logarithm_twice(build, make_batch, phase, tmp_path):
    """In a step, of the model and of its folder."""
    module, batch = build(phase, activation="log1p_twice"), make_batch()
    once = build(phase).model
    vectors = module.encode(*module.prepare(batch))[0]
    pairs = {
        "text": (once.lexicon_text(batch["text_ids"], batch["text_mask"]), ("text_ids", "text_mask")),
        "image": (once.lexicon_image(batch["image"]), ("image",)),
    }
    module.model.save_pretrained(tmp_path)
    again = LexLIP.from_pretrained(tmp_path)
    for side, (weights, inputs) in pairs.items():
        torch.testing.assert_close(vectors[side], F.normalize(torch.log1p(weights), dim=-1))
        found = getattr(again, f"lexicon_{side}")(*(batch[name] for name in inputs))
        torch.testing.assert_close(found, torch.log1p(weights))


def test_a_checkpoint_decides_what_no_key_says(make_config, make_worded, tmp_path, tiny_data):
    keys = {"inactive_terms": ["special"], "own_weights": True, "head_text": "in_context", "activation": "log1p_twice"}
    model = make_worded(**keys)
    model.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tiny_data["tokenizer"])
    usual = {"training_mode": "con", "load_path": str(tmp_path), "vocab_size": tiny_data["words"]}
    same = Phase2Module.from_config(make_config(**usual), tokenizer)
    assert same.model.config.text_side == "in_context" and same.model.config.inactive_terms == ["special"]
    assert same.config.activation == same.model.image_head.activation == "log1p_twice"
    assert torch.equal(same.model.own_weights, model.own_weights)
    other = Phase2Module.from_config(make_config(**usual, inactive_terms=["special", "stop"]), tokenizer)
    stop = tokenizer.get_vocab()["the"]
    assert other.model.text_head.inactive[stop] and not same.model.text_head.inactive[stop]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"expansion_control": "captions", "long_captions": 1}, "long texts are not controlled"),
        ({"own_weights": True, "long_captions": 1}, "own_weights=True with long_captions=1"),
        ({"head_text": "lookup", "own_weights": True}, "head_text=lookup weighs a text's own words alone"),
    ],
)
def test_what_cannot_be_is_refused(make_config, changes, told):
    with pytest.raises(ConfigError, match=told):
        LexiconModule.check_config(make_config(**changes))


@pytest.mark.parametrize("phase", [(Phase1Module, PHASE1), (Phase2Module, PHASE2)], ids=["phase1", "phase2"])
def test_a_run_goes_on_bit_for_bit(start, phase):
    keys = {
        **EVERYTHING, "start_terms_image": 20, "inactive_terms": ["special"], "max_steps": 4, "checkpoint_steps": 1,
        "keep_checkpoints": 4, "target_steps": 3, "drop_rate": 0.1, "get_recall_metric": False,
    }  # fmt: skip
    whole = start(*phase, version=0, **keys)
    resumed = start(*phase, version=1, resume_from=str(whole.folder / "checkpoints" / "step_00000002.ckpt"), **keys)
    one, two = checkpoint_of(whole.folder), checkpoint_of(resumed.folder)
    assert one["sparsity"] == two["sparsity"] and one["sparsity"]["image"]["change"] != 0
    for name, value in one["state_dict"].items():
        assert torch.equal(value, two["state_dict"][name]), name
