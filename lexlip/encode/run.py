"""Encode a corpus: claim the folder, write this process's shards, list what was left out."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from lexlip.encode.corpus import Images, Texts
from lexlip.encode.files import LineTexts
from lexlip.encode.rounds import Round, open_rounds
from lexlip.encode.shards import ShardPlan
from lexlip.encode.tables import SourceCaptions
from lexlip.encode.vectors import CorpusEncoder
from lexlip.errors import EncodingError
from lexlip.index.origin import ModelStamp, Origin, Source
from lexlip.index.shards import with_prefix
from lexlip.models.fingerprint import fingerprint as weights_fingerprint
from lexlip.models.retrieval import LexiconModel, RetrievalModel
from lexlip_data.loading.unknown_words import SAMPLE, unknown_warning
from lexlip_data.sources.skipped import USUAL_RULES, Rules, Skipped

log = logging.getLogger(__name__)
# Fields of configs that came after the first folders were begun: with their defaults, those go on.
LATER = {"activation": "log1p", "separate_tables": False}

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
    model_name: str = "",
    id_prefix: str = "",
) -> Encoded:
    """Write a corpus as shards of L2-normalised lexicon vectors; shards that are there stay.

    Args:
        model: with a tokenizer if the corpus is texts.
        corpus: its documents keep their order.
        out: a new folder, or one that the same model, corpus and arguments began; of a folder of images that grew since
            then, what is new is added.
        top_k: how many of the heaviest terms of a vector are kept, as `model.cut_to_length_one` says; None: all.
        batch_size: documents that go through the model at once.
        shard_documents: documents of a shard.
        workers: processes that decode images; 0: this one does.
        rules: how many documents may be left out because they cannot be read.
        process: number of this process and how many there are: of 4, number 1 writes shards 1, 5, 9, ...
        progress: whether to draw a bar.
        model_name: what the model was loaded from; the shards tell it to the index.
        id_prefix: to put before each id, which makes it a string.

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
    settings = {
        "model": fingerprint(model), "what": corpus.what, "top_k": top_k, "batch_size": batch_size,
        "shard_documents": shard_documents,
        **({"cut_to_length": 1} if top_k and model.cut_to_length_one else {}),
        **({"id_prefix": id_prefix} if id_prefix else {}),  # an earlier version's folder, without one, goes on
    }  # fmt: skip  # what decides every byte of a shard: padding changes the last bits of a text's vector
    plan = partial(ShardPlan, shard_documents=shard_documents, window=batch_size * WINDOW_BATCHES)
    folder = os.path.abspath(model_name) if os.path.isdir(model_name) else ""
    stamp = ModelStamp(model_name, folder, weights_fingerprint(model))
    origin = Origin(stamp, Source(os.path.abspath(corpus.origin), corpus.what, id_prefix))
    rounds, notes = open_rounds(Path(out), corpus, settings, plan, rules, origin)
    if process[0] == 0:
        for note in notes + _unknown_words(corpus, model.tokenizer):
            log.warning("%s", note)
    encoder = CorpusEncoder(model.eval(), top_k, batch_size, workers)
    wide = model.vocab_size > 1 << 16
    encoded = sum(_encode_round(each, encoder, wide, process, progress, id_prefix) for each in rounds)
    skipped = [each.shards.finish(corpus.left_out) for each in rounds]
    shards = sum(each.shards.plan.shards for each in rounds)
    return Encoded(len(corpus), encoded, shards, None if None in skipped else skipped[-1])


def _unknown_words(corpus: Images | Texts, tokenizer) -> list[str]:
    """A line where the tokenizer does not know most of what a few hundred of the texts say; else none."""
    if not isinstance(corpus, (LineTexts, SourceCaptions)):
        return []
    some = np.unique(np.linspace(0, len(corpus) - 1, min(SAMPLE, len(corpus))).astype(int)).tolist()
    items = (item for number in some for item in corpus.read(number, number + 1))
    warning = unknown_warning([item[1] for item in items if not isinstance(item, Skipped)], tokenizer, corpus.origin)
    return [warning] if warning else []


def _encode_round(
    part: Round, encoder: CorpusEncoder, wide: bool, process: tuple[int, int], progress: bool, id_prefix: str
) -> int:
    """Write this process's shards that are missing; returns how many documents that were."""
    rank, processes = process
    corpus, folder, plan = part.corpus, part.shards, part.shards.plan
    mine = range(rank, plan.shards, processes)
    missing = [shard for shard in mine if not folder.shard(shard).exists()]
    todo = [window for shard in missing for window in plan.windows(shard)]
    windows = encoder.windows(corpus, todo)
    with tqdm(
        total=sum(map(plan.size, mine)), initial=sum(map(plan.size, set(mine) - set(missing))),
        unit=f" {corpus.what}", disable=not progress,
    ) as bar:  # fmt: skip
        for shard in missing:
            of_shard = _counted(islice(windows, len(plan.windows(shard))), bar, id_prefix)
            folder.write(shard, of_shard, "string" if id_prefix else corpus.ids, wide)
    return sum(1 for window in todo for number in range(*window) if not folder.is_gone(corpus, number))


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


def _counted(windows, bar: tqdm, id_prefix: str):
    for rows, skipped in windows:
        yield with_prefix(rows, id_prefix), skipped
        bar.update(len(rows) + len(skipped))


def fingerprint(model: RetrievalModel) -> str:
    """Differs for models of other weights, shapes or vocabularies."""
    digest = hashlib.blake2b(digest_size=16)
    fields = dataclasses.asdict(model.config).items()
    config = {name: value for name, value in fields if name not in LATER or value != LATER[name]}
    digest.update(json.dumps(config, sort_keys=True).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    if model.tokenizer is not None:
        digest.update(json.dumps(model.tokenizer.get_vocab(), sort_keys=True).encode())
    return digest.hexdigest()
