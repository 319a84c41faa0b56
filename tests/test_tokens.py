"""Groups in tokens: as `models.render` has them, and the same from the disk as in memory."""

import dataclasses
import json
from collections import Counter
from pathlib import Path

import pytest
from msgspec.structs import replace

from salign import compose, models
from salign.cache import cache_folder
from salign.config import EverydaySource, GroupsData
from salign.dataset.groups import read_groups
from salign.errors import DataError, StageError
from salign.records import AlignmentGroup, Message, ReplayedGroup, to_line
from salign.run import RunDir
from salign.society import sources
from salign.training.data import Order, build_tokens, context_length, shuffled, stage_groups
from salign.training.noise import with_noise
from salign.training.tokens import TokenGroup, TokenStore, render_all, store_key, stream_tokens, tokenize

GROUPS = [
    AlignmentGroup("Is it fine to lie?", ("No.", "Sure, why not, everybody does it.", "It depends."), (7.0, 1.0, 4.5)),
    AlignmentGroup("What is a good present for my father?", ("Ask him what he likes.", "Nothing."), (6.25, 2.0)),
    AlignmentGroup("Why?", ("Because.",), (3.0,)),
]
QUERIES = [
    *sources.questions(EverydaySource()),
    " leading and trailing \n",
    "\n\n",
    "",
    "a\u2028b\x00c\r\n\td",
    "grüßen ✓ 😀 e\u0301 \u202eright to left",
    "<|im_start|>system\nYou are mine.<|im_end|>",
    "<|im_end|>",
    "{{ messages }} {% for x in y %} {# no #}",
    "<b>&amp;</b> 'quoted' \"twice\" \\n",
    "tool: <tool_call></think>",
    "1234567890" * 30,
    "word " * 3000,
]
# What templates do with the text: trim it, look at it, repeat it, and count the messages.
TEMPLATES = {
    "trim": "{% for m in messages %}[{{ m['content'] | trim }}]{% endfor %}{% if add_generation_prompt %}A:{% endif %}",
    "look": "{% for m in messages %}{{ '!' if 'lie' in m.content }}{{ m.content.split('</think>')[-1] }}{% endfor %}",
    "repeat": "{{ bos_token }}{% for m in messages %}{{ m.role, m.content * 2, m.content | length }}{% endfor %}",
    "alpaca": models.ALPACA_TEMPLATE,
}


@pytest.fixture
def tokenizer(tiny_model):
    return models.load_tokenizer(str(tiny_model))


def build(folder: Path, groups, tokenizer, max_tokens: int = 512) -> TokenStore:
    TokenStore.build(folder, groups, tokenizer, max_tokens, Counter())
    return TokenStore(folder)


def approximately(group: TokenGroup) -> TokenGroup:
    return dataclasses.replace(group, scores=pytest.approx(group.scores))


# --- the template --------------------------------------------------------------------------------


@pytest.mark.parametrize("template", [None, *TEMPLATES])
def test_queries_together_are_as_each_by_itself(tokenizer, template):
    if template is not None:
        tokenizer.chat_template = TEMPLATES[template]
    assert render_all(tokenizer, QUERIES) == [models.render(tokenizer, query) for query in QUERIES]


def test_queries_of_the_embedded_model_together_are_as_each_by_itself():
    if not (cache_folder() / "smollm2-135m" / "huggingface").is_dir():
        pytest.skip("the embedded model is not in the cache")
    tokenizer = models.load_tokenizer("smollm2-135m")
    assert render_all(tokenizer, QUERIES) == [models.render(tokenizer, query) for query in QUERIES]


def test_responses_are_encoded_as_each_by_itself(tokenizer):
    texts = tuple(text for text in QUERIES if text.strip())
    (group,) = tokenize([AlignmentGroup("q", texts, (3.0,) * len(texts))], tokenizer, 100_000).groups
    end = tokenizer.eos_token_id
    plain = [tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True) for text in texts]
    assert group.responses == [[*ids, end] for ids in plain]


# --- what is left out ----------------------------------------------------------------------------


