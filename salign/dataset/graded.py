"""Shapes of rows in which responses have grades, ranks or labels, and those that show one good answer."""

from collections.abc import Mapping
from typing import Any

from salign.columns import check_columns, is_empty
from salign.dataset.conversations import (
    Prompt,
    merged,
    messages_of,
    prompt_of,
    prompt_of_messages,
    reply_of,
    text_of,
)
from salign.dataset.rated import Candidate, Range, Reading, flag_of, number_of, scaled, thumb, weighted
from salign.files import RowError
from salign.records import MAX_SCORE, MIN_SCORE, Message

ULTRAFEEDBACK_ATTRIBUTES = ("instruction_following", "honesty", "truthfulness", "helpfulness")
HELPSTEER_ATTRIBUTES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
_SCALE: Range = (MIN_SCORE, MAX_SCORE)
_OVERALL: Range = (1.0, 10.0)  # UltraFeedback's overall score
_ANNOTATION: Range = (1.0, 5.0)  # its ratings by attribute
_GRADE: Range = (0.0, 4.0)  # HelpSteer's
_COMPLETION = frozenset(
    {
        *("response", "overall_score", "fine-grained_score", "annotations", "critique"),
        *("principle", "custom_system_prompt"),  # under which it was written, and which is not to be learnt
    }
)
_ANSWER = frozenset({"answer", "rank"})
# The released code writes these instead of a rating that it could not read.
_RELEASED_PLACEHOLDERS = (-1, 8)


def groups(row: dict[str, Any], reading: Reading) -> list[Candidate]:
    """Reads a query with as many responses as scores: our format, and that of the released files."""
    responses, scores = row["responses"], row["scores"]
    if not isinstance(responses, list) or not all(isinstance(response, str) for response in responses):
        raise RowError("responses must be a list of texts")
    if not isinstance(scores, list):
        raise RowError("scores must be a list of numbers (null where there is none)")
    if len(responses) != len(scores):
        raise RowError(f"{len(responses)} responses and {len(scores)} scores; the numbers must be equal")
    # On another scale they may be ratings.
    placeholders = _RELEASED_PLACEHOLDERS if reading.score_range is None else ()
    scale = _range(reading)
    numbers = [None if score is None else number_of(score, "a score") for score in scores]
    rated = [
        (response, None if score is None or score in placeholders else scaled(score, scale))
        for response, score in zip(responses, numbers, strict=True)
    ]
    kind, provenance = row.get("kind"), row.get("provenance") or {}
    if "context" in row:  # our own, in which the query is as it should be
        context = tuple(messages_of(row["context"], "context"))
        return [Candidate(Prompt(text_of(row.get("query"), "query"), context), rated, kind, provenance)]
    return [Candidate(prompt_of(row, reading.ignored), rated, kind, provenance)]


def _range(reading: Reading, usual: Range = _SCALE) -> Range:
    return usual if reading.score_range is None else reading.score_range


def ultrafeedback(row: dict[str, Any], reading: Reading) -> list[Candidate]:
    """Reads UltraFeedback: completions with an overall score, or with ratings of attributes that the config weighs."""
    rated: list[tuple[str, float | None]] = []
    for number, completion in enumerate(_objects(row["completions"], "completions"), start=1):
        check_columns(completion, _COMPLETION, reading.ignored, where=f"in completion {number}, ", mapping="")
        response = text_of(completion.get("response"), f"the response of completion {number}")
        if reading.weights:
            score = _annotated(completion.get("annotations"), reading)
        else:
            overall = completion.get("overall_score")
            score = None if overall is None else number_of(overall, "overall_score")
            score = None if score is None else scaled(score, _range(reading, _OVERALL))
        rated.append((response, score))
    return [Candidate(prompt_of(row, reading.ignored), rated)]


