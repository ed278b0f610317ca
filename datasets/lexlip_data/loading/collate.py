"""Samples -> one `Batch`: stacks images, tokenises captions, masks words.

Costs one call of the tokenizer per batch, some 25 microseconds per caption, and masking, some 5, in the worker.
"""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.utils.data import default_collate

from lexlip_data.errors import DataError
from lexlip_data.loading.batch import Batch
from lexlip_data.loading.masking import mask_positions, mask_words, read_vocabulary, word_numbers
from lexlip_data.loading.sentences import mark_sentences


@dataclass
class Collator:
    """Makes a batch of whatever the samples hold: images, captions or pairs; picklable.

    Raises:
        DataError: a probability outside [0, 1], a length below 3, mlm and no [MASK], or a slow tokenizer.
    """

    tokenizer: Any  # a fast one of Hugging Face
    max_text_len: int  # tokens kept of a caption, [CLS] and [SEP] included
    image_size: int  # side of the images; gives a batch whose every sample was skipped its shape
    _: KW_ONLY
    mlm: bool = False  # also mask words, twice and independently: for the encoder and for the decoder
    mlm_prob: float = 0.3  # probability that a word is masked for the encoder
    decoder_mlm_prob: float = 0.5  # and for the decoder
    whole_word_masking: bool = True  # mask all word pieces of a word together
    masking: str = "words"  # `mask_words`, or "positions", `mask_positions`
    sentence_sep: bool = False  # read every ". " of a caption as [SEP]
    long_captions: int = 0  # K, long texts that each pair brings along

    def __post_init__(self) -> None:
        for key in ("mlm_prob", "decoder_mlm_prob"):
            if not 0 <= getattr(self, key) <= 1:
                raise DataError(f"{key} {getattr(self, key)}: must be a probability between 0 and 1")
        if self.max_text_len < 3:
            raise DataError(f"max_text_len {self.max_text_len}: must be at least 3, [CLS], one token and [SEP]")
        if self.tokenizer.pad_token_id is None:
            name = self.tokenizer.name_or_path or type(self.tokenizer).__name__
            raise DataError(f"tokenizer {name} has no padding token")
        self.backend = _own_backend(self.tokenizer, self.max_text_len)
        self.probabilities = {"encoder": self.mlm_prob, "decoder": self.decoder_mlm_prob} if self.mlm else {}
        self.vocabulary = read_vocabulary(self.tokenizer) if self.mlm else None

    def __call__(self, samples: Sequence[dict]) -> Batch:
        kept = [sample for sample in samples if "skipped" not in sample]
        batch: Batch = {"skipped": [sample["skipped"] for sample in samples if "skipped" in sample]}
        # Evaluation samples are never skipped, so an empty batch can only be one of pairs.
        of_pairs = not kept
        if of_pairs or "image" in kept[0]:
            batch["image"] = self._images([sample["image"] for sample in kept])
        if of_pairs or "caption" in kept[0]:
            batch.update(self._texts(kept))
        batch["image_id"] = torch.tensor([sample["image_id"] for sample in kept], dtype=torch.int64)
        if kept and "order" in kept[0]:
            batch["order"] = torch.tensor([sample["order"] for sample in kept], dtype=torch.int64)
        batch["sample"] = [sample["sample"] for sample in kept]
        return batch

    def _images(self, images: Sequence[torch.Tensor]) -> torch.Tensor:
        if not images:
            return torch.zeros((0, 3, self.image_size, self.image_size), dtype=torch.uint8)
        # Copied in the order of the decoder's memory, rows of pixels; the device puts the channels first.
        # In a worker default_collate stacks into the shared memory that the batch travels in.
        return default_collate([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)

    def _texts(self, kept: Sequence[dict]) -> Batch:
        ids, mask = self.tokenise([sample["caption"] for sample in kept])
        numbers = [sample["sample"][2] for sample in kept]
        batch: Batch = {"text_ids": ids, "text_mask": mask, "caption_number": torch.tensor(numbers, dtype=torch.int64)}
        if self.probabilities and (not kept or "seed" in kept[0]):
            batch.update(self._masked(ids.numpy(), kept))
        if self.long_captions and (not kept or "long" in kept[0]):
            ids, mask = self.tokenise([text for sample in kept for text in sample["long"]])
            shape = (len(kept), self.long_captions, ids.shape[1])
            batch.update({"long_ids": ids.view(shape), "long_mask": mask.view(shape)})
        return batch

    def tokenise(self, captions: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Captions to token ids and their mask, each int64 (B, L), padded to the longest."""
        if not captions:
            return torch.zeros((0, 2), dtype=torch.int64), torch.zeros((0, 2), dtype=torch.int64)
        if self.sentence_sep:
            captions = [mark_sentences(caption, self.tokenizer.sep_token) for caption in captions]
        encoded = self.backend.encode_batch_fast(list(captions))
        ids, mask = [text.ids for text in encoded], [text.attention_mask for text in encoded]
        return torch.from_numpy(np.array(ids, dtype=np.int64)), torch.from_numpy(np.array(mask, dtype=np.int64))

    def _masked(self, ids: np.ndarray, kept: Sequence[dict]) -> Batch:
        assert self.vocabulary is not None
        words = word_numbers(ids, self.vocabulary, self.whole_word_masking)
        seeds = np.array([sample["seed"] for sample in kept], dtype=np.int64)
        out: Any = {}  # encoder_* and decoder_* of a Batch
        # One random stream per part, so that another probability of one leaves the other's masks as they were.
        for number, (part, probability) in enumerate(self.probabilities.items()):
            how = (ids, words, probability, self.vocabulary, seeds)
            if self.masking == "positions":
                masked, labels = mask_positions(*how, self.max_text_len, number)
            else:
                masked, labels = mask_words(*how, number)
            out[f"{part}_ids"], out[f"{part}_labels"] = torch.from_numpy(masked), torch.from_numpy(labels)
        return out


def _own_backend(tokenizer, max_text_len: int) -> Tokenizer:
    """The tokenizer without its Python layer, which takes as long again; truncation and padding are set once.

    A copy, because the tokenizer sets its own at every call.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise DataError(f"tokenizer {type(tokenizer).__name__} is not a fast one; load it with AutoTokenizer")
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.enable_truncation(max_text_len, direction=tokenizer.truncation_side)
    backend.enable_padding(
        direction=tokenizer.padding_side, pad_id=tokenizer.pad_token_id, pad_token=tokenizer.pad_token
    )
    return backend
