"""Config -> loaders, for training, validation and test, in one process or many.

The Trainer must be made with use_distributed_sampler=False: the samplers here already know the rank. Costs, per
training worker, up to prefetch * (batch_size / world_size) images of 3 * image_size**2 bytes in shared memory.
"""

import logging
import os
import signal
from collections.abc import Mapping

import torch
from torch.utils.data import DataLoader, Dataset, Subset

from lexlip_data.errors import DataError
from lexlip_data.loading.batch import Batch
from lexlip_data.loading.collate import Collator
from lexlip_data.loading.datasets import CaptionPairs, EvalImages, EvalTexts
from lexlip_data.loading.memory import keep_freed_memory
from lexlip_data.loading.run_data import RunData
from lexlip_data.loading.sampler import GlobalBatchSampler, shard
from lexlip_data.loading.transforms import normalise
from lexlip_data.loading.unknown_words import sample_captions, unknown_warning
from lexlip_data.sources.images import Reading
from lexlip_data.sources.registry import open_split, require_data_set
from lexlip_data.sources.skipped import MAX_BAD_SHARE, Rules
from lexlip_data.sources.source import Source

log = logging.getLogger(__name__)

_LAST_BATCH_SECONDS = 60  # how long a worker outlives SIGTERM
_LARGE_BATCH = 64 << 20  # bytes of images per batch above which a worker prepares one batch ahead, not two

DEFAULTS = {
    "seed": 0, "num_workers": 0, "data_sets": {}, "max_images": None, "train_transform_keys": ["vit"],
    "val_transform_keys": ["vit"], "max_text_len": 40, "whole_word_masking": True, "mlm_prob": 0.3,
    "decoder_mlm_prob": 0.5, "sentence_sep": False, "long_captions": 0, "sub_captions": False,
    "get_recall_metric": True, "eval_batch_size": None,
    "max_bad_share": MAX_BAD_SHARE, "picture_roots": [], "masking": "words", "truncated_images": "refuse",
    "turned_images": True, "transparency": "white", "reduced_images": True,
}  # fmt: skip


