"""Calls of other runs: found by their content, never paid for again, and never asked of a journal of other answers."""

import os
import random
import shutil

import pytest
from actors import SMALL_RUN, Asked
from journals import bytes_of, records_of, rewrite, write_records

from salign import compose
from salign.engines.reuse import check_reuse, open_reused
from salign.engines.scripted import ScriptedEngine
from salign.errors import ConfigError, StageError
from salign.logfiles import read_header
from salign.markers import read_done
from salign.recordlog import RecordLog
from salign.run import RunDir
from salign.society.shard import run_shard


def config_of(folder, name, reuse=(), **society):
    tree = {
        "run": {"root": str(folder), "name": name},
        "engine": {"kind": "scripted"},
        "society": {**SMALL_RUN, **society},
        "reuse": [str(folder / other) for other in reuse],
    }
    return compose.parse(tree, "test")


def simulate(config, shard=0, **options):
    """Runs a shard; its facts, and the bytes of its interactions."""
    run = RunDir(config.run.root / config.run.name)
    run_shard(run, config, shard, **options)
    return read_done(run.shard(shard)).facts, (run.shard(shard) / "interactions.jsonl").read_bytes()


@pytest.fixture
def asked(monkeypatch):
    return Asked(monkeypatch)


# Drafts are as before, and most feedback: what is revised in round 1 is not, nor what follows from it.
CHANGED = {"revision": {"max_tokens": 9}}


def test_a_changed_revision_pays_for_what_is_new_alone_and_comes_to_the_same_bytes(tmp_path, asked):
    simulate(config_of(tmp_path, "first"))
    before, asked.keys = set(asked.keys), []
    alone = simulate(config_of(tmp_path, "alone", **CHANGED))
    all_of_it, asked.keys = set(asked.keys), []
    facts, content = simulate(config_of(tmp_path, "second", ["first"], **CHANGED))
    assert set(asked.keys) == all_of_it - before
    assert len(asked.keys) == len(set(asked.keys)) < len(all_of_it)
    assert content == alone[1]
    num_reused = len(all_of_it & before)
    assert facts["reused_calls"] == {str(tmp_path / "first"): num_reused}
    assert facts["num_journaled_calls"] == num_reused
    assert alone[0]["reused_calls"] == {}


def test_another_cut_into_shards_and_more_rounds_are_found_all_the_same(tmp_path, asked):
    for shard in (0, 1):
        simulate(config_of(tmp_path, "first", num_shards=2), shard)
    before, asked.keys = set(asked.keys), []
    simulate(config_of(tmp_path, "second", ["first"], max_rounds=3))
    assert asked.keys
    assert not before.intersection(asked.keys)


def test_what_was_reused_is_the_runs_own_from_then_on(tmp_path, asked):
    simulate(config_of(tmp_path, "first"))
    facts, content = simulate(config_of(tmp_path, "second", ["first"]))
    shutil.rmtree(tmp_path / "first")
    asked.keys.clear()
    config = config_of(tmp_path, "second")
    assert simulate(config, replay=True) == ({**facts, "num_journaled_calls": facts["num_calls"]}, content)
    assert asked.keys == []
    (tmp_path / "second" / "simulate" / "shard-00000" / "done.json").unlink()
    again, _ = simulate(config)
    assert again["reused_calls"] == facts["reused_calls"] == {str(tmp_path / "first"): facts["num_calls"]}
    assert asked.keys == []


def test_a_run_at_work_is_only_read_and_what_it_has_not_packed_is_found_too(tmp_path, asked):
    config = config_of(tmp_path, "first")
    simulate(config)
    num_calls, folder = len(asked.keys), tmp_path / "first" / "simulate" / "shard-00000"
    records, header = records_of(folder), read_header(folder)
    for file in folder.glob("journal-*"):
        file.unlink()
    log = RecordLog(folder, header, 0)  # as another process has it open
    log.append(records[:20])
    before = bytes_of(folder)
    asked.keys.clear()
    facts, _ = simulate(config_of(tmp_path, "second", ["first"]))
    assert bytes_of(folder) == before
    assert facts["reused_calls"] == {str(tmp_path / "first"): 20}
    assert len(asked.keys) == num_calls - 20
    log.append(records[20:])
    log.close()


