"""The report: its figures against the record, what is not there yet, what models say stays text, and bounds."""

import base64
import functools
import html
import json
import re
import tracemalloc
from dataclasses import asdict, astuple
from html.parser import HTMLParser
from pathlib import Path
from unittest import mock
from xml.etree import ElementTree

import numpy as np
import pytest
from actors import Feedback, Rating, audience_of, interaction, observed_of

from salign import compose
from salign.config import Config
from salign.dataset.collect import collect
from salign.errors import StageError
from salign.evaluation.statistics import Estimate
from salign.manifest import create_run
from salign.markers import Done, mark_done, read_done, record_failure
from salign.records import read_interactions, to_bytes
from salign.report import write
from salign.report.curves import plots
from salign.report.html import render
from salign.report.paper import draw_figures
from salign.report.record import read_run, thinned
from salign.report.society import CellMap, Followed, Reservoir, Shard, SocietyReader
from salign.report.write import write_report
from salign.run import RunDir
from salign.seeds import rng
from salign.society.shard import run_shard
from salign.storage import write_atomic

PRICE = {"prompt": 0.5, "completion": 2.0, "currency": "EUR"}


def config_of(folder, society=None, **sections) -> Config:
    small = {
        "num_worlds": 2,
        "num_shards": 2,
        "topology": {"kind": "grid", "size": 3},
        "max_rounds": 5,
        "audience_size": 3,
        "num_initial_memories": 6,
        "populations": ["mixed_half_half", "all_bad"],
        "stopping": {"window": 1, "min_rounds": 2, "tolerance": 2},
    }
    raw = {
        "run": {"root": str(folder), "name": "run"},
        "engine": {"kind": "scripted"},
        "society": {**small, **(society or {})},
        "tracking": {"wandb": False, **sections.pop("tracking", {})},
        **sections,
    }
    return compose.parse(raw, "test")


@pytest.fixture(scope="module")
def simulated(tmp_path_factory) -> RunDir:
    """A run that is simulated and collected, and trains nothing."""
    run = create_run(config_of(tmp_path_factory.mktemp("simulated"), tracking={"price_per_1000_tokens": PRICE}))
    for shard in range(2):
        run_shard(run, run.config(), shard)
    collect(run, run.config())
    return run


@pytest.fixture
def _in_one_format(monkeypatch):
    """Figures are drawn as SVG; that they are as PNG too is for one report to show."""
    monkeypatch.setattr(write, "draw_figures", functools.partial(draw_figures, formats=["svg"]))


one_format = pytest.mark.usefixtures("_in_one_format")


def interactions_of(run: RunDir, num_shards: int = 2):
    return [i for shard in range(num_shards) for i in read_interactions(run.shard(shard) / "interactions.jsonl")]


def data_of(page: str):
    """What the page's scripts read."""
    [text] = re.findall(r'<script type="application/json" id="record">(.*?)</script>', page, re.DOTALL)
    return json.loads(text)


# --- figures against the record ------------------------------------------------------------------


def test_counts_and_means_are_those_of_the_record(simulated):
    society, everything = read_run(simulated, simulated.config()).society, interactions_of(simulated)
    assert society.num_interactions == len(everything)
    assert sum(num for num, _ in society.missing.values()) == sum(len(audience_of(i)) + 4 for i in everything)
    for name in ("draft", "revision"):
        for criterion in ("alignment", "engagement"):
            values = [getattr(observed_of(i, name), criterion) for i in everything]
            assert society.means[name, criterion] == pytest.approx(np.mean(values))
    assert society.before_after.sum() == len(everything)
    pairs = [(observed_of(i, "draft").alignment, observed_of(i, "revision").alignment) for i in everything]
    assert society.num_higher == sum(after > before for before, after in pairs)
    assert society.num_lower == sum(after < before for before, after in pairs)


