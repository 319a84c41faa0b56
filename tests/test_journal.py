"""The journal of model calls: what was paid for is not lost, and not paid for again."""

import asyncio
import errno
import itertools
import json
import os
import random
import subprocess
import sys

import pytest

from salign.config import Sampling
from salign.engines.base import Prompt, RatingReply, Reply
from salign.engines.gate import Gate
from salign.engines.journal import CallKeys, Journal, ReplayEngine, written_header
from salign.engines.opening import metered
from salign.errors import CallRejectedError, ConfigError, EngineError, StageError

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
    return {key: answer for key in keys if (answer := journal.find(key)) is not None}


def plain(answer):
    """What two answers are compared by: exceptions have no equality."""
    return str(answer) if isinstance(answer, CallRejectedError) else answer


def file_of(folder, writer=0):
    return folder / f"journal-{writer:05d}.jsonl"


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


def test_a_record_is_one_line_of_json(tmp_path):
    write(tmp_path, zip(KEYS, ANSWERS, strict=False))
    header, *rows = (json.loads(line) for line in file_of(tmp_path).read_bytes().split(b"\n")[:-1])
    assert header == {"journal": 2, **HEADER}
    assert [row["key"] for row in rows] == [key.hex() for key in KEYS[: len(ANSWERS)]]
    assert {row["seconds"] for row in rows} == {0.25}


def test_a_call_that_is_not_there_is_not_found(tmp_path):
    write(tmp_path, replies(0, 3))
    journal = Journal(tmp_path, HEADER, None)
    assert len(journal) == 3
    assert journal.find(KEYS[3]) is None


def test_of_two_answers_to_one_call_either_is_read_whole(tmp_path):
    write(tmp_path, [(KEYS[0], Reply("one", 1, 1)), (KEYS[0], Reply("two", 1, 1))])
    assert read(tmp_path)[KEYS[0]].text in ("one", "two")


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


def test_a_journal_that_is_only_read_is_not_written(tmp_path):
    write(tmp_path, replies(0, 2))
    before = file_of(tmp_path).read_bytes()

    async def run():
        journal = Journal(tmp_path, HEADER, None)
        journal.append(KEYS[5], Reply("new", 1, 1), 0.0)
        await journal.sync()
        journal.close()

    asyncio.run(run())
    assert file_of(tmp_path).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["journal-00000.jsonl"]


# --- torn ends -----------------------------------------------------------------------------------


def line_ends(content: bytes) -> list[int]:
    return [place + 1 for place, byte in enumerate(content) if byte == ord("\n")]


def test_a_file_cut_anywhere_in_its_last_three_records_loses_only_the_torn_one(tmp_path):
    write(tmp_path, [*replies(0, 4), *zip(KEYS[4:], (ANSWERS[2], ANSWERS[6], ANSWERS[8]), strict=False)])
    content = file_of(tmp_path).read_bytes()
    ends = line_ends(content)
    before = read(tmp_path)
    for cut in range(ends[-4], len(content)):
        file_of(tmp_path).write_bytes(content[:cut])
        num_whole = sum(end <= cut for end in ends) - 1  # without the header
        kept = read(tmp_path)
        assert {key: plain(answer) for key, answer in kept.items()} == {
            key: plain(before[key]) for key in KEYS[:num_whole]
        }, cut
        write(tmp_path, [(KEYS[9], Reply("after", 1, 1))])
        assert file_of(tmp_path).read_bytes()[: ends[num_whole]] == content[: ends[num_whole]]
        again = read(tmp_path)
        assert list(again) == [*KEYS[:num_whole], KEYS[9]], cut
        assert again[KEYS[9]] == Reply("after", 1, 1)