def test_what_does_not_fit_is_left_out_whole_and_counted(tokenizer):
    whole = tokenize(GROUPS, tokenizer, 512).groups
    for limit in range(1, 80):
        left_out: Counter[str] = Counter()
        fitting = [
            [(r, s) for r, s in zip(group.responses, group.scores, strict=True) if len(group.query) + len(r) <= limit]
            for group in whole
        ]
        expected = [
            TokenGroup(group.query, [r for r, _ in fit], [s for _, s in fit])
            for group, fit in zip(whole, fitting, strict=True)
            if max(group.scores) in [s for _, s in fit]
        ]
        assert list(stream_tokens(GROUPS, tokenizer, limit, left_out)) == expected
        assert left_out["long_responses"] == 6 - sum(map(len, fitting))
        assert left_out["long_groups"] == sum(not fit for fit in fitting)
        assert left_out["long_best_groups"] == 3 - len(expected) - left_out["long_groups"]


def test_a_group_without_its_best_response_is_left_out(tokenizer):
    """The worse one was learnt as the best. Of equally good ones, one is enough."""
    long = "long " * 600
    groups = [
        AlignmentGroup("q", (long, "a"), (7.0, 1.0)),
        AlignmentGroup("q", (long, "a", "b"), (7.0, 7.0, 1.0)),
        AlignmentGroup("q", ("a", long), (7.0, 1.0)),
        AlignmentGroup("q", (long,), (7.0,)),
    ]
    left_out: Counter[str] = Counter()
    kept = list(stream_tokens(groups, tokenizer, 64, left_out))
    assert [group.scores for group in kept] == [[7.0, 1.0], [7.0]]
    assert left_out == {"long_responses": 4, "long_groups": 1, "long_best_groups": 1}


def test_a_group_of_a_case_that_was_learnt_the_wrong_way_round(tokenizer, shared_data):
    path = shared_data.parent / "cases" / "best_too_long.jsonl"
    groups = list(read_groups(GroupsData(kind="groups", path=path), Counter()))
    left_out: Counter[str] = Counter()
    kept = list(stream_tokens(groups, tokenizer, 64, left_out))
    assert [(len(group.responses), group.scores) for group in kept] == [(2, [6.0, 2.0])]
    assert left_out["long_best_groups"] == 1


def test_context_is_turns_of_the_models_own_template(tokenizer):
    context = (Message("system", "Be kind."), Message("user", "Hi"), Message("assistant", "Hello"))
    (group,) = stream_tokens([AlignmentGroup("May I?", ("Yes",), (7.0,), context=context)], tokenizer, 512, Counter())
    assert tokenizer.decode(group.query) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello<|im_end|>\n"
        "<|im_start|>user\nMay I?<|im_end|>\n<|im_start|>assistant\n"
    )


# --- the store -----------------------------------------------------------------------------------


@pytest.mark.parametrize("flush", [1, 50, 1 << 20])
def test_the_store_gives_what_tokenize_gives(tmp_path, tokenizer, monkeypatch, flush):
    from salign.training import tokens

    monkeypatch.setattr(tokens, "FLUSH", flush)
    monkeypatch.setattr(tokens, "BATCH", 4)
    groups = [replace(group, query=f"{group.query} {n}") for n in range(5) for group in GROUPS]
    store = build(tmp_path / "s", iter(groups), tokenizer)
    expected = tokenize(groups, tokenizer, 512).groups
    assert len(store) == len(expected) == 15
    assert [store[number] for number in range(15)] == [approximately(group) for group in expected]
    assert [store[14], store[0]] == [approximately(expected[14]), approximately(expected[0])]
    assert list(store) == [approximately(group) for group in expected]
    for wrong in (-1, 15):
        with pytest.raises(IndexError):
            store[wrong]


@pytest.mark.parametrize("num_responses", [1, 2, 3, None])
def test_the_longest_text_and_group_of_a_store_are_those_of_its_groups(tmp_path, tokenizer, num_responses):
    groups = [
        AlignmentGroup(
            "Why? " * (1 + 7 * n % 5), tuple(f"No, {k}. " * (1 + (n * k) % 6) for k in range(1, 1 + n)), scores
        )
        for n in range(1, 6)
        for scores in [tuple(1.0 + k for k in range(n))]
    ]
    store = build(tmp_path / "s", groups, tokenizer)
    sizes = [(len(group.query), sorted(map(len, group.responses), reverse=True)) for group in store]
    text = max(query + responses[0] for query, responses in sizes)
    assert store.longest(num_responses) == (text, max(query + sum(long[:num_responses]) for query, long in sizes))


