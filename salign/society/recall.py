"""How near a remembered question must be to be recalled, and what an agent then recalls at the start.

A distance means nothing by itself: of questions that people ask, no two may be under 0.3 by their words, and nearly all
pairs are by the mean states of a small model. So the threshold is taken from the run's own questions: some of those
that are asked, each with a memory such as an agent starts with, drawn by the run's seed; the same on every shard.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from salign.config import LABELS, HashingEmbedder, SocietySection
from salign.errors import ConfigError
from salign.seeds import rng
from salign.society.memory import QuestionTable, embeddings_of
from salign.society.sources import Exemplar, Label

logger = logging.getLogger(__name__)

# Questions that are drawn with a memory each: the standard error of a share is 2.2 points at most.
_NUM_SAMPLES = 500
# Where agents start with nothing, the memory that a threshold is taken from has so many of the questions asked.
_USUAL_MEMORIES = 50
# More exact look-ups than this are worth a word.
_MANY = 0.5


@dataclass(frozen=True, slots=True)
class Sample:
    """A question asked of an agent as it starts: numbers of a table."""

    question: int
    label: Label
    memory: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Recall:
    """From which distance on nothing is recalled, and what that comes to for agents as they start.

    Attributes:
        max_distance: Cosine distance under which a remembered question is recalled.
        recall_share: The share of questions that it was taken from; None where the config gives the distance.
        expected_initial_share: Of each label's agents, the share of questions for which they recall something they
            start with; empty where they start with nothing.
        identical_share: Of the questions, those that an agent has an answer to, to the letter, as it starts.
        median_nearest_distance: From a question asked to the nearest that is remembered.
        pair_share: Of all pairs of a question asked and a remembered one, those that are near enough.
    """

    max_distance: float
    recall_share: float | None
    expected_initial_share: dict[Label, float]
    identical_share: float
    median_nearest_distance: float
    pair_share: float

    def check(self, society: SocietySection) -> None:
        """Refuses a society whose initial memories do nothing.

        Raises:
            ConfigError: Agents of some label would recall too little of what they start with.
        """
        least = society.gates.min_initial_recall_share
        remedy = "Choose another society.embedder, questions or prior."
        if self.recall_share is None:
            remedy = (
                "Leave out society.max_recall_distance, so that the distance is taken from the questions "
                "(society.recall_share); or choose another society.embedder, questions or prior."
            )
        for label, share in self.expected_initial_share.items():
            if share < least:
                raise ConfigError(
                    f"agents labelled {label!r} would recall what they start with in {share:.1%} of their first drafts "
                    f"(society.gates.min_initial_recall_share = {least:.1%}), so populations would make no difference: "
                    f"half of the questions asked are {self.median_nearest_distance:.3f} or more from the nearest of "
                    f"{society.num_initial_memories} remembered ones, and only what is under {self.max_distance:g} is "
                    f"recalled. {remedy}"
                )


def question_table(
    society: SocietySection,
    seed: int,
    questions: Sequence[str],
    prior: Sequence[Exemplar],
    folder: Path | None = None,
    *,
    also: Sequence[str] = (),
) -> tuple[QuestionTable, Recall | None]:
    """The table of a society's questions, those that are asked first, and when they are recalled: never without memory.

    Args:
        society: Embedder, memory and threshold.
        seed: The run's.
        questions: Asked, each once.
        prior: Remembered.
        folder: Where a model's embeddings are kept.
        also: What is compared with them, and neither asked of agents in turn nor remembered from the start.

    Raises:
        EngineError: The embedder's server is at fault.
        ConfigError: The embedder's model cannot be had.
    """
    names = tuple(dict.fromkeys([*_names(questions, prior), *also]))
    if "memory" in society.without:
        return QuestionTable(names, np.zeros((len(names), 1))), None
    embeddings = embeddings_of(society.embedder, names, folder)
    table = QuestionTable(names, embeddings)
    recall = calibrate(society, table, draw_samples(society, seed, names, len(questions), prior))
    return table.within(recall.max_distance), recall


def _names(questions: Sequence[str], prior: Sequence[Exemplar]) -> tuple[str, ...]:
    return tuple(dict.fromkeys([*questions, *(exemplar.question for exemplar in prior)]))


def draw_samples(
    society: SocietySection, seed: int, names: Sequence[str], num_questions: int, prior: Sequence[Exemplar]
) -> list[Sample]:
    """Questions that are asked, each of an agent with a memory of its own, labels in turn.

    Args:
        society: Populations, and how much agents remember.
        seed: The run's.
        names: The questions of a table, those that are asked first.
        num_questions: How many are asked.
        prior: Enough of each label that a population has.
    """
    number = {question: position for position, question in enumerate(names)}
    size = society.num_initial_memories
    labels: tuple[Label, ...] = tuple(dict.fromkeys(label for name in society.populations for label in LABELS[name]))
    pools: dict[Label, Sequence[int]] = {
        label: [number[item.question] for item in prior if item.label == label] for label in labels
    }
    if not size:
        size, pools = min(_USUAL_MEMORIES, num_questions), dict.fromkeys(labels, range(num_questions))
    generator = rng(seed, "recall")
    samples = []
    for position in range(_NUM_SAMPLES):
        label = labels[position % len(labels)]
        memory = np.asarray(generator.sample(pools[label], size), dtype=np.int32)
        samples.append(Sample(generator.randrange(num_questions), label, memory))
    return samples


def calibrate(society: SocietySection, table: QuestionTable, samples: Sequence[Sample]) -> Recall:
    """The threshold, and what it comes to.

    It is the nearest ten-thousandth above the distance under which the given share of the samples has its nearest
    remembered question (so that machines which differ in the sixth decimal agree), and 1, which is to have nothing in
    common, at most.
    """
    distances = [table.distances(sample.question, sample.memory) for sample in samples]
    nearest = [float(row.min()) for row in distances]
    threshold = society.max_recall_distance
    if threshold is None:
        count = math.ceil(society.recall_share * len(nearest) - 1e-9)
        last = sorted(nearest)[count - 1] if count else 0.0
        threshold = min(1.0, round(math.floor(last * 1e4 + 1e-6) / 1e4 + 1e-4, 4)) if count else 0.0
    labels = dict.fromkeys(sample.label for sample in samples) if society.num_initial_memories else {}
    shares = {
        label: _share([n < threshold for n, sample in zip(nearest, samples, strict=True) if sample.label == label])
        for label in labels
    }
    return Recall(
        max_distance=threshold,
        recall_share=society.recall_share if society.max_recall_distance is None else None,
        expected_initial_share=shares,
        identical_share=identical_share(samples),
        median_nearest_distance=median(nearest),
        pair_share=round(float(np.mean(np.concatenate(distances) < threshold)), 4),
    )


def identical_share(samples: Sequence[Sample]) -> float:
    """Of the questions, those that are in the memory themselves."""
    return _share([bool((sample.memory == sample.question).any()) for sample in samples])


def _share(values: Sequence[bool]) -> float:
    return round(sum(values) / len(values), 4)


def check_recall(society: SocietySection, seed: int, questions: Sequence[str], prior: Sequence[Exemplar]) -> None:
    """Before the run: refuses initial memories that would not be recalled; warns of a memory that only looks up.

    Where a model embeds, its shards find out what is recalled.

    Raises:
        ConfigError: By the hashing embedder, agents would recall too little of what they start with.
    """
    if "memory" in society.without:
        return
    if isinstance(society.embedder, HashingEmbedder):
        samples, recall = foresee(society, seed, questions, prior)
        recall.check(society)
    else:
        samples = draw_samples(society, seed, _names(questions, prior), len(questions), prior)
    initial = identical_share(samples) if society.num_initial_memories else 0.0
    again = max(0.0, 1 - len(questions) / society.max_rounds)
    looked_up = initial + (1 - initial) * again
    if looked_up > _MANY:
        logger.warning(
            "in up to %.0f%% of the interactions memory is an exact look-up: an agent starts with the question itself "
            "in memory in %.0f%% of cases (society.questions, society.prior), and meets %d questions in up to %d "
            "rounds, after which it knows each. Use more questions, or questions that are not in the prior.",
            100 * looked_up,
            100 * initial,
            len(questions),
            society.max_rounds,
        )


def foresee(
    society: SocietySection, seed: int, questions: Sequence[str], prior: Sequence[Exemplar]
) -> tuple[list[Sample], Recall]:
    """What a shard will measure, from the questions that are drawn alone."""
    names = _names(questions, prior)
    samples = draw_samples(society, seed, names, len(questions), prior)
    used = sorted({int(n) for sample in samples for n in (sample.question, *sample.memory)})
    place = {n: position for position, n in enumerate(used)}
    some = [names[n] for n in used]
    table = QuestionTable(some, embeddings_of(society.embedder, some))
    moved = [
        Sample(place[one.question], one.label, np.asarray([place[int(n)] for n in one.memory], dtype=np.int32))
        for one in samples
    ]
    return samples, calibrate(society, table, moved)
