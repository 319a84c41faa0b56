"""Config files, overrides, and the errors that they give."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from salign import compose
from salign.config import Config, EverydaySource, GridTopology, JsonSource, OpenAIEngine, ScriptedEngine, Stopping
from salign.errors import ConfigError

CONFIGS = Path(__file__).parents[1] / "configs"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    return path


def stage(name: str, **changes) -> dict:
    return {
        "name": name,
        "objective": {"kind": "stable"},
        "data": {"kind": "run"},
        "deepspeed": "zero2.json",
        **changes,
    }


def config(**sections) -> Config:
    return compose.parse(sections, "test")


def refusal(tree: dict) -> str:
    with pytest.raises(ConfigError) as caught:
        compose.parse(tree, "my.yaml")
    return str(caught.value)


# --- mistakes ------------------------------------------------------------------------------------


def test_an_empty_config_is_all_defaults():
    assert config() == Config()


def test_all_mistakes_are_reported_at_once_with_their_paths():
    message = refusal(
        {
            "modle": "smollm2-135m",
            "run": {"seed": True, "name": "two words"},
            "society": {"max_rounds": 0, "max_round": 3, "rating": "guess", "gates": {"min_rated_share": 1.5}},
            "engine": {"kind": "openai", "base_url": "http://127.0.0.1/v1", "api_key": "sk-x"},
            "tracking": {"wandb": "perhaps"},
        }
    )
    assert message.startswith("9 mistakes in the config (my.yaml):")
    for line in (
        "  - modle: unknown name; did you mean 'model'?",
        "  - run.seed: expected a number, not true/false (got True)",
        "  - run.name: ",
        "  - society.max_rounds: input should be greater than or equal to 1 (got 0)",
        "  - society.max_round: unknown name; did you mean 'max_rounds'?",
        "  - society.rating: input should be 'logprob' or 'parse' (got 'guess')",
        "  - society.gates.min_rated_share: input should be less than or equal to 1 (got 1.5)",
        "  - engine.api_key: unknown name; did you mean 'api_key_env'?",
        "  - tracking.wandb: ",
    ):
        assert f"\n{line}" in message


def test_one_mistake_is_not_called_mistakes():
    assert refusal({"model": 3}).startswith("1 mistake in the config (my.yaml):\n  - model: ")


def test_a_section_that_is_impossible_as_a_whole_is_not_shown_whole():
    assert refusal({"dataset": {"kinds": []}}).endswith(
        "\n  - dataset: kinds is empty: name at least one of imitation, self_critic, realignment"
    )


def test_a_name_like_no_other_lists_the_known_ones():
    assert "\n  - cluster.partition: unknown name; known there: kind, num_ranks, num_workers" in refusal(
        {"cluster": {"partition": "a100"}}
    )


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        (
            {"society": {"topology": {"size": 3}, "audience_size": 9}},
            "audience_size 9 is larger than the rest of the society: a topology of 9 agents leaves 8 others",
        ),
        (
            {"society": {"topology": {"kind": "complete", "num_agents": 4}}},
            "audience_size 4 is larger than the rest of the society: a topology of 4 agents leaves 3 others",
        ),
        ({"society": {"topology": {"radius": 0.5}}}, "topology.radius 0.5 leaves every agent without an audience"),
        (
            {"society": {"topology": {"kind": "small_world", "num_agents": 8, "num_neighbours": 8}}},
            "topology.num_neighbours 8 must be less than topology.num_agents 8",
        ),
        (
            {"society": {"topology": {"kind": "scale_free", "num_agents": 6, "num_links": 6}}},
            "topology.num_links 6 must be less than topology.num_agents 6",
        ),
        ({"society": {"topology": {"kind": "complete"}}}, r"society\.topology\..*num_agents: field required"),
        ({"society": {"mixture": [{"name": "a", "share": 0.6}, {"name": "b", "share": 0.5}]}}, "sum to more than 1"),
        (
            {"society": {"mixture": [{"name": "a", "share": 0.1}] * 2}},
            "two parts of the mixture have the same name: a, a",
        ),
        ({"society": {"num_worlds": 2, "num_shards": 3}}, "num_shards 3 exceeds num_worlds 2"),
        ({"society": {"populations": []}}, "populations is empty"),
        ({"society": {"populations": ["all_good", "angels"]}}, "society.populations.1: .*'half_half'"),
        ({"society": {"num_worlds": 1.5}}, "society.num_worlds: .*got 1.5"),
        ({"society": {"num_worlds": "many"}}, "society.num_worlds: .*got 'many'"),
        ({"society": {"topology": {"radius": float("inf")}}}, "society.topology.*radius: .*finite"),
        ({"society": {"topology": {"radius": float("nan")}}}, "society.topology.*radius: .*finite"),
        ({"society": {"topology": {"radius": True}}}, "society.topology.*radius: expected a number, not true/false"),
        ({"society": {"draft": {"temperature": -1}}}, "society.draft.temperature: .*got -1"),
        ({"society": {"questions": {"kind": "json", "file": "q.json"}}}, "society.questions.path: field required"),
        ({"dataset": {"kinds": []}}, "kinds is empty"),
        ({"dataset": {"ratio": {"imitation": 0, "self_critic": 0, "realignment": 0}}}, "ratio leaves no data"),
        ({"engine": {"kind": "opnai"}}, "engine.kind: .*'opnai'.*'openai'"),
        ({"engine": {"kind": "transformers", "max_batch": False}}, "engine.max_batch: expected a number"),
        (
            {"evaluate": {"judges": [{"name": "j", "engine": {"kind": "openai"}}]}},
            "evaluate.judges.j.engine.base_url: field required",
        ),
        ({"evaluate": {"benchmarks": []}}, "evaluate.benchmarks: name at least one benchmark"),
        (
            {"evaluate": {"judges": [{"name": "j", "engine": {"kind": "scripted"}}] * 2}},
            "two judges have the same name: j, j",
        ),
        ({"train": {"stages": [stage("a", start="b"), stage("b")]}}, "stages.a.start is 'b'; it may be: base"),
        ({"train": {"defaults": {"name": "x"}}}, "but not its name"),
        ({"train": {"defaults": {"max_step": 3}, "stages": [stage("a")]}}, "train.stages.a.max_step: unknown name"),
        ({"evaluate": {"models": ["stabel"]}}, "evaluate.models names stabel; known: base"),
        ({"evaluate": {"num_resamples": 10}}, "evaluate.num_resamples: .*100"),
        ({"train": {"stages": [stage("a"), stage("a")]}}, "two stages have the same name: a, a"),
        ({"train": {"stages": [stage("base")]}}, "train.stages.base.name: 'base' names the model"),
        (
            {"train": {"stages": [stage("a", groups_per_step=3)]}, "cluster": {"num_ranks": 4}},
            "train.stages.a.groups_per_step 3 is less than cluster.num_ranks 4",
        ),
        (
            {"train": {"stages": [stage("a", objective={"kind": "dpo"}, num_responses=1)]}},
            "train.stages.a: the objective dpo compares responses: num_responses must be at least 2",
        ),
        (
            {"train": {"stages": [stage("a", objective={"kind": "listwise_dpo"}, data={"kind": "answers"})]}},
            "train.stages.a: the objective listwise_dpo compares responses: .*kind answers has only one per group",
        ),
        (
            {"train": {"stages": [stage("a", held_out_share=1.5)]}},
            "train.stages.a.held_out_share: .*got 1.5",
        ),
    ],
)
def test_what_is_impossible_is_refused(tree, said):
    with pytest.raises(ConfigError, match=said):
        compose.parse(tree, "my.yaml")


def test_two_impossible_values_of_one_section_are_reported_at_once():
    message = refusal({"society": {"topology": {"size": 3}, "audience_size": 9, "num_worlds": 2, "num_shards": 3}})
    assert "audience_size 9" in message
    assert "num_shards 3" in message


def test_a_stage_is_named_by_its_name_in_the_error():
    message = refusal(
        {
            "train": {
                "stages": [
                    stage("sft"),
                    stage("stable", learning_rate=-1, objective={"kind": "stable", "margn": 2}),
                    {"objective": {"kind": "dpo"}},
                ]
            }
        }
    )
    assert "\n  - train.stages.stable.learning_rate: " in message
    assert "\n  - train.stages.stable.objective.margn: unknown name; did you mean 'margin'?" in message
    assert "\n  - train.stages.2.name: field required" in message  # it has none: its position
    assert "train.stages.sft" not in message


def test_a_section_without_its_kind_lists_the_kinds(tmp_path):
    with pytest.raises(ConfigError, match=r"engine.*kind.*scripted.*transformers.*openai"):
        compose.load(write(tmp_path / "c.yaml", "run: {name: a}"), ["engine.timeout_s=3"])


def test_a_home_that_does_not_exist_is_refused():
    assert "run.root" in refusal({"run": {"root": "~no-such-user-here/runs"}})


WITH_SECRET = (
    "http://alice:opensesame1@127.0.0.1:8000/v1",
    "http://:opensesame1@127.0.0.1:8000/v1",
    "http://opensesame1@127.0.0.1:8000/v1",
    "http://127.0.0.1:8000/v1?key=opensesame1",
    "alice:opensesame1@127.0.0.1/v1",
)


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/v1", "127.0.0.1:8000/v1", "http://[::1/v1", *WITH_SECRET])
def test_a_url_that_is_not_plain_is_refused(url):
    assert "\n  - engine.base_url: " in refusal({"engine": {"kind": "openai", "base_url": url}})


@pytest.mark.parametrize("url", WITH_SECRET)
def test_the_password_of_a_url_is_not_shown(url):
    assert "opensesame1" not in refusal({"engine": {"kind": "openai", "base_url": url}})


@pytest.mark.parametrize("name", ["api_key", "api_key_env"])
def test_a_key_in_the_config_is_refused_and_not_shown(name):
    message = refusal({"engine": {"kind": "openai", "base_url": "http://127.0.0.1/v1", name: "sk-opensesame1"}})
    assert f"\n  - engine.{name}: " in message
    assert "opensesame1" not in message


def test_a_section_cannot_be_changed():
    with pytest.raises(ValidationError):
        Config().run.seed = 3


# --- files and their bases -----------------------------------------------------------------------


def test_bases_compose_and_later_wins(tmp_path):
    write(tmp_path / "one.yaml", "society: {max_rounds: 1, topology: {size: 3, radius: 1}}\nmodel: one")
    write(tmp_path / "two.yaml", "society: {max_rounds: 2, topology: {size: 4}}")
    path = write(tmp_path / "c.yaml", "bases: [one.yaml, two.yaml]\nsociety: {topology: {size: 5}}")
    loaded = compose.load(path, ["society.audience_size=7"])
    society = loaded.society
    assert society.topology == GridTopology(size=5, radius=1)
    assert (society.max_rounds, society.audience_size) == (2, 7)
    assert loaded.model == "one"


def test_a_base_is_found_beside_the_file_that_names_it(tmp_path):
    write(tmp_path / "parts" / "deep" / "low.yaml", "run: {seed: 5}")
    write(tmp_path / "parts" / "middle.yaml", "bases: [deep/low.yaml]\nmodel: middle")
    loaded = compose.load(write(tmp_path / "c.yaml", "bases: [./parts/middle.yaml]"))
    assert (loaded.run.seed, loaded.model) == (5, "middle")


def test_one_base_may_be_named_in_two_places(tmp_path):
    write(tmp_path / "low.yaml", "run: {seed: 5}")
    write(tmp_path / "a.yaml", "bases: [low.yaml]\nmodel: a")
    write(tmp_path / "b.yaml", "bases: [low.yaml]\nrun: {name: b}")
    loaded = compose.load(write(tmp_path / "c.yaml", "bases: [a.yaml, b.yaml]"))
    assert (loaded.run.seed, loaded.run.name, loaded.model) == (5, "b", "a")


def test_another_kind_replaces_what_is_below(tmp_path):
    write(tmp_path / "low.yaml", "engine: {kind: transformers, max_batch: 4, max_in_flight: 9}")
    other = compose.load(write(tmp_path / "c.yaml", "bases: [low.yaml]\nengine: {kind: scripted}"))
    assert other.engine == ScriptedEngine(kind="scripted")
    same = compose.load(write(tmp_path / "c.yaml", "bases: [low.yaml]\nengine: {kind: transformers, max_batch: 5}"))
    assert (same.engine.max_batch, same.engine.max_in_flight) == (5, 9)


def test_a_list_is_replaced_whole(tmp_path):
    write(tmp_path / "low.yaml", "society: {populations: [all_good, all_bad]}")
    loaded = compose.load(write(tmp_path / "c.yaml", "bases: [low.yaml]\nsociety: {populations: [half_half]}"))
    assert loaded.society.populations == ("half_half",)


def test_null_takes_away_what_a_base_says(tmp_path):
    write(tmp_path / "low.yaml", "society: {stopping: {window: 9}}")
    assert compose.load(tmp_path / "low.yaml").society.stopping == Stopping(window=9)
    loaded = compose.load(write(tmp_path / "c.yaml", "bases: [low.yaml]\nsociety: {stopping: null}"))
    assert loaded.society.stopping is None


def test_dotted_paths_start_at_the_file_that_says_them(tmp_path, monkeypatch):
    write(tmp_path / "low" / "low.yaml", "society: {questions: {kind: text, path: ./q.txt}}\nmodel: ../model")
    text = "bases: [low/low.yaml]\nrun: {root: here/runs}\ndataset: {leak_check: [./a.txt, ../b.txt]}"
    path = write(tmp_path / "c.yaml", text)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    loaded = compose.load(Path("../c.yaml"), ["evaluate.data_dir=./eval"])
    assert loaded == compose.load(path, ["evaluate.data_dir=./eval"])
    assert loaded.society.questions.path == tmp_path / "low" / "q.txt"
    assert loaded.model == str(tmp_path / "model")
    assert loaded.dataset.leak_check == (tmp_path / "a.txt", tmp_path.parent / "b.txt")
    assert loaded.run.root == elsewhere / "here" / "runs"
    assert loaded.evaluate.data_dir == elsewhere / "eval"


def test_a_home_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert config(run={"root": "~/runs"}).run.root == tmp_path / "runs"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("society: {max_rounds: 1", r"c\.yaml is not valid YAML: .*line 1"),
        ("- society", r"c\.yaml must hold a mapping at the top, not list"),
        ("just words", r"c\.yaml must hold a mapping at the top, not str"),
        ("bases: low.yaml", r"c\.yaml: `bases` must be a list"),
        ("bases: [{low: yaml}]", r"c\.yaml: `bases` must be a list"),
        ("bases: [none.yaml]", r"no config file .*none\.yaml, named in the bases of .*c\.yaml"),
        ("run: {seed: !!python/object/apply:os.getcwd []}", r"c\.yaml is not valid YAML"),
    ],
)
def test_a_file_that_is_wrong_is_named(tmp_path, text, said):
    with pytest.raises(ConfigError, match=said):
        compose.load(write(tmp_path / "c.yaml", text))


def test_a_file_that_is_missing_or_no_text_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"no config file .*none\.yaml"):
        compose.load(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="is not an ordinary file"):
        compose.load(tmp_path)
    (tmp_path / "c.yaml").write_bytes(b"model: \xff\xfe")
    with pytest.raises(ConfigError, match=r"c\.yaml cannot be read"):
        compose.load(tmp_path / "c.yaml")


def test_an_empty_file_is_all_defaults(tmp_path):
    assert compose.load(write(tmp_path / "c.yaml", "# nothing\n")) == Config()


def test_a_key_said_twice_is_refused_with_its_line(tmp_path):
    path = write(
        tmp_path / "c.yaml",
        """\
        society:
          max_rounds: 1
          audience_size: 3
          max_rounds: 2
        """,
    )
    with pytest.raises(ConfigError, match="'max_rounds' appears twice") as caught:
        compose.load(path)
    assert "line 4" in str(caught.value)


def test_a_cycle_of_bases_is_refused_with_its_way(tmp_path):
    write(tmp_path / "a.yaml", "bases: [b.yaml]")
    write(tmp_path / "b.yaml", "bases: [a.yaml]")
    with pytest.raises(ConfigError, match=r"a\.yaml is its own base: .*a\.yaml -> .*b\.yaml -> .*a\.yaml"):
        compose.load(tmp_path / "a.yaml")


# --- overrides -----------------------------------------------------------------------------------


@pytest.fixture
def staged(tmp_path):
    return write(
        tmp_path / "c.yaml",
        """\
        engine: {kind: transformers, max_batch: 4}
        society: {max_rounds: 5, populations: [all_good, all_bad]}
        train:
          stages:
            - {name: sft, objective: {kind: sft}, data: {kind: answers}, deepspeed: ./z.json}
            - {name: stable, objective: {kind: stable, ratio: 0.5}, data: {kind: run}, deepspeed: ./z.json}
        """,
    )


def test_overrides_win_and_the_last_of_one_name_wins(staged):
    loaded = compose.load(staged, ["society.max_rounds=3", "run.seed=7", "society.max_rounds=4", "model=a=b"])
    assert (loaded.society.max_rounds, loaded.run.seed, loaded.model) == (4, 7, "a=b")
    assert loaded.society.populations == ("all_good", "all_bad")


def test_an_override_enters_a_stage_by_its_name(staged):
    loaded = compose.load(staged, ["train.stages.stable.max_steps=3", "train.stages.stable.objective.margin=10"])
    sft, stable = loaded.train.stages
    assert (sft.max_steps, stable.max_steps) == (None, 3)
    assert (stable.objective.ratio, stable.objective.margin) == (0.5, 10)


def test_an_override_of_the_kind_replaces_what_is_below(staged):
    assert compose.load(staged, ["engine.kind=scripted"]).engine == ScriptedEngine(kind="scripted")


def test_an_override_may_be_any_yaml(staged):
    loaded = compose.load(
        staged,
        [
            "society.populations=[half_half]",
            "society.stopping=null",
            "society.draft={temperature: 0.5}",
            "train.stages.sft.learning_rate=1e-5",
        ],
    )
    assert loaded.society.populations == ("half_half",)
    assert loaded.society.stopping is None
    assert loaded.society.draft.temperature == 0.5
    assert loaded.stage("sft").learning_rate == 1e-5


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("society.max_rounds", "must have the form key.sub=value"),
        ("=3", "must have the form key.sub=value"),
        ("society..max_rounds=3", "must have the form key.sub=value"),
        (".max_rounds=3", "must have the form key.sub=value"),
        ("society.populations=[all_good", "the value of override 'society.populations' is not valid YAML"),
        ("train.stages.stabel.max_steps=3", "override 'train.stages.stabel.max_steps': .*it has: sft, stable"),
        ("train.stages.0.max_steps=3", "items are addressed by name; it has: sft, stable"),
        ("train.stages.stable=3", "override 'train.stages.stable'"),
        ("society.max_round=3", "society.max_round: unknown name; did you mean 'max_rounds'"),
        ("model.name=x", "model: "),
        ("society.max_rounds.much=3", "society.max_rounds: "),
        ("train.stages.stable.max_steps=0", "train.stages.stable.max_steps: .*got 0"),
        ("run.seed=on", "run.seed: expected a number, not true/false"),
    ],
)
def test_a_wrong_override_is_refused(staged, override, said):
    with pytest.raises(ConfigError, match=said):
        compose.load(staged, [override])


# --- the resolved config -------------------------------------------------------------------------


def full_config() -> Config:
    return config(
        run={"name": "a.b-c_1", "seed": -3, "root": "runs"},
        engine={"kind": "openai", "base_url": "http://[::1]:8000/v1", "model": "yes"},
        society={
            "num_worlds": 3,
            "num_shards": 2,
            "populations": ["all_good", "half_half"],
            "questions": {"kind": "json", "path": "with space.jsonl", "label": "off"},
            "prior": {"kind": "dataset", "path": "someone/something"},
            "stopping": None,
        },
        dataset={"ratio": {"imitation": 0.1}, "leak_check": ["a: b.csv"]},
        train={"stages": [stage("1e5", learning_rate=1e-7), stage("2", max_steps=3)], "template": "alpaca"},
        evaluate={"models": ["base", "2"], "judges": [{"name": "j", "engine": {"kind": "scripted"}}]},
    )


@pytest.mark.parametrize("original", [Config(), full_config()], ids=["defaults", "full"])
def test_what_dump_writes_parses_to_the_same(tmp_path, original):
    text = compose.dump(original)
    assert compose.parse(yaml.safe_load(text), "dumped") == original
    (tmp_path / "config.yaml").write_text(text)
    assert compose.load(tmp_path / "config.yaml") == original
    assert compose.dump(compose.load(tmp_path / "config.yaml")) == text


def test_equal_configs_do_not_differ():
    assert compose.differences(full_config(), full_config()) == []


def test_differences_name_what_differs():
    old = config(
        society={"stopping": {"window": 3}, "populations": ["all_good"]}, train={"stages": [stage("a"), stage("b")]}
    )
    new = config(
        run={"seed": 1},
        society={"stopping": {"window": 4}, "populations": ["all_good", "all_bad"]},
        train={"stages": [stage("a"), stage("b", max_steps=2, objective={"kind": "stable", "margin": 3})]},
    )
    assert sorted(compose.differences(old, new)) == [
        "run.seed",
        "society.populations",
        "society.stopping.window",
        "train.stages.b.max_steps",
        "train.stages.b.objective.margin",
    ]


def test_parts_without_names_of_their_own_are_told_apart():
    """A dataset's `name` is its configuration, which two parts may share, or lack."""

    def made(*parts: dict):
        stage = {
            "name": "a",
            "objective": {"kind": "sft"},
            "data": {"kind": "several", "parts": parts},
            "deepspeed": "z",
        }
        return compose.parse({"train": {"stages": [stage]}}, "test")

    for name in ({}, {"name": "kind"}):
        one, other, third = ({"kind": "dataset", "path": f"a/{letter}", **name} for letter in "abc")
        assert compose.differences(made(one, other), made(third, other)) == ["train.stages.a.data.parts"]
    with pytest.raises(ConfigError, match=r"train\.stages\.a\.data\.parts\.0\.splt: unknown name"):
        made({"kind": "dataset", "path": "a/b", "splt": "x"})


