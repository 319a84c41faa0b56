"""How far what one agent is told travels: by radius, global share, memory, and the size of a society.

The replies are a function of the prompt alone: an agent is reached where its revision is another one than in the same
society in which nobody was told anything. So these are upper bounds: a model may leave aside what it is shown.
"""

from collections.abc import Sequence
from math import isqrt
from pathlib import Path
from statistics import fmean
from typing import Any

from salign.bench.figures import Figure
from salign.bench.validity.context import Context
from salign.bench.validity.recall import live
from salign.config import EverydaySource, SocietySection
from salign.config.topology import num_agents_of
from salign.society import sources

_NUM_ROUNDS = 12
_SHOWN_ROUNDS = (1, 2, 4, 8, 12)
_NUM_WORLDS = 3
_SETTINGS: dict[str, dict[str, Any]] = {
    "radius 2": {},
    "radius 1": {"topology": {"kind": "grid", "radius": 1}},
    "radius 5": {"topology": {"kind": "grid", "radius": 5}},
    "radius 2, a quarter of the audience from anywhere": {"global_share": 0.25},
    "radius 2, agents remember what they are told": {"memory": {"kind": "stream"}},
    "radius 2, no memory": {"without": ("memory",)},
    "radius 2, scores without words": {"without": ("feedback_text",)},
    "9 agents, radius 2": {"topology": {"kind": "grid", "size": 3}},
    "isolated agents": {"topology": {"kind": "isolated", "num_agents": 100}},
}


def reached(society: SocietySection, agent: int, questions: Sequence[str], folder: Path, world: int = 0) -> list[int]:
    """By round, how many agents' revisions depend on whether one agent is given instructions.

    Args:
        society: Without interventions.
        agent: The number of the one, which is among those that are reached.
        questions: That are asked.
        folder: For what lies on disk meanwhile.
        world: Its number, from which all that is drawn follows.
    """
    told = {"name": "told", "from_round": 1, "agents": [agent], "instructions": "Be brief."}
    changed = SocietySection.model_validate({**society.model_dump(exclude_unset=True), "interventions": [told]})
    one, other = (live(held, questions, folder, world)[0] for held in (society, changed))
    counts = [0] * society.max_rounds
    for before, after in zip(one, other, strict=True):
        texts = [None if (turn := item.turn("revision")) is None else turn.text for item in (before, after)]
        counts[before.round - 1] += texts[0] != texts[1]
    return counts


def measure(context: Context) -> list[Figure]:
    """How many agents one that is told something reaches, after how many rounds: means over worlds."""
    folder = context.scratch / "spread"
    folder.mkdir(parents=True, exist_ok=True)
    questions, figures = sources.questions(EverydaySource()), list[Figure]()
    for name, settings in _SETTINGS.items():
        society = SocietySection.model_validate({"max_rounds": _NUM_ROUNDS, "stopping": None, **settings})
        size = isqrt(num_agents_of(society.topology) or 0)
        agent = size // 2 * (size + 1)  # in the middle of a grid
        worlds = [reached(society, agent, questions, folder, world) for world in range(_NUM_WORLDS)]
        means = {number: fmean(counts[number - 1] for counts in worlds) for number in _SHOWN_ROUNDS}
        last = [counts[-1] for counts in worlds]
        note = "by round: " + ", ".join(f"{number}: {mean:.1f}" for number, mean in means.items())
        called = f"{name}: agents reached in round {_NUM_ROUNDS}"
        figures.append(Figure(called, means[_NUM_ROUNDS], "agents", note=f"{note}; {min(last)} to {max(last)}"))
    return figures
