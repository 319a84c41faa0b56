"""The journal of model calls: what was paid for is not lost, and not paid for again."""

import asyncio
import errno
import itertools
import json
import os
import random

import pytest
from journals import records_of, rewrite, write_records

from salign.config import Sampling
from salign.engines.base import Prompt, RatingReply, Reply
from salign.engines.gate import Gate
from salign.engines.journal import CallKeys, Journal, ReplayEngine, drop_answers, served_names, written_header
from salign.engines.opening import metered
from salign.errors import CallRejectedError, EngineError, StageError

HEADER = {"model": "a/model", "run.seed": 3, "prompts": "2", "society.populations": ["all_good", "half_half"]}
KEYS = [bytes([number]) * 16 for number in range(250)]
EVEN = (1 / 7,) * 7
# Of each kind; with all that might end a line, or change on its way.
ANSWERS = [
    Reply("plain", 12, 5),
    Reply("", 0, 0),
    Reply("two\nlines\r\nand \u2028 \u2029 \x85 \x0b \x0c \x00 \x1f\ttabs", 1, 2, "org/model-v2"),
    Reply('"quoted" \\n {"key":"00"} \\u2028', 3, 4),
    Reply("naïve 漢字 👩‍👩‍👧 \U0010ffff", 5, 6, "モデル"),
    Reply("in its own time", 1, 1, None, "stop"),
    Reply("cut in the mid", 1, 1, "v", "length", "whole"),
    Reply("", 1, 100, None, "length", "cut"),
    RatingReply(EVEN, 0.1 + 0.2, 7, 0),
    RatingReply((0.1, 1e-300, 5e-324, 0.30000000000000004, 0.0, 1 / 3, 0.123456789012345678), 1e-17, 8, 1, "v"),
    RatingReply(None, 0.0, 9, 1),
    RatingReply((0.5, 0.25, 0.25), 0.9, 9, 1, None, 0),
    CallRejectedError("a/model refused a call: HTTP 400: 長すぎ\n\u2028 too long"),
]


def write(folder, records, header=HEADER, writer=0, turns=True):
    """Appends records as a shard does, in an event loop."""

    async def run():
        journal = Journal(folder, header, writer)
        for key, answer in records:
            journal.append(key, answer, 0.25)
            if turns:
                await asyncio.sleep(0)
        await journal.sync()
        journal.close()

    asyncio.run(run())


def read(folder, keys=KEYS, header=HEADER):
    journal = Journal(folder, header, None)
    return {key: found.answer for key in keys if (found := journal.find(key)) is not None}


def plain(answer):
    """What two answers are compared by: exceptions have no equality."""
    return str(answer) if isinstance(answer, CallRejectedError) else answer


def replies(start, stop):
    return [(KEYS[number], Reply(f"reply {number} ✓", number, 1)) for number in range(start, stop)]


# --- records -------------------------------------------------------------------------------------


@pytest.mark.parametrize("turns", [True, False], ids=["one by one", "in one write"])
def test_every_kind_of_answer_comes_back_as_it_was(tmp_path, turns):
    write(tmp_path, zip(KEYS, ANSWERS, strict=False), turns=turns)
    found = read(tmp_path)
    assert [plain(found[key]) for key in KEYS[: len(ANSWERS)]] == [plain(answer) for answer in ANSWERS]
    assert [type(found[key]) for key in KEYS[: len(ANSWERS)]] == [type(answer) for answer in ANSWERS]
    assert len(found) == len(ANSWERS)


def test_a_record_has_the_time_that_the_answer_took_and_nothing_that_says_nothing(tmp_path):
    write(tmp_path, zip(KEYS, ANSWERS, strict=False))
    rows = [json.loads(row) for _, row in records_of(tmp_path)]
    assert {row["seconds"] for row in rows} == {0.25}
    assert rows[0] == {"seconds": 0.25, "text": "plain", "tokens": [12, 5]}


