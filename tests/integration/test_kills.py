"""A whole run that is killed again and again comes to what it would have come to."""

import pytest
from kill_runs import kill_runs

pytestmark = pytest.mark.integration


def test_ten_kills_at_random_moments_change_no_result(tmp_path, capsys):
    """`kill_runs.py 200` does the same with more of them."""
    kill_runs(10, 0, tmp_path / "runs")
    said = capsys.readouterr().out
    assert said.count("kill ") == 10
    assert "has the results of the undisturbed run" in said