def _objects(value: object, column: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise RowError(f"{column} must be a list of objects")
    return value


def _annotated(annotations: object, reading: Reading) -> float | None:
    grades = {}
    for name in reading.weights:
        rating = annotations.get(name) if isinstance(annotations, Mapping) else None
        rating = rating.get("Rating") if isinstance(rating, Mapping) else rating
        if rating is None or rating == "N/A":
            return None
        grades[name] = number_of(rating, f"the rating of {name}")
    return weighted(grades, reading.weights, _range(reading, _ANNOTATION))


def nectar(row: dict[str, Any], reading: Reading) -> list[Candidate]:
    """Reads Nectar: answers with ranks; rank 1 gets the top of the scale, the last rank its bottom."""
    answers = _objects(row["answers"], "answers")
    ranked = []
    for number, answer in enumerate(answers, start=1):
        check_columns(answer, _ANSWER, reading.ignored, where=f"in answer {number}, ", mapping="")
        ranked.append((text_of(answer.get("answer"), "the answer"), number_of(answer.get("rank"), "the rank")))
    last = max([float(len(ranked)), *(rank for _, rank in ranked)])
    if not all(1 <= rank <= last for _, rank in ranked):
        raise RowError("a rank is below 1; the best rank is 1")
    rated: list[tuple[str, float | None]] = [
        (text, MAX_SCORE - (MAX_SCORE - MIN_SCORE) * (rank - 1) / max(last - 1, 1)) for text, rank in ranked
    ]
    return [Candidate(prompt_of(row, reading.ignored), rated)]


def helpsteer(row: dict[str, Any], reading: Reading) -> list[Candidate]:
    """Reads HelpSteer and HelpSteer2: a response with five graded attributes."""
    grades = {name: row[name] for name in reading.weights}
    score = None
    if not any(map(is_empty, grades.values())):
        numbers = {name: number_of(grade, name) for name, grade in grades.items()}
        score = weighted(numbers, reading.weights, _range(reading, _GRADE))
    prompt = prompt_of(row, reading.ignored)
    return [Candidate(prompt, [(reply_of(row["response"], "response", reading.ignored), score)])]


def unpaired(row: dict[str, Any], reading: Reading) -> list[Candidate]:
    """Reads TRL's unpaired preference: a prompt, one reply, and whether it is a good one."""
    score = thumb(is_good=flag_of(row["label"], "the label"))
    return [
        Candidate(
            prompt_of(row, reading.ignored), [(reply_of(row["completion"], "completion", reading.ignored), score)]
        )
    ]


def beavertails(row: dict[str, Any], reading: Reading) -> list[Candidate]:
    """Reads BeaverTails: a response, and whether it is safe."""
    score = thumb(is_good=flag_of(row["is_safe"], "is_safe"))
    return [Candidate(prompt_of(row, reading.ignored), [(text_of(row["response"], "response"), score)])]


def rated(row: dict[str, Any], reading: Reading) -> list[Candidate]:
    """Reads a response with its score."""
    score = None if is_empty(row["score"]) else scaled(number_of(row["score"], "score"), _range(reading))
    return [
        Candidate(prompt_of(row, reading.ignored), [(reply_of(row["response"], "response", reading.ignored), score)])
    ]


def instruction(row: dict[str, Any], reading: Reading) -> list[Candidate]:
    """Reads Alpaca: an instruction with its input, and an output that counts as good."""
    output = reply_of(row["output"], "output", reading.ignored)
    return [Candidate(prompt_of(row, reading.ignored), [(output, MAX_SCORE)], "demonstration")]


def conversation(row: dict[str, Any], reading: Reading) -> list[Candidate]:
    """Reads a conversation (ShareGPT or messages): each reply of the assistant, after all before it, counts as good."""
    column = "conversations" if "conversations" in row else "messages"
    messages = merged(messages_of(_objects(row[column], column), column, reading.ignored))
    if not is_empty(row.get("system")):
        if messages and messages[0].role == "system":
            raise RowError("the row has a column system, and its messages have a system text too")
        messages = [Message("system", text_of(row["system"], "system")), *messages]
    candidates = [
        Candidate(prompt_of_messages(messages[:position]), [(message.content, MAX_SCORE)], "demonstration")
        for position, message in enumerate(messages)
        if message.role == "assistant"
    ]
    if not candidates:
        raise RowError(f"{column} has no assistant message")
    return candidates
