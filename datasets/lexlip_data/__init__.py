"""The data layer: files on disk -> batches of tensors. It knows no model, and importing it loads no torch."""