def test_a_file_cut_anywhere_in_its_header_begins_anew(tmp_path):
    write(tmp_path, replies(0, 1))
    content = file_of(tmp_path).read_bytes()
    for cut in range(line_ends(content)[0]):
        file_of(tmp_path).write_bytes(content[:cut])
        assert read(tmp_path) == {}
        with pytest.raises(StageError, match="has no journal to replay"):
            written_header(tmp_path)
        write(tmp_path, replies(0, 1))
        assert len(file_of(tmp_path).read_bytes()) == len(content), cut
        assert read(tmp_path) == dict(replies(0, 1))


def test_a_torn_end_that_its_writer_cuts_off_meanwhile_harms_nobody(tmp_path):
    """In a process of its own: what is read where a mapped file has ended is a SIGBUS."""
    write(tmp_path, replies(0, 3))
    file = file_of(tmp_path)
    whole = file.stat().st_size
    with file.open("ab") as torn:
        torn.write(b'{"key":"' + b"x" * 200_000)
    script = f"""
import mmap, os
from pathlib import Path
from salign.engines import journal
real = mmap.mmap
def cut_off_meanwhile(*args, **options):
    mapped = real(*args, **options)
    os.truncate({str(file)!r}, {whole})
    return mapped
mmap.mmap = cut_off_meanwhile
print(len(journal.Journal(Path({str(tmp_path)!r}), {HEADER!r}, None)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr


def test_a_torn_end_of_another_writers_file_stays_its_own(tmp_path):
    write(tmp_path, replies(0, 2), writer=0)
    torn = file_of(tmp_path).read_bytes()[:-5]
    file_of(tmp_path).write_bytes(torn)
    write(tmp_path, replies(2, 4), writer=1)
    assert file_of(tmp_path, 0).read_bytes() == torn
    assert list(read(tmp_path)) == [KEYS[0], KEYS[2], KEYS[3]]


# --- damage --------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", [b"\x00" * 40, b"{}", b'{"key":"zz', b'{"key":"00 1'], ids=repr)
def test_a_damaged_record_in_the_middle_is_refused_with_its_place(tmp_path, damage):
    write(tmp_path, replies(0, 5))
    content = file_of(tmp_path).read_bytes()
    start = line_ends(content)[1]
    file_of(tmp_path).write_bytes(content[:start] + damage + content[start + len(damage) :])
    with pytest.raises(StageError) as caught:
        Journal(tmp_path, HEADER, 0)
    assert f"{file_of(tmp_path)} is damaged at byte {start}" in str(caught.value)
    os.truncate(file_of(tmp_path), start)  # the remedy that it names
    assert f"truncate -s {start}" in str(caught.value)
    assert read(tmp_path) == dict(replies(0, 1))


@pytest.mark.parametrize(
    "change",
    [(b'"text"', b'"tixt"'), (b'"tokens":[2,1]', b'"tokens":[2]'), (b"reply", b'rep"y'), (b"}", b" ")],
    ids=lambda change: change[1].decode(),
)
def test_a_record_whose_answer_is_damaged_is_refused_when_it_is_asked_for(tmp_path, change):
    write(tmp_path, replies(0, 5))
    content = file_of(tmp_path).read_bytes()
    start, end = line_ends(content)[2:4]
    assert change[0] in content[start:end]
    file_of(tmp_path).write_bytes(content[:start] + content[start:end].replace(*change) + content[end:])
    journal = Journal(tmp_path, HEADER, None)
    assert [journal.find(KEYS[number]) for number in (1, 3)] == [reply for _, reply in (replies(1, 2) + replies(3, 4))]
    with pytest.raises(StageError) as caught:
        journal.find(KEYS[2])
    assert f"{file_of(tmp_path)} is damaged at byte {start}" in str(caught.value)


@pytest.mark.parametrize("first", [b"{}\n", b"[]\n", b"no json\n", b"\n"])
def test_what_is_no_journal_is_refused(tmp_path, first):
    file_of(tmp_path).write_bytes(first)
    with pytest.raises(StageError, match=r"journal-00000\.jsonl is not a journal: "):
        Journal(tmp_path, HEADER, 0)
    assert file_of(tmp_path).read_bytes() == first


@pytest.mark.parametrize("version", [1, 3, "two"])
def test_a_journal_of_another_version_is_refused_with_both_named(tmp_path, version):
    first = json.dumps({"journal": version, **HEADER}).encode() + b"\n"
    file_of(tmp_path).write_bytes(first)
    with pytest.raises(StageError, match=rf"journal of version {version!r}; this version of salign reads version 2\."):
        Journal(tmp_path, HEADER, 0)
    assert file_of(tmp_path).read_bytes() == first


# --- of what it is -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [("model", "another/model"), ("run.seed", 4), ("prompts", "3"), ("society.populations", ["half_half", "all_good"])],
)
def test_a_journal_of_another_simulation_is_refused_with_the_difference(tmp_path, name, value):
    write(tmp_path, replies(0, 2))
    before = file_of(tmp_path).read_bytes()
    with pytest.raises(ConfigError) as caught:
        Journal(tmp_path, {**HEADER, name: value}, 0)
    assert f"differs in {name} ({HEADER[name]!r} there, {value!r} now)." in str(caught.value)
    assert str(file_of(tmp_path)) in str(caught.value)
    assert file_of(tmp_path).read_bytes() == before


def test_what_is_in_one_header_alone_is_a_difference(tmp_path):
    write(tmp_path, replies(0, 2))
    with pytest.raises(ConfigError, match=r"differs in society\.wording \(None there, 'reference' now\)"):
        Journal(tmp_path, {**HEADER, "society.wording": "reference"}, 0)
    with pytest.raises(ConfigError, match=r"differs in prompts \('2' there, None now\); run\.seed \(3 there, 4 now\)"):
        Journal(tmp_path, {"model": "a/model", "run.seed": 4, "society.populations": HEADER["society.populations"]}, 0)


def test_the_order_of_a_header_and_tuples_make_no_difference(tmp_path):
    write(tmp_path, replies(0, 2))
    turned = {**dict(reversed(HEADER.items())), "society.populations": ("all_good", "half_half")}
    assert len(Journal(tmp_path, turned, 0)) == 2


def test_the_written_header_is_read(tmp_path):
    with pytest.raises(StageError, match="has no journal to replay"):
        written_header(tmp_path)
    write(tmp_path, [])
    assert written_header(tmp_path) == HEADER


# --- several writers -----------------------------------------------------------------------------


def test_the_files_of_all_writers_are_read_by_all(tmp_path):
    for writer in range(3):
        write(tmp_path, replies(10 * writer, 10 * writer + 5), writer=writer)
    expected = dict(replies(0, 5) + replies(10, 15) + replies(20, 25))
    assert read(tmp_path) == expected
    assert [len(Journal(tmp_path, HEADER, writer)) for writer in (0, 1, 2, 3)] == [15] * 4
    for writer in range(3):
        assert len(line_ends(file_of(tmp_path, writer).read_bytes())) == 6


def test_another_writers_file_of_another_simulation_is_refused(tmp_path):
    write(tmp_path, replies(0, 2), writer=0)
    write(tmp_path.joinpath("other"), replies(0, 2), header={**HEADER, "run.seed": 9}, writer=1)
    file_of(tmp_path / "other", 1).rename(file_of(tmp_path, 1))
    with pytest.raises(ConfigError, match=r"journal-00001\.jsonl is the journal of another simulation.*run\.seed"):
        Journal(tmp_path, HEADER, 0)


# --- a full disk ---------------------------------------------------------------------------------


class Disk:
    """`os.write` on a disk with so much room; a write that does not fit is cut short."""

    def __init__(self, monkeypatch, room):
        self.room = room
        self._write = os.write
        monkeypatch.setattr(os, "write", self.write)

    def write(self, descriptor, data):
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = self._write(descriptor, bytes(data[: self.room]))
        self.room -= written
        return written


@pytest.mark.parametrize("room", [0, 1, 40, 150])
def test_a_full_disk_leaves_whole_records_and_is_said(tmp_path, monkeypatch, room):
    write(tmp_path, replies(0, 3))
    before = file_of(tmp_path).read_bytes()

    async def run():
        journal = Journal(tmp_path, HEADER, 0)
        disk = Disk(monkeypatch, room)
        journal.append(*replies(3, 4)[0], 0.0)  # each record has some 90 bytes
        journal.append(*replies(4, 5)[0], 0.0)
        await asyncio.sleep(0)
        assert file_of(tmp_path).read_bytes() == before
        for again in (lambda: journal.append(*replies(5, 6)[0], 0.0), journal.write, journal.close):
            with pytest.raises(OSError, match="No space") as caught:
                again()
            assert caught.value.errno == errno.ENOSPC
            assert caught.value.filename == str(file_of(tmp_path))
        disk.room = 1 << 20

    asyncio.run(run())
    assert file_of(tmp_path).read_bytes() == before
    write(tmp_path, replies(3, 6))
    assert read(tmp_path) == dict(replies(0, 6))


def test_a_full_disk_is_said_by_sync(tmp_path, monkeypatch):
    async def run():
        journal = Journal(tmp_path, HEADER, 0)
        Disk(monkeypatch, 10)
        journal.append(*replies(0, 1)[0], 0.0)
        with pytest.raises(OSError, match="No space"):
            await journal.sync()

    asyncio.run(run())
    assert read(tmp_path) == {}


def test_a_disk_without_room_for_the_header_is_said_at_once(tmp_path, monkeypatch):
    disk = Disk(monkeypatch, 10)
    with pytest.raises(OSError, match="No space"):
        Journal(tmp_path, HEADER, 0)
    assert file_of(tmp_path).read_bytes() == b""
    disk.room = 1 << 20
    write(tmp_path, replies(0, 2))
    assert read(tmp_path) == dict(replies(0, 2))


def test_a_write_that_is_cut_short_is_gone_on_with(tmp_path, monkeypatch):
    write_through = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write_through(descriptor, bytes(data[:7])))
    write(tmp_path, replies(0, 5), turns=False)
    assert read(tmp_path) == dict(replies(0, 5))


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
    """A journal outlives the process: a change here needs another JOURNAL_VERSION."""
    assert key(system="be kind").hex() == "124aaee98b90a6b46a589fd818e8d549"
    assert key(sampling=None).hex() == "d15dc25312d5a363769d5d36146ce439"


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
    header, *records = file_of(tmp_path).read_bytes().splitlines(keepends=True)
    for seed in range(10):
        kept = random.Random(seed).sample(records, seed)
        file_of(tmp_path).write_bytes(b"".join([header, *kept]))
        answered = sum(b'"refused"' not in record for record in kept)
        model = Model()
        again, engine = through_journal(tmp_path, model)
        assert again == said
        assert (model.num_asked, engine.num_journaled) == (len(CALLS) - answered, answered)
        assert set(read_keys(tmp_path)) == {record[8:40] for record in records}


def read_keys(folder):
    return [line[8:40] for line in file_of(folder).read_bytes().splitlines()[1:]]


def test_an_engine_that_fails_is_asked_again(tmp_path):
    async def calls(engine):
        with pytest.raises(EngineError, match="unreachable"):
            await engine.generate(Prompt("break"), Sampling(), 1)
        assert engine.gate.in_flight == 0

    model = Model()
    for num_asked in (1, 2):
        _, engine = through_journal(tmp_path, model, calls=calls)
        assert (model.num_asked, engine.num_calls) == (num_asked, 0)
    assert read_keys(tmp_path) == []


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
    assert len(set(read_keys(tmp_path))) == 100
    assert next(num_writes) == 1
