"""The prompts of single protocols, a module each; `TEXTS` is what they ask."""
