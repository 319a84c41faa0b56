"""Every block of the documentation that is marked to be run, in order, in a copy of the project."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import environment
from pages import PAGES, ROOT, blocks

pytestmark = pytest.mark.integration

TO_RUN = [block for page in PAGES for block in blocks(page) if block.mark == "run"]
# The run that the tutorial makes; other pages name the quickstart's, or just RUN.
_TUTORIALS = "runs/trial"


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """What a user has of the project after a checkout, without its tests."""
    folder = tmp_path_factory.mktemp("copy") / "salign"
    folder.mkdir()
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("configs", "docs", "jobs", "salign", "slurm"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignored)
    (folder / "runs").mkdir()
    (folder / "runs" / "quickstart").symlink_to(folder / _TUTORIALS)
    return folder


def test_every_block_that_is_marked_to_be_run_succeeds(copy):
    bin_folder = Path(sys.executable).parent
    env = {**environment(), "PYTHONPATH": str(copy), "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"}
    assert TO_RUN[0].page.name == "tutorial.md"
    for block in TO_RUN:
        text = re.sub(r"\bRUN\b", _TUTORIALS, block.text)
        program = [sys.executable, "-"] if block.language == "python" else ["bash", "-euo", "pipefail"]
        done = subprocess.run(program, input=text, capture_output=True, text=True, cwd=copy, env=env, check=False)
        assert done.returncode == 0, f"{block}\n{text}\n{done.stdout}{done.stderr}"
