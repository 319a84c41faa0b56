"""Models that score: exact against a plain computation, mapped onto the scale by pairs, refused where they cannot."""

import asyncio
import json
import shutil

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from tiny import make_model

from salign import compose
from salign.chat import chat_template, conversation
from salign.config import Config, ImplicitReward, RewardModel
from salign.engines import scorers
from salign.engines.base import SHARES, Prompt
from salign.engines.scorers import check_scorer, log_probability, open_scorer, platt
from salign.errors import CallRejectedError, ConfigError
from salign.evaluation.evaluate import evaluate
from salign.manifest import create_run
from salign.markers import read_done
from salign.models import load_model, load_tokenizer
from salign.records import read_interactions
from salign.run import RunDir
from salign.society import models, shard

PAIRS = [(f"Question {n}?", f"a kind answer {n}", f"bad {n}") for n in range(12)]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("models") / "base")


def copied(model, name):
    folder = model.with_name(name)
    shutil.rmtree(folder, ignore_errors=True)
    return shutil.copytree(model, folder)


@pytest.fixture(scope="module")
def trained(base):
    """The same model with other weights."""
    folder = copied(base, "trained")
    model = load_model(str(base), torch.float32)
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.02 * torch.randn_like(weight)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def rewarding(base):
    """A classifier of one output over the tiny model."""
    from transformers import LlamaForSequenceClassification

    folder = copied(base, "rewarding")
    torch.manual_seed(2)
    model = LlamaForSequenceClassification.from_pretrained(base, num_labels=1)
    torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(folder)
    return folder


def kept_in_order(section, texts):
    """The scores of texts by a scorer whose calibration is left out, and the shares that it gives with one."""

    async def ask():
        async with open_scorer(section, PAIRS) as engine:
            raw = [(await engine.score("Why?", text))[0] for text in texts]
            replies = [await engine.rate(Prompt("Why?", scale=SHARES, scored=text), 0) for text in texts]
            return raw, [reply.expectation for reply in replies], engine.facts()

    return asyncio.run(ask())


@pytest.fixture(autouse=True)
def _either_way(monkeypatch):
    """Random weights tell the pairs apart in a random direction: here, the right one."""
    fitted = platt

    def turned(good, bad):
        slope, offset = fitted(good, bad)
        return (abs(slope) or 1.0), offset

    monkeypatch.setattr(scorers, "platt", turned)


def test_a_reward_models_score_is_its_one_output_for_the_whole_conversation(rewarding):
    from transformers import LlamaForSequenceClassification

    raw, shares, facts = kept_in_order(RewardModel(kind="reward_model", model=str(rewarding)), ["Because.", "No"])
    tokenizer = load_tokenizer(str(rewarding))
    model = LlamaForSequenceClassification.from_pretrained(rewarding).double().eval()
    messages = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]
    ids = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    ids = ids[: len(ids) - ids[::-1].index(tokenizer.eos_token_id)]  # a template may write a line's end behind it
    # The classifier's rule: the last token that is not the padding's, which is the end token in this model.
    assert tokenizer.pad_token_id == ids[-1] == model.config.pad_token_id
    with torch.no_grad():
        states = model.model(torch.tensor([ids])).last_hidden_state[0]
    assert raw[0] == pytest.approx(float(states[-2] @ model.score.weight[0].detach()), abs=1e-4)
    assert (raw[0] > raw[1]) == (shares[0] > shares[1])
    assert all(0 < share < 1 for share in shares)
    assert facts["num_calibration_pairs"] == len(PAIRS)


def test_the_implicit_reward_is_the_difference_of_log_probabilities_over_all_tokens(base, trained):
    section = ImplicitReward(kind="implicit", model=str(trained), reference=str(base))
    raw, *_ = kept_in_order(section, ["Because it is.", "<|im_end|> no"])
    tokenizer = load_tokenizer(str(base))
    template = chat_template(tokenizer)
    for text, score in zip(["Because it is.", "<|im_end|> no"], raw, strict=True):
        query, response = template.encode([*template.prompts([conversation("Why?")]), template.response(text)])
        response = [*response, template.end]
        assert response.count(template.end) == 1  # what spells a control token is letters
        expected = []
        for folder in (trained, base):
            model = load_model(str(folder), torch.float64)
            total = 0.0
            for place, token in enumerate(response):  # token by token
                with torch.no_grad():
                    logits = model(torch.tensor([[*query, *response[:place]]])).logits[0, -1]
                total += float(torch.log_softmax(logits, 0)[token])
            expected.append(total)
            assert log_probability(model, query, response) == pytest.approx(total, abs=1e-4)
        assert score == pytest.approx(expected[0] - expected[1], abs=1e-3)


