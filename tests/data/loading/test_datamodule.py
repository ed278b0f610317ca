"""Batches: the same for any number of workers and processes, evaluation complete."""

import multiprocessing
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lexlip_data.errors import DataError
from lexlip_data.loading.datamodule import CaptionDataModule
from lexlip_data.loading.datasets import CaptionPairs, EvalImages, EvalTexts
from lexlip_data.loading.masking import IGNORED
from lexlip_data.sources.arrow import ArrowSource
from lexlip_data.sources.registry import open_split
from lexlip_data.sources.rows import Rows
from lexlip_data.sources.source import hash_id
from lexlip_data.sources.table import CaptionTable


def equal(one: dict, two: dict) -> bool:
    return one.keys() == two.keys() and all(
        torch.equal(one[key], two[key]) if isinstance(one[key], torch.Tensor) else one[key] == two[key] for key in one
    )


def on_rank(module: CaptionDataModule, rank: int, world_size: int) -> CaptionDataModule:
    module.trainer = SimpleNamespace(global_rank=rank, world_size=world_size)
    return module


def test_a_training_batch(mine, config, tokenizer):
    module = CaptionDataModule(config, tokenizer, mlm=True)
    module.setup("fit")
    assert (module.n_pairs, module.steps_per_epoch) == (14, 3)
    batches = list(module.train_dataloader())
    assert len(batches) == 3
    batch = batches[0]
    length = batch["text_ids"].shape[1]
    assert batch["image"].shape == (4, 3, 16, 16) and batch["image"].dtype == torch.uint8
    for key in ("text_ids", "text_mask", "encoder_ids", "encoder_labels", "decoder_ids", "decoder_labels"):
        assert batch[key].shape == (4, length) and batch[key].dtype == torch.int64
    assert length <= 24 and batch["text_mask"].sum(1).max() == length
    assert batch["image_id"].dtype == torch.int64 and (batch["image_id"] >= 0).all()
    assert batch["skipped"] == [] and len(batch["sample"]) == 4
    for part in ("encoder", "decoder"):
        chosen = batch[f"{part}_labels"] != IGNORED
        assert chosen.any(1).all() and (chosen & (batch["text_mask"] == 0)).sum() == 0
        assert torch.equal(batch[f"{part}_labels"][chosen], batch["text_ids"][chosen])
        assert torch.equal(batch[f"{part}_ids"][~chosen], batch["text_ids"][~chosen])
    assert not torch.equal(batch["encoder_labels"], batch["decoder_labels"])
    for (name, image_id, number), hashed, ids in zip(
        batch["sample"], batch["image_id"], batch["text_ids"], strict=True
    ):
        assert hash_id(name, image_id) == hashed and number in (0, 1)
        text = tokenizer.decode(ids, skip_special_tokens=True)
        assert text.endswith(f" {int(image_id) - 1000}") or len(tokenizer(text)["input_ids"]) >= 23
    seen = {sample for batch in batches for sample in batch["sample"]}
    assert len(seen) == 12
    assert "encoder_ids" not in next(iter(CaptionDataModule(config, tokenizer).train_dataloader()))


def test_workers_do_not_change_batches(mine, config, tokenizer):
    epochs = []
    for workers in (0, 2):
        module = CaptionDataModule({**config, "num_workers": workers}, tokenizer, mlm=True)
        loader = module.train_dataloader()
        batches = []
        for epoch in range(2):
            module.train_sampler.set_epoch(epoch)
            batches += list(loader)
        epochs.append(batches)
    assert len(epochs[0]) == 6
    assert all(equal(one, two) for one, two in zip(*epochs, strict=True))
    first, second = ({sample: i for b in half for sample, i in zip(b["sample"], b["image"])} for half in (
        epochs[0][:3], epochs[0][3:]
    ))  # fmt: skip
    assert any(not torch.equal(first[sample], second[sample]) for sample in first.keys() & second.keys())


