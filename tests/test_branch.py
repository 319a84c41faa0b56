"""Runs that begin with another run's rounds: these cost nothing, are its own to the byte, and must be such that fit."""

import json

import pytest
from actors import SMALL_RUN, Asked

from salign import compose
from salign.engines.scripted import ScriptedEngine
from salign.errors import CallRejectedError, ConfigError
from salign.manifest import create_run
from salign.markers import read_done
from salign.run import RunDir
from salign.society.branch import check_branch
from salign.society.headers import journal_header
from salign.society.shard import run_shard

TOLD = {"name": "told", "from_round": 3, "instructions": "Be brief."}
CHANGES = [
    {"interventions": [TOLD]},
    {"audience_size": 3, "revision": {"max_tokens": 9}},
    {"observer": {"kind": "scripted", "max_in_flight": 3}, "without": ["feedback_text"], "rating": "logprob"},
    {"survey": {"questions": [{"name": "trust", "wording": "Trust? From 1 to 7."}]}, "reflection": {"every": 1}},
]


def config_of(folder, name, branch=None, **society):
    tree = {
        "run": {"root": str(folder), "name": name},
        "engine": {"kind": "scripted"},
        "society": {**SMALL_RUN, "max_rounds": 3, **society},
    }
    if branch is not None:
        other, after_round = branch
        tree["society"]["branch"] = {"run": str(folder / other), "after_round": after_round}
    return compose.parse(tree, "test")


def simulate(config, **options):
    """Simulates all shards; their facts, and the lines of all interactions with (world, round)."""
    run, facts, lines = create_run(config), [], []
    check_branch(config)
    for shard in range(config.society.num_shards):
        run_shard(run, config, shard, **options)
        facts.append(read_done(run.shard(shard)).facts)
        lines += (run.shard(shard) / "interactions.jsonl").read_bytes().splitlines()
    return facts, [((row["world"], row["round"]), line) for line in lines for row in [json.loads(line)]]


def up_to(last, held):
    return [one for one in held if one[0][1] <= last]


@pytest.fixture
def asked(monkeypatch):
    return Asked(monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: ",".join(change))
@pytest.mark.parametrize("memory", ["answers", "stream"])
def test_the_common_rounds_are_the_other_runs_and_no_call_of_them_is_made(tmp_path, asked, change, memory):
    remembered = {"memory": {"kind": memory}, "max_recall_distance": 2.0}
    _, first = simulate(config_of(tmp_path, "first", num_shards=2, **remembered))
    before, asked.keys = set(asked.keys), []
    settings = {**remembered, **change}
    [facts], second = simulate(config_of(tmp_path, "second", ("first", 2), **settings))
    assert up_to(2, second) == up_to(2, first)
    assert second != first
    num_common = sum(json.loads(line)["num_calls"] for _, line in up_to(2, first))
    total = sum(json.loads(line)["num_calls"] for _, line in second)
    assert facts["num_journaled_calls"] >= num_common
    assert len(asked.keys) == len(set(asked.keys)) == facts["num_calls"] - facts["num_journaled_calls"]
    assert total == facts["num_calls"] > num_common
    assert not before.intersection(asked.keys)


def test_a_branch_is_resumed_replayed_and_branched_from(tmp_path, asked, monkeypatch):
    simulate(config_of(tmp_path, "first"))
    second = config_of(tmp_path, "second", ("first", 1), audience_size=3)
    _, held = simulate(second)
    asked.keys = []
    assert simulate(second)[1] == held  # from its own journal
    assert not asked.keys
    assert simulate(second, replay=True)[1] == held
    third = config_of(tmp_path, "third", ("second", 2), audience_size=1, max_rounds=4)
    facts, went_on = simulate(third)
    assert up_to(2, went_on) == up_to(2, held)
    assert facts[0]["reused_calls"].keys() == {str(tmp_path / "second")}


def test_what_was_refused_in_the_common_rounds_stays_refused(tmp_path, asked, monkeypatch):
    generate = ScriptedEngine.generate

    async def refusing(engine, prompt, sampling, seed):
        if seed % 5 == 0:
            raise CallRejectedError("refused")
        return await generate(engine, prompt, sampling, seed)

    gates = {"gates": {"max_refused_call_share": 1, "max_failed_share": 1, "min_rated_share": 0}}
    with monkeypatch.context() as here:
        here.setattr(ScriptedEngine, "generate", refusing)
        _, first = simulate(config_of(tmp_path, "first", **gates))
    branched = config_of(tmp_path, "second", ("first", 2), **gates)
    _, second = simulate(branched)
    assert up_to(2, second) == up_to(2, first)
    assert any(json.loads(line)["failure"] for _, line in up_to(2, second))
    assert simulate(branched, replay=True)[1] == second


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"topology": {"kind": "grid", "size": 4}}, r"society.topology.size \(4 here, 3 there\)"),
        ({"populations": ["all_bad"]}, "society.populations"),
        ({"num_initial_memories": 5}, r"society.num_initial_memories \(5 here, 6 there\)"),
        ({"memory": {"kind": "stream"}}, "society.memory.kind"),
        ({"protocol": {"kind": "sample"}}, "society.protocol.kind"),
        ({"num_worlds": 3}, "has 2 worlds, and society.num_worlds is 3"),
        (
            {"interventions": [{**TOLD, "from_round": 2}]},
            r"told begins in round 2, .* begin in round 3 or later",
        ),
        ({"mixture": [{"name": "some", "share": 0.5}]}, "society.mixture"),
        ({"without": ["memory"]}, "society.without memory"),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value),
)
def test_what_differs_before_the_branch_is_an_error_before_anything_is_paid_for(tmp_path, change, said):
    simulate(config_of(tmp_path, "first"))
    with pytest.raises(ConfigError, match=said):
        check_branch(config_of(tmp_path, "second", ("first", 2), **change))


def test_a_run_that_is_none_or_is_not_over_or_ended_sooner_is_refused(tmp_path, monkeypatch):
    first = config_of(tmp_path, "first", num_shards=2)
    with pytest.raises(ConfigError, match="is no run's folder"):
        check_branch(config_of(tmp_path, "second", ("first", 2)))
    create_run(first)
    run_shard(RunDir(tmp_path / "first"), first, 0)
    with pytest.raises(ConfigError, match=r"world 1 of .*first is not simulated to its end"):
        check_branch(config_of(tmp_path, "second", ("first", 2)))
    check_branch(config_of(tmp_path, "second", ("first", 2), num_worlds=1))
    with pytest.raises(ConfigError, match=r"world 0 of .*first ended with round 3, before .*after_round = 4"):
        check_branch(config_of(tmp_path, "second", ("first", 4), num_worlds=1, max_rounds=9))
    with pytest.raises(ConfigError, match="branch names the run itself"):
        check_branch(config_of(tmp_path, "first", ("first", 2)))
    with pytest.raises(ConfigError, match="leaves no round to simulate"):
        config_of(tmp_path, "second", ("first", 3))
    monkeypatch.setattr("salign.society.branch.PROMPTS_VERSION", "99")
    with pytest.raises(ConfigError, match="prompts of version 4, and this code has version 99"):
        check_branch(config_of(tmp_path, "second", ("first", 2), num_worlds=1))


def test_another_branch_is_another_journal(tmp_path):
    simulate(config_of(tmp_path, "first"))
    simulate(config_of(tmp_path, "other", audience_size=1))
    headers = [
        journal_header(config_of(tmp_path, "second", branch), ["m", "o"])
        for branch in (None, ("first", 1), ("first", 2), ("other", 1))
    ]
    assert len({json.dumps(header) for header in headers}) == 4
