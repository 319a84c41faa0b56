"""The shapes of rows that groups are read from: one table that says how each is recognised and what it becomes.

A file's first row decides its shape. A shape's converter gives candidates, out of which `groups_of` makes groups.
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from salign.columns import Columns, check_columns, nearest
from salign.dataset import graded, pairs
from salign.dataset.conversations import BESIDE_PROMPT, PROMPTS
from salign.dataset.rated import Candidate, Range, Reading, mean_score
from salign.files import RowError
from salign.records import AlignmentGroup
from salign.society.sources import MORAL_STORY, MORAL_STORY_UNREAD

_SCORES_OF_PAIR = (*pairs.SCORES_CHOSEN, *pairs.SCORES_REJECTED)


@dataclass(frozen=True)
class Shape:
    """A known shape of rows: which columns it has and how they are read.

    Attributes:
        name: As the documentation has it.
        columns: By which it is known: all of them are there.
        convert: A row -> its candidates.
        also: Further columns that are read where they are there.
        unread: Columns that are known, and do not bear on what is read.
        has_prompt: Whether the columns of prompts are read.
        attributes: The weight of each graded attribute, unless the config says others; empty where it has none.
        gathers: Whether rows with the same prompt become one group.
        is_thumbs: Whether a response is only good or bad; a group without a good one has nothing to learn.
    """

    name: str
    columns: tuple[str, ...]
    convert: Callable[[dict[str, Any], Reading], list[Candidate]]
    also: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    has_prompt: bool = True
    attributes: Mapping[str, float] = field(default_factory=dict)
    gathers: bool = False
    is_thumbs: bool = False

    @functools.cached_property
    def known(self) -> frozenset[str]:
        """All columns that a row of this shape may have."""
        prompt = (*PROMPTS, *BESIDE_PROMPT) if self.has_prompt else ()
        return frozenset((*self.columns, *self.also, *self.unread, *prompt))


# Of two shapes that fit, the first is taken: what asks for more stands before what asks for less.
SHAPES: tuple[Shape, ...] = (
    Shape(
        "groups",
        ("responses", "scores"),
        graded.groups,
        also=("kind", "provenance", "context"),
        unread=("pm_scores",),
    ),
    Shape(
        "moral_stories",
        MORAL_STORY,
        pairs.moral_story,
        unread=MORAL_STORY_UNREAD,
        has_prompt=False,
    ),
    Shape("preference", ("chosen", "rejected"), pairs.preference, also=("messages", *_SCORES_OF_PAIR)),
    Shape(
        "pku_saferlhf",
        ("response_0", "response_1", "better_response_id", "safer_response_id"),
        pairs.pku_saferlhf,
        also=("is_response_0_safe", "is_response_1_safe"),
        unread=tuple(f"response_{n}_{what}" for n in (0, 1) for what in ("severity_level", "harm_category")),
        attributes={"safe": 2.0, "safer": 1.0, "better": 1.0},
    ),
    Shape(
        "shp",
        ("history", "human_ref_A", "human_ref_B", "labels"),
        pairs.shp,
        unread=(
            *("domain", "upvote_ratio", "score_ratio", "seconds_difference"),
            *(f"{what}_{side}" for what in ("score", "created_at_utc", "c_root_id") for side in "AB"),
        ),
        has_prompt=False,
    ),
    Shape(
        "ultrafeedback",
        ("completions",),
        graded.ultrafeedback,
        unread=("correct_answers", "incorrect_answers"),
        attributes=dict.fromkeys(graded.ULTRAFEEDBACK_ATTRIBUTES, 0.0),
    ),
    Shape("nectar", ("answers",), graded.nectar, unread=("turns", "num_responses", "good_natured")),
    Shape(
        "helpsteer",
        ("response", *graded.HELPSTEER_ATTRIBUTES),
        graded.helpsteer,
        attributes={**dict.fromkeys(graded.HELPSTEER_ATTRIBUTES, 0.0), "helpfulness": 1.0},
        gathers=True,
    ),
    Shape("unpaired", ("completion", "label"), graded.unpaired, gathers=True, is_thumbs=True),
    Shape(
        "beavertails", ("response", "is_safe"), graded.beavertails, unread=("category",), gathers=True, is_thumbs=True
    ),
    Shape("rated", ("response", "score"), graded.rated, gathers=True),
    Shape("instruction", ("instruction", "output"), graded.instruction),
    Shape("conversations", ("conversations",), graded.conversation, also=("system",), has_prompt=False),
    Shape("messages", ("messages",), graded.conversation, also=("system",), has_prompt=False),
)


# --- which shape ---------------------------------------------------------------------------------


def shape_of(row: object, ignored: frozenset[str] = frozenset()) -> Shape:
    """Finds the shape of a row by its columns.

    Args:
        row: Under the names that the config gives to columns.
        ignored: Columns that the config says to ignore.

    Raises:
        RowError: It is of none, or has a column that would be left unread.
    """
    if isinstance(row, RowError):
        raise row
    if not isinstance(row, dict):
        raise RowError(f"not an object but {type(row).__name__}; wanted are the columns {_wanted()}")
    for shape in SHAPES:
        if all(column in row for column in shape.columns):
            check_columns(row, shape.known, ignored)
            return shape
    raise RowError(
        f"it has the columns {', '.join(map(str, row)) or '(none)'}{_nearest_shape(row)}; wanted are {_wanted()}"
    )


def _wanted() -> str:
    return "; ".join(f"{', '.join(shape.columns)} ({shape.name})" for shape in SHAPES)


def _nearest_shape(row: Mapping[str, Any]) -> str:
    """What is to be said of the shape that the row has most columns of, or columns like its own."""
    best, hints = 0, ""
    for shape in SHAPES:
        missing = [column for column in shape.columns if column not in row]
        others = [str(column) for column in row if column not in shape.known]
        alike = {column: near for column in missing if (near := nearest(column, others)) is not None}
        likeness = 2 * (len(shape.columns) - len(missing)) + len(alike)
        is_like = len(missing) < len(shape.columns) or len(alike) == len(missing)
        if is_like and likeness > best:
            best = likeness
            mapping = f", perhaps columns: {{{', '.join(f'{k}: {v}' for k, v in alike.items())}}}" if alike else ""
            hints = f"; {shape.name} is nearest and lacks {', '.join(missing)}{mapping}"
    return hints


def known_columns() -> frozenset[str]:
    """Returns the columns of all shapes."""
    return frozenset().union(*(shape.known for shape in SHAPES))


# --- a row -> groups -----------------------------------------------------------------------------


class Groups(NamedTuple):
    """The groups of a row, and counts of what was left out."""

    groups: list[AlignmentGroup]
    num_unrated: int = 0
    num_repeated: int = 0


def parse(row: object, shape: Shape, reading: Reading, columns: Columns) -> Groups:
    """Reads a row as groups.

    Args:
        row: What was read.
        shape: Of the file.
        reading: How its scores are to be read.
        columns: What the config says of its columns.

    Raises:
        ValueError: The row is malformed (a RowError, or what AlignmentGroup finds), with the reason.
    """
    if isinstance(row, RowError):
        raise row
    wanted = f"a row of {shape.name} has {', '.join(shape.columns)}"
    if not isinstance(row, dict):
        raise RowError(f"not an object but {type(row).__name__}; {wanted}")
    row = columns.apply(row)
    missing = [column for column in shape.columns if column not in row]
    if missing:
        raise RowError(f"{', '.join(missing)} missing; {wanted}")
    check_columns(row, shape.known, columns.ignored)
    return groups_of(shape.convert(row, reading))


def groups_of(candidates: Iterable[Candidate]) -> Groups:
    """Makes groups of candidates: drops responses without a score, and merges a response that a group has twice.

    A response that is given several scores (the same text, but for space around it) has their mean, in whichever order
    they come.

    Raises:
        ValueError: A text holds half of a character; or what AlignmentGroup finds.
    """
    groups, num_unrated, num_repeated = [], 0, 0
    for candidate in candidates:
        rated = {response.strip(): (response, score) for response, score in candidate.responses if score is not None}
        missing = sum(score is None for _, score in candidate.responses)
        num_unrated += missing
        repeated = len(candidate.responses) - missing - len(rated)
        num_repeated += repeated
        if not rated:
            continue
        if repeated:
            rated = _with_means(candidate.responses)
        texts, scores = zip(*rated.values(), strict=True)
        prompt = candidate.prompt
        group = AlignmentGroup(prompt.query, texts, scores, candidate.kind, candidate.provenance, prompt.context)
        _check_unicode(group)
        groups.append(group)
    return Groups(groups, num_unrated, num_repeated)


def _with_means(responses: Iterable[tuple[str, float | None]]) -> dict[str, tuple[str, float]]:
    """By text: the response as it stands first, and the mean of its scores."""
    scores: dict[str, list[float]] = {}
    firsts: dict[str, str] = {}
    for response, score in responses:
        if score is not None:
            scores.setdefault(response.strip(), []).append(score)
            firsts.setdefault(response.strip(), response)
    return {text: (first, mean_score(scores[text])) for text, first in firsts.items()}


def _check_unicode(group: AlignmentGroup) -> None:
    texts = [group.query, *group.responses, *(message.content for message in group.context)]
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:
        raise RowError(f"the text contains half a character ({error.reason})") from None


def reading_of(
    shape: Shape, score_range: Range | None, weights: Mapping[str, float], ignored: frozenset[str] = frozenset()
) -> Reading:
    """Decides how the scores of a shape are read.

    Args:
        shape: Of the file.
        score_range: The ends of the file's scale; None: the shape's.
        weights: Of its graded attributes, those that are not named do not count; empty: the shape's own.
        ignored: Columns that are not read.

    Raises:
        RowError: It has no such attributes.
    """
    wrong = [name for name in weights if name not in shape.attributes]
    if wrong and not shape.attributes:
        raise RowError(f"attribute_weights weighs {', '.join(wrong)}; rows of {shape.name} have no graded attributes")
    if wrong:
        near = nearest(wrong[0], shape.attributes)
        hint = f"; did you mean {near!r}?" if near else ""
        names = ", ".join(shape.attributes)
        raise RowError(f"attribute_weights names {', '.join(wrong)}; rows of {shape.name} have {names}{hint}")
    used = {name: weight for name, weight in (weights or shape.attributes).items() if weight}
    return Reading(score_range, used, ignored)
