"""Measures every protocol of the registry around the scripted engine: no model takes part."""

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from salign.bench.figures import Figure
from salign.bench.society import Bench
from salign.errors import ConfigError
from salign.society.protocols import PROTOCOLS

_NEEDS: dict[str, dict[str, Any]] = {
    "relay": {"topology": {"kind": "layers", "sizes": [10] * 10}},
    "game": {"rating": "logprob"},  # a scripted reply names no number
}
"""Settings of the society without which a protocol cannot be held on a grid of 10 x 10."""
_NUM_TRIES = 3
_NUM_ROUNDS = 20


def _throughput(bench: Bench, kind: str, num_rounds: int) -> Figure:
    """Calls a second of processor time, the best of some tries."""
    rates = []
    for _ in range(_NUM_TRIES):
        config = bench.config(max_rounds=num_rounds, protocol={"kind": kind}, **_NEEDS.get(kind, {}))
        start = time.process_time()
        _, _, facts = bench.run(config)
        rates.append(facts["num_calls"] / (time.process_time() - start))
    note = f"{facts['num_calls']:,} calls, {facts['num_interactions']:,} interactions"
    what = f"{kind}: scripted engine, journal on, 10 x 10, {num_rounds} rounds"
    return Figure(what, max(rates), "calls/s", ">= 10,000", "", note)


def measure(only: Sequence[str], say: Callable[[str], None], num_rounds: int = _NUM_ROUNDS) -> list[Figure]:
    """The figures of `python jobs/bench.py protocols`.

    Args:
        only: Kinds of protocols; empty for all.
        say: Told what is being measured.
        num_rounds: Of each society.

    Raises:
        ConfigError: There is no such protocol.
    """
    if unknown := [kind for kind in only if kind not in PROTOCOLS]:
        raise ConfigError(f"no protocol {', '.join(unknown)}; there are: {', '.join(PROTOCOLS)}")
    figures = []
    with tempfile.TemporaryDirectory(prefix="salign-bench-") as name:
        bench = Bench(Path(name))
        for kind in only or PROTOCOLS:
            say(kind)
            figures.append(_throughput(bench, kind, num_rounds))
    return figures
