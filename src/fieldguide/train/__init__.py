"""Training: cached features, the warm start, the adapter, the loop and its checkpoints."""
