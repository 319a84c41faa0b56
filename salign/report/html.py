"""The report's page: one file that needs no network. Whatever a model said is text in it, never markup.

The template escapes what it is given; the scripts of the page set text, not HTML; and the page's own policy lets only
these scripts run and nothing be loaded.
"""

import base64
import functools
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from salign import compose
from salign.config import KINDS
from salign.evaluation.statistics import Estimate
from salign.evaluation.trial import criterion_of, poor_judges, trial_in_words
from salign.report import curves, figures
from salign.report.generations import NOTE as GENERATIONS_NOTE
from salign.report.record import RunRecord, failure_counts
from salign.report.society import MAX_SAMPLES, MAX_TEXT, CellMap
from salign.society.observer import in_words

_PAGE = Path(__file__).parent / "page"


def render(record: RunRecord) -> str:
    """Renders the whole page."""
    plots = curves.plots(record)
    scripts = _scripts()
    data = {
        "plots": {plot.key: plot.figure for section in plots.values() for plot in section},
        "map": _map(record),
        "interactions": [] if record.society is None else record.society.samples,
        "groups": record.groups,
    }
    page: str = _template("page.html").render(
        title=record.config.run.name,
        policy=_policy(scripts),
        style=(_PAGE / "page.css").read_text(encoding="utf-8"),
        scripts=scripts,
        data=_script_json(data),
        plots=plots,
        tiles=_tiles(record),
        record=record,
        kinds=KINDS,
        evaluation=_evaluation_table(record),
        poor=_poor_figures(record),
        differences=[(task, *_difference(estimate)) for task, estimate in record.differences.items()],
        models=list(record.config.compared_models),
        failures=[] if record.society is None else failure_counts(record.society).most_common(),
        has_map=data["map"] is not None,
        bounds=_bounds(record),
        config=compose.dump(record.config),
        facts=_facts(record),
        calls=_calls(record),
        took=_took(record),
        made=_now(),
        generations_note=GENERATIONS_NOTE,
        max_rows=figures.MAX_TABLE_ROWS,
        max_text=MAX_TEXT,
    )
    return page


def render_figures(
    title: str, remark: str, columns: Sequence[str], rows: Sequence[Sequence[str]], plots: Sequence[figures.Plot]
) -> str:
    """Renders a page with one table, whose rows begin with their names, and figures."""
    scripts = _scripts()
    drawn: dict[str, Any] = {
        "plots": {plot.key: plot.figure for plot in plots},
        "map": None,
        "interactions": [],
        "groups": [],
    }
    page: str = _template("comparison.html").render(
        title=title,
        remark=remark,
        columns=columns,
        rows=rows,
        plots=plots,
        policy=_policy(scripts),
        style=(_PAGE / "page.css").read_text(encoding="utf-8"),
        scripts=scripts,
        data=_script_json(drawn),
        made=_now(),
        max_rows=figures.MAX_TABLE_ROWS,
    )
    return page


def _scripts() -> list[str]:
    from plotly.offline import get_plotlyjs

    return [get_plotlyjs(), (_PAGE / "page.js").read_text(encoding="utf-8")]


@functools.cache
def _template(name: str) -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_PAGE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters["cell"] = _cell
    return environment.get_template(name)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def _policy(scripts: Sequence[str]) -> str:
    """Nothing is loaded from anywhere, and no script runs but these."""
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; "
        "form-action 'none'"
    )


def _script_json(data: Any) -> str:
    """JSON that may stand in a script element: what could end the element is escaped."""
    text = orjson.dumps(data, option=orjson.OPT_SERIALIZE_NUMPY).decode()
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _cell(value: Any) -> str:
    """A value of a table."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _map(record: RunRecord) -> dict[str, Any] | None:
    """The map's ratings: for each measure a byte a cell and round, 0 for none, else 1 to 251 along its scale."""
    if record.society is None:
        return None
    cells = record.society.cells
    populations = record.config.society.populations
    scales = [cells.criteria[criterion].scale for _, criterion in cells.measures]
    low, high = np.array(scales, dtype=np.float32).T[:, :, None, None]
    worlds = []
    for world, last in cells.lasts.items():
        values = cells.values(world)
        shares = (np.nan_to_num(values) - low) / (high - low)
        coded = np.where(np.isnan(values), 0, 1 + np.round(shares * 250)).astype(np.uint8)
        worlds.append(
            {
                "world": world,
                "population": populations[world % len(populations)],
                "last": last,
                "measures": [base64.b64encode(measure.tobytes()).decode() for measure in coded],
            }
        )
    return {
        "side": cells.side,
        "block": cells.block,
        "is_grid": cells.is_grid,
        "rounds": cells.rounds,
        "criteria": [criterion for _, criterion in cells.measures],
        "scales": scales,
        "worlds": worlds,
    }


# --- in words and figures ------------------------------------------------------------------------


def _tiles(record: RunRecord) -> list[tuple[str, str, str]]:
    """The run in a few figures: name, figure, remark."""
    society, tiles = record.society, []
    if society is not None:
        remark = f"{society.num_failed:,} failed" if society.num_failed else "none failed"
        tiles.append(("interactions", f"{society.num_interactions:,}", remark))
        for criterion in society.criteria:
            means = [society.means[role, criterion] for role in society.observed]
            there = [f"{mean:.2f}" for mean in means if mean is not None]
            if len(there) == len(means):
                tiles.append((criterion, " → ".join(there), " → ".join(f"{role}s" for role in society.observed)))
        tokens = society.prompt_tokens + society.completion_tokens
        tiles.append(("model calls", f"{society.num_calls:,}", f"{tokens:,} tokens"))
        cost = record.cost(society.prompt_tokens, society.completion_tokens)
        price = record.config.tracking.price_per_1000_tokens
        if cost is not None and price is not None:
            tiles.append(("cost of the society", f"{cost:,.2f} {price.currency}", "at the price in the config"))
    if record.card is not None:
        tiles.append(
            (
                "groups of alignment data",
                f"{record.card['num_groups']:,}",
                f"{record.card['num_responses']:,} responses",
            )
        )
    for task, estimate in list(record.differences.items())[:2]:
        models = record.config.compared_models
        shown, verdict = _difference(estimate)
        mean, _, interval = shown.partition(" ")
        tiles.append((f"{task}: {models[-1]} - {models[0]}", mean, f"{interval}: {verdict}"))
    return tiles


