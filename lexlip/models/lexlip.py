"""The model without any trainer: two towers, two lexicon heads, images and captions to lexicon vectors.

B batch, L tokens, V terms.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lexlip.models.attribution import Pooling, TextAttribution, grid_of
from lexlip.models.lexicon_head import LexiconHead
from lexlip.models.long_texts import corner_weights
from lexlip.models.retrieval import LexiconModel
from lexlip.models.terms import own_terms, terms_of_kinds
from lexlip.models.two_tower import TwoTowers
from lexlip.ops.fused import PADDING_LOGIT
from lexlip.ops.max_logits import saturate

if TYPE_CHECKING:
    from transformers import BertForMaskedLM

OWN_START = 0.54  # of the numbers of own terms: softplus makes it 1
MODEL_CARD = Path(__file__).with_name("card_lexicon.md").read_text(encoding="utf-8")


class LexLIP(TwoTowers, LexiconModel, tags=["sparse-retrieval"], model_card_template=MODEL_CARD):
    """Image tower, text tower and their lexicon heads; see `TwoTowers` for the arguments."""

    head = "lexicon"

    def make_head(self) -> None:
        width, vocab_size = self.text_encoder.width, self.config.vocab_size
        eps = self.text_encoder.config.layer_norm_eps
        restricted = bool(self.config.inactive_terms)
        more = eps, restricted, self.config.activation
        self.text_head = LexiconHead(width, width, vocab_size, *more)
        self.image_head = LexiconHead(self.image_encoder.width, width, vocab_size, *more)
        if restricted and self.tokenizer is not None:
            inactive = terms_of_kinds(self.tokenizer.get_vocab(), self.config.inactive_terms, vocab_size)
            for head in (self.text_head, self.image_head):
                head.inactive = inactive.clone()

        self.own_weights = nn.Parameter(torch.full((vocab_size,), OWN_START)) if self.config.own_weights else None

        self.joint_text = self.joint_image = None
        if (joint := self.config.joint_dim) > 0:
            self.joint_text, self.joint_image = nn.Linear(width, joint), nn.Linear(self.image_encoder.width, joint)

    def start_head(self, bert: BertForMaskedLM | None) -> None:
        """The image head starts as a copy of the text head; its first layer only where the towers are equally wide."""
        if bert is not None:
            predictions, head = bert.cls.predictions, self.text_head
            head.dense.load_state_dict(predictions.transform.dense.state_dict())
            head.norm.load_state_dict(predictions.transform.LayerNorm.state_dict())
            head.decoder.load_state_dict({"weight": predictions.decoder.weight, "bias": predictions.bias})
        equal = self.image_encoder.width == self.text_encoder.width
        for name in ("norm", "decoder") + (("dense",) if equal else ()):
            getattr(self.image_head, name).load_state_dict(getattr(self.text_head, name).state_dict())

    def set_lexicon_head(self, method: str) -> None:
        """How both heads take their maximum: "auto", "fused" or "textbook", see `lexlip.ops.max_logits`."""
        self.text_head.method = self.image_head.method = method

    # --- token states to lexicon vectors ---

    def lexicon_text(self, input_ids: Tensor, attention_mask: Tensor, states: Tensor | None = None) -> Tensor:
        """(B, L) token ids and their mask, 0 at padding, to (B, V) float32 term weights log(1 + max over L of relu(z)).

        They are not normalised. By `text_side` they are those of all terms ("contextual"), of the text's own terms
        ("in_context"), or none ("lookup"); `with_own` adds to each. `states` are those of the text tower, if they are
        there already.
        """
        side = self.config.text_side
        if side == "lookup":
            weights = torch.zeros(len(input_ids), self.vocab_size, device=input_ids.device)
        else:
            states = self.text_encoder(input_ids, attention_mask) if states is None else states
            weights = self.text_head.term_weights(states, attention_mask)
        if side == "in_context":
            weights = weights * own_terms(input_ids, attention_mask, self.vocab_size)
        return self.with_own(weights, input_ids, attention_mask)

    def with_own(self, weights: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, V) weights of texts plus, with `own_weights`, each own term's number: softplus of a parameter.

        So a text's own terms are active from the first step on, whatever a fresh tower makes of them.
        """
        if self.own_weights is None:
            return weights
        own = own_terms(input_ids, attention_mask, self.vocab_size) * F.softplus(self.own_weights)
        return weights + (own if self.text_head.inactive is None else own.masked_fill(self.text_head.inactive, 0.0))

    def lexicon_long(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Long texts to lexicon vectors for training: the text's own, and one per corner token.

        A maximum over a hundred word pieces is decided by a few of them; the others learn nothing from it. So each
        corner pools the word pieces again, each decoder input scaled by the corner's weight (`corner_weights`), and
        each such vector is to find the image by itself. The vectors have the same terms as all others; only the first
        is ever stored or searched with, so short and long texts share one index.

        Returns:
            (B, 1 + C, V) float32 term weights; the first is `lexicon_text`.
        """
        count = self.config.corner_tokens
        if not count:
            return self.lexicon_text(input_ids, attention_mask)[:, None]
        states = self.text_encoder.with_corners(input_ids, attention_mask)
        hidden = self.text_head.transform(torch.cat([states[:, :1], states[:, count + 1 :]], dim=1))
        weights = corner_weights(states[:, 1 : count + 1], states[:, count + 1 :])
        vectors = [self.text_head.pool(hidden, attention_mask, saturated=True)]
        for weight in weights.unbind(1):  # [CLS] is no word piece: it sums up the text, and no corner sees it
            part = hidden[:, 1:] * weight[..., None]
            vectors.append(self.text_head.pool(part, attention_mask[:, 1:], saturated=True))
        return torch.stack(vectors, dim=1)

    def lexicon_image(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, H, W) normalised pixels, H and W multiples of the patch, to (B, V) float32 term weights."""
        return self.image_head.term_weights(self.image_encoder(pixel_values))

    # --- the dense head beside it, with `joint_dim` ---

    def dense_text(self, states: Tensor) -> Tensor:
        """(B, L, width) states of the text tower to (B, joint_dim) float32, not normalised, of [CLS]."""
        assert self.joint_text is not None
        return self.joint_text(states[:, 0]).float()

    def dense_image(self, states: Tensor) -> Tensor:
        """(B, L, width) states of the image tower to (B, joint_dim) float32, not normalised: of their mean."""
        assert self.joint_image is not None
        return self.joint_image(states.mean(1)).float()

    @property
    def widths(self) -> dict[str, int]:
        dense = {"dense": self.config.joint_dim} if self.config.joint_dim else {}
        return {"lexicon": self.vocab_size, **dense}

    def vectors_of_ids(self, ids: Tensor, mask: Tensor, head: str) -> Tensor:
        return self.dense_text(self.text_encoder(ids, mask)) if head == "dense" else self.lexicon_text(ids, mask)

    def vectors_of_pixels(self, pixels: Tensor, head: str) -> Tensor:
        return self.dense_image(self.image_encoder(pixels)) if head == "dense" else self.lexicon_image(pixels)

    # --- where a term's weight comes from ---

    @property
    def patch_pooling(self) -> Pooling:
        return "max"

    def patch_states(self, pixels: Tensor) -> Tensor:
        states, (height, width) = self.image_encoder(pixels), pixels.shape[-2:]
        patch, tokens = self.image_encoder.patch, states.shape[1]
        rows, columns = (height // patch, width // patch) if patch else (0, 0)
        if not 0 < rows * columns <= tokens:  # a map, which may be coarser than the patches it began with
            rows, columns = grid_of(tokens, height, width)
        return self.image_head.transform(states[:, -rows * columns :]).unflatten(1, (rows, columns))

    def term_logits(self, states: Tensor, ids: Tensor) -> Tensor:
        decoder, inactive = self.image_head.decoder, self.image_head.inactive
        logits = F.linear(states, decoder.weight[ids], decoder.bias[ids])
        return logits if inactive is None else logits.masked_fill(inactive[ids], PADDING_LOGIT)

    def piece_weights(self, text: str, ids: Tensor) -> TextAttribution:
        input_ids, mask = self._tokenized([text])
        decoder, states = self.text_head.decoder, self.text_head.transform(self.text_encoder(input_ids, mask))[0]
        weights = saturate(F.linear(states, decoder.weight[ids], decoder.bias[ids]).float(), self.config.activation)
        if self.text_head.inactive is not None:
            weights = weights.masked_fill(self.text_head.inactive[ids], 0.0)
        if self.config.text_side != "contextual":
            inner = own_terms(input_ids, mask, self.vocab_size)[:, ids]
            weights = weights * (inner if self.config.text_side == "in_context" else 0.0)
        weights = weights + self.with_own(weights.new_zeros(1, self.vocab_size), input_ids, mask)[:, ids]
        return TextAttribution(self.tokenizer.convert_ids_to_tokens(input_ids[0].tolist()), weights.T, "max")

    # The names that every head has.
    vectors_text, vectors_long, vectors_image = lexicon_text, lexicon_long, lexicon_image
