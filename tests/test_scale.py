"""The bench of scale: a fleet in virtual time does what can be worked out by hand."""

import pytest

from salign.bench import dealing
from salign.bench.scale import simulate


def test_slots_are_busy_while_there_is_work_and_wait_for_the_core_of_a_shard():
    """25 agents have 250 calls a round; of the first ones, one each, a server of 16 slots is full."""
    quick = simulate(1, 1, 2, side=5, fails_every_s=1e9)
    assert quick.utilisation == pytest.approx(1.0)
    assert (quick.num_calls, quick.num_failures) == (500, 0)
    assert quick.busy_s == pytest.approx(quick.whole * quick.seconds * 16)
    assert simulate(1, 1, 2, side=5, core_s=1.0, fails_every_s=1e9).utilisation < 0.1


def test_servers_that_fail_lose_their_work_and_nothing_else():
    failing = simulate(2, 2, 2, side=5, fails_every_s=10.0)
    assert failing.num_failures >= 2
    assert failing.num_calls == 1000
    assert failing.utilisation < 1.0


def test_tasks_deal_all_shards_out_and_none_twice(tmp_path):
    dealt = dealing.deal(tmp_path, num_shards=12, num_tasks=6, at_once=3)
    assert len(list(dealt.run.simulate.glob("shard-*/took"))) == 12
    assert dealt.cores_s > 0
