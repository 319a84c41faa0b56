"""Which groups of a step share a row, and which rank has it.

It is a function of the groups' lengths alone, worked out by every rank for itself. The loss of a step is the mean over
its groups however they are laid out.
"""

from collections.abc import Sequence


def pack(lengths: Sequence[int], row_tokens: int | None) -> list[list[int]]:
    """Packs groups into rows, first fit by falling length.

    Args:
        lengths: Tokens of each group.
        row_tokens: Groups share a row up to this many tokens; a longer group has its own. None: each group has its own.

    Returns:
        The positions of each row's groups, in order.
    """
    if row_tokens is None:
        return [[position] for position in range(len(lengths))]
    rows: list[list[int]] = []
    free: list[int] = []
    for position in sorted(range(len(lengths)), key=lambda position: -lengths[position]):
        row = next((row for row, left in enumerate(free) if lengths[position] <= left), None)
        if row is None:
            rows.append([position])
            free.append(row_tokens - lengths[position])
        else:
            rows[row].append(position)
            free[row] -= lengths[position]
    return [sorted(row) for row in rows]


def deal(lengths: Sequence[int], num_ranks: int, row_tokens: int | None) -> list[list[list[int]]]:
    """Deals rows to ranks: the same number each, with tokens as even as the longest-first rule makes them.

    The ranks work in step. So that none has fewer rows, rows of several groups are parted, the longest first; where
    there are none, a rank is given an empty row for each that it lacks.

    Args:
        lengths: Tokens of each group of the step.
        num_ranks: Among how many the rows are dealt.
        row_tokens: As for `pack`.

    Returns:
        Rank -> row -> positions of groups.
    """
    rows = pack(lengths, row_tokens)
    while len(rows) % num_ranks and any(len(row) > 1 for row in rows):
        longest = max((row for row in rows if len(row) > 1), key=lambda row: sum(lengths[position] for position in row))
        rows.remove(longest)
        half = len(longest) // 2
        rows += [longest[:half], longest[half:]]
    totals = [sum(lengths[position] for position in row) for row in rows]
    most = -(-len(rows) // num_ranks)
    dealt: list[list[list[int]]] = [[] for _ in range(num_ranks)]
    load = [0] * num_ranks
    for row in sorted(range(len(rows)), key=lambda row: -totals[row]):
        rank = min((rank for rank in range(num_ranks) if len(dealt[rank]) < most), key=lambda rank: load[rank])
        dealt[rank].append(rows[row])
        load[rank] += totals[row]
    return [own + [[]] * (most - len(own)) for own in dealt]