def _calls(record: RunRecord) -> list[tuple[str, list[str]]]:
    """The model calls by what they were for, those with most tokens first: how many, tokens, and the share of all."""
    total = sum(tally.tokens for tally in record.calls_by_kind.values()) or 1
    rows = sorted(record.calls_by_kind.items(), key=lambda row: -row[1].tokens)
    return [
        (
            kind,
            [
                f"{tally.num_calls:,}",
                f"{tally.prompt_tokens:,}",
                f"{tally.completion_tokens:,}",
                f"{tally.tokens / total:.0%}",
            ],
        )
        for kind, tally in rows
    ]


def _took(record: RunRecord) -> list[tuple[str, str]]:
    """The stages, and what all units of each took."""
    return [(stage, f"{seconds:,.0f} s") for stage, seconds in record.took_s.items()]


def _difference(estimate: Estimate) -> tuple[str, str]:
    """A paired difference with its interval, and whether it holds."""
    if estimate.mean is None or estimate.low is None or estimate.high is None:
        return "-", "nothing was rated"
    shown = f"{estimate.mean:+.3f} [{estimate.low:+.3f}, {estimate.high:+.3f}]"
    holds = estimate.low > 0 or estimate.high < 0
    return shown, "the interval excludes 0" if holds else "no difference: the interval includes 0"


def _evaluation_table(record: RunRecord) -> list[tuple[str, list[str]]]:
    return [
        (task, [curves.evaluation_cell(by_task.get(task)) for by_task in record.evaluation.values()])
        for task in curves.tasks(record)
    ]


def _poor_figures(record: RunRecord) -> dict[str, str]:
    """The figures that a judge has rated which is not shown to be one, with the reason."""
    poor = poor_judges(record.config, record.observer, record.trials)
    rated = ((task, criterion_of(task)) for task in curves.tasks(record))
    return {task: poor[criterion] for task, criterion in rated if criterion in poor}


def _bounds(record: RunRecord) -> list[str]:
    """What of a large run the page leaves out."""
    bounds = []
    society = record.society
    if society is not None:
        bounds += _map_bounds(society.cells)
        if society.num_interactions > len(society.samples):
            bounds.append(
                f"{len(society.samples)} of {society.num_interactions:,} interactions can be read here, drawn at "
                "random."
            )
    if record.card is not None and record.card["num_groups"] > len(record.groups):
        bounds.append(
            f"{len(record.groups)} of {record.card['num_groups']:,} groups of the alignment data can be read here, "
            f"drawn at random, at most {MAX_SAMPLES // len(KINDS)} of a kind."
        )
    return bounds


def _map_bounds(cells: CellMap) -> list[str]:
    bounds = []
    if len(cells.lasts) < cells.num_worlds:
        bounds.append(f"The map has the first {len(cells.lasts)} of {cells.num_worlds:,} worlds.")
    if len(cells.rounds) < max(cells.lasts.values()):
        bounds.append(f"The map has {len(cells.rounds)} of {max(cells.lasts.values()):,} rounds.")
    if cells.block > 1:
        bounds.append(f"A cell of the map is the mean of a block of {cells.block} x {cells.block} agents.")
    return bounds


def _facts(record: RunRecord) -> list[tuple[str, str]]:
    """What was run, and on what."""
    config = record.config
    manifest = record.manifest or {"code": {}, "packages": {}, "inputs": {}}
    code = manifest["code"]
    changed = {True: ", with changes that are not committed", False: "", None: ", not known whether changed since"}
    facts = [
        ("folder", str(record.folder)),
        ("model", config.model),
        ("seed", str(manifest.get("seed", config.run.seed))),
        ("code", f"salign {code.get('salign')}, commit {code.get('commit')}{changed[code.get('dirty')]}"),
        ("Python", str(manifest.get("python", "-"))),
        ("packages", ", ".join(f"{name} {version}" for name, version in manifest["packages"].items())),
        ("launches by other code", str(len(manifest.get("later_launches", [])))),
    ]
    if record.observer is not None:
        facts.append((f"observer {record.observer['model']}", in_words(record.observer)))
        facts += [(name, in_words(found)) for name, found in record.observer.get("criteria", {}).items()]
    for judge, trial in record.trials.items():
        facts += [(f"judge {judge}, {name}", trial_in_words(found)) for name, found in trial.items()]
    by_machine: dict[str, list[str]] = {}
    for unit, machine in record.machines.items():
        gpus = f", {len(machine['gpus'])} x {machine['gpus'][0]}" if machine["gpus"] else ", no GPU"
        by_machine.setdefault(f"{machine['host']}: {machine['cores']} cores{gpus}", []).append(unit)
    for host, units in by_machine.items():
        named = ", ".join(units) if len(units) <= 8 else f"{units[0]} .. {units[-1]} ({len(units)} units)"
        facts.append((f"on {host}", named))
    return [*facts, *((f"input {name}", f"sha256 {digest}") for name, digest in manifest["inputs"].items())]
