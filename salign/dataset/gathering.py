"""Gathers the rows of interactions into groups, one per query, outside of memory."""

import hashlib
import itertools
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from salign.config import KINDS, DatasetSection, Flag, Kind, Ratio
from salign.dataset.rated import mean_score
from salign.dataset.scratch import scratch_database
from salign.records import AlignmentGroup, Interaction, Turn
from salign.seeds import rng
from salign.society.protocols.base import Protocol, Row

# Flags that leave a text what it is: nothing is missing of it, or its end, which `_without_cut_best` minds.
_KEPT: tuple[Flag, ...] = ("cut", "thinking")

_SCHEMA = """
    CREATE TABLE query (id INTEGER PRIMARY KEY, key BLOB UNIQUE, kind INTEGER, text TEXT, topic TEXT);
    CREATE TABLE origin (query INTEGER, world INTEGER, round INTEGER, agent INTEGER);
    CREATE TABLE said (query INTEGER, text TEXT, score REAL, whole INTEGER);
"""
# Interactions that are taken up together: many small statements cost more than a few large ones.
_BATCH = 500
LEFT_OUT = ("unrated", "empty", "duplicate", "flagged", "cut", "cut_best_groups")


@dataclass(slots=True)
class _Response:
    """The scores of one text, and whether it was ever whole, so that it may be the best."""

    scores: list[float] = field(default_factory=list)
    whole: bool = False


def _rows(
    interaction: Interaction, protocol: Protocol[Any], section: DatasetSection, left_out: Counter[str]
) -> Iterator[Row]:
    """What can be learnt from an interaction; neither flagged texts nor what was said of them."""
    learnt = {*_KEPT, *section.keep_flagged}

    def kept(turns: Iterable[Turn]) -> list[Turn]:
        there = list(turns)
        clean = [turn for turn in there if learnt.issuperset(turn.flags)]
        left_out["flagged"] += len(there) - len(clean)
        return clean

    return protocol.rows(interaction, kept, section.min_realignment_score)


class _Store:
    """A temporary database of queries and what was said to them."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        db.executescript(_SCHEMA)

    def take(
        self,
        interactions: Iterable[Interaction],
        protocol: Protocol[Any],
        section: DatasetSection,
        left_out: Counter[str],
    ) -> None:
        queries, origins, said = [], [], []
        for interaction in interactions:
            for row in _rows(interaction, protocol, section, left_out):
                if row.kind not in section.kinds:
                    continue
                key = hashlib.blake2b(f"{row.kind}\0{row.query}".encode(), digest_size=16).digest()
                queries.append((key, KINDS.index(row.kind), row.query, interaction.topic))
                origins.append((key, *interaction.key))
                for turn, score in row.responses:
                    text = turn.text.strip()
                    if score is None or not text:
                        left_out["unrated" if score is None else "empty"] += 1
                        continue
                    whole = "cut" not in turn.flags or "cut" in section.keep_flagged
                    said.append((key, text, score, whole))
        of = "(SELECT id FROM query WHERE key = ?)"
        self._db.executemany("INSERT OR IGNORE INTO query (key, kind, text, topic) VALUES (?, ?, ?, ?)", queries)
        self._db.executemany(f"INSERT INTO origin VALUES ({of}, ?, ?, ?)", origins)  # noqa: S608 (no value in it)
        self._db.executemany(f"INSERT INTO said VALUES ({of}, ?, ?, ?)", said)  # noqa: S608

    def gathered(self) -> Iterator[tuple[Kind, str, str, list[tuple[int, int, int]], dict[str, _Response]]]:
        """Kind, query and topic, origins and responses, by kind and then by first appearance."""
        self._db.execute("CREATE INDEX said_to ON said (query)")
        self._db.execute("CREATE INDEX origin_of ON origin (query)")
        ordered = "SELECT id, kind, text, topic FROM query ORDER BY kind, id"
        for number, kind, query, topic in self._db.execute(ordered):
            given = self._db.execute("SELECT text, score, whole FROM said WHERE query = ? ORDER BY rowid", (number,))
            there: dict[str, _Response] = {}
            for text, score, whole in given:
                response = there.setdefault(text, _Response())
                response.scores.append(score)
                response.whole |= bool(whole)
            places = "SELECT world, round, agent FROM origin WHERE query = ? ORDER BY rowid"
            yield KINDS[kind], query, topic, self._db.execute(places, (number,)).fetchall(), there


def build_groups(
    interactions: Iterable[Interaction], protocol: Protocol[Any], section: DatasetSection, left_out: Counter[str]
) -> Iterator[AlignmentGroup]:
    """Rows with the same query become one group.

    Left out are empty responses, those without a rating, flagged ones with what was said of them (a flagged text's
    rating is no better than none), those that were cut and are as good as the best whole one, and groups in which a cut
    one is better than that: another would be learnt as the best. A response that is given to one query several times
    stands in its group once, with the mean of its ratings.

    Rows wait in a temporary file: memory holds one group at a time.

    Args:
        interactions: In canonical order.
        protocol: By which they were held.
        section: Which kinds, from which score a revision is one to learn from, and which flags do not matter.
        left_out: Counts what was left out, by the reason; whole when the last group was given.

    Yields:
        The groups, by kind and then by first appearance.

    Raises:
        StageError: There is no room for the temporary file.
    """
    left_out.update(dict.fromkeys(LEFT_OUT, 0))
    with scratch_database("rows with the same query") as database:
        store, iterator = _Store(database), iter(interactions)
        while batch := list(itertools.islice(iterator, _BATCH)):
            store.take(batch, protocol, section, left_out)
        for kind, query, topic, origins, there in store.gathered():
            left_out["duplicate"] += sum(len(given.scores) - 1 for given in there.values())
            if not there:
                continue
            scores = _without_cut_best(there)
            left_out["cut"] += len(there) - len(scores)
            left_out["cut_best_groups"] += not scores
            if scores:
                provenance = {"question": topic, "interactions": origins}
                yield AlignmentGroup(query, tuple(scores), tuple(scores.values()), kind, provenance)


def _without_cut_best(responses: dict[str, _Response]) -> dict[str, float]:
    """Scores by text, without texts that were cut and are as good as the best; none where no whole one is the best."""
    scores = {text: mean_score(given.scores) for text, given in responses.items()}
    best = max(scores.values())
    if not any(score == best and responses[text].whole for text, score in scores.items()):
        return {}
    return {text: score for text, score in scores.items() if responses[text].whole or score < best}


def kind_of(group: AlignmentGroup) -> Kind:
    """The kind of a group of the society's."""
    assert group.kind is not None
    assert group.kind != "demonstration"
    return group.kind


def chosen(counts: Mapping[Kind, int], ratio: Ratio, seed: int) -> dict[Kind, frozenset[int]]:
    """Which groups of each kind keep the kinds in a ratio, the most that do; a kind with share 0 has none.

    Args:
        counts: Groups of each kind, in order.
        ratio: How many of one kind for how many of another.
        seed: Of the run.

    Returns:
        Positions among the groups of a kind.
    """
    shares = {kind: getattr(ratio, kind) for kind in counts}
    unit = min((counts[kind] / share for kind, share in shares.items() if share > 0 and counts[kind]), default=0.0)
    return {
        kind: frozenset(rng(seed, "ratio", kind).sample(range(num), min(num, int(unit * shares[kind] + 1e-9))))
        for kind, num in counts.items()
    }