@pytest.mark.slow
def test_spawned_workers_open_the_files_again(mine, config, tokenizer):
    module = CaptionDataModule(config, tokenizer, mlm=True)
    how = {"batch_sampler": module.train_sampler, "collate_fn": module.collator}
    context = multiprocessing.get_context("spawn")
    loader = torch.utils.data.DataLoader(module.train_set, num_workers=1, multiprocessing_context=context, **how)
    assert all(equal(one, two) for one, two in zip(loader, module.train_dataloader(), strict=True))
    assert len(pickle.dumps(module.train_set)) < 5000


def test_processes_together_see_the_batches_of_one(mine, config, tokenizer):
    alone = list(CaptionDataModule(config, tokenizer, mlm=True).train_dataloader())
    parts = [
        list(on_rank(CaptionDataModule(config, tokenizer, mlm=True), rank, 2).train_dataloader()) for rank in range(2)
    ]
    for whole, *halves in zip(alone, *parts, strict=True):
        assert [sample for half in halves for sample in half["sample"]] == whole["sample"]
        assert torch.equal(torch.cat([half["image"] for half in halves]), whole["image"])


def test_resume_inside_an_epoch(mine, config, tokenizer):
    whole, rest = CaptionDataModule(config, tokenizer, mlm=True), CaptionDataModule(config, tokenizer, mlm=True)
    whole.train_sampler.set_epoch(5)
    rest.train_sampler.set_epoch(5)
    rest.train_sampler.set_start(1)
    expected = list(whole.train_dataloader())[1:]
    assert all(equal(one, two) for one, two in zip(expected, rest.train_dataloader(), strict=True))


def test_the_sampler_survives_learning_its_rank(mine, config, tokenizer):
    module = CaptionDataModule(config, tokenizer)
    module.train_sampler.set_epoch(2)
    module.train_sampler.set_start(1)
    sampler = on_rank(module, 1, 2).train_sampler
    assert (sampler.rank, sampler.epoch, sampler.start) == (1, 2, 1) and sampler is module.train_sampler


def test_evaluation_sees_everything_once(mine, make_folder, config, tokenizer):
    make_folder("second", "second_val.tsv", images=4, per_image=1)
    config = {**config, "datasets": ["second", "mine"]}
    module = CaptionDataModule(config, tokenizer)
    assert module.eval_names("val") == [("second", "image"), ("second", "text"), ("mine", "image"), ("mine", "text")]
    assert module.eval_names("test") == [("mine", "image"), ("mine", "text")]
    sizes = [4, 4, 5, 10]
    for world_size in (1, 2, 3):
        ranks = [on_rank(CaptionDataModule(config, tokenizer), rank, world_size) for rank in range(world_size)]
        for number, loaders in enumerate(zip(*(module.val_dataloader() for module in ranks), strict=True)):
            batches = [batch for loader in loaders for batch in loader]
            order = torch.cat([batch["order"] for batch in batches]).tolist()
            assert sorted(order) == list(range(sizes[number]))
            if number % 2 == 0:
                assert order == sorted(order)
            assert all("image" in batch if number % 2 == 0 else "text_ids" in batch for batch in batches)
            assert all(len(batch["image_id"]) <= config["per_gpu_batchsize"] for batch in batches)
    image_ids = torch.cat([batch["image_id"] for batch in module.val_dataloader()[2]])
    texts = list(module.val_dataloader()[3])
    at = torch.cat([batch["order"] for batch in texts]).argsort()
    assert torch.equal(torch.cat([batch["image_id"] for batch in texts])[at], image_ids.repeat_interleave(2))
    assert torch.cat([batch["caption_number"] for batch in texts])[at].tolist() == [0, 1] * 5
    assert len(module.test_dataloader()) == 2


