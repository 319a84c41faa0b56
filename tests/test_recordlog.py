"""The log under the journal: what was appended is found again, whatever happened to process, disk and bytes."""

import errno
import json
import logging
import os
import shutil
from pathlib import Path

import pytest
import zstandard
from journals import bytes_of, files_of, records_of, write_records

from salign import blocks
from salign.errors import ConfigError, StageError
from salign.logfiles import read_header
from salign.recordlog import RecordLog, drop_records

HEADER = {"model": "a/model", "run.seed": 3, "populations": ["all_good", "half_half"]}
RECORDS = [(bytes([number]) * 16, f"row {number} ✓".encode()) for number in range(150)]
# Nine of them make a MiB, which is packed.
LARGE = [(bytes([200, number]) * 8, f"large row {number} ".encode() * 10_000) for number in range(19)]


@pytest.fixture(autouse=True)
def fast_disk(monkeypatch):
    """Nobody waits for the disk: what a process leaves is read by another, on the same machine."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def opened(folder, writer=0, header=HEADER):
    return RecordLog(folder, header, writer)


def append(folder, records, writer=0, *, kill=False):
    """Appends records one by one; a process that is killed then leaves them as they are."""
    log = opened(folder, writer)
    for record in records:
        log.append([record])
    if not kill:
        log.close()


def found(folder, records=RECORDS):
    log = opened(folder, None)
    return {key: row for key, _ in records if (row := log.find(key)) is not None}


def ends_of(path):
    return [block.end for block in blocks.read_blocks(path)]


# --- records -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kill", [False, True], ids=["closed", "killed"])
@pytest.mark.parametrize("number", [0, 1, 150])
def test_what_was_appended_is_found(tmp_path, kill, number):
    append(tmp_path, RECORDS[:number], kill=kill)
    assert found(tmp_path) == dict(RECORDS[:number])
    assert len(opened(tmp_path, None)) == number
    assert found(tmp_path, [(bytes([255]) * 16, b"")]) == {}


def test_what_is_closed_is_one_compressed_file(tmp_path):
    rows = [(key, json.dumps({"text": "What one says to a friend. " * 10}).encode()) for key, _ in RECORDS]
    append(tmp_path, rows)
    (file,) = files_of(tmp_path)
    assert file.name == "journal-00000.packed"
    assert file.stat().st_size < 0.2 * sum(16 + len(row) for _, row in rows)


def test_of_two_records_under_one_key_the_later_is_found(tmp_path):
    key = RECORDS[0][0]
    for number in range(8):
        append(tmp_path, [(key, b"before"), (key, f"row {number}".encode())], kill=number % 2 == 0)
        assert found(tmp_path) == {key: f"row {number}".encode()}
        assert len(opened(tmp_path, None)) == 1


def test_keys_that_are_half_the_same_are_told_apart(tmp_path):
    records = [(b"12345678" + bytes([number]) * 8, f"row {number}".encode()) for number in range(100)]
    append(tmp_path, records)
    assert found(tmp_path, records) == dict(records)
    assert found(tmp_path, [(b"12345678" + b"\xff" * 8, b"")]) == {}


def test_a_log_that_is_only_read_is_not_written(tmp_path):
    append(tmp_path, RECORDS[:2], kill=True)
    before = bytes_of(tmp_path)
    log = opened(tmp_path, None)
    log.append(RECORDS[2:4])
    log.sync()
    log.close()
    assert bytes_of(tmp_path) == before


# --- packing -------------------------------------------------------------------------------------


def test_what_has_gathered_is_packed_and_its_file_goes_when_that_is_on_the_disk(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(Path(f"/proc/self/fd/{file}").readlink()))
    log = opened(tmp_path)
    for record in LARGE[:9]:
        log.append([record])
    assert [path.name for path in files_of(tmp_path)] == ["journal-00000.new-1", "journal-00000.packed"]
    synced.clear()
    log.sync()
    assert synced == [tmp_path / "journal-00000.packed"]
    assert [path.name for path in files_of(tmp_path)] == ["journal-00000.packed"]
    log.append(LARGE[9:10])
    assert found(tmp_path, LARGE) == dict(LARGE[:10])
    log.close()
    assert found(tmp_path, LARGE) == dict(LARGE[:10])


class Killed(BaseException):
    pass


def test_killed_at_any_call_of_the_system_nothing_is_lost_whose_append_had_returned(tmp_path, monkeypatch):
    """Each call that changes files is in turn the last that is made, once with and once without an effect."""
    names = ("write", "fsync", "unlink", "ftruncate", "open")
    real = {name: getattr(os, name) for name in names}
    returned = []

    def live(folder, left, acts):
        def stand_in(name):
            def call(*args, **options):
                nonlocal left
                left -= 1
                if left < 0:
                    if acts and name == "write":
                        real["write"](args[0], bytes(args[1])[: len(args[1]) // 2])
                    elif acts:
                        real[name](*args, **options)
                    raise Killed
                return real[name](*args, **options)

            return call

        returned.clear()
        with monkeypatch.context() as patch:
            for name in names:
                patch.setattr(os, name, stand_in(name))
            try:
                log = opened(folder)
                for record in LARGE:
                    log.append([record])
                    returned.append(record)
                    if len(returned) % 8 == 0:
                        log.sync()
                log.close()
            except Killed:
                return True
            return False

    number, was_killed = 0, True
    while was_killed:
        for acts in (False, True):
            folder = tmp_path / "log"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            append(folder, RECORDS[:3], kill=True)
            was_killed = live(folder, number, acts)
            expected = dict(RECORDS[:3] + returned)
            assert expected.items() <= found(folder, RECORDS + LARGE).items(), number
            append(folder, RECORDS[3:4])
            expected |= dict(RECORDS[3:4])
            assert expected.items() <= found(folder, RECORDS + LARGE).items(), number
            assert [path.suffix for path in files_of(folder)] == [".packed"]
        number += 1
    assert number > 25


# --- torn ends -----------------------------------------------------------------------------------


def test_a_file_cut_anywhere_in_its_last_three_records_loses_only_the_torn_one(tmp_path):
    append(tmp_path, RECORDS[:7], kill=True)
    (new,) = tmp_path.glob("*.new-*")
    content, ends, packed = new.read_bytes(), ends_of(new), bytes_of(tmp_path)["journal-00000.packed"]
    for cut in range(ends[-4], len(content)):
        for path in files_of(tmp_path):
            path.unlink()
        (tmp_path / "journal-00000.packed").write_bytes(packed)
        new.write_bytes(content[:cut])
        kept = dict(RECORDS[: sum(end <= cut for end in ends)])
        assert found(tmp_path) == kept, cut
        append(tmp_path, RECORDS[9:10])
        assert found(tmp_path) == kept | dict(RECORDS[9:10]), cut


def test_a_packed_file_cut_anywhere_loses_the_torn_block_alone(tmp_path):
    for start in (0, 2, 4):
        append(tmp_path, RECORDS[start : start + 2])
    (packed,) = files_of(tmp_path)
    content, ends = packed.read_bytes(), ends_of(packed)
    for cut in range(ends[1], len(content)):
        packed.write_bytes(content[:cut])
        kept = dict(RECORDS[: 2 * (sum(end <= cut for end in ends) - 1)])
        assert found(tmp_path) == kept, cut
        append(tmp_path, RECORDS[9:10])
        assert found(tmp_path) == kept | dict(RECORDS[9:10]), cut


def test_a_file_cut_anywhere_in_its_header_begins_anew(tmp_path):
    append(tmp_path, [])
    (packed,) = files_of(tmp_path)
    content = packed.read_bytes()
    for cut in range(len(content)):
        packed.write_bytes(content[:cut])
        assert found(tmp_path) == {}
        assert read_header(tmp_path) is None
        append(tmp_path, [])
        assert packed.read_bytes() == content, cut


def test_a_torn_end_of_another_writers_file_stays_its_own(tmp_path):
    append(tmp_path, RECORDS[:2], kill=True)
    (new,) = tmp_path.glob("*.new-*")
    os.truncate(new, new.stat().st_size - 5)
    before = new.read_bytes()
    append(tmp_path, RECORDS[2:4], writer=1)
    assert new.read_bytes() == before
    assert found(tmp_path) == dict([RECORDS[0], *RECORDS[2:4]])


# --- damage --------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", [".packed", ".new-1"])
def test_a_flipped_bit_anywhere_is_noticed_and_costs_one_block(tmp_path, caplog, which):
    for start in (0, 2, 4):
        append(tmp_path, RECORDS[start : start + 2])
    append(tmp_path, RECORDS[6:9], kill=True)
    everything = dict(RECORDS[:9])
    (path,) = tmp_path.glob(f"*{which}")
    content = path.read_bytes()
    starts = [block.start for block in blocks.read_blocks(path)]
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        caplog.clear()
        kept = found(tmp_path)
        assert kept.items() <= everything.items(), place
        assert len(everything) - len(kept) <= (2 if which == ".packed" else 1), place
        start = max(one for one in starts if one <= place)
        assert f"{path} is torn or damaged at byte {start}: " in caplog.text, place
    path.write_bytes(content)
    caplog.clear()
    assert found(tmp_path) == everything
    assert not caplog.records


def test_what_follows_a_damaged_block_is_gone_on_with(tmp_path, caplog):
    for start in (0, 2, 4):
        append(tmp_path, RECORDS[start : start + 2])
    (path,) = files_of(tmp_path)
    content = bytearray(path.read_bytes())
    content[ends_of(path)[0] + 40] ^= 1
    path.write_bytes(content)
    append(tmp_path, RECORDS[:1])
    assert found(tmp_path) == dict(RECORDS[:1] + RECORDS[2:6])
    assert path.read_bytes().startswith(content)
    assert "the calls that they recorded are made again" in caplog.text


def test_a_block_that_is_damaged_since_the_log_was_opened_is_not_believed(tmp_path, caplog):
    append(tmp_path, RECORDS[:4])
    log = opened(tmp_path, None)
    (path,) = files_of(tmp_path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert log.find(RECORDS[0][0]) is None
    assert f"{path} is damaged at byte {ends_of(path)[0]}" in caplog.text


def test_a_block_of_which_more_is_claimed_than_there_can_be_is_left_out(tmp_path):
    append(tmp_path, RECORDS[:1])
    (path,) = files_of(tmp_path)
    compressor = zstandard.ZstdCompressor().compressobj(size=1 << 60)
    bomb = compressor.compress(b"row\n") + compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    with path.open("ab") as file:
        file.write(blocks.to_block(blocks.PACKED, bomb, RECORDS[1][0]))
    assert found(tmp_path) == dict(RECORDS[:1])


@pytest.mark.parametrize("first", [b"{}\n", b"no json\n", b"\n"])
def test_what_is_no_journal_is_refused(tmp_path, first):
    path = tmp_path / "journal-00000.packed"
    path.write_bytes(first)
    with pytest.raises(StageError, match=r"journal-00000\.packed is not a journal: .*Remove it"):
        opened(tmp_path)
    assert path.read_bytes() == first


def test_a_journal_of_another_version_is_refused_with_both_named(tmp_path):
    (tmp_path / "journal-00000.packed").write_bytes(blocks.to_block(blocks.HEADER, b'{"journal": 4}'))
    before = bytes_of(tmp_path)
    with pytest.raises(StageError, match=r"a journal of version 4; this version of salign reads version 3\. Choose"):
        opened(tmp_path)
    assert bytes_of(tmp_path) == before
    (tmp_path / "journal-00000.packed").unlink()
    (tmp_path / "journal-00000.jsonl").write_text('{"journal": 2}\n')
    with pytest.raises(StageError, match=r"journal-00000\.jsonl is a journal of version 2 or older; .*remove "):
        opened(tmp_path)


# --- of what it is -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [("model", "another/model"), ("run.seed", 4), ("populations", ["half_half", "all_good"])],
)
def test_a_journal_of_another_simulation_is_refused_with_the_difference(tmp_path, name, value):
    append(tmp_path, RECORDS[:2])
    before = bytes_of(tmp_path)
    with pytest.raises(ConfigError) as caught:
        opened(tmp_path, header={**HEADER, name: value})
    assert f"differs in {name} ({HEADER[name]!r} there, {value!r} now)." in str(caught.value)
    assert str(files_of(tmp_path)[0]) in str(caught.value)
    assert bytes_of(tmp_path) == before


def test_what_is_in_one_header_alone_is_a_difference(tmp_path):
    append(tmp_path, RECORDS[:2])
    with pytest.raises(ConfigError, match=r"differs in society\.wording \(None there, 'reference' now\)"):
        opened(tmp_path, header={**HEADER, "society.wording": "reference"})
    with pytest.raises(ConfigError, match=r"differs in model \('a/model' there, None now\); run\.seed \(3 there, 4 "):
        opened(tmp_path, header={"run.seed": 4, "populations": HEADER["populations"]})


def test_the_order_of_a_header_and_tuples_make_no_difference(tmp_path):
    append(tmp_path, RECORDS[:2])
    turned = {**dict(reversed(HEADER.items())), "populations": ("all_good", "half_half")}
    assert len(opened(tmp_path, None, turned)) == 2


def test_the_header_is_read(tmp_path):
    assert read_header(tmp_path) is None
    append(tmp_path, [])
    assert read_header(tmp_path) == HEADER


# --- several writers -----------------------------------------------------------------------------


def test_the_files_of_all_writers_are_read_by_all(tmp_path):
    for writer in range(3):
        append(tmp_path, RECORDS[10 * writer : 10 * writer + 5], writer, kill=writer == 1)
    expected = dict(RECORDS[:5] + RECORDS[10:15] + RECORDS[20:25])
    assert found(tmp_path) == expected
    for writer in (0, 1, 2, 3):
        log = opened(tmp_path, writer)
        assert len(log) == 15
        log.close()
    assert found(tmp_path) == expected


def test_what_another_writer_packs_meanwhile_is_found(tmp_path, monkeypatch):
    """Ranks that were killed open their files at the same time."""
    append(tmp_path, RECORDS[:5], kill=True)
    log = opened(tmp_path, 1)
    append(tmp_path, [])
    assert [log.find(key) for key, _ in RECORDS[:5]] == [row for _, row in RECORDS[:5]]
    log.close()
    append(tmp_path, RECORDS[5:10], kill=True)
    open_file = Path.open

    def packed_meanwhile(path, *args):
        if path.name == "journal-00000.new-1":
            monkeypatch.setattr(Path, "open", open_file)
            append(tmp_path, [])
        return open_file(path, *args)

    monkeypatch.setattr(Path, "open", packed_meanwhile)
    assert found(tmp_path) == dict(RECORDS[:10])


def test_another_writers_file_of_another_simulation_is_refused(tmp_path):
    append(tmp_path, RECORDS[:2])
    write_records(tmp_path / "other", {**HEADER, "run.seed": 9}, RECORDS[:2], writer=1)
    (tmp_path / "other" / "journal-00001.packed").rename(tmp_path / "journal-00001.packed")
    with pytest.raises(ConfigError, match=r"journal-00001\.packed is the journal of another simulation.*run\.seed"):
        opened(tmp_path)


# --- records that are dropped --------------------------------------------------------------------


def test_records_are_dropped_by_their_rows_from_every_file(tmp_path):
    append(tmp_path, RECORDS[:5], writer=0)
    append(tmp_path, RECORDS[5:10], writer=1, kill=True)
    before = bytes_of(tmp_path)
    assert drop_records(tmp_path, lambda row: False) == 0
    assert bytes_of(tmp_path) == before
    dropped = {row for _, row in RECORDS[3:7]}
    assert drop_records(tmp_path, dropped.__contains__) == 4
    assert found(tmp_path) == dict(RECORDS[:3] + RECORDS[7:10])
    append(tmp_path, RECORDS[3:4])
    assert records_of(tmp_path)[0] == RECORDS[0]
    assert found(tmp_path) == dict(RECORDS[:4] + RECORDS[7:10])


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


@pytest.mark.parametrize("room", [0, 1, 20, 50])
def test_a_full_disk_leaves_whole_records_and_is_said(tmp_path, monkeypatch, room):
    append(tmp_path, RECORDS[:3])
    before = bytes_of(tmp_path)
    log = opened(tmp_path)
    disk = Disk(monkeypatch, room)
    for again in (lambda: log.append(RECORDS[3:5]), lambda: log.append(RECORDS[5:6]), log.sync, log.close):
        with pytest.raises(OSError, match="No space") as caught:
            again()
        assert caught.value.errno == errno.ENOSPC
        assert caught.value.filename == str(tmp_path / "journal-00000.new-1")
        disk.room = 1 << 20
    assert bytes_of(tmp_path) == {**before, "journal-00000.new-1": b""}
    append(tmp_path, RECORDS[3:6])
    assert found(tmp_path) == dict(RECORDS[:6])


def test_a_disk_that_is_full_when_records_are_packed_keeps_them_as_they_are(tmp_path, monkeypatch):
    log = opened(tmp_path)
    for record in LARGE[:8]:
        log.append([record])
    Disk(monkeypatch, len(LARGE[8][1]) + 50)
    with pytest.raises(OSError, match="No space"):
        log.append(LARGE[8:9])
    monkeypatch.undo()
    assert found(tmp_path, LARGE) == dict(LARGE[:9])
    append(tmp_path, [])
    assert found(tmp_path, LARGE) == dict(LARGE[:9])


def test_a_disk_without_room_for_the_header_is_said_at_once(tmp_path, monkeypatch):
    disk = Disk(monkeypatch, 10)
    with pytest.raises(OSError, match="No space"):
        opened(tmp_path)
    assert bytes_of(tmp_path) == {"journal-00000.packed": b""}
    disk.room = 1 << 20
    append(tmp_path, RECORDS[:2])
    assert found(tmp_path) == dict(RECORDS[:2])


def test_a_write_that_is_cut_short_is_gone_on_with(tmp_path, monkeypatch):
    write_through = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write_through(descriptor, bytes(data[:7])))
    append(tmp_path, RECORDS[:5])
    assert found(tmp_path) == dict(RECORDS[:5])


def test_what_is_left_out_is_logged_once_at_each_opening(tmp_path, caplog):
    append(tmp_path, RECORDS[:2])
    (path,) = files_of(tmp_path)
    os.truncate(path, path.stat().st_size - 1)
    with caplog.at_level(logging.WARNING):
        opened(tmp_path).close()
    assert caplog.text.count("is torn or damaged") == 1
    caplog.clear()
    assert found(tmp_path) == {}
    assert not caplog.records