def test_a_call_that_is_not_there_is_not_found(tmp_path):
    write(tmp_path, replies(0, 3))
    journal = Journal(tmp_path, HEADER, None)
    assert len(journal) == 3
    assert journal.find(KEYS[3]) is None


def test_what_is_appended_is_in_the_file_after_one_turn_of_the_loop(tmp_path):
    async def run():
        journal = Journal(tmp_path, HEADER, 0)
        seen = []
        for record in replies(0, 3):
            journal.append(*record, 0.0)
            journal.append(KEYS[100 + len(seen)], Reply("beside it", 1, 1), 0.0)
            await asyncio.sleep(0)
            seen.append(len(read(tmp_path)))  # another process, which this one may not live to close for
        return seen

    assert asyncio.run(run()) == [2, 4, 6]


@pytest.mark.parametrize("row", [b'{"tixt":"t"}', b'{"text":"t","tokens":[2]}', b"no json", b"[]", b""])
def test_a_record_that_is_no_answer_is_refused_when_it_is_asked_for(tmp_path, row):
    write(tmp_path, replies(0, 1))
    write_records(tmp_path, HEADER, [(KEYS[1], row)])
    journal = Journal(tmp_path, HEADER, None)
    assert journal.find(KEYS[0]).answer == replies(0, 1)[0][1]
    with pytest.raises(StageError, match=r"has a record that is no answer .*Remove the folder to begin"):
        journal.find(KEYS[1])


