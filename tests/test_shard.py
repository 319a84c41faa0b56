"""A shard: its marker, its resume and its replay; and ranks and schedules that change nothing, in one process."""

import asyncio
import contextlib
import functools
import json
import os
import random
import re
from collections.abc import Callable
from typing import Any

import journals
import numpy as np
import pytest
from actors import Asked, audience_of, live, text_of
from journals import bytes_of, records_of

from salign import compose, locks
from salign.config import Sampling
from salign.engines import opening
from salign.engines.base import Prompt, RatingReply, Reply
from salign.engines.gate import Gate
from salign.engines.opening import OpenEngine
from salign.engines.scripted import ScriptedEngine
from salign.errors import CallRejectedError, ConfigError, EngineError, StageError
from salign.locks import lock
from salign.logfiles import read_header
from salign.markers import DONE, read_done, read_failure
from salign.recordlog import RecordLog
from salign.records import read_interactions
from salign.run import RunDir
from salign.society import sources
from salign.society.protocols import protocol_of
from salign.society.rounds import Round
from salign.society.shard import run_shard, worlds_of
from salign.society.verdicts import Verdicts
from salign.storage import sha256

SMALL = {
    "num_worlds": 2,
    "topology": {"kind": "grid", "size": 3},
    "max_rounds": 3,
    "audience_size": 3,
    "num_initial_memories": 6,
    "populations": ["mixed_half_half", "all_bad"],
    "rating": "parse",
    "stopping": None,
}
# Of so many worlds some stop sooner than others.
STOPPING = {"num_worlds": 4, "max_rounds": 6, "stopping": {"window": 1, "min_rounds": 2, "tolerance": 1.5}}
TOPOLOGIES = {
    "grid": {"kind": "grid", "size": 3},
    "small_world": {"kind": "small_world", "num_agents": 12, "num_neighbours": 4},
    "complete": {"kind": "complete", "num_agents": 7},
}


def config_of(folder, seed=0, **society):
    return compose.parse(
        {
            "run": {"root": str(folder), "name": "run", "seed": seed},
            "engine": {"kind": "scripted"},
            "society": {**SMALL, "observer_check": None, **society},
        },
        "test",
    )


@pytest.fixture
def asked(monkeypatch):
    return Asked(monkeypatch)


def simulate(config, shard=0, **options):
    """Runs a shard; its folder and the bytes of its interactions."""
    run = RunDir(config.run.root / config.run.name)
    run_shard(run, config, shard, **options)
    folder = run.shard(shard)
    return folder, (folder / "interactions.jsonl").read_bytes()


def key_of(record):
    return record[0].hex()


def rewrite(folder, records):
    (folder / DONE).unlink(missing_ok=True)
    journals.rewrite(folder, records)


# --- the marker ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rating", ["parse", "logprob"])
def test_the_marker_says_what_was_held(tmp_path, asked, rating):
    config = config_of(tmp_path, rating=rating)
    folder, content = simulate(config)
    done = read_done(folder)
    held = list(read_interactions(folder / "interactions.jsonl"))
    assert [i.key for i in held] == [(w, r, a) for w in range(2) for r in (1, 2, 3) for a in range(9)]
    facts = done.facts
    assert facts["worlds"] == {"0": "mixed_half_half", "1": "all_bad"}
    assert facts["rounds"] == {"0": 3, "1": 3}
    assert facts["models"] == ["scripted"]
    assert facts["num_interactions"] == facts["num_held"] == len(held) == 54
    assert facts["num_calls"] == len(asked.keys) == sum(i.num_calls for i in held)
    assert facts["num_calls"] == 54 * protocol_of(config.society).max_calls
    assert facts["prompt_tokens"] == sum(i.prompt_tokens for i in held)
    assert facts["completion_tokens"] == sum(i.completion_tokens for i in held)
    kinds = {"draft": 1, "feedback": 3, "observe": 4, "revision": 1}
    if rating == "logprob":  # digits first, then words
        kinds = {"draft": 1, "observe": 4, "rating": 3, "reason": 3, "revision": 1}
    by_kind = facts["calls_by_kind"]
    assert {kind: tally["num_calls"] for kind, tally in by_kind.items()} == {
        kind: 54 * num for kind, num in kinds.items()
    }
    for name in ("num_calls", "prompt_tokens", "completion_tokens"):
        assert sum(tally[name] for tally in by_kind.values()) == facts[name]
    assert facts["num_ratings"] == 54 * (3 + 4)
    names = ("num_journaled_calls", "num_refused_calls", "num_failed", "num_missing_ratings")
    assert [facts[name] for name in (*names, "num_discarded_interactions")] == [0] * 5
    assert facts["rated_share"] == 1
    assert done.files == {
        "interactions.jsonl": {"bytes": len(content), "sha256": sha256(folder / "interactions.jsonl")}
    }
    assert sorted(path.name for path in folder.iterdir()) == [
        ".lock",
        "done.json",
        "interactions.jsonl",
        "journal-00000.packed",
        "metrics.jsonl",
    ]