def test_the_map_has_each_agents_rating_in_its_place(simulated):
    page = render(read_run(simulated, simulated.config()))
    found = data_of(page)["map"]
    assert found["side"] == 3
    assert found["is_grid"]
    for item in interactions_of(simulated):
        world = found["worlds"][item.world]
        ratings = (
            observed_of(item, "revision").alignment,
            observed_of(item, "revision").engagement,
            observed_of(item, "draft").alignment,
        )
        for measure, rating in zip(world["measures"], ratings, strict=True):
            byte = base64.b64decode(measure)[found["rounds"].index(item.round) * 9 + item.agent]
            assert 1 + (byte - 1) / 250 * 6 == pytest.approx(rating, abs=6 / 250)
    for world in found["worlds"]:  # of rounds that were not held there is nothing
        assert not any(base64.b64decode(world["measures"][0])[world["last"] * 9 :])


def test_paths_end_where_the_society_stopped(simulated):
    config = simulated.config()
    paths = read_run(simulated, config).paths
    assert [path.world for path in paths] == [0, 1]
    for path in paths:
        last = Shard(path.world, read_done(simulated.shard(path.world))).last_rounds[path.world]
        assert [row["sim/round"] for row in path.rounds] == list(range(1, last + 1))
        [stop] = read_done(simulated.shard(path.world)).facts["stops"]
        assert (stop["world"], stop["round"], stop["why"]) == (path.world, last, path.stop)
        assert path.stop == ("max_rounds" if last == 5 else "no improvement")
        gain = {name.removeprefix("sim/gain_"): path.rounds[-1][name] for name in path.rounds[-1] if "/gain_" in name}
        assert stop["gain"] == gain
        assert (gain["most"] < gain["tolerance"]) == (path.stop == "no improvement")
        means = {
            r: [i for i in interactions_of(simulated) if i.world == path.world and i.round == r] for r in [1, last]
        }
        for row in (path.rounds[0], path.rounds[-1]):
            values = [observed_of(i, "revision").alignment for i in means[row["sim/round"]]]
            assert row["sim/alignment_mean"] == pytest.approx(np.mean(values))


def test_what_agents_recalled_is_drawn_by_round_and_source_and_stands_in_the_card(simulated):
    record = read_run(simulated, simulated.config())
    [shown] = [plot for plot in plots(record)["society"] if plot.key == "recalls"]
    first = [item.turn("draft").recalled for item in interactions_of(simulated) if item.round == 1]
    share = sum(memory is not None for memory in first) / len(first)
    assert shown.rows[0] == ["initial memories", 1, pytest.approx(share)]
    assert [row[2] for row in shown.rows if row[:2] == ["the agent's own answers", 1]] == [0.0]
    card = json.loads((simulated.dataset / "card.json").read_text())["recall"]
    assert card["draft"]["rounds"]["1"]["initial_share"] == pytest.approx(share, abs=1e-4)
    assert f"nearer than {card['max_distance']:g}" in shown.caption


def test_the_cost_is_tokens_times_price_and_absent_without_one(simulated):
    config = simulated.config()
    record = read_run(simulated, config)
    facts = [read_done(simulated.shard(shard)).facts for shard in range(2)]
    cost = sum(0.5 * fact["prompt_tokens"] + 2.0 * fact["completion_tokens"] for fact in facts) / 1000
    assert record.cost(record.society.prompt_tokens, record.society.completion_tokens) == pytest.approx(cost)
    [shown] = [plot for plot in plots(record)["running"] if plot.key == "cost"]
    assert shown.rows[-1][1] == pytest.approx(cost, rel=1e-4)
    assert f"{cost:,.2f} EUR" in render(record)
    tracking = config.tracking.model_copy(update={"price_per_1000_tokens": None})
    free = read_run(simulated, config.model_copy(update={"tracking": tracking}))
    assert "cost" not in [plot.key for plot in plots(free)["running"]]
    assert "EUR" not in render(free).split("The resolved config")[0]


