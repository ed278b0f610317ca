"""The long-text retrieval benchmark of LoTLIP (Wu et al., NeurIPS 2024): DCI, IIW, ShareGPT4V, Urban1k."""