class CaptionDataModule(RunData):
    """The data of a run.

    Training: pairs of all data sets that have a train split, `batch_size // world_size` per process and step.
    Evaluation: for each data set that has the split, in order, a loader of its images and one of its captions,
    each process a contiguous part, captions by length; validation reads val, test reads test. With
    get_recall_metric=False validation is one loader of val pairs instead.

    Args:
        config: of the run; needs datasets, data_root, image_size, batch_size, per_gpu_batchsize.
        mlm: whether training batches carry masked captions.

    Raises:
        DataError: a key is missing or unusable.
    """

    def __init__(self, config: Mapping, tokenizer, mlm: bool = False):
        super().__init__()
        needed = ("datasets", "data_root", "image_size", "batch_size", "per_gpu_batchsize")
        if absent := [key for key in needed if key not in config]:
            raise DataError(f"config has no key {', '.join(absent)}")
        self.config = {**DEFAULTS, **config}
        self.global_batch, self.seed = self.config["batch_size"], self.config["seed"]
        names = self.config["datasets"]
        if isinstance(names, str) or not names or len(set(names)) != len(names):
            raise DataError(f"datasets {names!r}: give a list of different data set names")
        self.names = list(names)
        self.mlm = mlm
        self.rules = Rules(self.config["max_bad_share"], self.config["picture_roots"])
        self.collator = Collator(
            tokenizer, mlm=mlm,
            **{key: self.config[key] for key in (
                "max_text_len", "image_size", "mlm_prob", "decoder_mlm_prob", "whole_word_masking", "sentence_sep",
                "long_captions", "masking",
            )},
        )  # fmt: skip
        self._opened: dict[str, dict[str, list[Source]]] = {}
        self._train: CaptionPairs | None = None

    @property
    def reading(self) -> Reading:
        """How the config has images read."""
        config = self.config
        return Reading(
            truncated=config["truncated_images"] == "read", turned=config["turned_images"],
            on_white=config["transparency"] == "white", reduced=config["reduced_images"],
        )  # fmt: skip

    # --- what there is ---

    def setup(self, stage: str | None = None) -> None:
        """Open what a stage (fit, validate, test, or None for all) reads. Raises DataError if it is not there."""
        for name in self.names:
            require_data_set(self.config["data_root"], name, self.config["data_sets"])
        if stage in (None, "fit"):
            _ = self.train_set
        if stage in (None, "fit", "validate") and not self.sources("val"):
            log.warning("none of the data sets %s has a val split: nothing is validated", self.names)
        if stage == "test" and not self.sources("test"):
            raise DataError(f"none of the data sets {self.names} has a test split under {self.config['data_root']}")

    def sources(self, split: str) -> dict[str, list[Source]]:
        """The sources per data set; data sets without the split are left out."""
        if split not in self._opened:
            opened = {
                name: open_split(
                    self.config["data_root"], name, split, self.config["data_sets"], self.config["max_images"],
                    self.rules,
                )
                for name in self.names
            }  # fmt: skip
            bad = [source for sources in opened.values() for source in sources if source.left_out]
            if bad and split != "train":
                raise DataError(
                    f"{bad[0].origin}: {len(bad[0].left_out)} rows of {bad[0].name}, {split}, cannot be used, "
                    f"e.g. {bad[0].left_out[0]}; evaluation leaves nothing out: repair or remove them"
                )
            self._opened[split] = {name: sources for name, sources in opened.items() if sources}
            for name, sources in self._opened[split].items():
                images, captions = sum(map(len, sources)), sum(int(s.caption_counts.sum()) for s in sources)
                log.info("data set %s, %s: %d images, %d captions", name, split, images, captions)
        return self._opened[split]

    def left_out(self) -> list[str]:
        """Rows of the training tables that make no sample, each as "data set/file or id: reason"; to be listed once."""
        sources = (source for group in self.sources("train").values() for source in group)
        return [f"{source.name}/{item}" for source in sources for item in source.left_out]

    @property
    def train_set(self) -> CaptionPairs:
        """All training pairs. Raises DataError if no data set has any."""
        if self._train is None:
            if without := [name for name in self.names if name not in self.sources("train")]:
                log.warning("no train split: %s", ", ".join(without))
            self._train = self._pairs("train")
            if left_out := self.left_out():
                log.warning("%d rows of the training tables are left out, e.g. %s", len(left_out), left_out[0])
            if len(self._train) == 0:
                raise DataError(f"the data sets {self.names} hold no training pairs under {self.config['data_root']}")
            for name, sources in self.sources("train").items():
                captions, origin = sample_captions(sources), f"data set {name}, train"
                if warning := unknown_warning(captions, self.collator.tokenizer, origin):
                    log.warning("%s", warning)
        return self._train

    def _pairs(self, split: str) -> CaptionPairs:
        config, training = self.config, split == "train"
        return CaptionPairs(
            [source for group in self.sources(split).values() for source in group],
            config["train_transform_keys" if training else "val_transform_keys"], config["image_size"], config["seed"],
            strict=not training, long_captions=config["long_captions"], sub_captions=config["sub_captions"],
            reading=self.reading,
        )  # fmt: skip

    @property
    def n_pairs(self) -> int:
        """Training pairs of one epoch, before the incomplete last batch is dropped."""
        return len(self.train_set)

    def eval_names(self, split: str) -> list[tuple[str, str]]:
        """(data set, "image" or "text") of each loader that val_dataloader or test_dataloader gives, in order."""
        sources = self.sources(split)
        if split == "val" and not self.config["get_recall_metric"]:
            return [("all", "pairs")] if sources else []
        return [(name, kind) for name in sources for kind in ("image", "text")]

    # --- loaders ---

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Pixels to what the towers take, on their own device."""
        return {**batch, "image": normalise(batch["image"])} if "image" in batch else batch

    def train_dataloader(self) -> DataLoader:
        return self._loader(self.train_set, batch_sampler=self.train_sampler, keep=True)

    def val_dataloader(self) -> list[DataLoader]:
        if self.config["get_recall_metric"]:
            return self._eval_loaders("val")
        if not self.sources("val"):
            return []
        pairs = self._pairs("val")
        size = self._eval_batch_size * self.world_size
        sampler = GlobalBatchSampler(
            len(pairs), size, self.rank, self.world_size, self.config["seed"], shuffle=False, drop_last=False
        )
        return [self._loader(pairs, batch_sampler=sampler)]

    def test_dataloader(self) -> list[DataLoader]:
        return self._eval_loaders("test")

    def _eval_loaders(self, split: str) -> list[DataLoader]:
        loaders = []
        for sources in self.sources(split).values():
            images = EvalImages(sources, self.config["val_transform_keys"], self.config["image_size"], self.reading)
            texts = EvalTexts(sources)
            own_images = shard(len(images), self.rank, self.world_size)
            own_texts = texts.by_length(shard(len(texts), self.rank, self.world_size))
            for part in (Subset(images, own_images), Subset(texts, own_texts)):  # type: ignore[arg-type]  # arrays do
                loaders.append(self._loader(part, batch_size=self._eval_batch_size, shuffle=False))
        return loaders

    @property
    def _eval_batch_size(self) -> int:
        return self.config["eval_batch_size"] or self.config["per_gpu_batchsize"]

    def _loader(self, dataset: Dataset, keep: bool = False, **how) -> DataLoader:
        workers = self.config["num_workers"]
        if workers > 0:
            # Else the tokenizer's own threads, used before the fork, make it print a warning per worker.
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
            per_step = how.get("batch_size") or self.config["batch_size"] // self.world_size
            large = per_step * 3 * self.config["image_size"] ** 2 > _LARGE_BATCH
            how.update(persistent_workers=keep, prefetch_factor=1 if large else 2, worker_init_fn=_start_worker)
        return DataLoader(
            dataset,
            num_workers=workers,
            collate_fn=self.collator,
            pin_memory=bool(self.config.get("num_gpus", 1)) and torch.cuda.is_available(),
            # Its own, or each new iteration would draw from the process's generator and so change the model's dropout.
            generator=torch.Generator().manual_seed(self.config["seed"]),
            **how,
        )


def _start_worker(worker: int) -> None:
    """Signals to a whole process group or SLURM step are the training process's business: it needs its next batch."""
    keep_freed_memory()
    for signum in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(signum, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_LAST_BATCH_SECONDS))
