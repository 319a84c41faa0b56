"""Replies that depend on nothing else that is asked: measured of any engine, and made so in the process."""

import asyncio
import json

import pytest

from salign import compose
from salign.config import ServerEngine, TransformersEngine
from salign.engines import programs
from salign.engines.base import RatingReply, Reply
from salign.engines.capabilities import deciding
from salign.engines.determinism import NUM_CALLS, measure
from salign.engines.opening import open_engine, open_unmetered
from salign.errors import ConfigError
from salign.markers import read_done
from salign.run import RunDir
from salign.society.shard import run_shard


class Batched:
    """Says how many calls were in flight when it was asked, if `depends`; otherwise the prompt."""

    identity = "batched"

    def __init__(self, depends, repeats=True):
        self.depends, self.repeats = depends, repeats
        self.now = self.num_calls = 0

    async def _together(self):
        self.now += 1
        self.num_calls += 1
        await asyncio.sleep(0)
        seen = self.now
        await asyncio.sleep(0)
        self.now -= 1
        return seen if self.depends else 1

    async def generate(self, prompt, sampling, seed):
        seen = await self._together()
        return Reply(f"{prompt.user} {seed} {seen} {0 if self.repeats else self.num_calls}", 1, 1)

    async def rate(self, prompt, seed):
        seen = await self._together()
        return RatingReply((1 - 0.01 * seen, 0.01 * seen, 0, 0, 0, 0, 0), 1.0, 1, 1)

    def facts(self):
        return {}


@pytest.mark.parametrize(
    ("depends", "repeats", "others", "unrepeated", "shift"),
    [(False, True, 0, 0, 0.0), (True, True, NUM_CALLS, 0, 0.04), (False, False, NUM_CALLS, NUM_CALLS, 0.0)],
)
def test_what_depends_on_the_batch_is_counted(depends, repeats, others, unrepeated, shift):
    found = asyncio.run(measure(Batched(depends, repeats), "logprob"))
    assert (found.num_other_texts, found.num_unrepeated_texts) == (others, unrepeated)
    assert found.rating_shift == pytest.approx(shift)
    assert found.holds == (not depends and repeats)
    assert asyncio.run(measure(Batched(depends, repeats), "parse")).rating_shift is None


@pytest.mark.slow
def test_a_run_measures_once_and_its_facts_say_it(tiny_model, tmp_path):
    section = TransformersEngine(device="cpu", batch_invariant=True, probe="determinism")

    async def facts():
        async with open_unmetered(section, str(tiny_model), tmp_path, ratings="logprob", kept=tmp_path) as (engine, _):
            return engine.facts(), engine.num_prompt_tokens

    first, num_tokens = asyncio.run(facts())
    again, none = asyncio.run(facts())
    assert first["determinism"] == again["determinism"]
    assert first["determinism"] == {
        "num_texts": 16,
        "num_other_texts": 0,
        "num_unrepeated_texts": 0,
        "rating_shift": 0.0,
    }
    assert first["calls"] == "alone"
    assert (num_tokens > 0, none) == (True, 0)
    assert "determinism" not in deciding(first)  # a journal may be continued whatever is measured
    (kept,) = tmp_path.glob("determinism-*.json")
    kept.write_text("{}")
    with pytest.raises(ConfigError, match="is not a valid measurement of determinism"):
        asyncio.run(facts())


def config_of(folder, model, **engine):
    society = {"num_worlds": 1, "topology": {"kind": "grid", "size": 2}, "max_rounds": 1, "audience_size": 2}
    short = {name: {"max_tokens": 6} for name in ("draft", "feedback", "revision")}
    engine = {"kind": "transformers", "device": "cpu", "dtype": "bfloat16", **engine}
    gates = {"min_digit_mass": 0, "min_rating_sd": 0, "max_flagged_share": 1, "max_cut_share": 1}
    gates |= {"max_repeated_share": 1, "min_initial_recall_share": 0, "max_failed_share": 1}
    tree = {"run": {"root": str(folder), "name": "run"}, "model": str(model), "engine": engine}
    tree["society"] = {**society, **short, "gates": gates, "observer_check": None, "stopping": None}
    return compose.parse(tree, "test")


def simulated(folder, model, **engine) -> bytes:
    config = config_of(folder, model, **engine)
    run = RunDir(config.run.root / config.run.name)
    run_shard(run, config, 0)
    assert read_done(run.shard(0)).facts["num_calls"] > 0
    return (run.shard(0) / "interactions.jsonl").read_bytes()


@pytest.mark.slow
def test_a_society_of_a_model_in_16_bits_is_the_same_for_any_batch_and_after_a_restart(tiny_model, tmp_path):
    """A real model in bfloat16, whose rounding is coarse: nothing of it depends on which calls meet."""
    alone = simulated(tmp_path / "alone", tiny_model, batch_invariant=True, max_batch=1, max_in_flight=1)
    together = simulated(tmp_path / "together", tiny_model, batch_invariant=True, max_batch=16)
    assert alone == together
    # a restart: half of the journal is lost, and its calls are made again among others
    run = RunDir(tmp_path / "together" / "run")
    (journal,) = run.shard(0).glob("journal-*")
    journal.write_bytes(journal.read_bytes()[: journal.stat().st_size // 2])
    (run.shard(0) / "done.json").unlink()
    assert simulated(tmp_path / "together", tiny_model, batch_invariant=True, max_batch=3) == alone


def test_a_lone_call_s_logits_are_those_of_plain_generation(tiny_model, tmp_path):
    from salign.config import Sampling
    from salign.engines.base import Prompt

    async def said(**settings):
        section = TransformersEngine(device="cpu", **settings)
        async with open_engine(section, str(tiny_model), tmp_path) as engine:
            calls = [
                engine.generate(Prompt(f"{n} and {n}?"), Sampling(temperature=0, max_tokens=8), n) for n in range(6)
            ]
            return [reply.text for reply in await asyncio.gather(*calls)]

    assert asyncio.run(said(batch_invariant=True)) == asyncio.run(said())


# --- programs ------------------------------------------------------------------------------------


def test_vllm_is_switched_by_its_variable_and_looks_up_by_its_option(tiny_model, monkeypatch):
    monkeypatch.setattr(programs.shutil, "which", lambda *_, **__: "/bin/vllm")

    def started(**settings):
        program = programs.program_of(ServerEngine(kind="server", program="vllm", **settings), str(tiny_model))
        return program.environment(1, "k"), program.command(1)

    plain, command = started()
    assert "VLLM_BATCH_INVARIANT" not in plain
    assert "--speculative-config" not in command
    environment, command = started(batch_invariant=True, speculation="prompt_lookup")
    assert environment["VLLM_BATCH_INVARIANT"] == "1"
    assert json.loads(command[command.index("--speculative-config") + 1])["method"] == "ngram"


def test_llama_cpp_writes_one_reply_at_a_time_and_keeps_no_prompt(tmp_path):
    pytest.importorskip("xllamacpp")
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF")

    def settings(**more):
        section = ServerEngine(kind="server", program="llama_cpp", num_slots=8, **more)
        (text,) = programs.program_of(section, str(gguf)).environment(1, "k").values()
        return json.loads(text)

    plain, one = settings(), settings(batch_invariant=True, speculation="prompt_lookup")
    assert (plain["num_slots"], plain["keeps_prompts"], plain["looks_up"]) == (8, True, False)
    assert (one["num_slots"], one["keeps_prompts"], one["looks_up"]) == (1, False, True)