def test_the_metrics_have_every_round_and_end_with_the_counts(tmp_path):
    folder, _ = simulate(config_of(tmp_path, **STOPPING))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    facts = read_done(folder).facts
    rounds = [(row["sim/world"], row["sim/round"]) for row in rows if "sim/round" in row]
    assert sorted(rounds) == [(w, r) for w in range(4) for r in range(1, facts["rounds"][str(w)] + 1)]
    ends = [(row["sim/world"], row["sim/round"], row["sim/stop"]) for row in rows if "sim/stop" in row]
    assert sorted(ends) == [(stop["world"], stop["round"], stop["why"]) for stop in facts["stops"]]
    assert [(str(world), round_) for world, round_, _ in sorted(ends)] == list(facts["rounds"].items())
    assert rows[-1]["sim/calls"] == facts["num_calls"]


def test_worlds_are_dealt_out_to_shards_in_order():
    society = config_of("/nowhere", num_worlds=7, num_shards=3).society
    assert [list(worlds_of(society, shard)) for shard in range(3)] == [[0, 1], [2, 3], [4, 5, 6]]


@pytest.mark.parametrize("rating", ["parse", "logprob"])
def test_shards_together_hold_what_one_shard_holds(tmp_path, rating):
    _, whole = simulate(config_of(tmp_path / "one", rating=rating, **STOPPING))
    cut = config_of(tmp_path / "four", rating=rating, num_shards=4, **STOPPING)
    assert b"".join(simulate(cut, shard)[1] for shard in range(4)) == whole


def test_another_seed_is_another_society(tmp_path):
    assert simulate(config_of(tmp_path / "a", seed=0))[1] != simulate(config_of(tmp_path / "b", seed=1))[1]


def test_pareto_stopping_ends_worlds_at_different_rounds(tmp_path):
    """The other tests of stopping would say nothing otherwise."""
    folder, _ = simulate(config_of(tmp_path, **STOPPING))
    rounds = read_done(folder).facts["rounds"]
    assert len(set(rounds.values())) > 1
    assert min(rounds.values()) < 6


def test_a_second_process_on_a_shard_is_refused_and_disturbs_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE_S", 0.1)
    config = config_of(tmp_path)
    folder, content = simulate(config)
    before = {path: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}
    with (
        lock(folder / ".lock", "the shard"),
        pytest.raises(StageError, match=r"shard 0 of .* is already being worked on by process \d+ on"),
    ):
        simulate(config)
    assert {path: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"} == before
    assert simulate(config)[1] == content


# --- resume --------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("rating", ["parse", "logprob"])
def test_what_any_beginning_of_a_journal_holds_is_not_asked_again(tmp_path, asked, rating):
    config = config_of(tmp_path, rating=rating)
    folder, content = simulate(config)
    facts = read_done(folder).facts
    records = records_of(folder)
    everything = sorted(asked.keys)
    assert everything == sorted(map(key_of, records))
    chance = random.Random(1)
    for number_kept in (0, 1, *chance.sample(range(2, len(records) - 1), 6), len(records) - 1, len(records)):
        rewrite(folder, records[:number_kept])
        asked.keys.clear()
        _, again = simulate(config)
        assert again == content
        assert sorted(asked.keys) == sorted(map(key_of, records[number_kept:]))
        assert read_done(folder).facts == {**facts, "num_journaled_calls": number_kept}
        assert sorted(map(key_of, records_of(folder))) == everything


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["dependency", "lockstep"])
@pytest.mark.parametrize("max_alive", [1, 1024])
def test_what_any_part_of_a_journal_holds_is_not_asked_again(tmp_path, asked, schedule, max_alive):
    """As a killed shard of several ranks, or of another schedule, may leave it."""
    config = config_of(tmp_path)
    folder, content = simulate(config)
    records = records_of(folder)
    other = config_of(tmp_path, schedule=schedule, max_alive=max_alive)
    for seed in range(4):
        chance = random.Random(seed)
        kept = chance.sample(records, chance.randrange(len(records)))
        rewrite(folder, kept)
        asked.keys.clear()
        assert simulate(other)[1] == content
        assert sorted(asked.keys) == sorted(map(key_of, set(records) - set(kept)))