# --- what cannot be reused -----------------------------------------------------------------------


def test_a_model_of_other_weights_is_refused_with_both_names(tmp_path, monkeypatch):
    simulate(config_of(tmp_path, "first"))
    monkeypatch.setattr(ScriptedEngine, "identity", "another@1234")
    with pytest.raises(ConfigError, match=r"can answer no call of this run: its models are scripted, .* another@1234"):
        simulate(config_of(tmp_path, "second", ["first"]))


def test_a_model_that_is_asked_otherwise_is_refused(tmp_path):
    simulate(config_of(tmp_path, "first"))
    folder = tmp_path / "first" / "simulate" / "shard-00000"
    header, records = read_header(folder), records_of(folder)
    for file in folder.glob("journal-*"):
        file.unlink()
    write_records(folder, {**header, "engine.context_length": 2048}, records)
    with pytest.raises(ConfigError, match="scripted has context_length 2048 there and None here"):
        simulate(config_of(tmp_path, "second", ["first"]))


def test_what_is_no_run_of_calls_is_refused_before_anything_starts(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="empty has no journal of model calls"):
        check_reuse(config_of(tmp_path, "second", ["empty"]))
    with pytest.raises(ConfigError, match="reuse names the run itself"):
        check_reuse(config_of(tmp_path, "second", ["second"]))
    old = tmp_path / "old" / "simulate" / "shard-00000" / "journal-00000.jsonl"
    old.parent.mkdir(parents=True)
    old.touch()
    with pytest.raises(ConfigError, match=r"is a journal of version 2 or older.* Take .*old out of reuse"):
        check_reuse(config_of(tmp_path, "second", ["old"]))


def test_a_record_that_is_no_answer_and_one_that_is_lost_are_asked_for_again(tmp_path, asked):
    simulate(config_of(tmp_path, "first"))
    folder = tmp_path / "first" / "simulate" / "shard-00000"
    num_calls, records = len(asked.keys), records_of(folder)
    rewrite(folder, [(records[0][0], b"[]"), (records[1][0], b'{"refused":"too long"}'), *records[3:]])
    asked.keys.clear()
    facts, _ = simulate(config_of(tmp_path, "second", ["first"]))
    assert set(asked.keys) == {key.hex() for key, _ in records[:3]}
    assert facts["reused_calls"] == {str(tmp_path / "first"): num_calls - 3}


# --- the index -----------------------------------------------------------------------------------


def test_an_index_takes_little_is_shared_and_made_again_once_there_is_more(tmp_path):
    first, kept = tmp_path / "first", tmp_path / "kept"
    folder, header = first / "simulate" / "shard-00000", {"model": "m", "engine.kind": "scripted"}
    keys = [random.Random(number).randbytes(16) for number in range(3_000)]
    write_records(folder, header, [(key, b'{"text":"t","tokens":[1,1]}') for key in keys[:2_000]])

    def found():
        [run] = open_reused([first], header, kept)
        return sum(run.records.find(key) is not None for key in keys)

    assert found() == 2_000
    [index] = [path for path in kept.iterdir() if path.is_dir()]
    assert sum(file.stat().st_size for file in index.iterdir()) / 2_000 < 20
    write_records(folder, header, [(key, b'{"text":"t","tokens":[1,1]}') for key in keys[2_000:]], writer=1)
    assert found() == 2_000  # as other shards of this run have it, for some minutes
    os.utime(index, (0, 0))
    assert found() == 3_000
    [newer] = [path for path in kept.iterdir() if path.is_dir() and path != index]
    (newer / "keys.npy").write_bytes(b"torn")
    with pytest.raises(StageError, match=r"is damaged .*Remove it"):
        found()