def test_a_full_disk_is_said_by_the_next_call_and_by_sync(tmp_path, monkeypatch):
    def full(descriptor, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def run():
        journal = Journal(tmp_path, HEADER, 0)
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            journal.append(*replies(0, 1)[0], 0.0)
            await asyncio.sleep(0)
        for again in (lambda: journal.append(*replies(1, 2)[0], 0.0), journal.write, journal.close):
            with pytest.raises(OSError, match="No space"):
                again()
        journal = Journal(tmp_path, HEADER, 0)
        monkeypatch.setattr(os, "write", full)
        journal.append(*replies(0, 1)[0], 0.0)
        with pytest.raises(OSError, match="No space"):
            await journal.sync()

    asyncio.run(run())
    assert read(tmp_path) == {}


def test_a_replay_needs_a_journal(tmp_path):
    with pytest.raises(StageError, match="has no journal to replay"):
        written_header(tmp_path)
    write(tmp_path, [])
    assert written_header(tmp_path) == HEADER


# --- keys ----------------------------------------------------------------------------------------


def key(identity="m", user="hello", system=None, num_shared=0, sampling=Sampling(), seed=7, **asked):  # noqa: B008 (frozen)
    return CallKeys(identity).of(Prompt(user, system, num_shared, **asked), sampling, seed)


def test_calls_that_differ_have_keys_that_differ():
    keys = [
        key(),
        key(identity="m2"),
        key(user="hello "),
        key(user=""),
        key(system=""),
        key(system="be kind"),
        key(system="None"),
        key(seed=8),
        key(seed=77),
        key(sampling=Sampling(temperature=0.5)),
        key(sampling=Sampling(top_p=0.9)),
        key(sampling=Sampling(max_tokens=255)),
        key(sampling=None),
        key(sampling=None, seed=8),
        key(sampling=None, identity="m2"),
        key(form="rating"),
        key(scale=(0, 9)),
        key(scale=(1, 70)),
        # parts that would run together
        key(seed=7, system="x\0y", user="z"),
        key(seed=7, system="x", user="y\0z"),
        key(seed=7, system="x'\0y", user="z"),
        key(user="\ud83d"),
    ]
    assert len(set(keys)) == len(keys)
    assert {len(item) for item in keys} == {16}


def test_equal_calls_have_equal_keys():
    same = CallKeys("m")
    prompt = Prompt("hello", "be kind")
    assert len({same.of(Prompt("hello", "be kind"), Sampling(), 7) for _ in range(3)}) == 1
    assert same.of(prompt, Sampling(), 7) == CallKeys("m").of(prompt, Sampling(max_tokens=256), 7)
    # where the shared part of a prompt ends is for a cache to know: the model is asked the same
    assert key(num_shared=3) == key(num_shared=0)


def test_a_key_is_the_same_in_every_release_that_reads_this_version():
    """A journal outlives the process: a change here needs another version of the journal."""
    assert key(system="be kind").hex() == "3ba2546635bec3fdc717577aec0933e6"
    assert key(sampling=None).hex() == "0750e3a83b89445f7fb1452209eeaeca"


# --- behind an engine ----------------------------------------------------------------------------


class Model:
    """Answers by the prompt; counts what it was asked."""

    identity = "a/model"

    def __init__(self):
        self.num_asked = 0

    async def generate(self, prompt, sampling, seed):
        self.num_asked += 1
        await asyncio.sleep(0)
        if "refuse" in prompt.user:
            raise CallRejectedError(f"refused: {prompt.user}")
        if "break" in prompt.user:
            raise EngineError("unreachable")
        return Reply(f"{prompt.user} {seed}", 10, 3, "served-v1")

    async def rate(self, prompt, seed):
        self.num_asked += 1
        if "refuse" in prompt.user:
            raise CallRejectedError("refused")
        return RatingReply(None if "none" in prompt.user else EVEN, 0.5, 11, 1)

    def facts(self):
        return {}


class Closed(Gate):
    """Lets nobody in."""

    def try_enter(self):
        raise AssertionError("a call from the journal stood at the gate")


CALLS = [(kind, user) for kind in ("generate", "rate") for user in ("hello", "refuse", "other", "none", "refuse too")]


async def make_calls(engine):
    said = []
    for number, (kind, user) in enumerate(CALLS):
        arguments = (Prompt(user, None, 2), Sampling(), number) if kind == "generate" else (Prompt(user), number)
        try:
            said.append(await getattr(engine, kind)(*arguments))
        except CallRejectedError as error:
            said.append(f"refused: {error}")
    return said


def counts(engine):
    names = ("calls", "refused")
    tokens = ("prompt_tokens", "completion_tokens", "prompt_characters", "shared_characters", "served")
    return {name: getattr(engine, name) for name in (*(f"num_{name}" for name in names), *tokens)}


def through_journal(folder, model, gate=None, calls=make_calls, writer=0):
    async def run():
        journal = Journal(folder, HEADER, writer)
        engine = metered(model, gate or Gate(4, adaptive=False), journal)
        try:
            return await calls(engine), engine
        finally:
            journal.close()

    return asyncio.run(run())


def test_what_is_in_the_journal_is_not_asked_and_does_not_wait(tmp_path):
    first, second = Model(), Model()
    said, engine = through_journal(tmp_path, first)
    again, replayed = through_journal(tmp_path, second, Closed(1, adaptive=False), writer=None)
    assert again == said
    assert (first.num_asked, second.num_asked) == (len(CALLS), 0)
    assert (engine.num_journaled, replayed.num_journaled) == (0, len(CALLS))
    assert engine.calls_per_s > replayed.calls_per_s == 0  # a journal's speed says nothing of an engine's
    assert sum("refused" in str(item) for item in again) == 4


def test_counts_are_the_same_with_and_without_a_journal(tmp_path):
    async def run():
        engine = metered(Model(), Gate(4, adaptive=False))
        await make_calls(engine)
        return counts(engine)

    expected = asyncio.run(run())
    assert expected["num_calls"] == len(CALLS)
    assert expected["num_refused"] == 4
    assert expected["served"] == {"served-v1": 3}
    assert [counts(through_journal(tmp_path, Model())[1]) for _ in range(3)] == [expected] * 3


def test_a_refusal_is_asked_again_unless_it_is_replayed(tmp_path):
    """It cost nothing, and a server may have been mended."""

    class Mended(Model):
        async def generate(self, prompt, sampling, seed):
            self.num_asked += 1
            return Reply(f"mended: {prompt.user}", 10, 3)

    async def one(engine):
        try:
            return (await engine.generate(Prompt("refuse"), Sampling(), 0)).text
        except CallRejectedError as error:
            return f"refused: {error}"

    assert through_journal(tmp_path, Model(), calls=one)[0].startswith("refused")
    assert through_journal(tmp_path, Model(), calls=one, writer=None)[0].startswith("refused")
    mended = Mended()
    assert [through_journal(tmp_path, mended, calls=one)[0] for _ in range(2)] == ["mended: refuse"] * 2
    assert mended.num_asked == 1
    assert through_journal(tmp_path, Model(), calls=one, writer=None)[0] == "mended: refuse"


def test_only_what_is_missing_is_asked(tmp_path):
    said, _ = through_journal(tmp_path, Model())
    records = records_of(tmp_path)
    for seed in range(10):
        kept = random.Random(seed).sample(records, seed)
        rewrite(tmp_path, kept)
        answered = sum(b'"refused"' not in row for _, row in kept)
        model = Model()
        again, engine = through_journal(tmp_path, model)
        assert again == said
        assert (model.num_asked, engine.num_journaled) == (len(CALLS) - answered, answered)
        assert dict(records_of(tmp_path)).keys() == dict(records).keys()


@pytest.mark.parametrize("writer", [0, None], ids=["new", "journaled"])
def test_a_second_name_is_an_error_that_says_both_and_the_call(tmp_path, writer):
    class Exchanged(Model):
        async def generate(self, prompt, sampling, seed):
            return Reply("hello", 1, 1, "old" if seed < 3 else "new" if seed < 5 else None)

    async def calls(engine):
        for seed in (0, 5, 1, 2):
            await engine.generate(Prompt("hello"), Sampling(), seed)
        with pytest.raises(
            EngineError, match=r"came as 'old' \(3 of them\), and that to call 5 as 'new': the server must"
        ):
            await engine.generate(Prompt("hello"), Sampling(), 3)

    through_journal(tmp_path, Exchanged(), calls=calls)
    if writer is None:
        through_journal(tmp_path, Model(), calls=calls, writer=None)
    assert len(records_of(tmp_path)) == 5  # the one that stopped it too
    assert served_names(tmp_path) == {"old", "new"}
    assert drop_answers(tmp_path, "new") == 1
    assert served_names(tmp_path) == {"old"}
    assert len(records_of(tmp_path)) == 4


def test_an_engine_that_fails_is_asked_again(tmp_path):
    async def calls(engine):
        with pytest.raises(EngineError, match="unreachable"):
            await engine.generate(Prompt("break"), Sampling(), 1)
        assert engine.gate.in_flight == 0

    model = Model()
    for num_asked in (1, 2):
        _, engine = through_journal(tmp_path, model, calls=calls)
        assert (model.num_asked, engine.num_calls) == (num_asked, 0)
    assert records_of(tmp_path) == []


def test_a_replay_names_the_model_whose_call_is_missing(tmp_path):
    async def calls(engine):
        with pytest.raises(StageError, match=r"the journal lacks a call of a/model.*without --replay"):
            await engine.generate(Prompt("hello"), Sampling(), 1)
        with pytest.raises(StageError, match="lacks a call"):
            await engine.rate(Prompt("hello"), 1)

    through_journal(tmp_path, ReplayEngine("a/model"), calls=calls)


def test_calls_that_end_together_are_written_together(tmp_path, monkeypatch):
    """Hundreds of replies a turn are one write, not hundreds."""
    num_writes = itertools.count()
    write_through = os.write

    def counted(descriptor, data):
        next(num_writes)
        return write_through(descriptor, data)

    async def calls(engine):
        monkeypatch.setattr(os, "write", counted)
        await asyncio.gather(*(engine.generate(Prompt("hello"), Sampling(), seed) for seed in range(100)))

    through_journal(tmp_path, Model(), Gate(200, adaptive=False), calls)
    assert len(records_of(tmp_path)) == 100
    assert next(num_writes) == 2  # what was answered, and all of it packed