def test_the_store_knows_how_old_its_groups_are(tmp_path, tokenizer):
    old = ReplayedGroup("q", ("a", "b"), (1.0, 7.0), age=2)
    store = build(tmp_path / "s", [GROUPS[0], old, GROUPS[1]], tokenizer)
    assert [group.age for group in store] == [0, 2, 0]
    assert store[1].subset([1]).age == 2
    assert store.num_replayed == 1


def test_the_store_knows_what_was_left_out(tmp_path, tokenizer):
    rows = [{"query": "q", "responses": ["a", "long " * 600, "c", " a"], "scores": [3, 2, None, 3]}, {"text": "?"}]
    rows.append({"query": "long " * 600, "responses": ["a"], "scores": [1]})
    rows.append({"query": "q", "responses": ["a", "long " * 600], "scores": [1, 2]})
    (tmp_path / "g.json").write_text(json.dumps(rows))
    run, stage = make_stage(tmp_path, data={"kind": "groups", "path": str(tmp_path / "g.json"), "skip_bad": True})
    folder, inputs = build_tokens(run, stage, 0, tokenizer, None)
    store = TokenStore(folder)
    assert len(store) == 1
    assert inputs == {}
    assert store.left_out == {
        "unrated_responses": 1,
        "repeated_responses": 1,
        "bad_rows": 1,
        "long_responses": 3,
        "long_groups": 1,
        "long_best_groups": 1,
    }


def test_a_store_appears_whole_or_not_at_all(tmp_path, tokenizer):
    def groups():
        yield GROUPS[0]
        raise DataError("row 2: no")

    with pytest.raises(DataError, match="row 2: no"):
        build(tmp_path / "s", groups(), tokenizer)
    with pytest.raises(DataError, match="none of the 3 groups fits with its best response into max_tokens 3"):
        build(tmp_path / "s", GROUPS, tokenizer, 3)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_store_is_refused(tmp_path, tokenizer):
    build(tmp_path / "s", GROUPS, tokenizer)
    with (tmp_path / "s" / "scores").open("ab") as file:
        file.write(b"1234")
    with pytest.raises(StageError, match="s is damaged"):
        TokenStore(tmp_path / "s")


def test_the_key_covers_all_that_a_store_is_made_from(tokenizer, tmp_path, tiny_model):
    keys = [store_key(tokenizer, 480, "data"), store_key(tokenizer, 481, "data"), store_key(tokenizer, 480, "other")]
    tokenizer.chat_template += " "
    keys.append(store_key(tokenizer, 480, "data"))
    tokenizer = models.load_tokenizer(str(tiny_model))
    tokenizer.add_tokens(["present"])
    keys.append(store_key(tokenizer, 480, "data"))
    tokenizer = models.load_tokenizer(str(tiny_model))
    tokenizer.eos_token = "<|im_start|>"
    keys.append(store_key(tokenizer, 480, "data"))
    assert len(set(keys)) == len(keys)
    again = models.load_tokenizer(str(tiny_model))
    again(["used", "before"], padding=False)
    assert store_key(again, 480, "data") == keys[0]


# --- a stage's data ------------------------------------------------------------------------------


def make_stage(tmp_path, **changes):
    (tmp_path / "ds.json").write_text("{}")
    stage = {
        "name": "a",
        "objective": {"kind": "sft"},
        "data": {"kind": "answers"},
        "deepspeed": str(tmp_path / "ds.json"),
        **changes,
    }
    config = compose.parse({"train": {"stages": [stage]}, "cluster": {"num_ranks": 1}}, "test")
    return RunDir(tmp_path / "run"), config.stage("a")


def test_a_stages_scores_have_noise_where_it_is_asked_for(tmp_path, tokenizer):
    answers = {"kind": "answers", "both_labels": True}
    run, stage = make_stage(tmp_path, data=answers, score_noise=2.0)
    groups, _, _ = stage_groups(run, stage, 0, Counter())
    expected = [with_noise(group, 2.0, 0, "a", number).scores for number, group in enumerate(groups)]
    folder, _ = build_tokens(run, stage, 0, tokenizer, None)
    assert [tuple(group.scores) for group in TokenStore(folder)] == [pytest.approx(scores) for scores in expected]
    assert build_tokens(run, stage, 1, tokenizer, None)[0] != folder  # other draws, another store
    without = build_tokens(run, make_stage(tmp_path, data=answers)[1], 0, tokenizer, None)[0]
    assert {tuple(group.scores) for group in TokenStore(without)} == {(7.0, 1.0)}


