"""The weakened decoder: few BERT layers that must rebuild a half-masked caption from a bag of words.

It is weak on purpose. What two layers cannot guess from the words left standing, they can only take from the
bottleneck vector in place of [CLS], so the lexicon has to carry the meaning.
"""

from torch import Tensor, nn

from lexlip.models.encoders import BertStack, TextEncoder


class WeakenedDecoder(nn.Module):
    """Fresh BERT layers, shared by the image's and the caption's bottleneck.

    Args:
        text_encoder: gives the layers' shape; its embeddings are used, not copied.
        layers: depth.
    """

    def __init__(self, text_encoder: TextEncoder, layers: int):
        super().__init__()
        self.layers = BertStack(text_encoder.config, layers)

    def forward(self, embeddings: Tensor, mask: Tensor, bottleneck: Tensor) -> Tensor:
        """Token states of a masked caption that starts with a bottleneck vector.

        Args:
            embeddings: (B, L, D) of the masked caption.
            mask: (B, L), 0 at padding.
            bottleneck: (B, D), put in place of the embedding at position 0.

        Returns:
            (B, L, D).
        """
        states = embeddings.clone()
        states[:, 0] = bottleneck.to(states.dtype)
        return self.layers(states, mask)
