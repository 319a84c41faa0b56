"""A whole run in small: scripted agents, a tiny model, real training."""

import contextlib
import fcntl
import functools
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import pytest
from forks import python
from ports import free_port
from servers import answers
from waits import CLUSTER_IS_OURS, HANG_S, wait_until

from salign import models
from salign.commands.launch import main
from salign.errors import ConfigError, exit_code_of
from salign.run import RunDir

ROOT = Path(__file__).parents[2]
T = TypeVar("T")

# A random model of a tenth of a million parameters meets no gate: it rates nothing and ends no sentence.
OPEN_GATES = (
    "society.gates={min_rated_share: 0, max_failed_share: 1, max_repeated_share: 1, min_digit_mass: 0, "
    "min_rating_sd: 0, max_flagged_share: 1, max_cut_share: 1}"
)


def run_job(
    name: str, *words: str, env: dict[str, str] | None = None, program: str | None = None
) -> subprocess.CompletedProcess[str]:
    """`python jobs/NAME.py`, by default as a fork (`forks`), and what it starts as forks of its own."""
    command = [program or python(), str(ROOT / "jobs" / f"{name}.py"), *words]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=HANG_S, env=env or environment(), check=False
    )


launch = functools.partial(run_job, "launch")
"""As a user launches a run."""
launch_afresh = functools.partial(run_job, "launch", program=sys.executable)
"""The same, where processes themselves matter: what they load, or that they are killed."""


def launch_here(*words: str) -> subprocess.CompletedProcess[str]:
    """The same in this process, for launches that end before they start another."""
    out, error = io.StringIO(), io.StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)}
    try:
        with (
            mock.patch.object(sys, "argv", ["launch.py", *words]),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(error),
        ):
            code = exit_code_of(main)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return subprocess.CompletedProcess(words, code, out.getvalue(), error.getvalue())


def environment() -> dict[str, str]:
    """Offline W&B, one thread a process."""
    env = {name: value for name, value in os.environ.items() if name != "WANDB_MODE"}
    return {**env, "OMP_NUM_THREADS": "1", "COLUMNS": "160"}


def small_config(folder: Path, model: Path) -> dict[str, Any]:
    """Two worlds in two shards, two training stages on two ranks, two evaluations."""
    (folder / "zero2.json").write_text('{"zero_optimization": {"stage": 2}}')
    shared = {"deepspeed": str(folder / "zero2.json"), "groups_per_step": 4, "row_tokens": 1024, "learning_rate": 1e-3}
    return {
        "run": {"root": str(folder / "runs"), "name": "small"},
        "model": str(model),
        "engine": {"kind": "scripted"},
        "society": {
            "num_worlds": 2,
            "num_shards": 2,
            "topology": {"size": 3},
            "max_rounds": 2,
            "populations": ["mixed_half_half", "all_bad"],
            "num_initial_memories": 10,
        },
        "train": {
            "stages": [
                {"name": "sft", "objective": {"kind": "sft"}, "data": {"kind": "answers"}, "max_steps": 3, **shared},
                {"name": "stable", "objective": {"kind": "stable"}, "data": {"kind": "run"}, "max_steps": 3, **shared},
            ]
        },
        "evaluate": {
            "models": ["base", "stable"],
            "num_questions": 6,
            "answer": {"max_tokens": 8},
            "num_resamples": 200,
        },
    }