@pytest.mark.slow
def test_a_society_that_stops_is_resumed_to_the_same_bytes(tmp_path, asked):
    config = config_of(tmp_path, **STOPPING)
    folder, content = simulate(config)
    records = records_of(folder)
    for seed in range(5):
        chance = random.Random(seed)
        kept = chance.sample(records, chance.randrange(len(records)))
        rewrite(folder, kept)
        asked.keys.clear()
        assert simulate(config)[1] == content
        # what is held ahead of a stop may be more or less; what was paid for is never paid for again
        assert not {*map(key_of, kept)} & {*asked.keys}
        assert len({*asked.keys}) == len(asked.keys)


def test_the_files_of_other_ranks_are_resumed_from(tmp_path, asked):
    config = config_of(tmp_path)
    folder, content = simulate(config)
    records = records_of(folder)
    third = len(records) // 3
    rewrite(folder, records[:third])
    log = RecordLog(folder, read_header(folder), 1)
    for record in records[third : 2 * third]:
        log.append([record])
    (new,) = folder.glob("journal-00001.new-*")  # as the process leaves it that is killed while it writes
    os.truncate(new, new.stat().st_size - 3)
    asked.keys.clear()
    assert simulate(config)[1] == content
    assert sorted(asked.keys) == sorted(map(key_of, records[2 * third - 1 :]))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 5}, r"run\.seed \(0 there, 5 now\)"),
        ({"audience_size": 2}, r"society\.audience_size \(3 there, 2 now\)"),
        ({"rating": "logprob"}, r"society\.rating \('parse' there, 'logprob' now\)"),
        ({"topology": {"kind": "grid", "size": 4}}, r"society\.topology\.size \(3 there, 4 now\)"),
        ({"draft": {"temperature": 0.5}}, r"society\.draft\.temperature \(1\.0 there, 0\.5 now\)"),
    ],
)
def test_a_journal_of_another_config_is_refused(tmp_path, asked, change, said):
    folder, _ = simulate(config_of(tmp_path))
    before = bytes_of(folder)
    asked.keys.clear()
    with pytest.raises(ConfigError, match=said):
        simulate(config_of(tmp_path, **change))
    assert asked.keys == []
    assert bytes_of(folder) == before
    error, code = read_failure(folder)
    assert re.search(said, error)
    assert code == 2


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        (
            {"kind": "openai", "base_url": "http://a/v1"},
            {"kind": "openai", "base_url": "http://b/v1", "num_top_logprobs": 7},
            r"differs in engine\.num_top_logprobs \(20 there, 7 now\)\.",
        ),
        (
            {"kind": "server", "program": "vllm", "num_slots": 4},
            {"kind": "server", "program": "vllm", "context_length": 8192},
            r"differs in engine\.context_length \(4096 there, 8192 now\)\.",
        ),
    ],
)
def test_a_journal_of_calls_that_were_made_otherwise_is_refused(tmp_path, monkeypatch, tiny_model, one, other, said):
    """Its answers, also refusals, would stand in the place of those that the new settings give."""

    @contextlib.asynccontextmanager
    async def opened(section, model, folder, **how):
        yield OpenEngine(ScriptedEngine(), Gate(8, adaptive=False))

    monkeypatch.setattr("salign.society.models.open_unmetered", opened)
    tree = config_of(tmp_path).model_dump(mode="json") | {"model": str(tiny_model)}  # whose weights are hashed
    simulate(compose.parse({**tree, "engine": one}, "test"))
    with pytest.raises(ConfigError, match=said):
        simulate(compose.parse({**tree, "engine": other}, "test"))