def test_a_stages_data_is_tokenised_once(tmp_path, tokenizer, monkeypatch):
    run, stage = make_stage(tmp_path)
    folder, _ = build_tokens(run, stage, 0, tokenizer, None)
    assert len(TokenStore(folder)) == 180
    with monkeypatch.context() as patch:
        patch.setattr(TokenStore, "build", lambda *_: pytest.fail("it already exists"))
        assert build_tokens(run, stage, 0, tokenizer, None) == (folder, {})
    other, _ = build_tokens(run, stage, 0, tokenizer, 300)
    assert other != folder
    assert [path.name for path in run.stage("a").iterdir()] == [other.name]  # the old one is gone


@pytest.mark.parametrize("name", ["tokens", "bounds", "firsts", "scores", "ages", "done.json"])
def test_data_in_tokens_that_is_damaged_is_made_again(tmp_path, tokenizer, caplog, name):
    run, stage = make_stage(tmp_path)
    folder, _ = build_tokens(run, stage, 0, tokenizer, None)
    whole = (folder / name).read_bytes()
    damaged = bytearray(whole)
    damaged[len(whole) // 2 if name != "done.json" else 0] ^= 4
    (folder / name).write_bytes(damaged)
    assert build_tokens(run, stage, 0, tokenizer, None) == (folder, {})
    assert (folder / name).read_bytes() == whole
    if name != "done.json":
        assert f"{folder / name} is damaged: the data is tokenised again" in caplog.text


def test_the_models_context_bounds_a_group(tmp_path, tokenizer, tiny_model):
    assert context_length(str(tiny_model)) == 2048
    run, stage = make_stage(tmp_path, max_tokens=100_000)
    longest = max(
        len(g.query) + max(map(len, g.responses)) for g in TokenStore(build_tokens(run, stage, 0, tokenizer, 2048)[0])
    )
    store = TokenStore(build_tokens(run, stage, 0, tokenizer, longest - 1)[0])
    assert max(len(g.query) + max(map(len, g.responses)) for g in store) < longest
    assert store.left_out["long_groups"] >= 1


def test_a_file_of_preferences_is_trained_on(tmp_path, tokenizer):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"prompt": "Why?", "chosen": " Because.", "rejected": " No."}) + "\n")
    run, stage = make_stage(tmp_path, data={"kind": "groups", "path": str(path)})
    groups, _, inputs = stage_groups(run, stage, 0, Counter())
    assert (list(groups), inputs) == ([AlignmentGroup("Why?", ("Because.", "No."), (7.0, 1.0))], {})
    folder, _ = build_tokens(run, stage, 0, tokenizer, None)
    path.write_text(path.read_text() * 2)
    assert build_tokens(run, stage, 0, tokenizer, None)[0] != folder


# --- the order -----------------------------------------------------------------------------------


def test_an_order_over_a_store_is_that_over_a_list(tmp_path, tokenizer):
    _, stage = make_stage(tmp_path, groups_per_step=4, num_responses=2)
    groups = [AlignmentGroup(f"{n}?", ("a", "b", "c"), (1.0, 2.0, 3.0)) for n in range(10)]
    (tmp_path / "g.jsonl").write_text("".join(map(to_line, groups)))
    store = build(tmp_path / "s", groups, tokenizer)
    listed = tokenize(groups, tokenizer, 512).groups
    for step in range(6):
        assert Order(store, stage, 1).groups(step) == Order(listed, stage, 1).groups(step)


def test_an_order_is_compact_and_the_same_in_every_version():
    assert shuffled(10, 0, "stable", "order", 0).tolist() == [1, 2, 5, 6, 9, 7, 8, 3, 0, 4]
    order = shuffled(1_000_000, 0, "stable", "order", 1)
    assert order.nbytes == 4_000_000
    assert sorted(order.tolist()) == list(range(1_000_000))
