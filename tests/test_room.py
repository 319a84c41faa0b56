"""A model that its GPUs cannot hold is refused before a launch, with what would fit; one that may fit is not."""

import io

import pytest
from rich.console import Console

from salign import compose
from salign.cluster.room import check_room, mistakes_of_room
from salign.cluster.slurm.check import gpu_there
from salign.cluster.slurm.commands import node_of
from salign.errors import ConfigError
from salign.launch import LaunchOptions, launch

BIG = "Qwen/Qwen2.5-72B-Instruct"  # 72e9 weights of two bytes by its name: 144 GB
MIDDLE = "org/model-34B"


def config(engine, *, serve=1, nodes=1, simulate=0, tasks_per_node=1, evaluate=0, gpu="A100", **tree):
    cluster = {
        "kind": "slurm",
        "throughput": {"gpu": gpu},
        "serve": {"gpus_per_node": serve, "nodes": nodes},
        "simulate": {"gpus_per_node": simulate, "tasks_per_node": tasks_per_node},
        "evaluate": {"gpus_per_node": evaluate},
    }
    return compose.parse({"engine": {"program": "vllm", **engine}, "cluster": cluster, **tree}, "test")


@pytest.mark.parametrize(
    ("engine", "gpus", "remedy"),
    [
        ({"kind": "fleet"}, {"serve": 1}, r"2 x A100 would do \(cluster.serve.gpus_per_node=2\)"),
        ({"kind": "fleet"}, {"serve": 4, "gpu": "L4"}, r"8 x L4 would do \(cluster.serve.gpus_per_node=8\)"),
        ({"kind": "fleet"}, {"serve": 1, "nodes": 2, "gpu": "L4"}, r"\(cluster.serve.nodes=2 and .*gpus_per_node=4\)"),
        (
            {"kind": "fleet", "arguments": ["--gpu-memory-utilization=0.5"]},
            {"gpu": "L4"},
            r"\(cluster.serve.nodes=2 and",
        ),
        ({"kind": "fleet", "arguments": ["--gpu-memory-utilization=0.5"]}, {"serve": 2}, "4 x A100 would do"),
        # a server of a shard uses one GPU unless it is told to use more
        ({"kind": "server"}, {"simulate": 4}, r"cluster.simulate.gpus_per_node=2 and engine.arguments='\[--tensor"),
        # of a shard over ranks, each starts its own
        ({"kind": "server", "arguments": ["-tp", "2"]}, {"simulate": 2, "tasks_per_node": 2}, "1 x A100 have"),
        ({"kind": "server", "num_servers": 4, "arguments": ["-tp", "4"]}, {"simulate": 4}, "1 x A100 have"),
    ],
)
def test_what_its_gpus_cannot_hold_is_refused_with_what_would_do(engine, gpus, remedy):
    with pytest.raises(ConfigError, match=remedy) as refused:
        check_room(config({"model": BIG, **engine}, **gpus))
    assert f"engine: {BIG} has 144 GB of weights, by the number in its name" in str(refused.value)
    assert "cluster.throughput.gpu=null" in str(refused.value)


@pytest.mark.parametrize(
    ("engine", "gpus"),
    [
        ({"kind": "fleet", "model": BIG}, {"serve": 2}),
        ({"kind": "fleet", "model": BIG}, {"serve": 1, "nodes": 2}),
        ({"kind": "fleet", "model": BIG}, {"serve": 1, "gpu": "B200"}),
        ({"kind": "fleet", "model": BIG}, {"serve": 1, "gpu": None}),  # nothing is known of them
        ({"kind": "fleet", "model": BIG}, {"serve": 0}),  # on CPUs
        ({"kind": "fleet", "model": BIG, "arguments": ["--cpu-offload-gb", "100"]}, {}),
        ({"kind": "fleet", "model": f"{BIG}-AWQ"}, {}),
        ({"kind": "fleet", "model": BIG, "arguments": ["--quantization=fp8"]}, {}),
        ({"kind": "fleet", "model": "org/some-model"}, {}),
        ({"kind": "fleet", "model": MIDDLE}, {}),
        ({"kind": "server", "model": BIG, "arguments": ["--tensor-parallel-size=2"]}, {"simulate": 2}),
        ({"kind": "server", "program": "llama_cpp", "model": BIG}, {"simulate": 1}),  # leaves layers to the CPU
    ],
)
def test_what_may_fit_is_taken(engine, gpus):
    check_room(config(engine, **gpus))


