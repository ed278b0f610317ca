"""How good a model is: recall by ids, and the long-text benchmarks."""
