"""`lexlip explain`: where on an image, and in which words of a text, a term's weight comes from (docs/MODELS.md)."""