def test_an_embedder_that_moved_is_the_same(tmp_path, monkeypatch):
    asked = []

    def embed(section, texts):
        asked.append(section.base_url)
        return np.eye(len(texts), dtype=np.float32)

    monkeypatch.setattr("salign.society.memory.embed", embed)
    for port in (1, 2):
        moved = {"kind": "openai", "model": "small", "base_url": f"http://127.0.0.1:{port}/v1"}
        folder, _ = simulate(
            config_of(tmp_path, embedder=moved, gates={"min_initial_recall_share": 0.0})  # nothing is similar
        )
    assert asked == ["http://127.0.0.1:1/v1"]
    facts = read_done(folder).facts
    assert facts["num_journaled_calls"] == facts["num_calls"]


def test_a_journal_of_other_prompts_is_refused(tmp_path, monkeypatch):
    simulate(config_of(tmp_path))
    monkeypatch.setattr("salign.society.headers.PROMPTS_VERSION", "next")
    with pytest.raises(ConfigError, match=r"prompts \('\w+' there, 'next' now\)"):
        simulate(config_of(tmp_path))


def test_more_rounds_and_other_gates_go_on_with_the_same_journal(tmp_path, asked):
    """They say which calls are made, not what they say."""
    _, short = simulate(config_of(tmp_path, num_worlds=1))
    num_asked = len(asked.keys)
    folder, long = simulate(config_of(tmp_path, num_worlds=1, max_rounds=4, gates={"min_rated_share": 0.5}))
    assert long.startswith(short)
    assert len(asked.keys) == num_asked // 3 * 4
    assert read_done(folder).facts["num_journaled_calls"] == num_asked


def test_an_engine_that_fails_is_named_and_what_it_answered_is_kept(tmp_path, monkeypatch):
    config = config_of(tmp_path)
    _, content = simulate(config_of(tmp_path / "undisturbed"))
    generate, num_asked = ScriptedEngine.generate, 0

    async def failing(engine, prompt, sampling, seed):
        nonlocal num_asked
        num_asked += 1
        if num_asked == 200:
            raise EngineError("the engine is gone")
        return await generate(engine, prompt, sampling, seed)

    monkeypatch.setattr(ScriptedEngine, "generate", failing)
    with pytest.raises(EngineError, match="the engine is gone"):
        simulate(config)
    folder = RunDir(config.run.root / config.run.name).shard(0)
    assert read_failure(folder) == ("the engine is gone", 1)
    assert read_done(folder) is None
    num_kept = len(records_of(folder))
    assert 199 <= num_kept == num_asked - 1
    assert simulate(config)[1] == content
    assert read_done(folder).facts["num_journaled_calls"] == num_kept
    assert read_failure(folder) is None


def test_refused_calls_are_journaled_and_replayed(tmp_path, asked, monkeypatch):
    generate = ScriptedEngine.generate

    async def refusing(engine, prompt, sampling, seed):
        reply = await generate(engine, prompt, sampling, seed)
        if seed % 20 == 0:
            raise CallRejectedError("refused: 長すぎ\u2028")
        return reply

    monkeypatch.setattr(ScriptedEngine, "generate", refusing)
    config = config_of(tmp_path, gates={"max_failed_share": 0.5})
    folder, content = simulate(config)
    facts = read_done(folder).facts
    assert facts["num_refused_calls"] > 10
    assert facts["num_failed"] > 0
    asked.keys.clear()
    assert simulate(config, replay=True)[1] == content
    assert asked.keys == []
    replayed = read_done(folder).facts
    assert replayed == {**facts, "num_journaled_calls": facts["num_calls"]}


# --- replay --------------------------------------------------------------------------------------


