"""Training of heads on cached features: whole runs, the exact step, resuming, and what is refused."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from frozen_tiny import WIDTH, write_towers
from runs import Refused, checkpoint_of

from lexlip import LexLIP
from lexlip.cli import main
from lexlip.errors import CheckpointError, ConfigError
from lexlip.features.store import FeatureStore
from lexlip.models.fingerprint import fingerprint
from lexlip.models.weights import known_config
from lexlip.train.checkpoint import check_resumable
from lexlip.train.config import Config, base, named
from lexlip.train.features import FeatureDataModule, FeaturePairs
from lexlip.train.frozen import FrozenDenseModule, FrozenModule
from lexlip.train.optim import parameter_groups

CASES = {
    "dense": ("task_frozen_dense_train", FrozenDenseModule),
    "contextual": ("task_frozen_lexicon_train", FrozenModule),
    "lookup": ("task_frozen_lexicon_train", FrozenModule),
}


@pytest.fixture
def build(frozen, livelier):
    """A module in training, with the data of its config, without a Trainer."""

    def make(head, **changes):
        task, kind = CASES[head]
        keys = {
            **base(), **named()[task], "features": str(frozen.features), "num_gpus": 0, "batch_size": 8,
            "per_gpu_batchsize": 8, "term_min_count": 2, "head_width": WIDTH, "embed_dim": 12, "row_terms": 4,
            "max_steps": 4, "clip_grad": 0.0, "mask_same_image": True,
        }  # fmt: skip
        if head != "dense":
            keys |= {"head_text": head, "teacher": str(frozen.checkpoint("dense")), "train_top_k": [4]}
        torch.manual_seed(0)
        config = Config.checked({**keys, **changes})
        kind.check_config(config)
        module = kind.from_config(config)
        return livelier(module).train(), FeatureDataModule(config, FeatureStore(config.features))

    return make


@pytest.fixture
def step(monkeypatch):
    """Runs `training_step` alone; gives the logged values and the gradients."""

    def run(module, batch):
        logged, optimizer = {}, torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.0)
        data = SimpleNamespace(steps_per_epoch=4, n_pairs=16)
        module.trainer = SimpleNamespace(
            strategy=SimpleNamespace(model=module), global_step=0, datamodule=data, estimated_stepping_batches=4
        )
        module.schedule = SimpleNamespace(step=lambda: None, get_last_lr=lambda: [0.0])
        take = optimizer.step
        monkeypatch.setattr(optimizer, "step", lambda: (module.on_before_optimizer_step(optimizer), take()))
        monkeypatch.setattr(module, "optimizers", lambda: optimizer)
        monkeypatch.setattr(module, "manual_backward", lambda loss: loss.backward())
        monkeypatch.setattr(module, "log", lambda name, value, **_: logged.update({name: float(value)}))
        monkeypatch.setattr(
            module, "log_dict", lambda values, **_: logged.update({k: float(v) for k, v in values.items()})
        )
        module.training_step(batch, 0)
        return logged, {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}

    return run


@pytest.mark.parametrize("head", CASES)
def test_gradients_do_not_depend_on_the_micro_batches(build, step, head):
    results = []
    for rows in (8, 3):
        module, data = build(head, per_gpu_batchsize=8, grad_cache_chunk=rows, image_dropout=0.0, text_dropout=0.0)
        results.append(step(module, next(iter(data.train_dataloader()))))
    (losses, gradients), (parts, ours) = results
    names = {"train/contrastive_loss"} | ({"train/flops_loss", "train/distill_loss"} if head != "dense" else set())
    assert names <= set(losses)
    for name in losses:
        assert parts[name] == pytest.approx(losses[name], rel=1e-4, abs=1e-7), name
    assert ours.keys() == gradients.keys()
    assert head == "dense" or not any("dense_heads" in name for name in gradients)
    for name, value in gradients.items():
        assert float((ours[name] - value).abs().max()) < 1e-4 * float(value.abs().max()) + 1e-6, name
    assert any("logit_scale" in name and value.abs() > 0 for name, value in gradients.items())


@pytest.mark.parametrize("head", ["contextual", "lookup"])
def test_what_terms_have_alone_learns_faster_and_without_decay(build, head):
    module, _ = build(head)
    groups = parameter_groups(module, 0.05, 2e-3)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    heads = "model.lexicon_heads."
    fast = {f"{heads}{name}" for name in ("table", "image_bias", "own", "text_side.expand.bias")}
    fast |= {f"{heads}text_side.gate"} if head == "lookup" else set()
    found = [(group["lr"], group["weight_decay"]) for group in groups]
    assert found == [(2e-3, 0.05), (2e-3, 0.0), (pytest.approx(3e-3), 0.0)]
    assert {names[id(p)] for p in groups[2]["params"]} == fast


def test_terms_are_the_word_pieces_that_may_be_active(build):
    """The captions say "boxs", which is "box" and "##s"."""

    def terms(kinds, **others):
        model = build("contextual", inactive_terms=kinds, **others)[0].model
        return set(model.tokenizer.convert_ids_to_tokens(model.lexicon_heads.term_ids.tolist()))

    every = terms([])
    assert "##s" in every and terms(["suffix", "sign"]) == {piece for piece in every if piece.isalnum()}
    with pytest.raises(ConfigError, match="in so many of them and active with inactive_terms="):
        terms(["suffix"], term_min_count=99)


def test_a_checkpoint_whose_optimiser_had_other_groups_is_not_resumed(build, frozen, tmp_path):
    content = torch.load(frozen.checkpoint("contextual"), weights_only=True)
    state = content["optimizer_states"][0]
    fast = state["param_groups"].pop()
    state["param_groups"][0]["params"] += fast["params"]
    torch.save(content, tmp_path / "old.ckpt")
    module, _ = build("contextual")
    check_resumable(module, frozen.checkpoint("contextual"), module.config.block_decay)
    with pytest.raises(CheckpointError, match="old.ckpt cannot be resumed.*load_path"):
        check_resumable(module, tmp_path / "old.ckpt", module.config.block_decay)


def test_losses_are_their_formulas(build):
    """Of whole vectors and of those cut to four terms; in evaluation every caption is expanded."""
    module, data = build("contextual", loss_names={**base()["loss_names"], "distill": 3.0})
    module.eval()
    batch = next(iter(data.train_dataloader()))
    losses = module.compute_losses(batch)
    vectors = {k: F.normalize(module.vectors_of(k, batch), dim=-1) for k in ("text", "image")}
    dense = [F.normalize(module.model.vectors_of_features(k, batch, "dense"), dim=-1) for k in ("text", "image")]
    wanted = {"contrastive_loss": 0.0, "distill_loss": 0.0}
    for k in (vectors["text"].shape[1], 4):
        text, image = (
            F.normalize(torch.where(v >= v.topk(k, 1).values[:, -1:], v, 0.0), dim=1) for v in vectors.values()
        )
        scores, taught = text @ image.T, dense[0] @ dense[1].T
        for own, given in ((scores, taught), (scores.T, taught.T)):
            target = torch.arange(8)
            wanted["contrastive_loss"] += F.cross_entropy(own * module.scale.exp(), target) / 4
            p = (given / 0.05).softmax(1)
            wanted["distill_loss"] += 3 * (p * (p.log() - (own / 0.05).log_softmax(1))).sum(1).mean() / 4
    wanted["flops_loss"] = 3 * sum(v.mean(0).square().sum() for v in vectors.values())
    assert losses.keys() == wanted.keys()
    for name, value in wanted.items():
        assert float(losses[name]) == pytest.approx(float(value), rel=1e-4), name


def test_few_captions_are_expanded_at_first_and_all_in_the_end(build):
    from types import SimpleNamespace

    module, data = build("contextual", expansion_start=0.25)
    batch = {"image_id": torch.arange(4000)}
    for now, wanted in ((0, 0.25), (50, 0.625), (100, 1.0)):
        module.trainer = SimpleNamespace(estimated_stepping_batches=100, global_step=now)
        kept = module.prepare(batch)[0]["expanded"]
        assert float(kept.mean()) == pytest.approx(wanted, abs=0.03) and set(kept.tolist()) <= {0.0, 1.0}
    assert "expanded" not in module.eval().prepare(batch)[0]


def test_a_step_takes_different_images_each_with_one_of_its_captions(frozen):
    split = FeatureStore(frozen.features).split("train")
    pairs = FeaturePairs(split, seed=3)
    rows = list(range(len(pairs)))
    drawn, numbers = [], set()
    for epoch in range(6):
        batch = pairs.__getitems__([(epoch, row) for row in rows])
        assert batch["image_id"].tolist() == rows
        captions = [2 * row + number for row, number in zip(rows, batch["caption_number"].tolist())]
        wanted = split.texts(captions)
        assert torch.equal(batch["text_ids"], wanted.terms) and torch.equal(batch["text_pooled"], wanted.pooled)
        again = FeaturePairs(split, seed=3).__getitems__([(epoch, row) for row in rows])
        assert torch.equal(again["caption_number"], batch["caption_number"])
        drawn.append(batch["caption_number"].numpy())
        numbers |= set(batch["caption_number"].tolist())
    assert numbers == {0, 1} and len({d.tobytes() for d in drawn}) > 1


@pytest.mark.parametrize("head", CASES)
def test_a_run_learns_and_is_validated(frozen, head):
    run = frozen.train(head)
    content = checkpoint_of(run.folder)
    assert content["global_step"] == 4 and run.result["val/rsum"] >= 0
    config = known_config(run.folder / "checkpoints" / "last.ckpt")
    assert config.terms == 15 and config.tower_facts["image"]["weights"]
    first = torch.load(run.folder / "checkpoints" / "step_00000001.ckpt", weights_only=True)["state_dict"]
    moved = {name for name, value in content["state_dict"].items() if not torch.equal(value, first[name])}
    parts = {"dense": "model.dense_heads.", "contextual": "model.lexicon_heads.", "lookup": "model.lexicon_heads."}[
        head
    ]
    assert moved and all(name.startswith(parts) for name in moved)
    assert not any("tower" in name or "words" in name for name in content["state_dict"])


@pytest.mark.parametrize("head", ["dense", "lookup"])
def test_a_run_goes_on_bit_for_bit(frozen, head):
    whole = frozen.train(head)
    file = str(whole.folder / "checkpoints" / "step_00000002.ckpt")
    resumed = frozen.train(head, resume_from=file, version=7)
    one, two = checkpoint_of(whole.folder), checkpoint_of(resumed.folder)
    assert one["global_step"] == two["global_step"] == 4 and one["batches_seen"] == two["batches_seen"]
    for name, value in one["state_dict"].items():
        assert torch.equal(value, two["state_dict"][name]), name


def test_test_only_evaluates_and_needs_the_split(frozen):
    with pytest.raises(Refused, match="has no test split; it has train, val"):
        frozen.train("lookup", test_only=True, version=8, load_path=str(frozen.checkpoint("lookup")))


def test_heads_keep_the_activation_that_they_were_trained_with(build, frozen, tmp_path):
    """No weight shows it, so the file that is loaded says it, and the folder that comes of it."""
    run = frozen.train("contextual", activation="log1p_twice", version=9)
    checkpoint = run.folder / "checkpoints" / "last.ckpt"
    module, data = build("contextual", load_path=str(checkpoint))
    assert module.config.activation == module.model.config.activation == "log1p_twice"
    other, _ = build("contextual", load_path=str(frozen.checkpoint("contextual")))
    assert other.config.activation == "log1p"
    assert main(["export", str(checkpoint), str(tmp_path / "model"), "--embed-towers"]) == 0
    model = LexLIP.from_pretrained(tmp_path / "model")
    assert model.config.activation == "log1p_twice"
    other.model.load_state_dict(module.model.state_dict())
    image, twice, once = torch.randn(2, 1, module.model.config.image_width), module.model, other.model
    for part in (twice, once):
        part.eval()
    torch.testing.assert_close(
        twice.lexicon_heads.encode_image(image), torch.log1p(once.lexicon_heads.encode_image(image))
    )
    assert fingerprint(twice) != fingerprint(once)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"training_mode": "both"}, "training_mode=both: heads on frozen towers are contrastive"),
        ({"long_captions": 2}, "long_captions=2 belongs to training with images"),
        ({"term_min_count": 99}, "term_min_count=99: no word piece of the 38 training captions"),
        ({"features": "nowhere"}, "nowhere holds no features"),
        ({"teacher": "nowhere.ckpt"}, "nowhere.ckpt: no such checkpoint file"),
        ({"head_text": "table"}, "head_text"),
        ({"head_text": "in_context"}, "head_text=in_context belongs to training with images"),
        ({"expansion_control": "terms"}, "expansion_control=terms belongs to training with images"),
        ({"own_weights": True}, "own_weights=True belongs to training with images"),
        ({"batch_size": 64, "per_gpu_batchsize": 64}, "64"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(frozen, changes, told):
    with pytest.raises(Refused, match=told):
        frozen.train("lookup", **changes)


def test_a_teacher_of_other_towers_or_without_a_reference_is_refused(frozen, tmp_path):
    from lexlip.cli import main

    other, text = write_towers(tmp_path / "towers", seed=1)
    command = ["cache", "--data", frozen.table, "--image", other, "--text", text, "--out", tmp_path / "features"]
    assert main([*map(str, command), "--held-out", "0.2"]) == 0
    with pytest.raises(Refused, match="was trained on features of another image tower than .* holds: timm:"):
        frozen.train("lookup", features=str(tmp_path / "features"))
    with pytest.raises(Refused, match="holds no dense reference on frozen towers"):
        frozen.train("lookup", teacher=str(frozen.folder("lookup")))


def test_the_towers_own_scores_teach(build, frozen):
    """Of towers with one common space, whose cosines are taken at a temperature of their own."""
    with pytest.raises(ConfigError, match="teacher=own: .* numbers in .*, and of each text, 16; cache both sides"):
        build("contextual", teacher="own")
    losses = {**base()["loss_names"], "distill": 1.0}
    module, data = build("contextual", teacher_temperature=0.01, loss_names=losses, train_top_k=[])
    module.config = module.config.changed(teacher="own")
    batch = next(iter(data.train_dataloader()))
    batch["image"] = torch.randn(8, 1, WIDTH)
    vectors = {k: F.normalize(torch.rand(8, 12), dim=1) for k in ("text", "image")}
    module.model.lexicon_heads.encode_image = lambda image: vectors["image"]
    module.model.lexicon_heads.encode_text = lambda texts, keep: vectors["text"]
    module.eval()
    scores = vectors["text"] @ vectors["image"].T
    taught = F.normalize(batch["text_pooled"].float(), dim=1) @ F.normalize(batch["image"][:, 0], dim=1).T
    wanted = 0.0
    for own, given in ((scores, taught), (scores.T, taught.T)):
        p = (given / 0.01).softmax(1)
        wanted += (p * (p.clamp(min=1e-30).log() - (own / 0.05).log_softmax(1))).sum(1).mean() / 2
    assert float(module.compute_losses(batch)["distill_loss"]) == pytest.approx(float(wanted), rel=1e-4)


def test_the_logs_name_the_heads_own_terms(build, step):
    module, data = build("lookup")
    seen = {}
    module.term_counts = SimpleNamespace(add=seen.update)
    step(module, next(iter(data.train_dataloader())))
    assert len(module.term_ids) == seen["text"].shape[1] < module.model.config.vocab_size


def test_the_teacher_sees_whole_features(frozen):
    """From the first step on: nobody calls train() in a fit."""
    keys = {
        **base(), **named()["task_frozen_lexicon_train"], "features": str(frozen.features), "num_gpus": 0,
        "batch_size": 8, "per_gpu_batchsize": 8, "term_min_count": 2, "teacher": str(frozen.checkpoint("dense")),
    }  # fmt: skip
    module = FrozenModule.from_config(Config.checked(keys))
    assert module.training and module.model.lexicon_heads.training and not module.model.dense_heads.training
    module.train()
    assert not module.model.dense_heads.training
