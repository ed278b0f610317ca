"""Tiny towers with random weights, in the folders that the libraries themselves write."""

import json

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, BertTokenizerFast, CLIPTokenizerFast, PreTrainedTokenizerFast

WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] a dog runs on the beach ##es un ##run ##ning two cafe . ,".split()


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    torch.manual_seed(0)


@pytest.fixture
def photo():
    pixels = np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def bert_tokenizer(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return BertTokenizerFast(vocab=str(tmp_path / "vocab.txt"), do_lower_case=True)


@pytest.fixture
def bert_folder(tmp_path, bert_tokenizer):
    """A BERT of 16 numbers per token, that reads 12 tokens."""
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=12,
    )  # fmt: skip
    folder = tmp_path / "bert"
    BertModel(config).save_pretrained(folder)
    bert_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def sentence_folder(bert_folder):
    """Makes the BERT's folder one of sentence-transformers: (pooling config, further modules by type and folder)."""

    def make(pooling, *more):
        modules = [("Transformer", ""), ("Pooling", "1_Pooling"), *more]
        entries = [
            {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for number, (kind, path) in enumerate(modules)
        ]
        (bert_folder / "modules.json").write_text(json.dumps(entries))
        (bert_folder / "sentence_bert_config.json").write_text(
            json.dumps({"max_seq_length": 8, "do_lower_case": False})
        )
        (bert_folder / "1_Pooling").mkdir(exist_ok=True)
        (bert_folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 16, **pooling}))
        return bert_folder

    return make


CLIP_MERGES = ["d o", "do g</w>", "r u", "n s</w>", "ru ns</w>", "b e", "be a", "c h"]


@pytest.fixture
def clip_tokenizer():
    """CLIP's kind of BPE: "dog" and "runs" are one token each, "beaches" is bea, ch, e, s."""
    letters = [chr(code) for code in range(33, 127)]
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(m.split()) for m in CLIP_MERGES)]
    vocab = {piece: number for number, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizerFast(vocab=vocab, merges=[tuple(merge.split()) for merge in CLIP_MERGES], model_max_length=16)


@pytest.fixture
def gemma_tokenizer():
    """SigLIP 2's kind: spaces belong to the tokens, and a token of the end."""
    vocab = {"<pad>": 0, "<eos>": 1, "<unk>": 2, "▁a": 3, "▁dog": 4, "▁run": 5, "s": 6}
    tokenizer = Tokenizer(models.WordLevel(vocab, "<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", model_max_length=8
    )
