"""Removes the template text around the queries of the released files.

A group's query is plain text; the template of the model (chat or Alpaca) is put around it by training.
"""

import re

from salign.society.queries import with_input

# The Alpaca scaffold (Taori et al. 2023), with or without its preamble and input.
_SCAFFOLD = re.compile(
    r"\A(?:Below is an instruction.*?\n\n)?### Instruction:\s*\n(?P<instruction>.*?)"
    r"(?:\n\n### Input:\s*\n(?P<input>.*?))?\n\n### Response:\s*\Z",
    re.DOTALL,
)


def plain_query(query: str) -> str:
    """Removes the Alpaca scaffold that released files put around a query; other text stays as it is."""
    matched = _SCAFFOLD.match(query)
    if matched is None:
        return query.strip()
    given = (matched["input"] or "").strip()
    instruction = matched["instruction"].strip()
    return with_input(instruction, given) if given else instruction