@pytest.mark.parametrize("society", [{}, {"rating": "logprob"}, STOPPING], ids=["parse", "logprob", "stopping"])
def test_a_replay_gives_the_same_bytes_without_an_engine(tmp_path, monkeypatch, society):
    config = config_of(tmp_path, **society)
    folder, content = simulate(config)
    (folder / "interactions.jsonl").unlink()
    journal = bytes_of(folder)
    facts = read_done(folder)
    assert facts is None
    with monkeypatch.context() as patch:

        def refuse(*_):
            raise AssertionError("an engine was opened")

        patch.setattr(opening, "kind_of", refuse)
        assert simulate(config, replay=True)[1] == content
        assert simulate(config, replay=True)[1] == content
    facts = read_done(folder).facts
    assert facts["num_journaled_calls"] == facts["num_calls"] > 0
    assert facts["num_discarded_interactions"] == 0
    assert bytes_of(folder) == journal


def test_a_replay_that_lacks_a_call_says_so_and_leaves_what_is_complete(tmp_path):
    config = config_of(tmp_path)
    folder, content = simulate(config)
    records = records_of(folder)
    for place in (0, len(records) // 2, len(records) - 1):
        journals.rewrite(folder, [*records[:place], *records[place + 1 :]])
        with pytest.raises(StageError, match=r"the journal lacks a call of scripted.*without --replay"):
            simulate(config, replay=True)
        assert read_done(folder) is not None
        assert (folder / "interactions.jsonl").read_bytes() == content


def test_a_replay_without_a_journal_says_so_and_leaves_what_is_complete(tmp_path):
    config = config_of(tmp_path)
    with pytest.raises(StageError, match="has no journal to replay; simulate the shard first"):
        simulate(config, replay=True)
    folder, content = simulate(config)
    (folder / "journal-00000.packed").unlink()
    with pytest.raises(StageError, match="has no journal to replay"):
        simulate(config, replay=True)
    assert read_done(folder) is not None
    assert (folder / "interactions.jsonl").read_bytes() == content
    assert (folder / "metrics.jsonl").stat().st_size


def test_a_replay_of_another_config_is_refused(tmp_path):
    simulate(config_of(tmp_path))
    with pytest.raises(ConfigError, match=r"run\.seed \(0 there, 1 now\)"):
        simulate(config_of(tmp_path, seed=1), replay=True)


# --- schedules, windows and ranks ----------------------------------------------------------------


class Slow:
    """The scripted engine, whose calls take virtual seconds of chance, many of them none."""

    identity = "scripted"

    def __init__(self, seed):
        self._engine = ScriptedEngine()
        self._chance = random.Random(seed)
        self.most_in_flight = self._in_flight = 0

    async def _wait(self):
        self._in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self._in_flight)
        await asyncio.sleep((int(self._chance.paretovariate(0.7)) - 1) % 50 / 50)
        self._in_flight -= 1

    async def generate(self, prompt: Prompt, sampling: Sampling, seed: int) -> Reply:
        await self._wait()
        return await self._engine.generate(prompt, sampling, seed)

    async def rate(self, prompt: Prompt, seed: int) -> RatingReply:
        await self._wait()
        return await self._engine.rate(prompt, seed)

    def facts(self):
        return {}


def on_ranks(config, num_ranks, seed, max_in_flight=64):
    """What shard 0 records where so many ranks simulate it, and the engine."""
    society = config.society
    engine = Slow(seed)
    life = live(
        engine,
        numbers=worlds_of(society, 0),
        num_ranks=num_ranks,
        gate=max_in_flight,
        society=society,
        seed=config.run.seed,
        questions=sources.questions(society.questions),
        prior=sources.load(society.prior),
    )
    return life, engine


def asked_again(folder):
    """A society of few questions, where everybody always remembers something: what is remembered when shows."""
    questions = folder / "questions.txt"
    questions.write_text("".join(f"What should I say to my {who}?\n" for who in ("sister", "boss", "friend", "child")))
    return {"questions": {"kind": "text", "path": str(questions)}, "max_recall_distance": 2.0, **STOPPING}


def test_agents_recall_their_own_answers_of_the_round_before(tmp_path):
    """The tests of timing would say nothing otherwise."""
    folder, _ = simulate(config_of(tmp_path, **asked_again(tmp_path)))
    held = list(read_interactions(folder / "interactions.jsonl"))
    revised = {(i.world, i.round, i.agent): text_of(i, "revision") for i in held}
    fresh = [
        item
        for i in held
        for item in audience_of(i)
        if item.recalled.answer == revised.get((i.world, i.round - 1, item.agent))
    ]
    assert len(fresh) > 10