def test_evaluation_reads_captions_of_like_length_together(mine, config, tokenizer):
    folder = mine
    lines = (folder / "mine_val.tsv").read_text().splitlines()
    for k in range(1, len(lines)):
        title, rest = lines[k].split("\t", 1)
        lines[k] = " ".join(["a", *["dog"] * (7 * k % 10)]) + "\t" + rest
    (folder / "mine_val.tsv").write_text("\n".join(lines) + "\n")
    module = CaptionDataModule(config, tokenizer)
    lengths = [row.sum().item() for batch in module.val_dataloader()[1] for row in batch["text_mask"]]
    assert lengths == sorted(lengths, reverse=True) and len(set(lengths)) == 10


def test_validation_pairs(mine, config, tokenizer):
    config = {**config, "get_recall_metric": False, "train_transform_keys": ["vit_randaug"]}
    module = CaptionDataModule(config, tokenizer, mlm=True)
    assert module.eval_names("val") == [("all", "pairs")]
    (loader,) = module.val_dataloader()
    batches = list(loader)
    assert sum(len(batch["image"]) for batch in batches) == 10 and "encoder_ids" in batches[0]
    assert all(equal(one, two) for one, two in zip(batches, module.val_dataloader()[0], strict=True))
    halves = [list(on_rank(CaptionDataModule(config, tokenizer, mlm=True), r, 2).val_dataloader()[0]) for r in range(2)]
    assert len(halves[0]) == len(halves[1])
    assert sum(len(batch["image"]) for half in halves for batch in half) == 10


def test_a_repeated_image_is_evaluated_once(tmp_path, jpeg):
    (tmp_path / "p.jpg").write_bytes(jpeg(0))

    def table(name, captions, ids):
        rows = Rows({"title": captions, "filepath": ["p.jpg"] * len(captions), "image_id": ids})
        return CaptionTable(name, "val", rows, tmp_path)

    one, two, other = table("x", ["a"], ["7"]), table("x", ["b", "c"], ["7", "8"]), table("y", ["d"], ["7"])
    images, texts = EvalImages([one, two, other], ["vit"], 16), EvalTexts([one, two, other])
    assert [images[i]["sample"][:2] for i in range(len(images))] == [("x", "7"), ("x", "8"), ("y", "7")]
    assert [texts[i]["caption"] for i in range(len(texts))] == ["a", "b", "c", "d"]
    assert texts[0]["image_id"] == texts[1]["image_id"] == images[0]["image_id"] != images[2]["image_id"]


def test_mixture_numbers_every_pair_once(tmp_path):
    sources = [
        CaptionTable(name, "train", Rows({
            "title": [f"{name}{i}{k}" for i in range(n) for k in range(1 + i)],
            "filepath": [f"{i}" for i in range(n) for k in range(1 + i)],
        }))
        for name, n in (("a", 3), ("b", 1), ("c", 4))
    ]  # fmt: skip
    pairs = CaptionPairs(sources, "vit", 16)
    found = [pairs.mixture.pair(index) for index in range(len(pairs))]
    captions = [source.captions(i)[number] for source, i, number in found]
    assert captions == [caption for source in sources for i in range(len(source)) for caption in source.captions(i)]
    assert len(pairs) == 6 + 1 + 10
    assert [pairs.mixture.image(i) for i in range(8)] == [(s, i) for s in sources for i in range(len(s))]


def test_masks_follow_their_own_probabilities(mine, config, tokenizer):
    def batch(**keys):
        return next(iter(CaptionDataModule({**config, **keys}, tokenizer, mlm=True).train_dataloader()))

    one, two = batch(), batch(mlm_prob=0.8)
    assert not torch.equal(one["encoder_labels"], two["encoder_labels"])
    assert torch.equal(one["decoder_ids"], two["decoder_ids"])
    assert torch.equal(one["image"], two["image"])
    assert (two["encoder_labels"] != IGNORED).sum() > (one["encoder_labels"] != IGNORED).sum()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"datasets": ["absent"]}, "data set absent.*absent_train"),
        ({"datasets": []}, r"datasets \[\]: give a list of different data set names"),
        ({"datasets": "mine"}, "datasets 'mine': give a list of different data set names"),
        ({"batch_size": 100}, "14 samples are fewer than one batch of 100"),
        ({"train_transform_keys": ["nothing"]}, r"transform keys \['nothing'\]: give exactly one of"),
        ({"mlm_prob": 1.5}, "mlm_prob 1.5"),
        ({"max_text_len": 2}, "max_text_len 2"),
        ({"max_images": {"mine": -1}}, "max_images of mine is -1: give a positive number"),
    ],
)
def test_refusals(mine, config, tokenizer, keys, message):
    with pytest.raises(DataError, match=message):
        module = CaptionDataModule({**config, **keys}, tokenizer, mlm=True)
        module.setup("fit")
        module.train_dataloader()


