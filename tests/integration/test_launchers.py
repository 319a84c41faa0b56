"""Training by whichever launcher a site has; torchrun's is in test_training, srun's in test_slurm."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, environment, launch
from waits import HANG_S

from salign.markers import read_done
from salign.run import RunDir

pytestmark = pytest.mark.integration


def train(run: RunDir, *launcher: str) -> subprocess.CompletedProcess[str]:
    command = [*launcher, sys.executable, str(ROOT / "jobs" / "train.py"), str(run.path), "--stage", "sft"]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=HANG_S, check=False)


def test_two_ranks_by_mpiexec_train_as_two_by_torchrun(config_file, tmp_path):
    assert launch(str(config_file), "--prepare").returncode == 0
    run = RunDir(tmp_path / "runs" / "small")
    mpiexec = shutil.which("mpiexec", path=str(Path(sys.executable).parent))
    done = train(run, mpiexec, "-n", "2")
    assert done.returncode == 0, done.stderr
    assert "2 ranks on 1 nodes" in done.stderr
    by_mpi = read_done(run.stage("sft")).files["model/model.safetensors"]
    shutil.rmtree(run.stage("sft"))
    torchrun = [str(Path(sys.executable).parent / "torchrun"), "--standalone", "--nproc-per-node", "2", "--no-python"]
    assert train(run, *torchrun).returncode == 0
    assert read_done(run.stage("sft")).files["model/model.safetensors"] == by_mpi
