"""One run in many processes on many nodes: what the environment says, and what a run's end tells."""
