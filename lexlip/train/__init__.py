"""Training: config, the exact step, losses, optimiser, checkpoints, the sacred command line."""
