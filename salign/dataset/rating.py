"""Rates the responses of any file of groups or answers by criteria, as a society's observers would."""

import asyncio
import itertools
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from salign.config import Config, Criterion, ObserverCheck
from salign.engines.journal import Journal
from salign.errors import DataError
from salign.records import MAX_SCORE, MIN_SCORE, AlignmentGroup, Observation, to_bytes
from salign.society.calls import Calls
from salign.society.functions import digests_of
from salign.society.models import asked, meter_all, model_names, observing, open_engines
from salign.society.observer import agreements
from salign.society.prompts import PROMPTS_VERSION, Wording
from salign.society.protocols.learning import weighted_score
from salign.society.raters import rate_answers
from salign.society.rules import RULES_VERSION
from salign.storage import new_file

_WINDOW = 256
"""Groups that are rated together."""
_MIDDLE = (MIN_SCORE + MAX_SCORE) / 2


@dataclass
class Rated:
    """What came of a file.

    Attributes:
        agreement: By criterion, what `observer.figures` says of labelled pairs.
        num_groups: Written.
        num_responses: Written.
        num_missing: By criterion, responses that could not be rated by it.
        num_left_out: Responses without a rating by one of the criteria; they are not written.
        pairs: How many pairs of responses the file's own scores tell apart, and of how many of them the new ones say
            the same, ties halved.
    """

    agreement: dict[str, dict[str, Any]] = field(default_factory=dict)
    num_groups: int = 0
    num_responses: int = 0
    num_missing: Counter[str] = field(default_factory=Counter)
    num_left_out: int = 0
    pairs: tuple[int, float] = (0, 0.0)


async def rate_groups(
    config: Config,
    groups: Iterable[AlignmentGroup],
    target: Path,
    *,
    weights: Mapping[str, float],
    check: ObserverCheck | None,
    told: Callable[[dict[str, dict[str, Any]]], None],
) -> Rated:
    """Rates groups and writes them with the new scores; the file appears whole or not at all.

    Every call is in a journal beside the file until that is there: what was answered is not asked again.

    Args:
        config: Of its society, who observes, the criteria, and how observers are asked.
        groups: Whose responses are rated.
        target: The file to write.
        weights: Of the criteria; 1 where one has none.
        check: The labelled pairs on which each criterion is tried first; None: none.
        told: Is given the agreement with them by criterion before anything else is rated.

    Returns:
        Counts. `ratings` in a written group's provenance has its ratings by criterion, on the criterion's own scale.

    Raises:
        ConfigError: A model is missing or wrong, or the journal beside the file is of other settings.
        DataError: No response could be rated.
        EngineError: An engine is at fault.
    """
    society, seed = config.society, config.run.seed
    criteria = [(criterion, weights.get(criterion.name, 1.0)) for criterion in society.observed_criteria]
    wording, found = Wording(society), Rated()
    calls = target.with_name(f"{target.name}.calls")
    async with open_engines(config, calls / "servers", calls) as models:
        journal = Journal(calls, _header(config, [engine.identity for engine, _ in models], asked(society, models)), 0)
        try:
            observer = observing(society, meter_all(models, journal))
            if check is not None:
                found.agreement = await agreements(observer, society, society.observed_criteria, check, seed)
                told(found.agreement)

            def place(number: int) -> Calls:
                return Calls(society, wording, observer, (seed, 0, 1, number))  # the check has round 0

            with new_file(target) as file:
                for window in _windows(groups):
                    rated = await asyncio.gather(*(_ratings(place(number), group) for number, group in window))
                    for (_, group), given in zip(window, rated, strict=True):
                        file.writelines(_written(group, given, criteria, found))
                    await journal.sync()
                if not found.num_groups:
                    raise DataError(f"nothing to write to {target}: no response of any group could be rated")
        finally:
            journal.close()
    shutil.rmtree(calls)
    return found


async def _ratings(place: Calls, group: AlignmentGroup) -> dict[str, list[Observation]]:
    """What observers say of a group's responses, by criterion."""
    question = _question(group)
    return {
        criterion.name: await rate_answers(place, criterion, question, group.responses)
        for criterion in place.society.observed_criteria
    }


def _header(config: Config, identities: Sequence[str], how: Mapping[str, Any]) -> dict[str, Any]:
    society = config.society
    return {
        **dict(zip(model_names(society), identities, strict=True)),
        **how,
        "criteria": [criterion.model_dump(mode="json") for criterion in society.observed_criteria],
        "rating": society.rating,
        "seed": config.run.seed,
        "prompts": PROMPTS_VERSION,
        "rules": RULES_VERSION,
        "functions": digests_of(society.observed_criteria),
    }


def _windows(groups: Iterable[AlignmentGroup]) -> Iterator[list[tuple[int, AlignmentGroup]]]:
    numbered = enumerate(groups)
    while window := list(itertools.islice(numbered, _WINDOW)):
        yield window


def _question(group: AlignmentGroup) -> str:
    """What was answered: the query, after what was said before it in a conversation."""
    if not group.context:
        return group.query
    return "\n".join([*(f"{turn.role}: {turn.content}" for turn in group.context), f"user: {group.query}"])


def _written(
    group: AlignmentGroup,
    given: Mapping[str, Sequence[Observation]],
    criteria: Sequence[tuple[Criterion, float]],
    found: Rated,
) -> list[bytes]:
    """The group with its new scores as a line; nothing where no response has one."""
    ratings = {name: [one.rating for one in observations] for name, observations in given.items()}
    for name, values in ratings.items():
        found.num_missing[name] += values.count(None)
    scores = [
        weighted_score(criteria, {name: values[place] for name, values in ratings.items()})
        for place in range(len(group.responses))
    ]
    kept = [place for place, score in enumerate(scores) if score is not None]
    found.num_left_out += len(scores) - len(kept)
    if not kept:
        return []
    found.num_groups += 1
    found.num_responses += len(kept)
    found.pairs = _compared(found.pairs, [(group.scores[place], scores[place] or 0.0) for place in kept])
    provenance = {**group.provenance, "ratings": {name: [of[place] for place in kept] for name, of in ratings.items()}}
    responses = tuple(group.responses[place] for place in kept)
    rated = tuple(score for score in scores if score is not None)
    return [to_bytes(AlignmentGroup(group.query, responses, rated, group.kind, provenance, group.context))]


def _compared(pairs: tuple[int, float], scores: Sequence[tuple[float, float]]) -> tuple[int, float]:
    num, alike = pairs
    for (before, after), (other_before, other_after) in itertools.combinations(scores, 2):
        if before != other_before:
            num += 1
            alike += 0.5 if after == other_after else float((before > other_before) == (after > other_after))
    return num, alike


def unscored(row: object) -> object:
    """A row whose responses need no score: where there is none, it has the middle of the scale, which tells nothing."""
    if not isinstance(row, dict):
        return row
    responses, scores = row.get("responses"), row.get("scores")
    if isinstance(responses, list) and (scores is None or isinstance(scores, list)):
        return {**row, "scores": [_MIDDLE if score is None else score for score in scores or [None] * len(responses)]}
    if "completion" in row and row.get("label") is None and "response" not in row:
        others = {name: value for name, value in row.items() if name not in ("completion", "label")}
        return {**others, "response": row["completion"], "score": _MIDDLE}
    if "response" in row and row.get("score") is None and not isinstance(row["response"], dict):
        return {**row, "score": _MIDDLE}
    return row