@pytest.fixture(scope="module")
def in_lockstep(tmp_path_factory) -> Callable[[str], tuple[dict[str, Any], dict[int, int], bytes]]:
    """A society's settings, each world's last round and its record, by one process in lockstep; once a topology."""

    @functools.cache
    def simulated(topology: str) -> tuple[dict[str, Any], dict[int, int], bytes]:
        folder = tmp_path_factory.mktemp(topology)
        changes = {**asked_again(folder), "topology": TOPOLOGIES[topology]}
        shard, content = simulate(config_of(folder, schedule="lockstep", **changes))
        return changes, {int(world): last for world, last in read_done(shard).facts["rounds"].items()}, content

    return simulated


@pytest.mark.slow
@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_no_timing_of_calls_and_messages_changes_the_bytes(tmp_path, in_lockstep, topology, num_ranks):
    changes, rounds, content = in_lockstep(topology)
    ways = [("dependency", 1024), ("dependency", 3), ("lockstep", 1024), ("dependency", 1)]
    # Half of them each; the other half of the same topology with another number of ranks.
    for seed, (schedule, max_alive) in list(enumerate(ways))[(num_ranks + len(topology)) % 2 :: 2]:
        config = config_of(tmp_path, schedule=schedule, max_alive=max_alive, **changes)
        life, _ = on_ranks(config, num_ranks, seed)
        assert life.simulation.last_rounds == rounds, seed
        assert life.file == content, seed
        assert life.simulation.validity.num_interactions == content.count(b"\n"), seed


def test_more_ranks_than_agents_leave_some_without_work(tmp_path):
    changes = {"topology": {"kind": "complete", "num_agents": 2}, "audience_size": 1, **STOPPING}
    _, content = simulate(config_of(tmp_path, **changes))
    for schedule in ("dependency", "lockstep"):
        life, _ = on_ranks(config_of(tmp_path, schedule=schedule, **changes), 3, 0)
        assert life.file == content


@pytest.mark.parametrize("max_in_flight", [1, 5])
def test_no_more_calls_are_in_flight_than_allowed(tmp_path, max_in_flight):
    config = config_of(tmp_path)
    _, content = simulate(config)
    life, engine = on_ranks(config, 1, 0, max_in_flight)
    assert life.file == content
    assert engine.most_in_flight == max_in_flight


def part_of(world, number, agents, rating):
    ratings = dict.fromkeys(range(4), rating)
    observed = {
        ("revision", criterion): {agent: (rating,) for agent, rating in ratings.items()}
        for criterion in ("alignment", "engagement")
    }
    return Round(world.number, number, num_interactions=agents, observed=observed)


class Numbered:
    number, num_agents = 0, 4

    @staticmethod
    def num_interactions(round_):
        return 4


def test_nothing_is_decided_after_the_end_of_a_world():
    """Another rank's part of a later round may arrive after the part that ended the world."""
    society = config_of("/nowhere", **STOPPING).society
    verdicts = Verdicts(society, [Numbered])
    assert verdicts.take(part_of(Numbered, 1, 4, 5.0))[0].stop is None
    assert verdicts.take(part_of(Numbered, 2, 2, 5.0)) == []
    assert verdicts.take(part_of(Numbered, 3, 2, 6.0)) == []
    (verdict,) = verdicts.take(part_of(Numbered, 2, 2, 5.0))
    assert (verdict.round.number, verdict.stop.why) == (2, "no improvement")
    assert verdict.stop.facts()["gain"] == verdict.gain.facts()
    assert verdicts.stops == {0: verdict.stop}
    assert verdicts.take(part_of(Numbered, 3, 2, 6.0)) == []
    assert verdicts.validity.num_interactions == 8


# --- what is recalled, and who hears whom ----------------------------------------------------------


