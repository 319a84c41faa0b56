"""What agents recall, from where, by embedder and questions; and what it would be if memory did nothing.

The replies are a function of the prompt alone, so that two interactions differ where what was recalled differs.
"""

import asyncio
import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from salign.bench.figures import Figure
from salign.bench.validity.context import Context
from salign.config import (
    Embedder,
    EverydaySource,
    HashingEmbedder,
    MoralStoriesSource,
    SocietySection,
    Source,
    TextSource,
    TransformersEmbedder,
)
from salign.engines.base import Prompt, RatingReply, Reply
from salign.engines.gate import Gate
from salign.engines.opening import metered
from salign.records import Interaction, read_interactions
from salign.society import sources
from salign.society.calls import Speaker
from salign.society.phases import Setting
from salign.society.questions import QuestionOrder
from salign.society.recall import question_table
from salign.society.recalls import RecallRecord, recalls_of
from salign.society.simulation import Simulation
from salign.society.spool import Spool, write_sorted
from salign.society.world import World

_QUESTIONS, _STORIES = "questions/hh_questions.txt", "prior/moral_stories_dev.jsonl"
_NUM_ROUNDS = 50
_SHOWN_ROUNDS = (1, 5, 10, 20, 50)
_BY_RELEVANCE = {"kind": "stream", "recency_weight": 0, "importance_weight": 0}
# What a transformers embedder reads of the questions: it takes 0.1 s for each.
_NUM_EMBEDDED = 1000


class _Echo:
    """An engine whose replies are a function of the prompt alone."""

    identity = "echo"

    async def generate(self, prompt: Prompt, sampling: Any, seed: int) -> Reply:
        return Reply(f"Reply {hashlib.blake2b(str(prompt).encode(), digest_size=8).hexdigest()}.", 1, 1)

    async def rate(self, prompt: Prompt, seed: int) -> RatingReply:
        digit = hashlib.blake2b(str(prompt).encode(), digest_size=1).digest()[0] % 7
        return RatingReply(tuple(float(digit == other) for other in range(7)), 1.0, 1, 0)

    def facts(self) -> dict[str, Any]:
        return {}


def live(
    society: SocietySection, questions: Sequence[str], folder: Path, number: int = 0
) -> tuple[list[Interaction], float]:
    """The interactions of one world of agents that echo, by its number, and from which distance on they recall."""
    prior = sources.load(society.prior)
    table, recall = question_table(society, 0, questions, prior, folder)
    speakers = [Speaker(metered(_Echo(), Gate(64, adaptive=False)))]
    world = World(Setting(society, 0, table, len(questions), prior, speakers), number)
    with tempfile.TemporaryDirectory(dir=folder) as name, Spool(Path(name) / "spool") as spool:
        simulation = Simulation(society, [world], spool)
        asyncio.run(simulation.run())
        spool.flush()
        path = Path(name) / "interactions.jsonl"
        rounds = [(number, round_) for round_ in range(1, simulation.last_rounds[number] + 1)]
        write_sorted(path, [(spool.path, spool.index)], rounds)
        return list(read_interactions(path)), 0.0 if recall is None else recall.max_distance


def _society(embedder: Embedder, prior: Source, num_rounds: int, **settings: Any) -> SocietySection:
    return SocietySection(embedder=embedder, prior=prior, max_rounds=num_rounds, stopping=None, **settings)


def _alone(embedder: Embedder, prior: Source) -> SocietySection:
    """What a draft recalls does not depend on the audience, whose calls take most of the time."""
    return _society(embedder, prior, _NUM_ROUNDS, audience_size=0)


def _drafts(record: RecallRecord, number: int) -> str:
    recalls = record.rounds[number]["draft"]
    initial, own = recalls.share("initial") or 0.0, recalls.share("own") or 0.0
    return f"{initial:.0%} and {own:.0%}"


def _recalled(name: str, society: SocietySection, questions: Sequence[str], folder: Path, before: str) -> list[Figure]:
    interactions, threshold = live(society, questions, folder)
    record = recalls_of(interactions, ("draft",))
    figures = record.figures()["draft"]
    shown = [number for number in _SHOWN_ROUNDS if number in record.rounds]
    note = f"under {threshold:.4f}; median {figures['median_distance']}; by round, initial and own: " + ", ".join(
        f"{number}: {_drafts(record, number)}" for number in shown
    )
    first = record.rounds[1]["draft"].share("initial")
    return [
        Figure(f"{name}: first drafts that recall the initial memory", first, "", ">= 0.8", before, note),
        Figure(f"{name}: all drafts that recall the initial memory", figures["initial_share"], "", "> 0.05", before),
        Figure(f"{name}: all drafts that recall own answers", figures["own_share"], ""),
    ]