def test_the_cache_of_one_reply_counts():
    small = {"kind": "fleet", "model": MIDDLE, "context_length": 4096}
    check_room(config(small))
    with pytest.raises(ConfigError, match=r"one reply of engine.context_length 1000000 needs 93\.3 GB beside them"):
        check_room(config({**small, "context_length": 1_000_000}))


def test_judges_and_observers_are_looked_at_where_they_run():
    judge = {"name": "j", "engine": {"kind": "server", "program": "vllm", "model": BIG}}
    observer = {"kind": "fleet", "program": "vllm", "model": BIG}
    made = {"evaluate": {"judges": [judge]}, "society": {"observer": observer}}
    with pytest.raises(ConfigError, match=r"(?s)society.observer: .*\nevaluate.judges.j.engine: .*evaluate.gpus_per_n"):
        check_room(compose.parse({**config({"kind": "fleet"}, evaluate=1).model_dump(mode="json"), **made}, "test"))


def test_slurm_names_its_gpus_and_a_size_by_a_name_alone_is_not_refused_for_them():
    here = {"kind": "server", "model": "Qwen/Qwen2.5-7B-Instruct", "context_length": 400_000}
    made = config(here, simulate=1, gpu=None)
    rows = ["g1 gpu 64 512000 gpu:l4:8(S:0-1) infinite idle", "g2 gpu 64 512000 gpu:nvidia_a30:8 infinite idle"]
    nodes = [node_of(row.split()) for row in rows]
    assert gpu_there("gpu", nodes) == "L4"  # as large as the other
    [mistake] = mistakes_of_room(made, {"simulate": gpu_there("gpu", nodes)}, by_name=False)
    assert "has 15 GB of weights, and one reply of engine.context_length 400000 needs 22.9 GB beside them" in mistake
    by_name = config({"kind": "fleet", "model": BIG}, gpu=None)
    assert mistakes_of_room(by_name, {"serve": "L4"}, by_name=False) == []
    unknown = [*nodes, node_of("g3 gpu 64 512000 gpu:8 infinite idle".split())]
    assert gpu_there("gpu", unknown) is None
    assert gpu_there(None, nodes) is None


def test_a_dry_run_says_so(tmp_path):
    made = config({"kind": "fleet", "model": BIG}, run={"root": str(tmp_path)})
    with pytest.raises(ConfigError, match="A100 would do"):
        launch(made, Console(file=io.StringIO()), LaunchOptions(dry_run=True))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tensor-parallel-size", "two"], "--tensor-parallel-size/-tp: 'two' is no number of GPUs"),
        (["-pp", "0"], "--pipeline-parallel-size/-pp: '0' is no number of GPUs"),
        (["--gpu-memory-utilization", "0"], "--gpu-memory-utilization: '0' is no share"),
        (["--gpu-memory-utilization=nan"], "--gpu-memory-utilization: 'nan' is no share"),
        (["--cpu-offload-gb", "x"], "--cpu-offload-gb: invalid float value: 'x'"),
        (["--tensor-parallel-size"], "--tensor-parallel-size/-tp: expected one argument"),
    ],
)
def test_arguments_that_make_no_sense_are_named(arguments, said):
    with pytest.raises(ConfigError, match=rf"engine\.arguments: argument {said}"):
        check_room(config({"kind": "fleet", "model": BIG, "arguments": arguments}))
