"""A whole run that is killed again and again comes to what it would have come to."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import environment

pytestmark = pytest.mark.integration


def test_ten_kills_at_random_moments_change_no_result(tmp_path):
    """`kill_runs.py 200` does the same with more of them."""
    script = Path(__file__).parent / "kill_runs.py"
    command = [sys.executable, str(script), "10", "0", str(tmp_path / "runs")]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("kill ") == 10
    assert "has the results of the undisturbed run" in done.stdout
