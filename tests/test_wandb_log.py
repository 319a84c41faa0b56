"""W&B's logs are read as far as they stand whole, wherever the writer was killed."""

import struct

import pytest

from salign.errors import DataError
from salign.tracking.wandb_log import history, history_rows, read_fragment, records

BLOCK = 32768


def log_of(payloads: list[bytes]) -> bytes:
    """LevelDB's log format, written as plainly as it can be."""
    log = bytearray(b":W&B" + struct.pack("<HB", 0xBEE1, 0))
    for payload in payloads:
        begun = False
        while True:
            left = BLOCK - len(log) % BLOCK
            if left < 7:
                log += bytes(left)
                continue
            part, payload = payload[: left - 7], payload[left - 7 :]
            kind = {(False, True): 1, (False, False): 2, (True, False): 3, (True, True): 4}[begun, not payload]
            log += struct.pack("<IHB", 0, len(part), kind) + part
            begun = True
            if not payload:
                break
    return bytes(log)


@pytest.fixture(scope="module")
def payloads() -> list[bytes]:
    """A run, rows of which some are larger than a block, and its end."""
    from wandb.proto import wandb_internal_pb2 as pb

    run = pb.Record()
    run.run.run_id, run.run.project = "train-x", "salign"
    made = [run]
    for step in range(30):
        row = pb.Record()
        item = row.history.item.add()
        item.nested_key.extend(["train", "global_step"])
        item.value_json = str(step)
        text = row.history.item.add()
        text.key, text.value_json = "text", f'"{"x" * (40_000 if step % 7 == 3 else step * 500)}"'
        made.append(row)
    end = pb.Record()
    end.exit.exit_code = 0
    return [record.SerializeToString() for record in [*made, end]]


def test_rows_come_back_also_where_they_are_larger_than_a_block(tmp_path, payloads):
    path = tmp_path / "run-x.wandb"
    path.write_bytes(log_of(payloads))
    assert history(path, "train/global_step") == list(range(30))
    assert [len(row["text"]) for row in history_rows(path)][:5] == [0, 500, 1000, 40_000, 2000]
    found = read_fragment(path)
    assert (found.id, found.project, found.num_rows, found.ended) == ("train-x", "salign", 30, True)


def test_a_log_that_ends_anywhere_gives_what_stands_whole(tmp_path, payloads):
    path, whole = tmp_path / "run-x.wandb", log_of(payloads)
    ends = [len(log_of(payloads[:count])) for count in range(len(payloads) + 1)]
    for cut in [*range(0, 300), *range(300, len(whole), 997), *ends]:
        path.write_bytes(whole[:cut])
        assert len(list(records(path))) == max((n for n, end in enumerate(ends) if end <= cut), default=0)
    path.write_bytes(whole[: ends[-2]])
    assert not read_fragment(path).ended


def test_another_file_is_no_log(tmp_path):
    path = tmp_path / "run-x.wandb"
    path.write_bytes(b"something else")
    with pytest.raises(DataError, match="is not a W&B log"):
        list(records(path))