def test_calls_and_time_stand_by_what_they_were_for(simulated):
    record = read_run(simulated, simulated.config())
    done = [read_done(simulated.shard(shard)) for shard in range(2)]
    for kind in ("draft", "revision", "observe"):
        first, second = (one.facts["calls_by_kind"][kind] for one in done)
        assert asdict(record.calls_by_kind[kind]) == {name: first[name] + second[name] for name in first}
    page = render(record)
    num, prompt, reply = astuple(record.calls_by_kind["observe"])
    share = (prompt + reply) / (record.society.prompt_tokens + record.society.completion_tokens)
    cells = "".join(f"<td>{cell}</td>" for cell in (f"{num:,}", f"{prompt:,}", f"{reply:,}", f"{share:.0%}"))
    assert f'<th scope="row">observe</th>{cells}' in page
    assert "What the stages took" not in page  # this process simulated, and is none of a launch
    record.took_s["simulate"] = 1234.4
    assert '<th scope="row">simulate</th><td>1,234 s</td>' in render(record)


@pytest.mark.slow
@one_format
def test_a_protocol_without_an_audience_is_shown_by_its_own_roles(tmp_path):
    protocol = {"kind": "sample", "num_answers": 3}
    run = create_run(config_of(tmp_path, {"protocol": protocol, "num_worlds": 1, "num_shards": 1, "max_rounds": 2}))
    run_shard(run, run.config(), 0)
    collect(run, run.config())
    path, record = write_report(run, run.config())
    page, society, everything = path.read_text(), record.society, interactions_of(run, num_shards=1)
    shown = [plot for section in plots(record).values() for plot in section]
    assert [plot.key for plot in shown][:3] == ["society-path", "recalls", "ratings"]
    assert {"before-after", "followed", "gain"}.isdisjoint(plot.key for plot in shown)
    words = json.dumps([[plot.title, plot.caption, plot.alt, plot.figure, plot.columns] for plot in shown])
    assert "answers: alignment" in words
    assert not re.search(
        "draft|revision|feedback", words + re.sub(r"<script.*?</script>", "", page.split('id="run"')[0])
    )
    assert re.findall(r'<option value="[0-9]">(.*?)</option>', page) == [
        "alignment of answers",
        "engagement of answers",
    ]
    assert society.missing == {
        "answer alignment": [3 * len(everything), 0],
        "answer engagement": [3 * len(everything), 0],
    }
    ratings = [turn.observed_rating("alignment") for item in everything for turn in item.turns]
    assert society.means["answer", "alignment"] == pytest.approx(np.mean(ratings))
    # Of a cell, which has one agent, the mean of all its answers.
    first = [turn.observed_rating("alignment") for turn in everything[0].turns]
    assert society.cells.values(0)[0, 0, everything[0].agent] == pytest.approx(np.mean(first))


def test_feedback_counts_as_followed_by_its_own_words_alone():
    followed = Followed("draft", "revision")
    one = interaction(
        question="Should neighbours borrow tools?",
        draft="Perhaps.",
        feedback=(
            Feedback(4, 2.0, "Mention gratitude, neighbours return things promptly", None),
            Feedback(5, 6.0, "", None),
        ),
        revision="Borrow with gratitude and return promptly.",
    )
    followed.add(interaction(question="Another", draft="thing", revision="Entirely different words", feedback=()))
    shares = followed.add(one)
    # "neighbours" is the question's; of mention, gratitude, return, things, promptly three are taken up.
    assert shares == [pytest.approx(3 / 5), None]
    assert followed.taken[2] == [1, pytest.approx(3 / 5), 0.0]
    assert followed.taken[6] == [0.0, 0.0, 0.0]


def test_the_figures_of_an_evaluation_are_those_that_have_a_mean(tmp_path):
    run = create_run(config_of(tmp_path, evaluate={"models": ["base"]}))
    figures = {
        "questions/alignment": {"mean": 4.0, "low": 3.5, "high": 4.5, "n": 12, "num_missing": 1},
        "hh/rating": {"mean": None, "low": None, "high": None, "n": 0},
        "mic/acc": {"mean": 1.0, "low": None, "high": None, "n": 1},
    }
    folder = run.evaluation("base")
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps({"figures": figures, "num_unrated": 3}))
    mark_done(folder, ["results.json"], {}, figures)
    found = read_run(run, run.config()).evaluation["base"]
    assert list(found) == ["questions/alignment", "mic/acc"]
    assert found["mic/acc"].low is None
    assert found["questions/alignment"].high == 4.5


