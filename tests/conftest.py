"""What tests share: a small real model, made here, and the place of third-party data."""

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny import make_model
from waits import CLUSTER_IS_OURS

# A shell ignores it in what it starts in the background, and so would all processes of tests.
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when huggingface_hub is imported
# Some test files run at a time, and their models are so small that a second thread only waits for the first.
os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARED = Path(__file__).parents[2] / "shared"


# What takes longest comes first, so that nothing long is left to be waited for at the end.
_LONG = (
    *(
        "test_slurm",
        "test_slurm_sites",
        "test_launch",
        "test_training",
        "test_embedded_model",
        "test_simulation",
        "test_wandb",
        "test_pages",
    ),
    *("test_llama_server", "test_ranks_evaluation", "test_families", "test_examples", "test_optimizer"),
    *("test_shard", "test_worlds", "test_report", "test_protocols", "test_evaluation", "test_transformers_engine"),
    *("test_embedders", "test_server_engine", "test_streams", "test_modes", "test_engines", "test_chat", "test_reach"),
)


# Files in one process: they share the session's run (`finished` in integration/conftest.py), which takes a minute to
# make, or would wait for each other at the cluster.
_TOGETHER = {"test_report_page": "test_launch", "test_wandb": "test_launch", "test_slurm_sites": "test_slurm"}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Each file has a process to itself, but for those that are better off in one."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            return _TOGETHER.get(Path(file).stem, Path(file).stem)

    return Scheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first."""
    items.sort(key=lambda item: _LONG.index(item.path.stem) if item.path.stem in _LONG else len(_LONG))


def pytest_unconfigure(config: pytest.Config) -> None:
    """Takes down the Slurm that tests have started, when those of all processes are over."""
    if "PYTEST_XDIST_WORKER" not in os.environ and CLUSTER_IS_OURS.exists():
        subprocess.run([Path(__file__).parents[1] / "slurm" / "devcluster.sh", "down"], check=False)
        CLUSTER_IS_OURS.unlink()


def pytest_collection_finish() -> None:
    """What imports left is not gone through again by every collection of garbage: some two million objects."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test that needs a CUDA device is skipped where there is none."""
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


@pytest.fixture(scope="module", autouse=True)
def _environment_of_before() -> Iterator[None]:
    """What a module leaves in the environment, such as a rank's place, reaches no other module's processes."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reaches W&B, depends on the keys of whoever runs it, or leaves another command line than it found."""
    monkeypatch.setattr(sys, "argv", sys.argv)
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "OPENAI_API_KEY", "SALIGN_CACHE", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("NETRC", os.devnull)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Third-party data, which is not part of the project."""
    data = SHARED / "data"
    if not data.is_dir():
        pytest.skip("../shared/data is not here")
    return data


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny.make_model`, once."""
    return make_model(tmp_path_factory.mktemp("tiny-model"))