def test_a_section_that_is_gone_differs():
    names = compose.differences(config(), config(society={"stopping": None}))
    assert names
    assert all(name.startswith("society.stopping") for name in names)


def test_a_stage_that_is_new_differs():
    names = compose.differences(
        config(train={"stages": [stage("a")]}), config(train={"stages": [stage("a"), stage("b")]})
    )
    assert "train.stages.b.learning_rate" in names
    assert all(name == "train.stages" or name.startswith("train.stages.b.") for name in names)


def test_the_order_of_stages_differs():
    """Each stage starts from the model of the one before it."""
    forth = config(train={"stages": [stage("a"), stage("b")]})
    back = config(train={"stages": [stage("b"), stage("a")]})
    assert compose.differences(forth, back)


def test_a_stage_is_found_by_name():
    found = config(train={"stages": [stage("a"), stage("b", max_steps=2)]})
    assert found.stage("b").max_steps == 2
    with pytest.raises(ConfigError, match=r"no training stage is named 'c'; train\.stages has: a, b"):
        found.stage("c")


def test_base_and_the_last_stage_are_evaluated_unless_named():
    stages = {"stages": [stage("a"), stage("b")]}
    assert config().evaluated_models == ("base",)
    assert config(train=stages).evaluated_models == ("base", "b")
    assert config(train=stages, evaluate={"models": ["a"]}).evaluated_models == ("a",)


