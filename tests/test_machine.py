"""What this machine can do, and what a launch says of it."""

import pytest

from salign import compose
from salign.cluster import local
from salign.cluster.local import LocalScheduler, batches_of_models
from salign.machine import multiplies_in_bfloat16
from salign.manifest import create_run
from salign.plan import units


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512_bf16 sha_ni\n", True),
        ("flags\t\t: fpu amx_bf16\n", True),
        ("flags\t\t: fpu avx avx2\n\nflags\t\t: fpu avx avx2\n", False),
        ("processor\t: 0\nFeatures\t: fp asimd bf16\n", True),
        ("Features\t: fp asimd\n", False),
        ("nothing of the kind", True),
    ],
)
def test_a_processor_says_whether_it_multiplies_in_bfloat16(tmp_path, text, expected):
    (tmp_path / "cpuinfo").write_text(text)
    assert multiplies_in_bfloat16(tmp_path / "cpuinfo") is expected
    assert multiplies_in_bfloat16(tmp_path / "missing")


def test_a_launch_says_what_is_slow_here_in_bfloat16(tmp_path, monkeypatch):
    (tmp_path / "ds.json").write_text("{}")
    stage = {"objective": {"kind": "sft"}, "data": {"kind": "answers"}, "deepspeed": str(tmp_path / "ds.json")}
    stages = [{**stage, "name": "a", "dtype": "bfloat16"}, {**stage, "name": "b"}]
    tree = {"run": {"root": str(tmp_path), "name": "r"}, "train": {"stages": stages}, "cluster": {"num_ranks": 1}}
    run = create_run(compose.parse({**tree, "evaluate": {"dtype": "bfloat16"}}, "test"))
    config = run.config()

    def notes(*, has_instructions: bool, gpus: list[str]) -> list[str]:
        monkeypatch.setattr(local, "multiplies_in_bfloat16", lambda: has_instructions)
        monkeypatch.setattr(local, "visible_devices", lambda: gpus)
        return LocalScheduler(run).check(config, units(run, config))

    [note] = notes(has_instructions=False, gpus=[])
    assert note.startswith("train a and 2 more: dtype is bfloat16")  # both models are evaluated in it
    assert notes(has_instructions=True, gpus=[]) == notes(has_instructions=False, gpus=["0"]) == []


@pytest.mark.parametrize(
    ("models", "num_ranks", "expected"),
    [
        ("b", 2, ["b"]),
        ("bs", 2, ["bs"]),
        ("bst", 2, ["bs", "t"]),
        ("bst", 4, ["bs", "t"]),  # of four ranks three models would leave one without work
        ("bstuv", 4, ["bstu", "v"]),
        ("bst", 3, ["bst"]),
        ("bs", 1, ["b", "s"]),
        ("", 2, []),
    ],
)
def test_models_are_evaluated_side_by_side_on_all_ranks(monkeypatch, models, num_ranks, expected):
    monkeypatch.setattr(local, "visible_devices", list)
    config = compose.parse({"cluster": {"num_ranks": num_ranks}}, "test")
    assert batches_of_models(config, models) == list(map(list, expected))


def test_models_are_evaluated_one_by_one_where_each_may_need_all_of_the_machine(monkeypatch):
    served = {"kind": "server", "program": "llama_cpp"}
    judged = {"judges": [{"name": "j", "engine": served}]}
    for gpus, evaluate in ([["0", "1"], {}], [[], {"engine": served}], [[], judged]):
        monkeypatch.setattr(local, "visible_devices", lambda gpus=gpus: gpus)
        config = compose.parse({"cluster": {"num_ranks": 2}, "evaluate": evaluate}, "test")
        assert batches_of_models(config, "bs") == [["b"], ["s"]]
    scorer = {"kind": "implicit", "model": "smollm2-135m", "reference": "smollm2-135m"}
    config = compose.parse({"evaluate": {"judges": [{"name": "j", "scorer": scorer}]}}, "test")
    assert batches_of_models(config, "bs") == [["b", "s"]]
