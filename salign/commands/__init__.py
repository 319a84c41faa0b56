"""The commands of `salign`, one module each; `jobs/*.py` are the same."""
