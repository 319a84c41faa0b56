"""Gathers the rows of interactions into groups, one per query, outside of memory."""

import contextlib
import random
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from salign.config import KINDS, DatasetSection, Flag, Kind, Ratio
from salign.dataset.rated import mean_score
from salign.dataset.scratch import Gathering, gathering
from salign.records import AlignmentGroup, Interaction, Turn
from salign.society.protocols.base import Protocol
from salign.society.protocols.learning import Learning

# Flags that leave a text what it is: nothing is missing of it, or its end, which `_without_cut_best` minds.
_KEPT: tuple[Flag, ...] = ("cut", "thinking")

LEFT_OUT = ("unrated", "empty", "duplicate", "flagged", "cut", "cut_best_groups")

# A row: the topic, the interaction, and responses, each with its score and whether it may be the best: it says
# something, and is whole.
_Gathered = tuple[str, list[int], list[tuple[str, float, bool]]]


def _gather(
    rows: Mapping[Kind, Gathering],
    interactions: Iterable[Interaction],
    protocol: Protocol[Any],
    section: DatasetSection,
    left_out: Counter[str],
) -> None:
    """Adds what can be learnt: neither flagged texts nor what was said of them."""
    learnt = {*_KEPT, *section.keep_flagged}
    cut_is_whole = "cut" in section.keep_flagged

    def kept(turns: Sequence[Turn]) -> list[Turn]:
        clean = [turn for turn in turns if not turn.flags or learnt.issuperset(turn.flags)]
        if len(clean) < len(turns):
            left_out["flagged"] += len(turns) - len(clean)
        return clean

    names = protocol.criteria[:1] if section.criteria is None else section.criteria
    weights = names if isinstance(names, dict) else dict.fromkeys(names, 1.0)
    criteria = tuple((protocol.society.criterion(name), weight) for name, weight in weights.items())
    learning = Learning(criteria, kept, section.min_realignment_score)
    for interaction in interactions:
        for kind, query, responses in protocol.rows(interaction, learning):
            of_kind = rows.get(kind)
            if of_kind is None:
                continue
            given = []
            for turn, score in responses:
                text = turn.text.strip()
                if score is None or not (text or protocol.rates_silence):
                    left_out["unrated" if score is None else "empty"] += 1
                else:
                    given.append((text, score, bool(text) and (cut_is_whole or "cut" not in turn.flags)))
            of_kind.add(query, (interaction.topic, interaction.key, given))


def build_groups(
    interactions: Iterable[Interaction], protocol: Protocol[Any], section: DatasetSection, left_out: Counter[str]
) -> Iterator[AlignmentGroup]:
    """Joins rows with the same query into one group.

    Left out are empty responses, unless the protocol takes them for answers; those without a rating; flagged ones with
    what was said of them (a flagged text's rating is no better than none); those that are cut or empty and are as good
    as the best whole one, and groups in which such a one is better than that: another would be learnt as the best. A
    response that is given to one query several times stands in its group once, with the mean of its ratings.

    Rows wait in temporary files, one for each kind: memory holds one group at a time, and 16 bytes of each row (some 80
    while those of a kind are sorted).

    Args:
        interactions: In canonical order.
        protocol: By which they were held.
        section: Which kinds, from which score a revision is one to learn from, and which flags do not matter.
        left_out: Counts what was left out, by the reason; whole when the last group was given.

    Yields:
        The groups, by kind and then by first appearance.

    Raises:
        StageError: There is no room for the temporary files.
    """
    left_out.update(dict.fromkeys(LEFT_OUT, 0))
    kinds = [kind for kind in KINDS if kind in section.kinds]
    with contextlib.ExitStack() as stack:
        rows = {kind: stack.enter_context(gathering("rows with the same query")) for kind in kinds}
        _gather(rows, interactions, protocol, section, left_out)
        for kind, of_kind in rows.items():
            for query, same in of_kind.gathered():
                learnt = _joined(same, left_out)
                if learnt:
                    provenance = {"question": same[0][0], "interactions": [key for _, key, _ in same]}
                    yield AlignmentGroup(query, tuple(learnt), tuple(learnt.values()), kind, provenance)


def _joined(rows: Sequence[_Gathered], left_out: Counter[str]) -> dict[str, float]:
    """Scores by text of what can be learnt from rows of one query."""
    given = rows[0][2] if len(rows) == 1 else [rated for row in rows for rated in row[2]]
    means = {text: score for text, score, _ in given}
    if len(means) < len(given):
        scores: dict[str, list[float]] = {}
        for text, score, _ in given:
            scores.setdefault(text, []).append(score)
        means = {text: mean_score(rated) for text, rated in scores.items()}
        left_out["duplicate"] += len(given) - len(means)
    whole = {text for text, _, is_whole in given if is_whole}
    if len(whole) == len(means):
        return means
    learnt = _without_partial_best(means, whole)
    silent = "" in means and "" not in learnt
    left_out["empty"] += silent
    left_out["cut"] += len(means) - len(learnt) - silent
    left_out["cut_best_groups"] += not learnt
    return learnt


def _without_partial_best(scores: dict[str, float], whole: Collection[str]) -> dict[str, float]:
    """Scores by text, without those that are not whole and as good as the best; none where no whole one is the best."""
    best = max(scores.values())
    if not any(score == best and text in whole for text, score in scores.items()):
        return {}
    return {text: score for text, score in scores.items() if text in whole or score < best}


def kind_of(group: AlignmentGroup) -> Kind:
    """Returns the kind of a group of the society's data."""
    assert group.kind is not None
    assert group.kind != "demonstration"
    return group.kind


def num_chosen(counts: Mapping[Kind, int], ratio: Ratio) -> dict[Kind, int]:
    """Computes how many groups of each kind to keep: the most that are in the ratio; none of a kind with share 0.

    Args:
        counts: Groups of each kind.
        ratio: How many of one kind for how many of another.
    """
    shares = {kind: getattr(ratio, kind) for kind in counts}
    unit = min((counts[kind] / share for kind, share in shares.items() if share > 0 and counts[kind]), default=0.0)
    return {kind: min(num, int(unit * shares[kind] + 1e-9)) for kind, num in counts.items()}


def drawn(num: int, num_kept: int, generator: random.Random) -> Iterator[bool]:
    """Draws which items of a sequence to keep, each with the same chance (Knuth, TAOCP 2, 3.4.2, algorithm S)."""
    for left in range(num, 0, -1):
        is_kept = generator.random() * left < num_kept
        num_kept -= is_kept
        yield is_kept
