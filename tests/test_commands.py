"""The command `salign`, and jobs/*.py, which are the same."""

import subprocess
import sys
from pathlib import Path

import pytest

from salign import compose
from salign.commands import init
from salign.commands.main import COMMANDS, main
from salign.errors import ConfigError
from salign.shown import as_called

ROOT = Path(__file__).parents[1]


def call(monkeypatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["salign", *words])
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_each_module_is_a_command():
    modules = {path.stem for path in (ROOT / "salign" / "commands").glob("*.py")} - {"__init__", "main"}
    assert modules == set(COMMANDS)


def test_each_command_is_a_file_of_jobs_as_well():
    assert {path.stem for path in (ROOT / "jobs").glob("*.py")} == set(COMMANDS) - {"init", "config", "completion"}


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_says_what_it_takes(monkeypatch, capsys, name):
    assert call(monkeypatch, name, "--help") == 0
    assert f"usage: salign {name}" in capsys.readouterr().out


def test_the_commands_are_listed_and_a_mistyped_one_is_told(monkeypatch, capsys):
    assert call(monkeypatch) == 0
    listed = capsys.readouterr().out
    assert all(f"  {name}" in listed for name in COMMANDS)
    assert call(monkeypatch, "lanch") == 2
    assert "no command 'lanch'; did you mean 'launch'?" in capsys.readouterr().err


def test_a_shell_completes_commands_options_and_files(monkeypatch, capsys, tmp_path):
    assert call(monkeypatch, "completion", "bash") == 0
    script = tmp_path / "salign.bash"
    script.write_text(capsys.readouterr().out)
    (tmp_path / "mine.yaml").touch()
    asked = [("la", "launch"), ("launch mi", "mine.yaml"), ("launch --wa", "--wait"), ("dashboard ap", "apply")]
    asked += [("bench str", "streams"), ("report mi", "mine.yaml"), ("simulate mi", "mine.yaml")]
    for words, expected in asked:
        *_, last = split = ["salign", *words.split(" ")]
        # As bash does: the words, the place of the one that is typed, and the function that it was told of.
        asks = f"source {script}; COMP_WORDS=({' '.join(split)}); COMP_CWORD={len(split) - 1}; "
        asks += f"_shtab_salign salign {last}; echo ${{COMPREPLY[@]}}"
        done = subprocess.run(["bash", "-c", asks], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert done.stdout.split() == [expected], words


def test_a_config_to_begin_with_is_one_that_can_be_launched(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["salign init", str(tmp_path / "my first-run")])
    init.main()
    config = compose.load(tmp_path / "my first-run" / "config.yaml")
    assert config.run.name == "myfirst-run"
    assert [stage.name for stage in config.train.stages] == ["sft", "stable"]
    with pytest.raises(ConfigError, match="already exists"):
        init.main()


def test_what_comes_with_salign_is_a_base_wherever_the_config_lies(tmp_path):
    (tmp_path / "mine.yaml").write_text("bases: [train/dpo.yaml]\nmodel: smollm2-135m\n")
    assert compose.load(tmp_path / "mine.yaml").train.stages
    (tmp_path / "mine.yaml").write_text("bases: [train/nothing.yaml]\n")
    with pytest.raises(ConfigError, match=r"no config file .*nothing.yaml"):
        compose.load(tmp_path / "mine.yaml")


def test_commands_are_named_as_the_user_called_this_one(monkeypatch):
    text = "Run `python jobs/simulate.py RUN --shard 3`."
    monkeypatch.setattr("sys.argv", ["jobs/status.py"])
    assert as_called(text) == text
    monkeypatch.setattr("sys.argv", ["salign status"])
    assert as_called(text) == "Run `salign simulate RUN --shard 3`."
