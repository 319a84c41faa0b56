"""What the figures of a run are worth: what each default does, and what it would look like if it did nothing."""
