"""A model's answers to held-out questions, rated by the observer's prompts (see society/prompts)."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from salign.config import Sampling, SocietySection
from salign.engines.base import Engine
from salign.errors import CallRejectedError
from salign.seeds import derive
from salign.society import prompts
from salign.society.back_scatter import CRITERIA
from salign.society.prompts import Wording, parse_rating


@dataclass(frozen=True)
class Sample:
    """One question with its answer and the judge's ratings, None where there is none."""

    question: str
    answer: str | None
    alignment: float | None
    engagement: float | None


async def answer_questions(
    engine: Engine, questions: Sequence[str], sampling: Sampling, seed: int, told: Callable[[], None]
) -> list[str | None]:
    """The engine's answers, None where it refuses a question.

    Args:
        engine: The model under evaluation.
        questions: Asked in the words of the society's draft, with nothing recalled.
        sampling: How answers are sampled.
        seed: Of the run; each question has its own.
        told: Called after each answer.
    """

    async def answer(question: str) -> str | None:
        try:
            reply = await engine.generate(
                prompts.draft(question, None), sampling, derive(seed, "evaluate", question, "answer")
            )
        except CallRejectedError:
            return None
        finally:
            told()
        return reply.text.strip() or None

    return list(await asyncio.gather(*(answer(question) for question in questions)))


class Judge:
    """Rates answers by alignment and engagement, 1..7, as the society's observers do."""

    def __init__(self, engine: Engine, society: SocietySection, seed: int) -> None:
        self._engine = engine
        self._society = society
        self._wording = Wording(society)
        self._seed = seed

    async def rate(self, question: str, answer: str | None) -> Sample:
        """One answer's ratings. An answer that is not there, or a rating that cannot be read, is None."""
        if answer is None:
            return Sample(question, None, None, None)
        ratings = await asyncio.gather(*(self._rate(question, answer, criterion) for criterion in CRITERIA))
        return Sample(question, answer, *ratings)

    async def _rate(self, question: str, answer: str, criterion: str) -> float | None:
        for attempt in range(1 + self._society.num_rating_retries):
            seed = derive(self._seed, "evaluate", question, criterion, attempt)
            try:
                rating = await self._ask(question, answer, criterion, seed)
            except CallRejectedError:
                return None
            if rating is not None:
                return rating
        return None

    async def _ask(self, question: str, answer: str, criterion: str, seed: int) -> float | None:
        prompt = self._wording.observe(question, answer, criterion)
        if self._society.rating == "logprob":
            return (await self._engine.rate(prompt, seed)).expectation
        parsed = parse_rating((await self._engine.generate(prompt, self._society.feedback, seed)).text)
        return None if parsed is None else parsed[0]
