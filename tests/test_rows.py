"""Which groups share a row, and which rank has it."""

import random

import pytest

from salign.training.rows import deal, pack

# Lengths of a step's groups, ranks, and row_tokens: small ones, ties, groups longer than a row, more ranks than rows.
CASES = [
    (
        [draw.choice([1, 5, 5, 40, draw.randrange(1, 100), draw.randrange(300, 600)]) for _ in range(count)],
        num_ranks,
        row_tokens,
    )
    for seed, num_ranks in enumerate((1, 2, 3, 4, 7, 8))
    for draw in [random.Random(seed)]
    for count in (num_ranks, num_ranks + 1, 2 * num_ranks, 13 + num_ranks, 64)
    for row_tokens in (None, 1, 64, 200, 5000)
]


@pytest.mark.parametrize(
    ("lengths", "row_tokens", "rows"),
    [
        ([5, 3, 4], None, [[0], [1], [2]]),
        ([5, 3, 4], 1000, [[0, 1, 2]]),
        ([5, 3, 4], 8, [[0, 1], [2]]),  # 5, then 4 has no room beside it, 3 has
        ([5, 3, 4], 7, [[0], [1, 2]]),
        ([5, 3, 4], 1, [[0], [2], [1]]),
        ([2, 9, 2, 2], 4, [[1], [0, 2], [3]]),  # the one that is longer than a row has one of its own
        ([4, 4, 4, 4], 8, [[0, 1], [2, 3]]),
    ],
)
def test_groups_share_rows_first_fit_the_longest_first(lengths, row_tokens, rows):
    assert pack(lengths, row_tokens) == rows


@pytest.mark.parametrize(
    ("lengths", "num_ranks", "row_tokens", "dealt"),
    [
        ([5, 3, 4], 1, None, [[[0], [2], [1]]]),
        ([9, 1, 8, 2], 2, None, [[[0], [1]], [[2], [3]]]),  # 10 and 10 tokens
        ([5, 3, 4], 2, 12, [[[1, 2]], [[0]]]),  # one row would do, but there are two ranks
        ([5, 3, 4, 1], 2, 6, [[[0], [3]], [[2], [1]]]),  # three rows: the longest of several groups is parted
        ([5, 3, 4], 2, None, [[[0], []], [[2], [1]]]),  # nothing to part: a rank gets an empty row
    ],
)
def test_rows_are_dealt_by_hand(lengths, num_ranks, row_tokens, dealt):
    assert deal(lengths, num_ranks, row_tokens) == dealt


@pytest.mark.parametrize(("lengths", "num_ranks", "row_tokens"), CASES)
def test_what_holds_however_groups_are_dealt(lengths, num_ranks, row_tokens):
    dealt = deal(lengths, num_ranks, row_tokens)
    rows = [row for own in dealt for row in own]
    assert sorted(position for row in rows for position in row) == list(range(len(lengths)))
    assert len(dealt) == num_ranks
    assert len({len(own) for own in dealt}) == 1, "the ranks work in step"
    for row in rows:
        assert row == sorted(row)
        assert len(row) <= 1 or (row_tokens is not None and sum(lengths[position] for position in row) <= row_tokens)
    if any(not row for row in rows):
        assert all(len(row) <= 1 for row in rows), "an empty row where groups could be parted"
    assert all(sum(map(bool, own)) for own in dealt), "a rank with nothing to do"
    assert sum(not row for row in rows) < num_ranks
    # As few passes as the rows need.
    assert len(dealt[0]) <= -(-max(len(pack(lengths, row_tokens)), num_ranks) // num_ranks)
    assert deal(list(lengths), num_ranks, row_tokens) == dealt


@pytest.mark.parametrize(("lengths", "num_ranks", "row_tokens"), CASES)
def test_no_rank_has_much_more_than_another(lengths, num_ranks, row_tokens):
    dealt = deal(lengths, num_ranks, row_tokens)
    loads = [sum(lengths[position] for row in own for position in row) for own in dealt]
    longest = max(sum(lengths[position] for position in row) for own in dealt for row in own)
    assert max(loads) - min(loads) <= longest


def test_many_groups_are_dealt_evenly():
    draw = random.Random(0)
    lengths = [int(draw.lognormvariate(6, 0.6)) for _ in range(256)]
    for row_tokens, most in ((None, 1.01), (4096, 1.1)):
        loads = [sum(lengths[p] for row in own for p in row) for own in deal(lengths, 8, row_tokens)]
        assert max(loads) <= most * sum(lengths) / 8


def test_rows_are_well_filled():
    draw = random.Random(0)
    lengths = [int(draw.lognormvariate(6, 0.6)) for _ in range(256)]
    rows = pack(lengths, 4096)
    assert len(rows) <= 1.25 * sum(lengths) / 4096
