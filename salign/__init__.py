"""A society of language-model agents, and models aligned with what it records."""

__version__ = "0.1.0"