def test_kinds_make_their_sections():
    found = config(
        engine={"kind": "openai", "base_url": "https://example.org/v1"},
        society={"prior": {"kind": "json", "path": "p.json"}, "questions": {"kind": "everyday"}},
    )
    assert isinstance(found.engine, OpenAIEngine)
    assert isinstance(found.society.prior, JsonSource)
    assert isinstance(found.society.questions, EverydaySource)
    assert found.evaluate.questions == EverydaySource(split="held_out")


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.name)
def test_a_shipped_config_loads_and_its_files_are_there(path):
    loaded = compose.load(path)
    assert compose.parse(yaml.safe_load(compose.dump(loaded)), "dumped") == loaded
    for training in loaded.train.stages:
        assert training.deepspeed.is_file()


@pytest.mark.parametrize("name", ["sft", "stable", "dpo", "rrhf", "coh"])
def test_a_baseline_alone_is_that_of_the_comparison(name):
    compared = compose.load(CONFIGS / "compare.yaml")
    assert compared.stage(name) == compose.load(CONFIGS / "train" / f"{name}.yaml").stage(name)
    assert compared.train.start_of(name) == "base"
    assert len({stage.num_tokens for stage in compared.train.stages}) == 1


def test_defaults_are_those_of_every_stage_that_does_not_say_otherwise():
    defaults = {key: value for key, value in stage("x").items() if key != "name"}
    found = config(train={"defaults": defaults, "stages": [{"name": "a"}, {"name": "b", "max_steps": 3}]}).train.stages
    assert found == config(train={"stages": [stage("a"), stage("b", max_steps=3)]}).train.stages


