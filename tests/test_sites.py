"""The sections of docs/sites.md, each as a user would use it: a dry run, and batch files that a shell can read."""

import io
import subprocess

import pytest
import yaml
from pages import ROOT, blocks
from rich.console import Console

from salign import compose
from salign.launch import LaunchOptions, launch

SECTIONS = [block for block in blocks(ROOT / "docs" / "sites.md") if block.language == "yaml"]


def test_there_are_six_kinds_of_sites():
    assert len(SECTIONS) == 6
    assert all(set(yaml.safe_load(block.text)) == {"cluster"} for block in SECTIONS)


@pytest.mark.parametrize("block", SECTIONS, ids=str)
def test_the_section_of_a_site_gives_jobs(block, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")  # no Slurm
    quickstart = str(ROOT / "configs" / "quickstart.yaml")
    piece = tmp_path / "piece.yaml"
    piece.write_text(yaml.safe_dump({"bases": [quickstart], **yaml.safe_load(block.text)}))
    words = [f"run.root={tmp_path}", "train.stages.sft.groups_per_step=64", "train.stages.stable.groups_per_step=64"]
    config = compose.load(piece, [*words, "society.num_worlds=16", "society.num_shards=16"])
    text = io.StringIO()
    launch(config, Console(file=text, width=400), LaunchOptions(dry_run=True))
    files = text.getvalue().split("#!/bin/bash\n")[1:]
    assert len(files) == 6  # the array, the collector, two stages, two evaluations
    options = {line for file in files for line in file.splitlines() if line.startswith("#SBATCH")}
    given = yaml.safe_load(block.text)["cluster"]
    for section in (given, *(value for value in given.values() if isinstance(value, dict))):
        for name, value in section.get("sbatch", {}).items():
            assert any(line.startswith(f"#SBATCH --{name}") for line in options), (name, value)
    for file in files:
        script = "#!/bin/bash\n" + file.split("\n─")[0]
        subprocess.run(["/bin/bash", "-n"], input=script, text=True, check=True)
