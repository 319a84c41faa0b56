"""Metrics as JSON Lines, and their mirror in W&B."""