def test_several_data_are_overridden_at_once():
    data = "{kind: several, parts: [{kind: answers}, {kind: run, kinds: [imitation]}]}"
    found = compose.load(CONFIGS / "compare.yaml", [f"train.defaults.data={data}", "train.stages.sft.data.kind=run"])
    assert [part.kind for part in found.stage("stable").parts] == ["answers", "run"]
    assert found.has_society


def test_quickstart_is_shipped():
    assert (CONFIGS / "quickstart.yaml").is_file()


def test_the_config_loads_no_torch():
    """A login node answers in a second."""
    code = "import sys, salign.config, salign.compose, salign.run; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- careless and hostile documents --------------------------------------------------------------


def bomb(levels: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("run: {seed: 1:30}", "1:30 would be read as a number of another base"),
        ("cluster: {simulate: {timeout_min: 1:30:00}}", "1:30:00 would be read as a number of another base"),
        ("run: {seed: 010}", "010 would be read as a number of another base"),
        (f"run: {{seed: {'9' * 5000}}}", "is not valid YAML: .*digits"),
        ("[" * 5000, "is nested too deeply|is not valid YAML"),
        ("a: " + "[" * 60 + "]" * 60, "is nested too deeply; a config has at most 50 levels"),
        ("a: &a [*a]", "is nested too deeply"),
        (bomb(9), "has more than 100,000 values"),
        ("model: a\x00b", "is not valid YAML"),
        ("x" * (1 << 20) + "y", "it should have at most 1,048,576"),
    ],
    ids=lambda value: value[:20],
)
def test_a_document_is_read_within_bounds(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        compose.load(write(tmp_path / "c.yaml", text))


@pytest.mark.parametrize("text", ["2024-13-45", "2024-02-30", "2024-01-01"])
def test_a_date_is_the_text_that_was_written(tmp_path, text):
    assert compose.load(write(tmp_path / "c.yaml", f"run: {{name: {text}}}")).run.name == text


def test_numbers_that_mean_what_they_look_like_are_read(tmp_path):
    loaded = compose.load(write(tmp_path / "c.yaml", "run: {seed: 0}\nsociety: {max_rounds: 10, draft: {top_p: 0.5}}"))
    assert (loaded.run.seed, loaded.society.max_rounds, loaded.society.draft.top_p) == (0, 10, 0.5)


def test_what_is_no_ordinary_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "c.yaml")
    with pytest.raises(ConfigError, match="is not an ordinary file"):
        compose.load(tmp_path / "c.yaml")


def test_bases_that_double_are_read_once_each(tmp_path):
    write(tmp_path / "0.yaml", "run: {seed: 7}")
    for number in range(1, 40):
        for name in (f"{number}.yaml", f"{number}b.yaml"):
            below = number - 1
            write(tmp_path / name, f"bases: [{below}.yaml, {f'{below}b' if below else below}.yaml]")
    assert compose.load(tmp_path / "39.yaml").run.seed == 7
