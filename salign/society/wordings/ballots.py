"""How agents vote: what they are shown, what they are asked, and how a ballot in words is read.

A ballot gives each candidate a score, higher is better. By the probabilities of the candidates' numbers, these are the
scores; in words, those of the places in the ranking.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from salign.society.aggregation import Ballot
from salign.society.frames import frame

MAX_CANDIDATES = 9
"""Each has a digit by which it is chosen."""

_QUESTION = """\
Question: {question}

"""

_CHOICES = """\
{answers}

"""

_CANDIDATES = """\
These answers were given, each between the marks {key}:
{answers}

"""

_HEARD = """\
Others chose these numbers, and said why between the marks {key}:
{reasons}

"""

_CHOOSE = """\
Which answer is the best? Give its number, from 1 to {num}."""

_WHY = """\
You choose answer {number}. In one or two sentences, say why it is the best, without its number."""

_WHY_ANY = """\
Which answer is the best? In one or two sentences, say why, without its number."""

_RANK = """\
Which answer is the best? Rank the answers from the best to the worst, and say how sure you are of the first.

Reply in the form "Ranking: <numbers, such as 2 > 1> Confidence: <0 to 100>{reason}"."""

_WITH_REASON = " Reason: <one or two sentences>"

TEXTS = (_HEARD, _CANDIDATES, _CHOOSE, _WHY, _WHY_ANY, _RANK)


class Vote(NamedTuple):
    """A ballot, how sure the voter is of its first choice (0 to 1, None where it does not say), and what it says."""

    ballot: Ballot
    confidence: float | None
    reason: str = ""


def shown(
    question: str,
    answers: Sequence[str],
    reasons: Sequence[tuple[int, str]],
    key: str | None,
    *,
    is_listed: bool = False,
) -> str:
    """What a voter is shown before it is asked.

    Args:
        question: Without the choices that it lists.
        answers: The candidates in the order of their numbers, which begin with 1.
        reasons: What others said, each with the number of the answer that it is for; empty where that is all.
        key: Of the frames around what agents said; None where they said nothing.
        is_listed: The question lists the candidates: no agent said them.
    """
    text = _QUESTION.format(question=question)
    if is_listed or key is None:
        text += _CHOICES.format(
            answers="\n".join(f"{number}. {answer}" for number, answer in enumerate(answers, start=1))
        )
    else:
        listed = "\n".join(f"{number}. {frame(answer, key)}" for number, answer in enumerate(answers, start=1))
        text += _CANDIDATES.format(key=key, answers=listed)
    if reasons and key is not None:
        said = "\n".join(
            f"- for {number}: {key} {reason} {key}" if reason else f"- for {number}" for number, reason in reasons
        )
        text += _HEARD.format(key=key, reasons=said)
    return text


def choose(num: int) -> str:
    """Asks for one of so many numbers."""
    return _CHOOSE.format(num=num)


def why(number: int | None) -> str:
    """Asks for the reason of a choice; None: of one that is not known."""
    return _WHY_ANY if number is None else _WHY.format(number=number)


def rank(*, reasoned: bool) -> str:
    """Asks for a ranking and a confidence in words."""
    return _RANK.format(reason=_WITH_REASON if reasoned else "")


# "Ranking: 2 > 1 > 3", "**Ranking:** 2, 1", "Answer: 2": at the start of a reply, where no quotation can stand.
_RANKING = re.compile(
    r"[\s*_#>\-]*(?:rank(?:ing)?|rating|answer|choice|vote)\b[\s*_:=]*(?P<order>[1-9](?!\d)(?:\s*[>,]\s*[1-9](?!\d))*)",
    re.IGNORECASE,
)
_CONFIDENCE = re.compile(r"[\s*_.,;]*confidence\b[\s*_:=]*(?P<percent>\d{1,3})(?!\d|\.\d)\s*%?", re.IGNORECASE)
_REASON = re.compile(r"[\s*_.,;]*(?:reason\b[\s*_:=]*)?", re.IGNORECASE)


def read_vote(reply: str, num: int) -> Vote | None:
    """The vote of a reply in words, without what the model thought; None where its ranking cannot be read.

    A ranking may leave candidates out, which then share the last place.

    Args:
        reply: Begins with the ranking.
        num: Of candidates.
    """
    found = _RANKING.match(reply)
    if found is None:
        return None
    order = [int(number) - 1 for number in re.findall(r"\d", found["order"])]
    if len(set(order)) < len(order) or max(order) >= num:
        return None
    rest = reply[found.end() :]
    confidence = None
    if (sure := _CONFIDENCE.match(rest)) is not None:
        rest = rest[sure.end() :]
        confidence = int(sure["percent"]) / 100 if int(sure["percent"]) <= 100 else None
    label = _REASON.match(rest)
    scores = [0.0] * num
    for place, candidate in enumerate(order):
        scores[candidate] = float(num - 1 - place)
    return Vote(scores, confidence, rest[label.end() if label else 0 :].strip())
