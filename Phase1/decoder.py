"""The weakened decoder: few BERT layers that must rebuild a half-masked caption from a bag of words.

It is weak on purpose. What two layers cannot guess from the words left standing, they can only take from the
bottleneck vector in place of [CLS], so the lexicon has to carry the meaning.
"""

from torch import Tensor, nn

from lexlip.models.encoders import BertStack, TextEncoder


class WeakenedDecoder(nn.Module):
    """So many fresh BERT layers of the text tower's shape, shared by the image's and the caption's bottleneck."""

    def __init__(self, text_encoder: TextEncoder, layers: int):
        super().__init__()
        self.layers = BertStack(text_encoder.config, layers)

    def forward(self, embeddings: Tensor, mask: Tensor, bottleneck: Tensor) -> Tensor:
        """(B, L, D) embeddings of a masked caption and their (B, L) mask, 0 at padding, to (B, L, D) token states.

        The (B, D) bottleneck takes the place of the embedding at position 0.
        """
        states = embeddings.clone()
        states[:, 0] = bottleneck.to(states.dtype)
        return self.layers(states, mask)
