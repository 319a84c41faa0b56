"""Groups from files and datasets, read row by row."""

import contextlib
import dataclasses
import hashlib
import itertools
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from salign.config import AnswersData, DatasetData, GroupsData
from salign.dataset.formats import RowError, Shape, parse, shape_of, stream_rows
from salign.errors import DataError, StageError
from salign.records import MAX_SCORE, MIN_SCORE, AlignmentGroup
from salign.run import sha256
from salign.society import sources


def read_groups(data: GroupsData | DatasetData, left_out: Counter[str]) -> Iterator[AlignmentGroup]:
    """The groups of a file or a dataset, in its order, of which one at a time is in memory.

    Rows of TRL's unpaired preferences with the same prompt become one group, where the first of them stands.

    Args:
        data: Where they are, and on which scale.
        left_out: Counts, while the groups are read, `unrated_responses` (the score is null, or a placeholder of the
            released code, -1 or 8; a group of such alone is left out), `bad_rows` (malformed ones, where
            `data.skip_bad` is set) and `only_bad_groups` (unpaired rows of a prompt without a good one).

    Raises:
        DataError: The file is missing, has no group in it, or a row is malformed, with file, row and reason.
    """
    left_out.update(unrated_responses=0, bad_rows=0)
    rows = stream_rows(data.path) if isinstance(data, GroupsData) else _dataset_rows(data)
    shape, rows = _first_shape(rows, data, left_out)
    groups = _parsed(rows, shape, data, left_out)
    empty = True
    for group in _gathered(groups) if shape == "unpaired" else groups:
        if shape == "unpaired" and max(group.scores) == MIN_SCORE:
            left_out["only_bad_groups"] += 1  # its best response would be learnt
            continue
        empty = False
        yield group
    if empty:
        raise _no_group(data)


def _dataset_rows(data: DatasetData) -> Iterator[tuple[int, object]]:
    yield from enumerate(sources.load_split(data.path, data.split), start=1)


def _first_shape(
    rows: Iterator[tuple[int, object]], data: GroupsData | DatasetData, left_out: Counter[str]
) -> tuple[Shape, Iterator[tuple[int, object]]]:
    """The shape of the first row that has one, and the rows from there on."""
    for number, row in rows:
        try:
            return shape_of(row), itertools.chain([(number, row)], rows)
        except RowError as error:
            _refuse(number, error, data, left_out)
    raise _no_group(data)


def _parsed(
    rows: Iterator[tuple[int, object]], shape: Shape, data: GroupsData | DatasetData, left_out: Counter[str]
) -> Iterator[AlignmentGroup]:
    for number, row in rows:
        try:
            group, num_unrated = parse(row, shape, data.score_range)
        except ValueError as error:
            _refuse(number, error, data, left_out)
            continue
        left_out["unrated_responses"] += num_unrated
        if group is not None:
            yield group


def _refuse(number: int, error: ValueError, data: GroupsData | DatasetData, left_out: Counter[str]) -> None:
    if not data.skip_bad:
        raise DataError(
            f"{data.path}, row {number}: {error}. Mend the row, or leave such rows out by skip_bad"
        ) from None
    left_out["bad_rows"] += 1


def _no_group(data: GroupsData | DatasetData) -> DataError:
    return DataError(f"{data.path} holds no group with a rated response")


def _gathered(groups: Iterable[AlignmentGroup]) -> Iterator[AlignmentGroup]:
    """Groups of one response with the same query as one, in the order of their first rows.

    Such rows may stand anywhere in a file, so they are sorted in a temporary one.
    """
    try:
        with contextlib.closing(sqlite3.connect("")) as db:
            db.execute("CREATE TABLE item (number INTEGER PRIMARY KEY, query TEXT, response TEXT, score REAL)")
            items = ((group.query, group.responses[0], group.scores[0]) for group in groups)
            db.executemany("INSERT INTO item (query, response, score) VALUES (?, ?, ?)", items)
            rows = db.execute(
                "SELECT query, response, score FROM "
                "(SELECT *, MIN(number) OVER (PARTITION BY query) AS first FROM item) ORDER BY first, number"
            )
            for query, same in itertools.groupby(rows, key=lambda row: row[0]):
                _, responses, scores = zip(*same, strict=True)
                yield AlignmentGroup(query, responses, scores)
    except sqlite3.OperationalError as error:
        raise StageError(
            f"rows with the same prompt are gathered in a temporary file, which failed: {error}. Set TMPDIR to a "
            "folder with room for the data."
        ) from error


def digest_of(data: GroupsData | DatasetData | AnswersData) -> str:
    """What changes when the groups of a file, a dataset or a source do."""
    if isinstance(data, GroupsData):
        content = sha256(data.path)
    elif isinstance(data, DatasetData):
        content = sources.load_split(data.path, data.split)._fingerprint
    else:
        content = hashlib.sha256(repr(demonstrations(data)).encode()).hexdigest()
    how = None if isinstance(data, AnswersData) else (data.score_range, data.skip_bad)
    return hashlib.sha256(repr((content, how)).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class LoadedGroups:
    """The groups of a file, and how many responses had no rating and were left out."""

    groups: list[AlignmentGroup]
    num_unrated: int


def load_groups(path: Path) -> LoadedGroups:
    """All groups of a file, for one that is small; see `read_groups`."""
    left_out: Counter[str] = Counter()
    groups = list(read_groups(GroupsData(kind="groups", path=path), left_out))
    return LoadedGroups(groups, left_out["unrated_responses"])


def demonstrations(data: AnswersData) -> list[AlignmentGroup]:
    """Each good answer as a group of one response, at the top of the scale: what is shown is what is wanted."""
    groups = [
        AlignmentGroup(exemplar.question, (exemplar.answer,), (MAX_SCORE,), "demonstration")
        for exemplar in sources.load(data.source)
        if exemplar.answer is not None and exemplar.label == "good"
    ]
    if not groups:
        raise DataError("the source of the training answers has no answer labelled 'good'; its kind may be wrong")
    return groups