# --- what is not there yet -----------------------------------------------------------------------


@one_format
def test_a_run_of_which_nothing_is_there_has_a_report(tmp_path):
    run = create_run(config_of(tmp_path))
    page, record = write_report(run, run.config())
    assert record.gaps["society"] == ["shard 0 is not complete yet", "shard 1 is not complete yet"]
    assert "The run is not finished" in page.read_text()


@pytest.mark.slow
@one_format
def test_a_half_finished_run_says_what_is_missing_and_what_failed(tmp_path):
    stage = {"name": "sft", "objective": {"kind": "sft"}, "data": {"kind": "run"}, "deepspeed": "zero.json"}
    config = config_of(tmp_path, train={"stages": [stage]})
    run = create_run(config)
    run_shard(run, config, 0)
    run.shard(1).mkdir(parents=True)
    record_failure(run.shard(1), StageError("shard 1 does not count as done: <b>12 %</b> failed"))
    row = {"time": 1.0, "train/global_step": 3, "train/steps_most": 9, "train/loss": 2.5, "eval/loss": None}
    run.stage("sft").mkdir(parents=True)
    (run.stage("sft") / "metrics.jsonl").write_text(json.dumps(row) + "\n" + '{"torn')
    page, record = write_report(run, config)
    text = page.read_text()
    assert "shard 1 failed: shard 1 does not count as done: &lt;b&gt;12 %&lt;/b&gt; failed" in text
    assert "the alignment data is not complete yet" in text
    assert "train stage sft (after step 3 of 9) is not complete yet" in text
    assert record.society.num_interactions == len(list(read_interactions(run.shard(0) / "interactions.jsonl")))
    assert [path.world for path in record.paths] == [0]
    assert [plot.key for plot in plots(record)["training"]] == ["loss"]


# --- text stays text -----------------------------------------------------------------------------

HOSTILE = (
    "</script><script>window.pwned = 1</script><img src=x onerror='window.pwned = 1'><!--<script>"
    '{{ 7 * 7 }} {% raw %} " \' & \u2028 <a href="javascript:window.pwned = 1">x</a>'
)


