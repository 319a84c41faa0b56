"""The report's interactive figures, as plotly reads them; colours are names that the page looks up in its style."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from salign.config import Config
from salign.report.record import RunRecord, WorldPath
from salign.report.society import NUM_BINS, Society
from salign.society.protocols import protocol_of
from salign.tracking.metrics import mean
from salign.tracking.names import mean_rating

MAX_TABLE_ROWS = 200
MAX_PATHS = 48
"""Worlds whose own paths are drawn; if there are more, this many, and the means of their populations."""
COLOURS = tuple(f"var(--c{number})" for number in range(1, 7))
POPULATIONS = ("all_good", "all_bad", "half_half", "mixed_half_half")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x")


@dataclass(frozen=True)
class Plot:
    """A figure with its title, its summary in words and its table.

    `alt` says in words what is to be seen, `columns` and `rows` are its data as a table. `shape` is
    `wide` for a figure that takes the whole width of the page, `low` for a flat one.
    """

    key: str
    title: str
    caption: str
    alt: str
    figure: dict[str, Any]
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    shape: Literal["", "wide", "low"] = ""


def make_figure(traces: Sequence[Any], x: str, y: str, **layout: Any) -> dict[str, Any]:
    """Makes the JSON of a figure for plotly.js; plotly's own classes refuse unknown attributes."""
    import plotly.graph_objects as go

    axis = {"gridcolor": "var(--line)", "zerolinecolor": "var(--line)", "linecolor": "var(--line)", "automargin": True}
    base: dict[str, Any] = {
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": "var(--ink)", "size": 13, "family": "system-ui, sans-serif"},
        "margin": {"l": 54, "r": 14, "t": 10, "b": 48},
        "legend": {"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0},
        "hoverlabel": {"bgcolor": "var(--card)", "font": {"color": "var(--ink)"}, "bordercolor": "var(--line)"},
        "xaxis": {**axis, "title": {"text": x}, **layout.pop("xaxis", {})},
        "yaxis": {**axis, "title": {"text": y}, **layout.pop("yaxis", {})},
    }
    figure = go.Figure(data=list(traces), layout={**base, **layout, "template": None})
    decoded: dict[str, Any] = json.loads(figure.to_json())
    return decoded


def make_line(name: str, x: Sequence[Any], y: Sequence[Any], number: int, **how: Any) -> Any:
    import plotly.graph_objects as go

    how = {"mode": "lines+markers" if len(x) <= 30 else "lines", **how}
    style = {"color": COLOURS[number % 6], "width": 2, "dash": DASHES[number % 6], **how.pop("line", {})}
    marker = {"color": style["color"], "symbol": SYMBOLS[number % 6], "size": 7, **how.pop("marker", {})}
    return go.Scatter(name=name, x=list(x), y=list(y), line=style, marker=marker, **how)


def make_arms(bounds: Sequence[tuple[float | None, float, float | None]]) -> dict[str, Any]:
    """Makes the arms of means, each given as low, mean and high; none where an end is unknown."""

    def arm(high: float | None, low: float | None) -> float:
        return 0.0 if high is None or low is None else max(0.0, high - low)

    return {
        "type": "data",
        "symmetric": False,
        "array": [arm(high, mean) for _, mean, high in bounds],
        "arrayminus": [arm(mean, low) for low, mean, _ in bounds],
        "thickness": 2,
    }


def long_rows(columns: Sequence[tuple[str, Sequence[Any], Sequence[Any]]]) -> list[list[Any]]:
    """Puts lines into the rows of one table: name, x, y."""
    return [[name, x, y] for name, xs, ys in columns for x, y in zip(xs, ys, strict=True)]


def round_axis(rounds: Sequence[int]) -> dict[str, Any]:
    """Makes an axis of rounds: whole numbers, also where there are few."""
    return {"dtick": 1} if len(rounds) <= 12 else {}


def _shown(value: float | None) -> str:
    return "nothing" if value is None or math.isnan(value) else f"{value:.2f}"


# --- the society ---------------------------------------------------------------------------------


def drawn_paths(paths: Sequence[WorldPath]) -> list[WorldPath]:
    """Chooses the worlds whose own paths are drawn, evenly over all."""
    drawn = sorted({round(number) for number in np.linspace(0, len(paths) - 1, min(len(paths), MAX_PATHS))})
    return [paths[number] for number in drawn]


def path_axes(config: Config) -> tuple[str, str] | None:
    """Returns the two criteria that a world's path is drawn by; None if the protocol has only one."""
    criteria = protocol_of(config.society).criteria
    return (criteria[0], criteria[1]) if len(criteria) > 1 else None


def population_means(
    paths: Sequence[WorldPath], axes: tuple[str, str]
) -> list[tuple[str, list[float | None], list[float | None]]]:
    """Returns each population's mean ratings by two criteria, round by round, over the worlds that came so far."""
    means = []
    for population in POPULATIONS:
        mine = [path for path in paths if path.population == population]
        most = max((len(path.rounds) for path in mine), default=0)
        if most:
            both = [
                [mean(path.rounds[n][name] for path in mine if n < len(path.rounds)) for n in range(most)]
                for name in map(mean_rating, axes)
            ]
            means.append((population, both[0], both[1]))
    return means


def society_path(record: RunRecord) -> Plot | None:
    """Draws one criterion against another over the rounds, one path for each world (the paper's figure)."""
    import plotly.graph_objects as go

    axes = path_axes(record.config)
    if not record.paths or axes is None:
        return None
    paths, traces, seen = drawn_paths(record.paths), [], set()
    for path in paths:
        x, y = (path.values(mean_rating(criterion)) for criterion in axes)
        number = POPULATIONS.index(path.population)
        rounds = [row["sim/round"] for row in path.rounds]
        sizes = [10 if round_ == rounds[0] else 5 for round_ in rounds]
        symbols = ["circle-open" if round_ == rounds[0] else "circle" for round_ in rounds]
        if path.stop is not None:
            symbols[-1], sizes[-1] = ("diamond" if path.stop == "max_rounds" else "square"), 10
        hover = f"world {path.world}, %{{text}}<br>{axes[0]} %{{x:.3f}}, {axes[1]} %{{y:.3f}}"
        traces.append(
            go.Scatter(
                name=path.population,
                legendgroup=path.population,
                showlegend=path.population not in seen,
                x=x,
                y=y,
                text=[f"round {round_}" for round_ in rounds],
                mode="lines+markers",
                opacity=0.9 if len(paths) <= 8 else 0.45,
                line={"color": COLOURS[number], "width": 1.6, "dash": DASHES[number]},
                marker={"symbol": symbols, "size": sizes, "color": COLOURS[number]},
                hovertemplate=hover + f"<extra>{path.population}</extra>",
            )
        )
        seen.add(path.population)
    if len(record.paths) > 8:
        for name, x, y in population_means(record.paths, axes):
            line = {"color": COLOURS[POPULATIONS.index(name)], "width": 4, "dash": "solid"}
            traces.append(go.Scatter(name=f"{name}: mean", x=x, y=y, mode="lines", line=line))
    scale = scales_in_words(record.config, axes)
    words = "; ".join(_path_in_words(path, axes) for path in paths[:8])
    drawn = "" if len(paths) == len(record.paths) else f" {len(paths)} of {len(record.paths)} worlds are drawn."
    return Plot(
        "society-path",
        f"{axes[0].capitalize()} against {axes[1]}, round by round",
        f"One path for each world: means of the observers' ratings of the final answers, {scale}. An "
        "open circle is the first round, a square the last round of a world that was shown to gain no more, a diamond "
        f"the last round allowed.{drawn}",
        f"Paths of {len(record.paths)} worlds. {words}.",
        make_figure(traces, f"mean {axes[0]}", f"mean {axes[1]}"),
        ("world", "population", "round", *axes),
        [
            [path.world, path.population, row["sim/round"], *(row[mean_rating(criterion)] for criterion in axes)]
            for path in paths
            for row in path.rounds
        ],
    )


def _path_in_words(path: WorldPath, axes: tuple[str, str]) -> str:
    x, y = (path.values(mean_rating(criterion)) for criterion in axes)
    end = f", and ended there: {path.stop}" if path.stop else ""
    return (
        f"World {path.world} ({path.population}) goes from {axes[0]} {_shown(x[0])} and {axes[1]} {_shown(y[0])} to "
        f"{_shown(x[-1])} and {_shown(y[-1])} in {len(path.rounds)} rounds{end}"
    )


def by_round(
    paths: Sequence[WorldPath], combine: Callable[[Iterable[float | None]], float | None], name: str
) -> list[Any]:
    """Returns a metric of each round, over the worlds that came so far."""
    most = max(len(path.rounds) for path in paths)
    return [combine(path.rounds[n][name] for path in paths if n < len(path.rounds)) for n in range(most)]


def rated(config: Config) -> dict[str, str]:
    """Returns what observers rate, in words, with the metric of its mean in a round."""
    protocol = protocol_of(config.society)
    return {
        f"{role}s: {criterion}": mean_rating(criterion if role == protocol.outcome else f"{role}_{criterion}")
        for criterion in protocol.criteria
        for role in protocol.observed
    }


def rating_axis(config: Config) -> str:
    """Returns the title of an axis of mean ratings."""
    return f"mean rating, {scales_in_words(config, protocol_of(config.society).criteria)}"


def scales_in_words(config: Config, names: Sequence[str]) -> str:
    """Says on which scales criteria are rated, such as "from 1 to 7"."""
    criteria = [config.society.criterion(name) for name in names]
    if len({criterion.scale for criterion in criteria}) == 1:
        return f"from {criteria[0].scale_in_words}"
    return ", ".join(f"{criterion.name} from {criterion.scale_in_words}" for criterion in criteria)


def ratings(record: RunRecord) -> Plot | None:
    """Draws what observers rate, by round."""
    if not record.paths:
        return None
    lines = {line: by_round(record.paths, mean, name) for line, name in rated(record.config).items()}
    rounds = list(range(1, len(next(iter(lines.values()))) + 1))
    roles = protocol_of(record.config.society).observed
    num_roles = len(roles)
    dashes = ("solid",) if num_roles == 1 else ("dot", *["solid"] * (num_roles - 1))
    styles = [(position // num_roles, dashes[position % num_roles]) for position in range(len(lines))]
    traces = [
        make_line(
            line, rounds, values, number, line={"dash": dash}, marker={"symbol": SYMBOLS[position % len(SYMBOLS)]}
        )
        for position, ((line, values), (number, dash)) in enumerate(zip(lines.items(), styles, strict=True))
    ]
    compared = f"; the {roles[0]} is dotted, the {roles[-1]} solid" if len(roles) > 1 else ""
    return Plot(
        "ratings",
        "What observers rate",
        f"Means over all worlds that reached a round{compared}.",
        f"Over {len(rounds)} rounds: "
        + "; ".join(f"{line} from {_shown(values[0])} to {_shown(values[-1])}" for line, values in lines.items())
        + ".",
        make_figure(traces, "round", rating_axis(record.config), xaxis=round_axis(rounds), hovermode="x unified"),
        ("what", "round", "mean rating"),
        long_rows([(line, rounds, values) for line, values in lines.items()]),
    )


def cropped(society: Society, most: int = 20) -> tuple[Any, list[float]]:
    """Bins interactions by the ratings of first answer and outcome, with at most so many bins a side.

    Returns:
        [first answer, outcome] counts, where there are any, and the middles of the bins.
    """
    counts = society.before_after
    there = np.flatnonzero(counts.sum(axis=0) + counts.sum(axis=1))
    low, high = int(there[0]), int(there[-1]) + 1
    width = -(-(high - low) // most)
    edges = np.arange(low, high, width)
    coarse = np.add.reduceat(np.add.reduceat(counts[low:high, low:high], edges - low, axis=0), edges - low, axis=1)
    middles = [round(society.compared.at_share((float(edge) + (width - 1) / 2) / (NUM_BINS - 1)), 3) for edge in edges]
    return coarse, middles


def before_after(record: RunRecord) -> Plot | None:
    """Draws the rating of each first answer against that of its outcome."""
    import plotly.graph_objects as go

    society = record.society
    if society is None or not society.before_after.any():
        return None
    first, outcome, criterion = society.observed[0], society.observed[-1], society.criteria[0]
    axes = f"{first}'s {criterion}", f"{outcome}'s {criterion}"
    counts, middles = cropped(society)
    higher, lower, num = society.num_higher, society.num_lower, int(society.before_after.sum())
    shown = [[math.log10(count) if count else None for count in row] for row in counts.T.tolist()]
    ends = [middles[0], middles[-1]]
    traces = [
        go.Heatmap(
            x=middles,
            y=middles,
            z=shown,
            customdata=counts.T.tolist(),
            colorscale=[[0, "var(--few)"], [1, "var(--many)"]],
            showscale=False,
            hovertemplate=f"{first} %{{x}}, {outcome} %{{y}}: %{{customdata}} interactions<extra></extra>",
        ),
        go.Scatter(
            x=ends, y=ends, mode="lines", line={"color": "var(--ink)", "dash": "dot", "width": 1}, hoverinfo="skip"
        ),
    ]
    return Plot(
        "before-after",
        f"Each {first} and its {outcome}",
        f"Interactions by the {criterion} of {first} and {outcome}; a stronger colour is more (logarithmic). Above the "
        f"line the {outcome} was rated higher: {higher:,} of {num:,}; lower: {lower:,}.",
        f"{higher:,} {outcome}s were rated above their {first}, {lower:,} below, {num - higher - lower:,} the same.",
        make_figure(traces, *axes, showlegend=False),
        (*axes, "interactions"),
        [[middles[i], middles[j], int(counts[i, j])] for i, j in zip(*np.nonzero(counts), strict=True)],
    )


def gain(record: RunRecord) -> Plot | None:
    """Draws how the observers' rating changed, by the audience's rating of the first answer."""
    import plotly.graph_objects as go

    society = record.society
    sums = {} if society is None else {k: v for k, v in society.followed.gain.items() if v[0]}
    if society is None or not sums:
        return None
    first, outcome = society.observed[0], society.observed[-1]
    change, given = f"change in {society.criteria[0]}", f"audience's rating of the {first}"
    rows = [(score, int(n), total / n, half_width(n, total, squares)) for score, (n, total, squares) in sums.items()]
    trace = go.Bar(
        x=[row[0] for row in rows],
        y=[row[2] for row in rows],
        error_y={"type": "data", "array": [row[3] or 0 for row in rows], "color": "var(--ink)"},
        marker={"color": COLOURS[0]},
        customdata=[row[1] for row in rows],
        hovertemplate="audience's rating %{x}: %{y:+.3f} (%{customdata} interactions)<extra></extra>",
    )
    return Plot(
        "gain",
        "What low and high ratings led to",
        f"{change.capitalize()} from {first} to {outcome}, by the {given}; bars show 1.96 standard errors. "
        f"{first.capitalize()}s rated low by chance also rise by chance: compare with a run of an isolated society.",
        "; ".join(f"rated {row[0]}: {row[2]:+.2f} ({row[1]} interactions)" for row in rows) + ".",
        make_figure([trace], given, change, xaxis={"dtick": 1}),
        ("audience's rating", "interactions", change, "1.96 standard errors"),
        [list(row) for row in rows],
    )


def half_width(n: float, total: float, squares: float) -> float | None:
    if n < 2:
        return None
    return 1.96 * math.sqrt(max(0.0, (squares - total**2 / n) / (n - 1)) / n)


def followed(record: RunRecord) -> Plot | None:
    """Draws which feedback was followed."""
    import plotly.graph_objects as go

    society = record.society
    taken = {} if society is None else {k: v for k, v in society.followed.taken.items() if v[0]}
    if society is None or not taken:
        return None
    first, outcome = society.observed[0], society.observed[-1]
    rows = [[score, int(n), share / n, chance / n] for score, (n, share, chance) in taken.items()]
    scores = [row[0] for row in rows]
    own, chance = taken_up(outcome)
    traces = [
        go.Bar(name=own, x=scores, y=[row[2] for row in rows], marker={"color": COLOURS[2]}),
        go.Bar(name=chance, x=scores, y=[row[3] for row in rows], marker={"color": COLOURS[5]}),
    ]
    read, all_ = society.followed.num_read, society.num_interactions
    drawn = "" if read >= all_ - society.num_failed else f" {read} of {all_} interactions, chosen at random."
    return Plot(
        "followed",
        "Which feedback was followed",
        f"Share of a reason's own words (in neither question nor {first}) that the {outcome} takes up, by the rating "
        f"given with the reason. For comparison, the same words in another interaction's {outcome}.{drawn}",
        "; ".join(f"rating {r[0]}: {r[2]:.1%}, by chance {r[3]:.1%}" for r in rows) + ".",
        make_figure(
            traces,
            "rating given with the reason",
            "share of words",
            xaxis={"dtick": 1},
            yaxis={"tickformat": ".0%"},
        ),
        ("rating", "reasons", "share taken up", "by chance"),
        rows,
    )


def taken_up(outcome: str) -> tuple[str, str]:
    """Names the two shares of a reason's words."""
    return f"taken up by its {outcome}", f"by another {outcome} (chance)"
