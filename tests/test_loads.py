"""The least loaded is found whatever comes, goes and is called."""

import random

import pytest

from salign.engines.loads import Loads


def test_it_is_always_one_with_the_fewest_calls():
    draw, loads, counts, calls = random.Random(0), Loads(), {}, []
    for step in range(2000):
        match draw.randrange(6):
            case 0 if len(counts) < 9:
                loads.add(step, 0)
                counts[step] = 0
            case 1 if len(counts) > 1:
                gone = draw.choice(sorted(counts))
                loads.remove(gone)
                loads.remove(gone)
                del counts[gone]
            case 2 if calls:
                call, member = calls.pop(draw.randrange(len(calls)))
                call.__exit__(None, None, None)  # also of one that has gone
                if member in counts:
                    counts[member] -= 1
            case _ if counts:
                member = loads.least()
                assert counts[member] == min(counts.values())
                call = loads.one_more(member)
                call.__enter__()
                calls.append((call, member))
                counts[member] += 1
        assert len(loads) == len(counts)


def test_those_with_as_few_have_their_turn_and_one_that_comes_back_brings_its_calls():
    loads = Loads()
    for name in "abc":
        loads.add(name)
    chosen = []
    for _ in range(6):
        chosen.append(loads.least())
        with loads.one_more(chosen[-1]):
            pass
    assert "".join(chosen) == "abcabc"
    loads.remove("b")
    loads.add("b", 2)
    with loads.one_more("a"), loads.one_more("c"), loads.one_more(loads.least()):
        assert loads.least() in "ac"


def test_an_error_within_a_call_ends_it():
    loads = Loads()
    loads.add("a")
    loads.add("b", 1)
    with pytest.raises(KeyError), loads.one_more("a"):
        raise KeyError
    assert loads.least() == "a"
