"""Training with DeepSpeed: objectives, packed rows, the loop, checkpoints."""
