"""The workspace, offline: what was agreed on, and that all it shows is logged."""

import json

import pytest

from salign.config import SocietySection
from salign.errors import ConfigError
from salign.society.protocols import PROTOCOLS, protocol_of
from salign.society.rounds import Round, curves
from salign.tracking import workspace
from salign.tracking.names import LOGGED
from salign.tracking.server import asking_wandb

pytest.importorskip("wandb_workspaces")
# wandb-workspaces' own, when it is imported.
pytestmark = pytest.mark.filterwarnings("ignore:Pydantic V1 style")

CURVES = curves(protocol_of(SocietySection()))


def test_the_workspace_is_what_was_agreed_on():
    assert workspace.check(CURVES) == []


def test_a_change_of_the_workspace_is_noticed_until_it_is_agreed_on(monkeypatch, tmp_path):
    golden = tmp_path / "workspace.json"
    golden.write_text(workspace.GOLDEN.read_text().replace("Learning rate", "Rate"))
    monkeypatch.setattr(workspace, "GOLDEN", golden)
    [problem] = workspace.check(CURVES)
    assert "check --update" in problem
    assert workspace.check(CURVES, update=True) == []
    assert golden.read_text() == workspace.GOLDEN.read_text()


def test_a_metric_that_nobody_logs_is_named(monkeypatch):
    kept = tuple(name for name in LOGGED["train"] if name != "train/grad_norm")
    monkeypatch.setitem(LOGGED, "train", kept)
    assert workspace.check(CURVES) == ["train/grad_norm is shown, and nothing logs it"]


@pytest.mark.parametrize("kind", PROTOCOLS)
def test_the_workspace_of_a_protocol_shows_what_its_rounds_log_and_nothing_of_others(kind):
    society = SocietySection(
        protocol={"kind": kind}, criteria=[{"name": "alignment"}, {"name": "safety"}], memory={"kind": "stream"}
    )
    protocol = protocol_of(society)
    spec = workspace.spec(workspace.build("entity", "project", curves(protocol)))
    logged = Round(0, 1).metrics(protocol)
    shown = {name for name in workspace.named_metrics(spec) if name.startswith("sim/")}
    of_rounds = {name for name in shown if name.endswith(("_mean", "_share"))}
    assert workspace.not_logged(spec) == []
    assert of_rounds <= set(logged)
    rated = {name for name in logged if "alignment" in name or "safety" in name}
    assert of_rounds >= rated | {f"sim/{name}" for name in protocol.figures}


def test_every_section_of_the_workspace_shows_something_that_is_logged():
    sections = json.loads(workspace.GOLDEN.read_text())["section"]["panelBankConfig"]["sections"]
    for section in sections[:6]:
        assert any(workspace.is_logged(name) for name in workspace.named_metrics(section)), section["name"]


@pytest.mark.parametrize(
    ("name", "logged"),
    [
        ("eval/moral_stories/mean", True),
        ("eval/a/b/mean", False),
        ("eval/judge/own/rating/agreement", True),
        ("train/loss", True),
        ("train/lossy", False),
    ],
)
def test_the_task_of_an_evaluation_may_be_any(name, logged):
    assert workspace.is_logged(name) is logged


def test_without_a_key_the_server_is_not_asked():
    with pytest.raises(ConfigError, match="WANDB_API_KEY"), asking_wandb():
        raise AssertionError("not reached")
