"""A trained lookup side written down: rows of every word piece, so that texts need no tower.

V word pieces of the vocabulary, A terms that may be active, K terms of a row.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from lexlip.errors import EncodingError
from lexlip.models.frozen.heads import LookupText, TableText
from lexlip.models.frozen.model import FrozenLexLIP

ROWS_AT_ONCE = 1024
OUTSIDE_GATE = 1.0  # of word pieces that are no terms: their rows are all that they have


@torch.no_grad()
def with_table(model: FrozenLexLIP, words: Tensor) -> FrozenLexLIP:
    """A model whose text side is a table, from one with a trained lookup side; the image side is the same.

    A word piece that no training caption had is no term, but the text tower knows what it is near to: its row is that
    of its vector, so a query for it finds the images of its neighbours. The dense reference, whose texts need the
    tower, does not come along.

    Args:
        words: (V, pooled_width) the text tower's vector of each word piece alone, 0 for those without.

    Raises:
        EncodingError: the text side is no lookup.
    """
    heads = model.lexicon_heads
    if heads is None or not isinstance(side := heads.text_side, LookupText):
        raise EncodingError(f"text_head={model.config.text_head}: a table is written of a trained lookup side alone")
    model.eval()
    facts = {"image": model.config.tower_facts.get("image", {})}  # no text tower, and nobody asks which it was
    config = dataclasses.replace(model.config, text_head="table", text_tower="", embed_dim=0, tower_facts=facts)
    table = FrozenLexLIP(config, model.tokenizer)
    assert table.lexicon_heads is not None
    wanted = table.state_dict().keys()
    state = {name: value for name, value in model.state_dict().items() if name in wanted}
    table.load_state_dict(state, strict=False)
    rows = table.lexicon_heads.text_side
    assert isinstance(rows, TableText)
    where = heads.positions(torch.arange(config.vocab_size))
    gates = F.pad(torch.sigmoid(side.gate), (0, 1), value=OUTSIDE_GATE)[where]
    own = F.pad(F.softplus(heads.own), (0, 1))[where]
    known = words.float().abs().sum(1) > 0
    for first in range(0, config.vocab_size, ROWS_AT_ONCE):
        some = slice(first, first + ROWS_AT_ONCE)
        weights = side.rows(words[some].float(), heads.table) * gates[some, None] * known[some, None]
        weights = F.pad(weights, (0, 1)).scatter_add(1, where[some, None], own[some, None])[:, :-1]
        kept = min(rows.row_terms.shape[1], config.terms)
        top = weights.topk(kept, dim=1)
        rows.row_terms[some, :kept] = top.indices.to(rows.row_terms.dtype)
        rows.row_weights[some, :kept] = top.values.half()
    return table.eval()