class _Elements(HTMLParser):
    """Counts elements that a page has, and attributes that run something."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.running: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.running += [name for name, value in attrs if name.startswith("on") or "javascript:" in (value or "")]


def test_hostile_text_is_text_wherever_it_comes_from(simulated, tmp_path):
    run = RunDir(tmp_path / "run")
    config = config_of(tmp_path)
    create_run(config)
    for shard in range(2):
        folder = run.shard(shard)
        folder.mkdir(parents=True)
        hostile = {
            "question": HOSTILE,
            "draft": HOSTILE,
            "revision": HOSTILE,
            "feedback": (Feedback(1, 3.0, HOSTILE, None),),
        }
        lines = [interaction(world=shard, round=1, agent=agent, **hostile) for agent in range(8)]
        lines.append(interaction(world=shard, round=1, agent=8, revision=None, failure=HOSTILE))
        (folder / "interactions.jsonl").write_bytes(b"".join(map(to_bytes, lines)))
        facts = {**read_done(simulated.shard(shard)).facts, "num_interactions": 9, "rounds": {str(shard): 1}}
        mark_done(folder, ["interactions.jsonl"], {}, facts)
    group = {"kind": "self_critic", "query": HOSTILE, "responses": [HOSTILE], "scores": [3.0]}
    card = json.loads((simulated.dataset / "card.json").read_text())
    write_atomic(run.dataset / "groups.jsonl", json.dumps(group) + "\n")
    write_atomic(run.dataset / "card.json", json.dumps({**card, "num_groups": 1}))
    mark_done(run.dataset, ["groups.jsonl", "card.json"], {}, {})
    record = read_run(run, config)
    record.differences = {HOSTILE: Estimate(1.0, 0.5, 1.5, 3, 0)}
    record.manifest = {"packages": {HOSTILE: HOSTILE}, "inputs": {HOSTILE: HOSTILE}, "code": {"commit": HOSTILE}}
    page, plain = render(record), render(read_run(simulated, simulated.config()))
    seen, usual = _Elements(), _Elements()
    seen.feed(page)
    usual.feed(plain)
    assert seen.names.count("script") == usual.names.count("script") == 3
    assert not seen.running
    assert "img" not in seen.names
    assert html.escape(HOSTILE, quote=False)[:60] in page
    found = data_of(page)
    assert found["interactions"][0]["turns"][0]["text"] == HOSTILE  # whole, for a script that sets it as text
    assert found["groups"][0]["responses"][0]["text"] == HOSTILE


def test_the_page_names_no_address_to_load_from(simulated):
    page = render(read_run(simulated, simulated.config()))
    own = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert "default-src 'none'" in html.unescape(own)
    assert not re.findall(r'(?:src|href)="(?!#|data:,)', own)


# --- other protocols -----------------------------------------------------------------------------

CASTS = {"dialogue": "closing", "game": "move"}
OPEN = {"min_rated_share": 0, "max_failed_share": 1, "max_repeated_share": 1, "max_flagged_share": 1}


@pytest.mark.slow
@one_format
@pytest.mark.parametrize("kind", CASTS)
def test_interactions_of_several_agents_are_reported_with_who_they_are(kind, tmp_path, monkeypatch):
    society = {"protocol": {"kind": kind}, "profiles": {"kind": "people"}, "audience_size": 0, "stopping": None}
    config = config_of(tmp_path, society={**society, "num_worlds": 1, "num_shards": 1, "max_rounds": 2, "gates": OPEN})
    run = create_run(config)
    run_shard(run, config, 0)
    mirror = mock.MagicMock()
    monkeypatch.setattr("salign.dataset.collect.open_mirror", mirror)
    collect(run, config)
    _, columns, rows = mirror.return_value.__enter__.return_value.table.call_args.args
    assert {"profile.age", "profile.occupation", "profile.culture"} <= set(columns)
    assert all(type(row[columns.index("profile.age")]) is int for row in rows)
    page, record = write_report(run, config)
    assert "protocol" in {plot.key for plot in plots(record)["society"]}
    samples = data_of(page.read_text())["interactions"]
    assert len(samples) == len(interactions_of(run, 1)) == 8
    for sample in samples:
        assert len(sample["members"]) == 2
        assert all(
            member["name"] and any("occupation" in fact for fact in member["about"]) for member in sample["members"]
        )
        assert {turn["agent"] for turn in sample["turns"]} == {member["agent"] for member in sample["members"]}
    by_name = {plot.title: plot for plot in plots(record)["society"] if plot.key.startswith("attribute-")}
    assert {"By occupation", "By culture", "By age"} <= set(by_name)
    assert sum(row[2] for row in by_name["By age"].rows) == sum(
        turn.observed_rating(record.society.criteria[0]) is not None
        for item in interactions_of(run, 1)
        for turn in item.turns_of(CASTS[kind])
    )
    assert 'data-filter="about"' in page.read_text()
    values = record.society.cells.values(0)
    rated = {turn.agent for item in interactions_of(run, 1) for turn in item.turns if turn.role == CASTS[kind]}
    assert np.isfinite(values[0]).any(axis=0).sum() == len(rated) > 5


# --- bounds --------------------------------------------------------------------------------------


def shard_of(num_worlds: int, rounds: int, num_agents: int) -> Shard:
    facts = {
        "worlds": {str(world): "all_good" for world in range(num_worlds)},
        "agents": {str(world): num_agents for world in range(num_worlds)},
        "rounds": {str(world): rounds for world in range(num_worlds)},
        "num_interactions": num_worlds * rounds * num_agents,
    }
    return Shard(0, Done(facts, {}, {}))


def test_the_map_of_a_large_society_is_bounded_and_has_means_of_blocks(tmp_path):
    config = config_of(tmp_path, society={"topology": {"kind": "grid", "size": 250}, "max_rounds": 400})
    cells = CellMap(config, [shard_of(50, 400, 250 * 250)])
    assert cells.block == 3
    assert cells.side == 84
    assert len(cells.lasts) * len(cells.rounds) * cells.side**2 <= 600_000
    assert (cells.rounds[0], cells.rounds[-1]) == (1, 400)
    for place, agent in enumerate((0, 2, 502, 3)):  # the last is in the next block
        cells.add(interaction(world=0, round=1, agent=agent, revision_rating=Rating(place + 1.0, None)))
    values = cells.values(0)
    assert values[0, 0, 0] == pytest.approx(2.0)
    assert values[0, 0, 1] == pytest.approx(4.0)
    assert np.isnan(values[0, 0, 2])
    assert np.isnan(values[1]).all()


def test_without_a_grid_agents_stand_by_their_numbers(tmp_path):
    topology = {"kind": "complete", "num_agents": 7}
    cells = CellMap(config_of(tmp_path, society={"topology": topology}), [shard_of(2, 4, 7)])
    assert (cells.side, cells.is_grid, cells.num_agents) == (3, False, 7)
    cells.add(interaction(world=1, round=2, agent=6, revision_rating=Rating(5.0, 1.0)))
    assert np.flatnonzero(~np.isnan(cells.values(1)[0, 1])).tolist() == [6]


@pytest.mark.slow
def test_of_a_large_record_a_bounded_part_is_kept(tmp_path):
    reader = SocietyReader(config_of(tmp_path), [shard_of(2, 100, 9)])
    text = "word " * 500
    tracemalloc.start()
    for number in range(1800):
        reader.add(
            interaction(world=number // 900, round=1 + number % 900 // 9, agent=number % 9, draft=f"{text}{number}")
        )
    society = reader.end()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1800 * len(text) / 3
    assert society.num_interactions == 1800
    assert len(society.samples) == 200
    assert all(len(turn["text"]) < 2100 for sample in society.samples for turn in sample["turns"])
    assert [s["round"] for s in society.samples if s["world"] == 0] == sorted(
        s["round"] for s in society.samples if s["world"] == 0
    )


def test_a_reservoir_draws_evenly():
    counts = np.zeros(40)
    for seed in range(400):
        reservoir = Reservoir(10, rng(seed, "test"))
        for number in range(40):
            slot = reservoir.draw()
            if slot is not None:
                reservoir.keep(slot, number)
        drawn = reservoir.in_order()
        assert drawn == sorted(set(drawn))
        counts[drawn] += 1
    assert counts.min() > 60  # of 100, by a standard deviation of 9
    assert counts.max() < 140


def test_thinned_curves_keep_their_ends_and_what_was_held_out():
    rows = [{"step": step, **({"eval/loss": 1.0} if step % 50 == 0 else {})} for step in range(1, 2001)]
    kept = thinned(rows, 100)
    assert len(kept) <= 200
    assert (kept[0], kept[-1]) == (rows[0], rows[-1])
    assert [row for row in kept if "eval/loss" in row] == [row for row in rows if "eval/loss" in row]


# --- files ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(simulated) -> Path:
    """The report of a run that is simulated."""
    return write_report(simulated, simulated.config())[0]


@pytest.mark.slow
def test_figures_for_a_paper_are_files_that_open(simulated, written):
    folder = simulated.report / "figures"
    names = {path.name for path in folder.iterdir()}
    expected = {"society", "ratings", "before-after", "map", "followed", "data"}
    assert names == {f"{name}.{suffix}" for name in expected for suffix in ("png", "svg")}
    for path in folder.iterdir():
        if path.suffix == ".svg":
            assert ElementTree.parse(path).getroot().tag.endswith("svg")
        else:
            assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_report_is_made_again_as_it_was(simulated, written):
    files = {path: path.read_bytes() for path in (simulated.report / "figures").iterdir()}
    data = data_of(written.read_text())
    again, _ = write_report(simulated, simulated.config())
    assert data_of(again.read_text()) == data
    assert {path: path.read_bytes() for path in (simulated.report / "figures").iterdir()} == files