def test_the_marker_says_what_was_recalled_by_round_and_source(tmp_path):
    folder, _ = simulate(config_of(tmp_path, max_rounds=3, stopping=None))
    held = list(read_interactions(folder / "interactions.jsonl"))
    recall = read_done(folder).facts["recall"]
    assert recall["recall_share"] == 0.9
    assert 0 < recall["max_distance"] <= 1
    for number in (1, 2, 3):
        drafts = [item.turn("draft") for item in held if item.round == number]
        said = recall["draft"]["rounds"][str(number)]
        for source in ("initial", "own"):
            of_source = [turn for turn in drafts if turn.recalled is not None and turn.recalled.source == source]
            assert said[f"{source}_share"] == pytest.approx(len(of_source) / len(drafts), abs=1e-4)
    assert recall["draft"]["rounds"]["1"]["own_share"] == 0.0
    assert recall["draft"]["rounds"]["1"]["initial_share"] > 0.5
    assert recall["feedback"]["num_turns"] == sum(len(item.turns_of("feedback")) for item in held)
    distances = [turn.recalled.distance for item in held for turn in item.turns if turn.recalled is not None]
    assert max(distances) < recall["max_distance"]


def test_a_shard_whose_agents_would_not_recall_is_refused_before_its_first_call(tmp_path, asked):
    questions = tmp_path / "questions.txt"
    questions.write_text("".join(f"xx{number} yy{number} zz{number}\n" for number in range(20)))
    strange = {"questions": {"kind": "text", "path": str(questions)}}
    with pytest.raises(ConfigError, match=r"would recall what they start with in \d.\d% .*Choose another"):
        simulate(config_of(tmp_path, **strange))
    assert not asked.keys
    simulate(config_of(tmp_path, **strange, gates={"min_initial_recall_share": 0.0}))


@pytest.mark.parametrize(
    "topology",
    [
        {"kind": "small_world", "num_agents": 12, "num_neighbours": 4},
        {"kind": "scale_free", "num_agents": 12, "num_links": 2},
    ],
)
def test_a_society_on_a_graph_that_was_drawn_can_be_run_again_from_its_file(tmp_path, topology):
    settings = {"num_worlds": 1, "audience_size": 2, "max_rounds": 2, "stopping": None}
    folder, drawn = simulate(config_of(tmp_path, topology=topology, **settings))
    done = read_done(folder)
    assert done.facts["graphs"] == ["graphs/world-00000.txt"]
    assert set(done.files) == {"interactions.jsonl", "graphs/world-00000.txt"}
    path = tmp_path / "links.txt"
    path.write_bytes((folder / "graphs/world-00000.txt").read_bytes())
    again = config_of(tmp_path, topology={"kind": "edges", "path": str(path)}, **settings)
    run = again.run.model_copy(update={"name": "again"})
    folder, from_file = simulate(again.model_copy(update={"run": run}))
    assert from_file == drawn
    assert read_done(folder).facts["graphs"] == []


# --- the observer --------------------------------------------------------------------------------


def test_the_first_shard_measures_the_observer_and_counts_it_apart(tmp_path, asked):
    config = config_of(tmp_path, observer_check={"num_pairs": 4}, rating="logprob")
    folder, content = simulate(config)
    facts = read_done(folder).facts
    num_society = facts["num_calls"]
    assert len(asked.keys) == num_society + 8
    observer = facts["observer"]
    assert observer["model"] == "scripted"
    assert (observer["num_pairs"], observer["num_rated_pairs"], observer["chance"]) == (4, 4, 0.5)
    assert observer["digit_mass_median"] == 1.0
    asked.keys.clear()
    (folder / "done.json").unlink()
    _, again = simulate(config)
    assert again == content
    assert asked.keys == []  # all is in the journal
    assert read_done(folder).facts["observer"] == observer


def test_the_check_changes_nothing_else_and_may_fail_the_run(tmp_path, caplog):
    _, without = simulate(config_of(tmp_path / "a"))
    _, content = simulate(config_of(tmp_path / "b", observer_check={"num_pairs": 3}))
    assert content == without
    assert "is no better than a coin" in caplog.text
    config = config_of(tmp_path / "c", observer_check={"num_pairs": 36, "min_agreement": 1.0})
    with pytest.raises(StageError, match=r"society\.observer_check\.min_agreement = 100%"):
        simulate(config)
