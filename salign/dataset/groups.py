"""Groups from files and datasets, read row by row."""

import contextlib
import dataclasses
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import orjson

from salign.columns import Columns, nearest
from salign.config import AnswersData, DatasetData, Effect, GroupsData, selected
from salign.dataset.conversations import Prompt, prompt_of
from salign.dataset.formats import Shape, groups_of, known_columns, parse, reading_of, shape_of
from salign.dataset.rated import Candidate
from salign.dataset.scratch import gathering
from salign.errors import DataError
from salign.files import Mistakes, RowError, stream_rows
from salign.records import MAX_SCORE, MIN_SCORE, AlignmentGroup, Message
from salign.society import sources
from salign.storage import sha256


def read_groups(
    data: GroupsData | DatasetData, left_out: Counter[str], read: Callable[[object], object] = lambda row: row
) -> Iterator[AlignmentGroup]:
    """Reads the groups of a file or a dataset in its order, one at a time in memory.

    Rows of one response with the same prompt become one group, where the first of them stands. A response that stands
    in a group twice counts once, with the mean of its scores.

    Args:
        data: Where they are, and how they are read.
        left_out: Counts, while the groups are read, `unrated_responses` (the score is null, or a placeholder of the
            released code, -1 or 8; a group of such alone is left out), `repeated_responses` (merged with the same text
            in their group), `bad_rows` (malformed ones, where `data.skip_bad` is set), `only_bad_groups` (responses of
            a prompt that are labelled good or bad, of which none is good) and `bad_row_groups` (responses of a prompt
            with grades, of which another row is malformed: its response may have been the best).
        read: Is given each row before it is read, and gives what is read in its place.

    Raises:
        DataError: The file is missing, has no group in it, or rows are malformed, with file, rows and reasons; that is
            raised when all rows are read.
    """
    left_out.update(unrated_responses=0, repeated_responses=0, bad_rows=0)
    file = _File(data, left_out, read)
    shape, rows = file.first_shape()
    groups = file.groups(rows, shape)
    empty = True
    for group in _gathered(groups, left_out) if shape.gathers else groups:
        if shape.is_thumbs and max(group.scores) == MIN_SCORE:
            left_out["only_bad_groups"] += 1  # its best response would be learnt
            continue
        if file.prompts_of_bad_rows and _prompt_key(group) in file.prompts_of_bad_rows:
            left_out["bad_row_groups"] += 1
            continue
        empty = False
        yield group
    if empty:
        raise _no_group(data)


class _File:
    """The rows of a file or a dataset, and what is wrong with them."""

    def __init__(
        self, data: GroupsData | DatasetData, left_out: Counter[str], read: Callable[[object], object]
    ) -> None:
        known = known_columns()
        for name in data.columns:
            if name not in known:
                near = nearest(name, known)
                hint = f"; did you mean {near!r}?" if near else f"; known are {', '.join(sorted(known))}"
                raise DataError(f"{data.path}: columns maps {name!r}, which is not a column of any shape{hint}")
        self._data = data
        self._left_out = left_out
        self._read = read
        self._columns = Columns(data.columns, data.ignore_columns)
        self._mistakes = Mistakes(data.path, skip=data.skip_bad)
        self.prompts_of_bad_rows: set[str] = set()
        """Where rows with grades are gathered by their prompts: those of malformed rows, as far as they have one."""

    def first_shape(self) -> tuple[Shape, Iterator[tuple[int, object]]]:
        """The shape of the first row that has one, and the rows from there on."""
        data = self._data
        given = stream_rows(data.path) if isinstance(data, GroupsData) else sources.open_dataset(data).rows()
        rows = ((number, self._read(row)) for number, row in given)
        for number, row in rows:
            try:
                shape = shape_of(self._columns.apply(row) if isinstance(row, dict) else row, self._columns.ignored)
            except RowError as error:
                self._mistakes.add(number, error)
                self._mistakes.raise_any()  # of what shape the other rows should be is not known
                continue
            return shape, itertools.chain([(number, row)], rows)
        raise _no_group(data)

    def groups(self, rows: Iterable[tuple[int, object]], shape: Shape) -> Iterator[AlignmentGroup]:
        """The groups of those rows; one row's mistake ends them, and the rows after it are read for their own."""
        data = self._data
        try:
            reading = reading_of(shape, data.score_range, data.attribute_weights, self._columns.ignored)
        except RowError as error:
            raise DataError(f"{data.path}: {error}") from None
        for number, row in rows:
            try:
                parsed = parse(row, shape, reading, self._columns)
            except ValueError as error:
                self._mistakes.add(number, error)
                if shape.gathers and not shape.is_thumbs:
                    self._mark_prompt(row)
                continue
            if self._mistakes.stops:
                continue
            self._left_out["unrated_responses"] += parsed.num_unrated
            self._left_out["repeated_responses"] += parsed.num_repeated
            yield from parsed.groups
        self._mistakes.raise_any()
        self._left_out["bad_rows"] += self._mistakes.num_rows

    def _mark_prompt(self, row: object) -> None:
        if not isinstance(row, dict):
            return
        with contextlib.suppress(RowError):
            prompt = prompt_of(self._columns.apply(row), self._columns.ignored)
            self.prompts_of_bad_rows.add(_prompt_key(prompt))


