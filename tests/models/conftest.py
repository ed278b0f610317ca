"""What tests of several models need."""

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM


@pytest.fixture
def saved_bert(tmp_path):
    """A BERT with its head, of the tiny text tower's shape, and the folder that it is saved in."""
    torch.manual_seed(0)
    shape = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    bert = BertForMaskedLM(BertConfig(**shape, intermediate_size=32, max_position_embeddings=16)).eval()
    torch.nn.init.normal_(bert.cls.predictions.bias)
    bert.save_pretrained(tmp_path / "bert")
    return bert, str(tmp_path / "bert")