def test_other_refusals(make_folder, config, tokenizer):
    make_folder("mine", "mine_train.tsv")
    with pytest.raises(DataError, match="has a test split"):
        CaptionDataModule(config, tokenizer).setup("test")
    module = CaptionDataModule({**config, "val_transform_keys": ["vit_randaug"]}, tokenizer)
    module.setup("fit")
    assert module.val_dataloader() == [] and module.eval_names("val") == []
    with pytest.raises(DataError, match="config has no key image_size"):
        CaptionDataModule({key: value for key, value in config.items() if key != "image_size"}, tokenizer)
    with pytest.raises(DataError, match="must not be random"):
        EvalImages([], ["vit_randaug"], 16)


def test_max_images_counts_images(mine, config, tokenizer):
    module = CaptionDataModule({**config, "max_images": 4}, tokenizer)
    assert module.n_pairs == 8 and len(module.val_dataloader()[0].dataset) == 4


def test_a_converted_data_set_gives_the_same_batches(mine, tmp_path, config, tokenizer, command):
    out = tmp_path / "arrow"
    command("tsv", "--root", tmp_path, "--name", "mine", "--out", out, "--workers", 0, "--quiet")
    assert isinstance(open_split(out, "mine", "train")[0], ArrowSource)
    expected = list(CaptionDataModule(config, tokenizer, mlm=True).train_dataloader())
    for workers in (0, 2):
        module = CaptionDataModule({**config, "data_root": out, "num_workers": workers}, tokenizer, mlm=True)
        assert all(equal(one, two) for one, two in zip(expected, module.train_dataloader(), strict=True))


def test_loaders_leave_the_process_generator_alone(mine, config, tokenizer):
    module = CaptionDataModule(config, tokenizer, mlm=True)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    for loader in (module.train_dataloader(), *module.val_dataloader()):
        list(loader)
    assert torch.equal(torch.rand(3), expected)


def test_one_lightning_epoch(mine, config, tokenizer, tmp_path):
    """The Trainer leaves our batches alone and moves the sampler's epoch on."""
    import pytorch_lightning as pl

    seen = []

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def on_train_epoch_start(self):  # the training module's task: a sampler keeps the epoch it was given
            self.trainer.datamodule.train_sampler.set_epoch(self.current_epoch)

        def training_step(self, batch, _):
            seen.append(batch["sample"])
            return (self.weight * batch["image"].mean()).sum()

        def validation_step(self, batch, _, dataloader_idx=0):
            assert ("image" in batch) == (dataloader_idx == 0)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(Module(), datamodule=CaptionDataModule(config, tokenizer))
    module = CaptionDataModule(config, tokenizer)
    expected = []
    for epoch in range(2):
        module.train_sampler.set_epoch(epoch)
        expected += [batch["sample"] for batch in module.train_dataloader()]
    assert seen == expected


def test_hash_is_stable():
    assert hash_id("coco", "COCO_val2014_000000391895.jpg") == 7816806407544447012
    ids = {hash_id("coco", str(i)) for i in range(10000)}
    assert len(ids) == 10000 and all(0 <= i < 2**63 for i in ids)
    assert np.array(list(ids), dtype=np.int64).min() >= 0