def test_the_map_onto_the_scale_is_made_once_in_a_run(rewarding, tmp_path, monkeypatch):
    section = RewardModel(kind="reward_model", model=str(rewarding))

    async def facts(pairs=PAIRS):
        async with open_scorer(section, pairs, tmp_path / "kept") as engine:
            return engine.facts(), (await engine.rate(Prompt("Why?", scale=SHARES, scored="Because."), 0)).expectation

    first = asyncio.run(facts())
    monkeypatch.setattr(scorers, "platt", None)  # which another map would need
    assert asyncio.run(facts()) == first
    with pytest.raises(TypeError):
        asyncio.run(facts(PAIRS[1:]))  # other pairs
    [file] = (tmp_path / "kept").glob("*.json")
    file.write_text(file.read_text().replace('"slope": ', '"slope": -'))
    with pytest.raises(ConfigError, match="is not a valid measurement of how scores are mapped onto the scale"):
        asyncio.run(facts())


def test_the_map_onto_the_scale_is_the_likeliest_of_its_form():
    generator = np.random.default_rng(0)
    good, bad = 40 + 3 * generator.normal(size=30), 37 + 3 * generator.normal(size=30)
    slope, offset = platt(list(good), list(bad))
    scores, targets = np.concatenate([good, bad]), np.repeat([31 / 32, 1 / 32], 30)

    def loss(at):
        logits = at[0] * (scores - 38) + at[1]
        return (np.logaddexp(0, logits) - targets * logits).sum()

    best = minimize(loss, [0.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12, "maxiter": 10_000})
    assert slope == pytest.approx(best.x[0], abs=1e-5)
    assert offset + 38 * slope == pytest.approx(best.x[1], abs=1e-5)


def test_the_map_is_finite_where_all_pairs_are_told_apart_and_flat_where_none_is():
    slope, offset = platt([2.0] * 20, [1.0] * 20)
    assert 1 / (1 + np.exp(-(slope * 2 + offset))) == pytest.approx(21 / 22)
    assert platt([3.0] * 20, [3.0] * 20) == (0.0, 0.0)
    assert platt([1.0, 2.0], [4.0, 5.0])[0] < 0


def test_a_model_that_would_teach_the_reverse_is_refused(base, monkeypatch):
    monkeypatch.setattr(scorers, "platt", lambda good, bad: (-1.0, 0.0))
    section = ImplicitReward(kind="implicit", model=str(base), reference=str(base))
    with pytest.raises(ConfigError, match=r"as high as the good ones \(it agrees with 50% of 12 pairs\): as a reward"):
        kept_in_order(section, [])


def test_too_few_pairs_map_nothing(base):
    section = ImplicitReward(kind="implicit", model=str(base), reference=str(base))

    async def ask():
        async with open_scorer(section, PAIRS[:9]):
            pass

    with pytest.raises(ConfigError, match=r"has scores of 9 of the 9 pairs .* and 10 are needed"):
        asyncio.run(ask())


def test_what_a_model_cannot_take_is_refused_and_no_number(base):
    section = ImplicitReward(kind="implicit", model=str(base), reference=str(base))
    with pytest.raises(CallRejectedError, match=r"question and answer have \d+ tokens, and .* takes 2048"):
        kept_in_order(section, ["word " * 3000])


def test_a_score_that_is_not_finite_is_no_rating(base, monkeypatch):
    section = ImplicitReward(kind="implicit", model=str(base), reference=str(base))

    async def ask():
        async with open_scorer(section, PAIRS) as engine:
            monkeypatch.setattr(scorers, "log_probability", lambda *_: float("nan"))
            return await engine.rate(Prompt("Why?", scale=SHARES, scored="No"), 0)

    assert asyncio.run(ask()).expectation is None


# --- refused before anything is paid ---------------------------------------------------------------


def written(folder, **changes):
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))
    return folder


def test_a_language_model_is_no_reward_model(base):
    with pytest.raises(ConfigError, match=r"here\.model .* is no reward model: its config\.json says LlamaForCausalLM"):
        check_scorer("here", RewardModel(kind="reward_model", model=str(base)))


@pytest.mark.parametrize("labels", [{"num_labels": 3}, {"id2label": {"0": "a", "1": "b", "2": "c"}}])
def test_a_classifier_of_several_labels_is_refused(rewarding, labels):
    folder = written(copied(rewarding, "several"), **{"id2label": None, **labels})
    with pytest.raises(ConfigError, match=r"has 3 outputs \(num_labels\), and a reward model has one"):
        check_scorer("here", RewardModel(kind="reward_model", model=str(folder)))


def test_a_reward_model_with_anothers_tokenizer_is_refused(rewarding):
    folder = copied(rewarding, "foreign")
    tokenizer = load_tokenizer(str(folder))
    tokenizer.add_tokens([f"word{number}" for number in range(50)])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ConfigError, match=r"an embedding of \d+ tokens, and its tokenizer has \d+: it is another"):
        kept_in_order(RewardModel(kind="reward_model", model=str(folder)), [])


