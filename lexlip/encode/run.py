"""Encode a corpus: claim the folder, write this process's shards, list what was left out."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from tqdm import tqdm

from lexlip.encode.corpus import Images, Texts
from lexlip.encode.shards import ShardFolder, ShardPlan
from lexlip.encode.vectors import CorpusEncoder
from lexlip.errors import EncodingError
from lexlip.models.retrieval import LexiconModel, RetrievalModel
from lexlip_data.sources.skipped import USUAL_RULES, Rules

BATCH_SIZE = 64
SHARD_DOCUMENTS = 8192  # some minutes of work on a CPU, seconds on a GPU: what a killed process loses
WINDOW_BATCHES = 16  # batches of texts that are sorted by length together


@dataclass(frozen=True)
class Encoded:
    """What a call did, and what is there now.

    Attributes:
        documents: of the corpus.
        encoded: documents of the shards that this call wrote.
        shards: of the corpus.
        skipped: documents that were left out; None while other processes have shards to write.
    """

    documents: int
    encoded: int
    shards: int
    skipped: int | None

    @property
    def complete(self) -> bool:
        """Whether every shard is there."""
        return self.skipped is not None


def encode(
    model: LexiconModel,
    corpus: Images | Texts,
    out: str | Path,
    *,
    top_k: int | None = None,
    batch_size: int = BATCH_SIZE,
    shard_documents: int = SHARD_DOCUMENTS,
    workers: int = 0,
    rules: Rules = USUAL_RULES,
    process: tuple[int, int] = (0, 1),
    progress: bool = False,
) -> Encoded:
    """Write a corpus as shards of L2-normalised lexicon vectors; shards that are there stay.

    Args:
        model: with a tokenizer if the corpus is texts.
        corpus: its documents keep their order.
        out: a new folder, or one that the same model, corpus and arguments began.
        top_k: how many of the heaviest terms of a vector are kept, weights as they were; None: all.
        batch_size: documents that go through the model at once.
        shard_documents: documents of a shard.
        workers: processes that decode images; 0: this one does.
        rules: how many documents may be left out because they cannot be read.
        process: number of this process and how many there are: of 4, number 1 writes shards 1, 5, 9, ...
        progress: whether to draw a bar.

    Raises:
        EncodingError: nothing to encode, a number below 1, or a folder that holds something else.
        DataError: too many documents cannot be read.
        IndexingError: the model gives a weight that is not a number.
    """
    for name, value in (("top_k", top_k), ("batch_size", batch_size), ("shard_documents", shard_documents)):
        if value is not None and value < 1:
            raise EncodingError(f"{name}={value}: at least 1")
    if not len(corpus):
        raise EncodingError(f"{corpus.origin}: no {corpus.what} to encode")
    if corpus.what == "texts" and model.tokenizer is None:
        raise EncodingError("the model has no tokenizer, which texts need; save one into its folder")
    plan = ShardPlan(len(corpus), shard_documents, batch_size * WINDOW_BATCHES)
    folder = ShardFolder(Path(out), plan, _facts(model, corpus, plan, top_k, batch_size), rules)
    rank, processes = process
    mine = range(rank, plan.shards, processes)
    missing = [shard for shard in mine if not folder.shard(shard).exists()]
    encoder = CorpusEncoder(model.eval(), top_k, batch_size, workers)
    windows = encoder.windows(corpus, (window for shard in missing for window in plan.windows(shard)))
    wide = model.vocab_size > 1 << 16
    with tqdm(
        total=sum(map(plan.size, mine)), initial=sum(map(plan.size, set(mine) - set(missing))),
        unit=f" {corpus.what}", disable=not progress,
    ) as bar:  # fmt: skip
        for shard in missing:
            folder.write(shard, _counted(islice(windows, len(plan.windows(shard))), bar), corpus.ids, wide)
    skipped = folder.finish(corpus.left_out)
    return Encoded(plan.documents, sum(map(plan.size, missing)), plan.shards, skipped)


def process_of(environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Number of this process and how many there are, by the launcher's RANK and WORLD_SIZE; (0, 1) without.

    Raises:
        EncodingError: only one is set, or they are no such numbers.
    """
    texts = [environment.get(name) for name in ("RANK", "WORLD_SIZE")]
    if texts == [None, None]:
        return 0, 1
    try:
        rank, processes = (int(text or "") for text in texts)
    except ValueError:
        rank, processes = -1, 0
    if not 0 <= rank < processes:
        raise EncodingError(
            f"RANK={texts[0]} and WORLD_SIZE={texts[1]}: set both, RANK from 0 to WORLD_SIZE - 1, or neither"
        )
    return rank, processes


def _counted(windows, bar: tqdm):
    for rows, skipped in windows:
        yield rows, skipped
        bar.update(len(rows) + len(skipped))


def _facts(model: LexiconModel, corpus: Images | Texts, plan: ShardPlan, top_k: int | None, batch_size: int) -> dict:
    """What decides every byte of the shards. The batch size does: padding changes the last bits of a text's vector."""
    facts = {
        "model": fingerprint(model),
        "what": corpus.what,
        "documents": plan.documents,
        "corpus": corpus.fingerprint(),
        "top_k": top_k,
        "batch_size": batch_size,
        "shard_documents": plan.shard_documents,
    }
    run = hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=8).hexdigest()
    return {**facts, "run": run}


def fingerprint(model: RetrievalModel) -> str:
    """Differs for models of other weights, shapes or vocabularies."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps(dataclasses.asdict(model.config), sort_keys=True).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    if model.tokenizer is not None:
        digest.update(json.dumps(model.tokenizer.get_vocab(), sort_keys=True).encode())
    return digest.hexdigest()
