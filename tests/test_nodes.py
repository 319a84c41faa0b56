"""A server over several nodes: its parts meet, start again and end together; vLLM is a stand-in."""

import json
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
from actors import SMALL_RUN
from vllm_stand_in import path_with_vllm
from waits import wait_until

from salign import compose
from salign.engines import nodes as nodes_module
from salign.engines import serving
from salign.engines.nodes import Nodes, nodes_of
from salign.errors import ConfigError
from salign.markers import mark_done
from salign.plan import servers_of, units
from salign.run import RunDir

HOSTS = ["localhost", "127.0.0.1"]


def config_of(folder, **serve):
    tree = {
        "run": {"root": str(folder), "name": "run"},
        "engine": {"kind": "fleet", "program": "vllm"},
        "society": SMALL_RUN,
        "cluster": {"kind": "slurm", "serve": serve},
    }
    return compose.parse(tree, "test")


class Server:
    """One process for each node, as a thread of this one."""

    def __init__(self, run, config, monkeypatch):
        rank = threading.local()
        monkeypatch.setattr(serving, "nodes_of", lambda _, folder: Nodes(folder / "nodes.json", HOSTS, rank.number))
        [unit] = servers_of(run, config)
        self.file = run.fleet(config.fleets[0].name) / "0.json"
        unit.folder.mkdir(parents=True)

        def serve(number):
            rank.number = number
            serving.serve(run, config, unit.argument)

        pool = ThreadPoolExecutor()
        self._parts = {number: pool.submit(serve, number) for number in (0, 1)}

    @property
    def errors(self):
        """What parts have ended with, by their numbers."""
        ended = {number: part.exception() for number, part in self._parts.items() if part.done()}
        return {number: error for number, error in ended.items() if error is not None}

    def join(self):
        wait(self._parts.values())


@pytest.fixture
def served(tmp_path, tiny_model, monkeypatch):
    """A run whose fleet has one server over two nodes, and what its parts are told."""
    monkeypatch.setenv("PATH", path_with_vllm(tmp_path / "bin"))
    monkeypatch.setenv("VLLM_STAND_IN_TOLD", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    for module, name in ((nodes_module, "POLL_S"), (serving, "POLL_S"), (serving, "BEAT_S")):
        monkeypatch.setattr(module, name, 0.02)
    config = config_of(tmp_path, nodes=2)
    config = config.model_copy(update={"model": str(tiny_model)})
    run = RunDir(tmp_path / "run")
    run.logs.mkdir(parents=True)
    run.config_file.write_text(compose.dump(config))

    def told(rank):
        path = tmp_path / f"told-by-{rank}"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    return run, config, told


def lives(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_its_parts_meet_start_again_and_end_together(served, monkeypatch):
    run, config, told = served
    server = Server(run, config, monkeypatch)
    wait_until(lambda: (server.file.exists() and told(1)) or server.errors)
    assert not server.errors
    first, other = told(0)[0], told(1)[0]
    same = ("--nnodes", "--master-addr", "--master-port", "--tensor-parallel-size", "--pipeline-parallel-size")
    assert [first[name] for name in same] == [other[name] for name in same]
    assert (first["--nnodes"], first["--tensor-parallel-size"], first["--pipeline-parallel-size"]) == ("2", "4", "2")
    assert (first["--node-rank"], first["headless"]) == ("0", False)
    assert (other["--node-rank"], other["headless"]) == ("1", True)
    assert first["--master-addr"] == first["address"] == "127.0.0.1"

    key = server.file.with_suffix(".key").read_text()
    os.kill(other["pid"], signal.SIGKILL)
    wait_until(lambda: len(told(0)) == len(told(1)) == 2 or server.errors)
    assert not server.errors
    assert told(0)[1]["--master-port"] == told(1)[1]["--master-port"] != first["--master-port"]
    wait_until(lambda: (server.file.exists() and server.file.with_suffix(".key").read_text() != key) or server.errors)
    assert not lives(first["pid"])

    os.kill(told(0)[1]["pid"], signal.SIGKILL)
    wait_until(lambda: len(told(0)) == len(told(1)) == 3 or server.errors)
    assert not lives(told(1)[1]["pid"])
    for unit in units(run, config):
        if unit.stage == "simulate":
            unit.folder.mkdir(parents=True, exist_ok=True)
            mark_done(unit.folder, [], {}, {})
    server.join()
    assert not server.errors
    assert not any(lives(part["pid"]) for part in [*told(0), *told(1)])


def test_the_error_is_that_of_the_part_that_did_not_start(served, monkeypatch):
    monkeypatch.setenv("VLLM_STAND_IN_FAILS", "1")
    monkeypatch.setenv("VLLM_STAND_IN_HANGS", "0")  # as vLLM does, which waits for the others
    run, config, told = served
    server = Server(run, config, monkeypatch)
    server.join()
    said = str(server.errors[0])
    assert "The part of the server on 127.0.0.1 ended (exit code 1)" in said
    assert "server-node-1.log ends:\n  no room on this node" in said
    assert list(server.errors) == [0]
    assert not any(lives(part["pid"]) for part in [*told(0), *told(1)])


def test_by_slurm_each_process_is_on_a_node(tmp_path, monkeypatch):
    config = config_of(tmp_path, nodes=2)
    with pytest.raises(ConfigError, match=r"cluster.serve.nodes is 2, and this server has 1 processes"):
        nodes_of(config, tmp_path)
    step = {"SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_STEP_NUM_NODES": "2"}
    step |= {"SLURM_STEP_NODELIST": "localhost,no-such-node", "VLLM_HOST_IP": "10.0.0.7", "SLURM_NTASKS": "2"}
    for name, value in step.items():
        monkeypatch.setenv(name, value)
    nodes = nodes_of(config, tmp_path)
    assert (nodes.rank, nodes.num, nodes.is_first) == (1, 2, False)
    monkeypatch.delenv("VLLM_HOST_IP")
    monkeypatch.setenv("SLURM_PROCID", "0")
    with pytest.raises(ConfigError, match=r"'no-such-node', a node of this server, cannot be reached"):
        nodes_of(config, tmp_path)
    assert nodes_of(config_of(tmp_path), tmp_path) is None


def test_servers_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"a server is one task on each of its nodes, not 2"):
        config_of(tmp_path, tasks_per_node=2)
    tree = {"engine": {"kind": "fleet", "program": "llama_cpp"}, "cluster": {"kind": "slurm", "serve": {"nodes": 2}}}
    with pytest.raises(ConfigError, match=r"the fleet of smollm2-135m is of llama_cpp, whose servers are on one node"):
        compose.parse(tree, "test")
