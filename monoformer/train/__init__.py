"""Training: the loop, losses, optimisers, checkpoints and metrics. Never imports generation."""
