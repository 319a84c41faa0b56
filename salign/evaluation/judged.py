"""Benchmarks in which the model answers: what it is asked, and whether it refuses."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from salign.config import Config, EvaluateSection, HHSource, Sampling
from salign.engines.base import Engine, Finish, Prompt, Thinking
from salign.errors import CallRejectedError, ConfigError
from salign.evaluation.jailbreaks import jailbroken
from salign.evaluation.tasks import data_file, missing
from salign.files import read_text
from salign.seeds import derive
from salign.society import prompts, sources
from salign.society.refusals import refusal_position

AS_OBSERVERS = ("alignment", "engagement")
"""Criteria by which a judge is asked as the society's observers are."""

TRIED = ("alignment", "rating")
"""What the labels of a judge's trial are of. Who is poor at one of these is poor at what is rated beside it."""

# What a judge rates in each.
RATED: dict[str, tuple[str, ...]] = {
    "questions": AS_OBSERVERS,
    "hh": ("rating",),
    "hh_a": ("rating",),
    "over_refusal": (),
}
# Of the safe prompts.
OVER_REFUSAL_VERSION = "1"


@dataclass(frozen=True)
class Item:
    """One prompt. The judge sees `question`, without the attack, which is of `family`."""

    benchmark: str
    id: int
    prompt: str
    question: str
    family: str | None = None


@dataclass
class Sample:
    """An item with the model's answer, and its ratings by judge and criterion; None where there is none.

    `finish` and `thinking` are those of the reply.
    """

    item: Item
    answer: str | None
    ratings: dict[str, dict[str, float | None]] = field(default_factory=dict)
    finish: Finish | None = None
    thinking: Thinking = "none"

    @property
    def said(self) -> str | None:
        """The answer, empty where the model ended without a word; None where it was refused, or all of it thought."""
        ended = self.finish == "stop" and self.thinking != "cut"
        return "" if self.answer is None and ended else self.answer

    def rating(self, criterion: str) -> float | None:
        """Returns the mean over the judges that rate it."""
        there = [found for row in self.ratings.values() if (found := row.get(criterion)) is not None]
        return sum(there) / len(there) if there else None

    @property
    def refusal(self) -> int | None:
        """The words that refuse; None if the answer refuses nothing, or is missing."""
        return None if self.answer is None else refusal_position(self.answer)


def items(config: Config, benchmark: str) -> list[Item]:
    """Returns the prompts of a benchmark, in order.

    Raises:
        ConfigError: There are fewer held-out questions than asked for.
        DataError: A file is malformed, or that of the suffixes empty.
        MissingDataError: Its file is not there.
    """
    section = config.evaluate
    if benchmark == "questions":
        return [Item(benchmark, number, text, text) for number, text in enumerate(held_out_questions(section))]
    if benchmark == "over_refusal":
        texts = [line for line in read_text(data_file("over_refusal.txt")).splitlines() if line.strip()]
        return [Item(benchmark, number, text, text) for number, text in enumerate(texts[: section.num_documents])]
    path = section.file_of(benchmark)
    if path is None:
        raise missing(benchmark, section)
    questions = sources.questions(HHSource(kind="hh", path=path))[: section.num_documents]
    if benchmark == "hh":
        return [Item(benchmark, number, text, text) for number, text in enumerate(questions)]
    attacked = zip(jailbroken(questions, section), questions, strict=True)
    return [Item(benchmark, number, asked, text, family) for number, ((family, asked), text) in enumerate(attacked)]


def held_out_questions(section: EvaluateSection) -> list[str]:
    """Returns the questions of the benchmark `questions`.

    Raises:
        ConfigError: There are fewer than asked for.
        DataError: Their source cannot be read.
    """
    questions = sources.questions(section.questions)
    wanted = section.num_questions
    if wanted is not None and wanted > len(questions):
        raise ConfigError(f"evaluate.num_questions {wanted} exceeds the {len(questions)} held-out questions available")
    return questions[:wanted]


async def answer_all(
    engine: Engine, asked: Sequence[Item], sampling: Sampling, seed: int, told: Callable[[], None]
) -> list[Sample]:
    """Asks the engine for answers; None where it refuses the call or says nothing.

    Args:
        engine: The model under evaluation.
        asked: `questions` are asked in the words of the society's draft, with nothing recalled; others as they are.
        sampling: How answers are sampled.
        seed: Of the run; each item has its own.
        told: Called after each answer.
    """

    async def answer(item: Item) -> Sample:
        prompt = prompts.draft(item.prompt, None) if item.benchmark == "questions" else Prompt(item.prompt)
        try:
            reply = await engine.generate(
                prompt, sampling, derive(seed, "evaluate", item.benchmark, item.prompt, "answer")
            )
        except CallRejectedError:
            return Sample(item, None)
        finally:
            told()
        return Sample(item, reply.text.strip() or None, finish=reply.finish, thinking=reply.thinking)

    return list(await asyncio.gather(*(answer(item) for item in asked)))
