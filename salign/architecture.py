"""What a model's config says about the reach of its attention and about its positions. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Reach:
    """How far back a token sees in some layers: fewer than `window` places, or within its `chunk` of places.

    Neither: everything before. Places are positions in a text, counted from 0.
    """

    window: int | None = None
    chunk: int | None = None

    def within(self, num_positions: int) -> "Reach":
        """The window's effect on texts of this many positions: None if they are no longer than the window."""
        if min(self.window or num_positions, self.chunk or num_positions) >= num_positions:
            return Reach()
        return self


EVERYTHING = Reach()


def reaches(config: Any) -> dict[str, Reach]:
    """The reach of each kind of layer, by the names that transformers has for kinds; "" where all layers are alike.

    Args:
        config: Of transformers, whose `get_text_config` has been called.
    """
    window, chunk = getattr(config, "sliding_window", None), getattr(config, "attention_chunk_size", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return {"": Reach(window or None, chunk or None)}
    known = {"sliding_attention": Reach(window=window or None), "chunked_attention": Reach(chunk=chunk or None)}
    return {kind: known.get(kind, Reach()) for kind in sorted(set(kinds))}


def max_positions(config: Any) -> int | None:
    """The longest text that a model is made for, in tokens; None where its config does not say.

    Args:
        config: As for `reaches`.
    """
    limits = (getattr(config, name, None) for name in ("max_position_embeddings", "max_seq_len"))
    return next((limit for limit in limits if isinstance(limit, int) and limit > 0), None)


def longrope_switch(config: Any) -> int | None:
    """The longest text whose positions are those of a short one under LongRoPE; None under another RoPE.

    With a longer text in the same forward pass, transformers changes the positions of all texts (and keys that were
    computed before keep the old ones).

    Args:
        config: As for `reaches`.
    """
    parameters = getattr(config, "rope_parameters", None) or {}
    variants = [parameters, *(kind for kind in parameters.values() if isinstance(kind, Mapping))]
    limits = [kind["original_max_position_embeddings"] for kind in variants if kind.get("rope_type") == "longrope"]
    return min(map(int, limits), default=None)