def test_an_implicit_reward_of_two_tokenizers_is_refused(base):
    folder = copied(base, "other")
    words = json.loads((folder / "tokenizer.json").read_text())
    words["model"]["vocab"]["somethingnew"] = len(words["model"]["vocab"])
    (folder / "tokenizer.json").write_text(json.dumps(words))
    section = ImplicitReward(kind="implicit", model=str(folder), reference=str(base))
    with pytest.raises(ConfigError, match=r"here: the models .* have different tokenizers"):
        check_scorer("here", section)


def test_a_head_that_is_not_in_the_files_is_not_drawn_by_lot(base):
    folder = written(copied(base, "headless"), architectures=["LlamaForSequenceClassification"], num_labels=1)
    section = RewardModel(kind="reward_model", model=str(folder))
    check_scorer("here", section)
    with pytest.raises(ConfigError, match=r"1 of its weights are missing, such as score\.weight"):
        kept_in_order(section, [])


def test_a_missing_model_is_refused_by_its_place(tmp_path):
    tree = {
        "society": {"criteria": [{"name": "x", "scorer": {"kind": "reward_model", "model": str(tmp_path / "none")}}]}
    }
    config = compose.parse(tree, "test")
    assert isinstance(config, Config)
    with pytest.raises(ConfigError, match="is neither a local folder, a hub id"):
        for place, scorer in config.scorers().items():
            assert place == "society.criteria.x.scorer"
            check_scorer(place, scorer)


# --- in a society ----------------------------------------------------------------------------------


def test_a_shard_is_rated_by_a_scorer_and_replayed_without_it(tmp_path, base, trained, monkeypatch):
    scorer = {"kind": "implicit", "model": str(trained), "reference": str(base), "num_pairs": 10}
    criteria = [{"name": "learnt", "scale": [0, 10], "scorer": scorer}, {"name": "kept", "rule": {"kind": "copy"}}]
    society = {"topology": {"size": 2}, "audience_size": 0, "max_rounds": 1, "stopping": None, "criteria": criteria}
    society |= {"observer_check": {"num_pairs": 2}, "gates": {"max_repeated_share": 1}, "num_initial_memories": 1}
    config = compose.parse(
        {"run": {"root": str(tmp_path), "name": "run"}, "engine": {"kind": "scripted"}, "society": society}, "test"
    )
    run = RunDir(tmp_path / "run")
    run.shard(0).mkdir(parents=True)
    monkeypatch.setattr(shard, "require_model", lambda *_: None)  # of a run that a launch has begun
    shard.run_shard(run, config, 0)
    path = run.shard(0) / "interactions.jsonl"
    turns = [turn for interaction in read_interactions(path) for turn in interaction.turns if turn.observed]
    assert len(turns) == 8
    ratings = [turn.observed_rating("learnt") for turn in turns]
    assert len(set(ratings)) > 1
    assert all(0 < rating < 10 for rating in ratings)
    facts = read_done(run.shard(0)).facts
    assert set(facts["observer"]["criteria"]) == {"learnt", "kept"}
    assert facts["observer"]["criteria"]["learnt"]["num_pairs"] == 2
    content = path.read_bytes()
    monkeypatch.setattr(models, "open_scorer", None)
    shard.run_shard(run, config, 0, replay=True)
    assert path.read_bytes() == content


# --- as a judge ------------------------------------------------------------------------------------


def test_a_scorer_judges_the_answers_of_a_model(tmp_path, base, trained):
    scorer = {"kind": "implicit", "model": str(trained), "reference": str(base), "num_pairs": 10}
    tree = {
        "run": {"root": str(tmp_path), "name": "run"},
        "model": str(base),
        "engine": {"kind": "scripted"},
        "evaluate": {
            "models": ["base"],
            "num_questions": 4,
            "answer": {"max_tokens": 8},
            "judges": [{"name": "learnt", "scorer": scorer}],
            "judge_check": {"num_pairs": 2},
            "num_resamples": 100,
        },
        "tracking": {"wandb": False},
    }
    config = compose.parse(tree, "test")
    run = create_run(config)
    evaluate(run, config, "base")
    results = json.loads((run.evaluation("base") / "results.json").read_text())
    assert list(results["figures"]) == ["alignment"]  # what its labels are of, and nothing else
    assert results["figures"]["alignment"]["n"] == 4
    assert 1 < results["figures"]["alignment"]["mean"] < 7
    assert results["judges"]["learnt"]["alignment"]["num_rated_pairs"] == 2
    assert results["judges"]["learnt"]["alignment"]["own"]["agreement"] is None
    assert results["versions"]["judge learnt"].startswith("trained@")
    assert results["versions"]["settings of judge learnt"]["num_pairs"] == 10
