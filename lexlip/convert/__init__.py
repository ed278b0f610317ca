"""Other people's checkpoints to model folders, and ours to other formats."""