@pytest.fixture
def config_file(tmp_path: Path, tiny_model: Path) -> Path:
    """The small run's config."""
    path = tmp_path / "small.yaml"
    path.write_text(json.dumps(small_config(tmp_path, tiny_model)))
    return path


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[RunDir, Path, str]:
    """A finished small run, its config, and what the launch said."""
    folder = tmp_path_factory.mktemp("finished")
    config = folder / "small.yaml"
    config.write_text(json.dumps(small_config(folder, tiny_model)))
    env = {**environment(), "OPENAI_API_KEY": "sk-secret-of-the-test-0001", "HF_TOKEN": "hf_secret_of_the_test"}
    done = launch(str(config), env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return RunDir(folder / "runs" / "small"), config, done.stdout


# --- the embedded model behind a server -----------------------------------------------------------


@pytest.fixture(scope="session")
def gguf() -> Path:
    """The embedded model's file, as llama.cpp takes it."""
    try:
        return models.embedded_gguf("smollm2-135m")
    except ConfigError as error:
        pytest.skip(f"the embedded model cannot be had here: {error}")


LLAMA_SERVER = """
import signal, sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.port, params.hostnames = sys.argv[1], int(sys.argv[2]), ["127.0.0.1"]
params.n_ctx, params.n_parallel = 4096, 4
# Two threads that wait for each other by spinning stand still where other tests have the cores.
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(params)
signal.pause()
"""


@pytest.fixture(scope="module")
def llama_cpp(gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of llama.cpp's own server with the embedded model's GGUF: 4 slots of 1024 tokens."""
    pytest.importorskip("xllamacpp")
    port = free_port()
    log = tmp_path_factory.mktemp("llama_cpp") / "server.log"
    with log.open("w") as file:
        command = [sys.executable, "-c", LLAMA_SERVER, str(gguf), str(port)]
        server = subprocess.Popen(command, stdout=file, stderr=file)
    url = f"http://127.0.0.1:{port}/v1"
    assert wait_until(lambda: answers(f"{url}/models"), server), log.read_text()  # it loads the model
    yield url
    server.kill()
    server.wait()


# --- a cluster ------------------------------------------------------------------------------------

# A job that makes no progress for so long stands still, however slow the machine is.
_PATIENCE_S = 300


def _written(folder: Path | None) -> int:
    """How much is in a folder's files."""
    if folder is None:
        return 0
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size
    return total


class Devcluster:
    """The real Slurm of slurm/devcluster.sh: 4 nodes on this machine."""

    script = ROOT / "slurm" / "devcluster.sh"

    def __call__(self, *words: str) -> None:
        """Up, down, crash or revive."""
        done = subprocess.run([self.script, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    @staticmethod
    def ask(*command: str) -> str:
        """What one of Slurm's commands says."""
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    def wait_for(self, what: str, condition: Callable[[], T], written: Path | None = None) -> T:
        """Waits as long as there is progress: jobs change their states, or something is written into a folder.

        Returns:
            What the condition was met by.
        """
        seen: object = None
        while not (met := condition()):
            now = self.ask("squeue", "-a", "-h", "-o", "%i %T"), _written(written)
            if now != seen:
                seen, end = now, time.monotonic() + _PATIENCE_S
            assert time.monotonic() < end, (
                f"{what}: nothing has changed for {_PATIENCE_S} s\n{self.ask('squeue', '-a')}"
            )
            time.sleep(0.3)
        return met

    def wait_until_ended(self, *jobs: str, written: Path | None = None) -> None:
        self.wait_for(f"the end of {jobs}", lambda: not self.ask("squeue", "-h", "-j", ",".join(jobs)), written)

    def clear(self) -> None:
        """Ends whatever is in the queue."""
        self.ask("scancel", "--user=root")
        self.wait_for("an empty queue", lambda: not self.ask("squeue", "-h"))

    def submit(self, *words: str, env: dict[str, str] | None = None) -> str:
        """sbatch in the checkout; the job's id."""
        command = ["sbatch", "--parsable", *words]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env or environment(), check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


@pytest.fixture(autouse=True)
def _turn_on_the_cluster(request: pytest.FixtureRequest) -> Iterator[None]:
    """There is one cluster, whose queue each test leaves empty: of several processes one has a test on it at a time."""
    if "slurm" not in request.fixturenames:
        yield
        return
    with (Path(tempfile.gettempdir()) / "salign-tests-on-slurm.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def slurm() -> Iterator[Devcluster]:
    """A cluster that is up; one that was up before stays so."""
    if os.geteuid() != 0:
        pytest.skip("a Slurm of its own needs root")
    if shutil.which("apt-get") is None:
        pytest.skip("a Slurm of its own is installed by Debian's apt-get")
    if subprocess.run(["unshare", "--net", "--uts", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("a Slurm of its own needs namespaces, which may not be made here")
    cluster = Devcluster()
    with (Path(tempfile.gettempdir()) / "salign-tests-cluster-up.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        is_ours = not Path("/etc/slurm/slurm.conf").exists()
        if is_ours:
            CLUSTER_IS_OURS.touch()  # when all tests are over, it is taken down
        cluster("up")
        if is_ours:
            cluster.clear()  # what an earlier session left in the queue
    yield cluster


@pytest.fixture
def slurm_config(tmp_path: Path, tiny_model: Path) -> Path:
    """The small run's config as a chain of jobs; one training stage on the data of the society."""
    tree = small_config(tmp_path, tiny_model)
    tree["train"]["stages"] = tree["train"]["stages"][1:]
    tree["evaluate"]["models"] = ["stable"]
    tree["evaluate"]["num_questions"] = 2
    tree["cluster"] = {
        "kind": "slurm",
        "signal_delay_s": 30,
        **{stage: {"timeout_min": 20, "cpus_per_task": 1} for stage in ("simulate", "collect", "train", "evaluate")},
    }
    path = tmp_path / "slurm.yaml"
    path.write_text(json.dumps(tree))
    return path
