"""Zero-shot classification: which of some labels an image shows, without an example of any."""
