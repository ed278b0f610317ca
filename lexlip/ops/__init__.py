"""Tensors in, tensors out: the pooled lexicon head and attention with a trained bias. Knows no model."""