def _differing(one: Sequence[Interaction], other: Sequence[Interaction], role: str) -> float:
    texts = [[turn.text if (turn := item.turn(role)) else None for item in items] for items in (one, other)]
    num: int = sum(a != b for a, b in zip(*texts, strict=True))
    return num / len(one)


def _populations(questions: Sequence[str], folder: Path) -> list[Figure]:
    """How much depends on who agents are at the start, and on memory at all."""

    def held(**settings: Any) -> list[Interaction]:
        return live(_society(HashingEmbedder(), EverydaySource(), 10, **settings), questions, folder)[0]

    good, bad = held(populations=("all_good",)), held(populations=("all_bad",))
    forgetful = held(populations=("all_good",), without=("memory",))
    num_first = sum(item.round == 1 for item in good)
    first = _differing(good[:num_first], bad[:num_first], "draft")
    revised = _differing(good, bad, "revision")
    return [
        Figure("HH: first answers that differ, all_good from all_bad", first, "", ">= 0.8", "0.00"),
        Figure("HH: revisions that differ, all_good from all_bad, 10 rounds", revised, "", ">= 0.95", "0.00"),
        Figure(
            "HH: revisions that differ without memory, 10 rounds",
            _differing(good, forgetful, "revision"),
            "",
            ">= 0.95",
            "0.02",
        ),
    ]


def _streams(questions: Sequence[str], folder: Path) -> list[Figure]:
    """How long what agents start with is recalled, where they also remember what was said to them."""
    figures = []
    for memory in ({"kind": "answers"}, {"kind": "stream"}, _BY_RELEVANCE):
        society = _society(HashingEmbedder(), EverydaySource(), 20, populations=("all_good",), memory=memory)
        record = recalls_of(live(society, questions, folder)[0], ("draft",))
        note = "initial, own and heard: " + ", ".join(
            f"{number}: {' '.join(f'{recalls.share(source) or 0:.0%}' for source in ('initial', 'own', 'heard'))}"
            for number in _SHOWN_ROUNDS
            if number in record.rounds
            for recalls in [record.rounds[number]["draft"]]
        )
        called = memory["kind"] if memory is not _BY_RELEVANCE else "stream by relevance alone"
        share = record.rounds[20]["draft"].share("initial")
        figures.append(
            Figure(f"memory {called}: drafts of round 20 that recall the initial memory", share, "", note=note)
        )
    return figures


def _asked() -> list[Figure]:
    order = QuestionOrder(180, 0, 0)
    fewest = min(len({order.question(agent, n + 1) for n in range(_NUM_ROUNDS)}) for agent in range(100))
    by_turns = len({n * 100 % 180 for n in range(_NUM_ROUNDS)})
    name = "questions that an agent meets, 100 agents, 180 questions, 50 rounds"
    return [Figure(name, fewest, "questions", "50", f"{by_turns} by turns")]


def measure(context: Context) -> list[Figure]:
    """What agents recall by embedder and questions, whether populations differ, and how many questions agents meet."""
    folder = context.scratch / "recall"
    folder.mkdir(parents=True, exist_ok=True)
    everyday = sources.questions(EverydaySource())
    hashing = HashingEmbedder()
    model = TransformersEmbedder(kind="transformers", model=context.model)
    figures = _asked()
    usual = _alone(hashing, EverydaySource())
    figures += _recalled("embedded questions, hashing", usual, everyday, folder, "all exact look-ups")
    figures += _streams(everyday, folder)
    missing = context.needs(_QUESTIONS, _STORIES)
    if missing:
        return [*figures, Figure("HH questions", None, "", note=missing)]
    hh = sources.questions(TextSource(kind="text", path=context.data / _QUESTIONS))
    stories = MoralStoriesSource(kind="moral_stories", path=context.data / _STORIES)
    figures += _populations(hh, folder)
    figures += _recalled("HH questions, hashing", usual, hh, folder, "0.0000")
    told = _alone(hashing, stories)
    figures += _recalled("HH questions, hashing, moral stories", told, hh, folder, "0.0000")
    by_model = _alone(model, EverydaySource())
    before = "96-99.6% of all pairs near enough"
    figures += _recalled("embedded questions, model", by_model, everyday, folder, before)
    some = hh[:_NUM_EMBEDDED]
    return [*figures, *_recalled(f"{len(some)} HH questions, model", by_model, some, folder, before)]