def _no_group(data: GroupsData | DatasetData) -> DataError:
    return DataError(f"{data.path} contains no group with a rated response")


def _gathered(groups: Iterable[AlignmentGroup], left_out: Counter[str]) -> Iterator[AlignmentGroup]:
    """Groups of one response with the same query as one, in the order of their first rows.

    Such rows may stand anywhere in a file, so they wait in a temporary one.
    """
    with gathering("rows with the same prompt") as rows:
        for group in groups:
            rows.add(_prompt_key(group), (group.responses[0], group.scores[0]))
        for key, same in rows.gathered():
            query, *context = orjson.loads(key)
            prompt = Prompt(query, tuple(Message(*turn) for turn in context))
            merged = groups_of([Candidate(prompt, [(response, score) for response, score in same])])
            left_out["repeated_responses"] += merged.num_repeated
            yield from merged.groups


def _prompt_key(prompt: AlignmentGroup | Prompt) -> str:
    return orjson.dumps([prompt.query, *([turn.role, turn.content] for turn in prompt.context)]).decode()


def _of_both_labels(exemplars: Iterable[sources.Exemplar]) -> list[AlignmentGroup]:
    """A group of each question that has good answers and bad ones, with the highest and the lowest score."""
    answers: dict[str, dict[str, float]] = {}
    for exemplar in exemplars:
        if exemplar.answer is not None:
            score = MAX_SCORE if exemplar.label == "good" else MIN_SCORE
            answers.setdefault(exemplar.question, {}).setdefault(exemplar.answer, score)
    return [
        AlignmentGroup(question, tuple(scored), tuple(scored.values()), "demonstration")
        for question, scored in answers.items()
        if len(set(scored.values())) > 1
    ]


def digest_of(data: GroupsData | DatasetData | AnswersData) -> str:
    """Computes a digest that changes when the groups of a file, a dataset or a source do."""
    if isinstance(data, GroupsData):
        content = sha256(data.path)
    elif isinstance(data, DatasetData):
        content = sources.open_dataset(data).digest()
    else:
        content = hashlib.sha256(repr(demonstrations(data)).encode()).hexdigest()
    how = json.dumps(selected(data, Effect.DECIDES), sort_keys=True)
    return hashlib.sha256(repr((content, how)).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class LoadedGroups:
    """The groups of a file, and how many responses had no rating and were left out."""

    groups: list[AlignmentGroup]
    num_unrated: int


def load_groups(path: Path) -> LoadedGroups:
    """Loads all groups of a small file; see `read_groups`."""
    left_out: Counter[str] = Counter()
    groups = list(read_groups(GroupsData(kind="groups", path=path), left_out))
    return LoadedGroups(groups, left_out["unrated_responses"])


def demonstrations(data: AnswersData) -> list[AlignmentGroup]:
    """Makes a group of each good answer: one response with the highest score; or of each question with both labels."""
    exemplars = sources.load(data.source)
    groups = (
        _of_both_labels(exemplars)
        if data.both_labels
        else [
            AlignmentGroup(exemplar.question, (exemplar.answer,), (MAX_SCORE,), "demonstration")
            for exemplar in exemplars
            if exemplar.answer is not None and exemplar.label == "good"
        ]
    )
    if not groups and data.both_labels:
        raise DataError("the source of the training answers has no question with answers labelled 'good' and 'bad'")
    if not groups:
        raise DataError("the source of the training answers has no answer labelled 'good'; its kind may be wrong")
    return groups
