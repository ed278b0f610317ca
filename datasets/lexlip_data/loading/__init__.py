"""What a training reads: samples, batches, samplers, one data module."""
