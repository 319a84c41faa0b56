"""How valid a run's figures are: what each default does, compared with what it replaced."""
