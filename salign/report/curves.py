"""The report's figures of how a run went, what data it made, what was learnt and how it was judged."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from salign.config import KINDS
from salign.evaluation.under_attack import is_attack
from salign.report.attacks import attack_curve, is_by_family, refusals_by_family
from salign.report.figures import (
    COLOURS,
    DASHES,
    Plot,
    before_after,
    by_round,
    followed,
    gain,
    half_width,
    long_rows,
    make_arms,
    make_figure,
    make_line,
    ratings,
    round_axis,
    society_path,
)
from salign.report.judges import by_generation
from salign.report.record import Figure, OverTime, RunRecord
from salign.report.studies import by_attributes, opinions
from salign.society.protocols import protocol_of
from salign.tracking.metrics import Row, mean

RECALLED = {
    "initial memories": "sim/recalled_initial_share",
    "the agent's own answers": "sim/recalled_own_share",
}
HEARD = "what was said to it"


def recalls(record: RunRecord) -> Plot | None:
    """Draws what agents recalled before they first spoke, by round."""
    reminded = protocol_of(record.config.society).reminded
    if not record.paths or not reminded:
        return None
    role = reminded[0]
    lines = {name: by_round(record.paths, mean, metric) for name, metric in RECALLED.items()}
    if record.config.society.stream is not None:
        lines[HEARD] = by_round(record.paths, mean, "sim/recalled_heard_share")
    distances = by_round(record.paths, mean, "sim/recall_distance_mean")
    rounds = list(range(1, len(distances) + 1))
    measured = (record.card or {}).get("recall", {})
    nearer = (
        f" A memory is recalled if it is nearer than {measured['max_distance']:g}."
        if "max_distance" in measured
        else ""
    )
    traces = [make_line(name, rounds, values, number) for number, (name, values) in enumerate(lines.items())]
    return Plot(
        "recalls",
        f"What agents recall before their {role}s",
        f"Shares of {role}s, means over all worlds that reached a round. Populations differ only in initial memories."
        f"{nearer}",
        "; ".join(
            f"{name}: {_percent(values[0])} at first, {_percent(values[-1])} at last" for name, values in lines.items()
        )
        + ".",
        make_figure(traces, "round", f"share of {role}s", xaxis=round_axis(rounds), yaxis={"range": [0, 1]}),
        ("what", "round", "share or distance"),
        long_rows([(name, rounds, v) for name, v in {**lines, "mean cosine distance": distances}.items()]),
    )


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{share:.0%}"


def measured(record: RunRecord) -> Plot | None:
    """Draws the protocol's own figures, by round."""
    figures = protocol_of(record.config.society).figures
    if not record.paths or not figures:
        return None
    everything = {title: by_round(record.paths, mean, f"sim/{name}") for name, title in figures.items()}
    lines = {title: values for title, values in everything.items() if any(value is not None for value in values)}
    if not lines:
        return None
    rounds = list(range(1, len(next(iter(lines.values()))) + 1))
    traces = [make_line(title, rounds, values, number) for number, (title, values) in enumerate(lines.items())]
    return Plot(
        "protocol",
        f"What the protocol {record.config.society.protocol.kind} measures",
        "Means over all worlds that reached a round.",
        "; ".join(
            f"{title}: {_number(values[0])} at first, {_number(values[-1])} at last" for title, values in lines.items()
        )
        + ".",
        make_figure(traces, "round", "mean", xaxis=round_axis(rounds)),
        ("what", "round", "mean"),
        long_rows([(title, rounds, values) for title, values in lines.items()]),
    )


def relations(record: RunRecord) -> list[Plot]:
    """Draws what the protocol relates over all interactions."""
    found = {} if record.society is None else record.society.relations
    plots = []
    for name, relation in protocol_of(record.config.society).relations.items():
        rows = [
            (x, int(num), total / num, half_width(num, total, squares))
            for x, (num, total, squares) in sorted(found.get(name, {}).items())
        ]
        if not rows:
            continue
        bars = {"type": "data", "array": [row[3] or 0 for row in rows], "color": "var(--ink)"}
        trace = make_line("", [row[0] for row in rows], [row[2] for row in rows], 0, error_y=bars)
        plots.append(
            Plot(
                name.replace("_", "-"),
                relation.title,
                "Means over all interactions; bars show 1.96 standard errors.",
                "; ".join(f"{x:g}: {_number(y)}" for x, _, y, _ in rows) + ".",
                make_figure([trace], relation.x, relation.y, showlegend=False),
                (relation.x, "values", relation.y, "1.96 standard errors"),
                [list(row) for row in rows],
            )
        )
    return plots


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g}"


def validity(record: RunRecord) -> list[Plot]:
    """Draws the share of ratings that could be read, and the interactions that failed."""
    if not record.paths:
        return []
    read = by_round(record.paths, mean, "sim/parse_rate")
    failed = by_round(record.paths, lambda values: sum(value or 0 for value in values), "sim/failed")
    rounds = list(range(1, len(read) + 1))
    return [
        Plot(
            "parse-rate",
            "Ratings that could be read",
            "Share of all requested ratings, by round.",
            f"Between {min(v or 0 for v in read):.1%} and {max(v or 0 for v in read):.1%} in {len(rounds)} rounds.",
            make_figure(
                [make_line("", rounds, read, 2, line={"dash": "solid"})],
                "round",
                "share",
                xaxis=round_axis(rounds),
                yaxis={"tickformat": ".0%", "range": [0, 1.05]},
            ),
            ("round", "share"),
            [list(pair) for pair in zip(rounds, read, strict=True)],
        ),
        Plot(
            "failures",
            "Interactions that failed",
            "Over all worlds, by round.",
            f"{sum(failed)} in {len(rounds)} rounds.",
            make_figure(
                [make_line("", rounds, failed, 1, line={"dash": "solid"})],
                "round",
                "interactions",
                xaxis=round_axis(rounds),
                yaxis={"rangemode": "tozero"},
            ),
            ("round", "interactions"),
            [list(pair) for pair in zip(rounds, failed, strict=True)],
        ),
    ]


def over_time(record: RunRecord) -> list[Plot]:
    """Draws calls, tokens, rates and, if the config has a price, cost over time."""
    clock = record.over_time
    if clock is None:
        return []
    unit, x = (60.0, "minutes") if clock.seconds[-1] > 300 else (1.0, "seconds")
    times = (clock.seconds / unit).round(3).tolist()
    steps = np.diff(clock.seconds)
    rate = np.diff(clock.calls) / np.where(steps > 0, steps, np.nan)
    curves: list[tuple[str, str, str, Any]] = [
        ("calls", "Model calls", "calls, all shards", clock.calls),
        ("calls-rate", "Calls per second", "calls/s", [None, *np.nan_to_num(rate).round(2).tolist()]),
        ("in-flight", "Calls in flight", "calls", clock.in_flight),
        ("tokens", "Tokens", "prompt and completion", clock.tokens),
    ]
    cost = _costs(record, clock)
    price = record.config.tracking.price_per_1000_tokens
    if cost is not None and price is not None:
        curves.append(("cost", "Cost", price.currency, cost))
    plots = []
    for number, (key, title, y, values) in enumerate(curves):
        shown = [None if value is None else round(float(value), 4) for value in values]
        figure = make_figure([make_line("", times, shown, number, mode="lines", line={"dash": "solid"})], x, y)
        alt = f"Ends at {shown[-1] or 0:,.2f} after {times[-1]:,.1f} {x}."
        plots.append(Plot(key, title, "", alt, figure, (x, y), list(zip(times, shown, strict=True))))
    return plots


def _costs(record: RunRecord, clock: OverTime) -> list[float] | None:
    if clock.completion_tokens is None:
        return None
    pairs = zip(clock.tokens, clock.completion_tokens, strict=True)
    costs = [record.cost(tokens - completion, completion) for tokens, completion in pairs]
    return None if costs[0] is None else [cost or 0.0 for cost in costs]


# --- data, training, evaluation ------------------------------------------------------------------


def data_scores(record: RunRecord) -> Plot | None:
    """Draws how the responses of each kind of data are rated."""
    import plotly.graph_objects as go

    card = record.card
    if card is None:
        return None
    counts = {kind: card["kinds"][kind]["scores"] for kind in KINDS}
    scores = [str(score) for score in range(1, 8)]
    traces = [
        go.Bar(
            name=kind,
            x=scores,
            y=[counts[kind][score] for score in scores],
            marker={"color": COLOURS[number], "pattern": {"shape": ("", "/", ".")[number]}},
        )
        for number, kind in enumerate(KINDS)
    ]
    words = "; ".join(
        f"{kind}: {card['kinds'][kind]['num_groups']} groups of {card['kinds'][kind]['num_responses']} responses"
        for kind in KINDS
    )
    return Plot(
        "data-scores",
        "Scores of the responses, by kind",
        "Nearest whole score, 1 to 7.",
        words + ".",
        make_figure(traces, "score", "responses", barmode="group"),
        ("kind", "score", "responses"),
        [[kind, score, counts[kind][score]] for kind in KINDS for score in scores],
        shape="wide",
    )


# Key, title, the metrics that are drawn with what their lines are called beside the stage, and the y axis.
_CURVES: tuple[tuple[str, str, dict[str, str], dict[str, Any]], ...] = (
    ("loss", "Loss", {"train/loss": "", "eval/loss": ", held out"}, {}),
    (
        "margins",
        "Margin of chosen over rejected",
        {"train/rewards/margins": "", "eval/rewards/margins": ", held out"},
        {},
    ),
    (
        "accuracies",
        "Groups whose best response is the likeliest",
        {"train/rewards/accuracies": "", "eval/rewards/accuracies": ", held out"},
        {"range": [-0.03, 1.03]},
    ),
    (
        "logps",
        "Mean log-likelihood per token",
        {"train/logps/chosen": ": chosen", "train/logps/rejected": ": rejected"},
        {},
    ),
    ("replay", "Age of the groups trained on, in generations", {"train/replay/age": ""}, {"rangemode": "tozero"}),
    ("grad-norm", "Gradient norm", {"train/grad_norm": ""}, {}),
    ("learning-rate", "Learning rate", {"train/learning_rate": ""}, {"exponentformat": "e"}),
    ("mfu", "Share of the GPUs' peak (MFU)", {"perf/mfu": ""}, {"rangemode": "tozero"}),
    ("speed", "Tokens per second", {"perf/tokens_per_s": ""}, {"rangemode": "tozero"}),
)


def training(record: RunRecord) -> list[Plot]:
    """Draws the curves of the training stages: a line for each, and another for held-out data."""
    plots = []
    for key, title, names, axis in _CURVES:
        traces, lines = [], []
        for number, (stage, rows) in enumerate(record.training.items()):
            for line, (name, what) in enumerate(names.items()):
                points = _points(rows, name)
                if points:
                    x, y = zip(*points, strict=True)
                    lines.append((f"{stage}{what}", x, y))
                    traces.append(make_line(f"{stage}{what}", x, y, number, line={"dash": DASHES[2 * line]}))
        if traces:
            words = "; ".join(f"{name} from {y[0]:.4g} to {y[-1]:.4g} in {x[-1]} steps" for name, x, y in lines)
            figure = make_figure(traces, "step", "", yaxis=axis)
            plots.append(Plot(key, title, "", words + ".", figure, ("stage", "step", title), long_rows(lines)))
    return plots


def _points(rows: Sequence[Row], name: str) -> list[tuple[int, float]]:
    return [(row["train/global_step"], row[name]) for row in rows if row.get(name) is not None]


def evaluation(record: RunRecord) -> list[Plot]:
    """Draws each figure of the evaluations, model by model, with its interval."""
    import plotly.graph_objects as go

    plots = [plot for plot in (attack_curve(record), refusals_by_family(record)) if plot is not None]
    for task in tasks(record):
        if is_attack(task.split("/")[0]) or is_by_family(task):
            continue  # so many would hide the others; the table has them
        rows = [(model, figures[task]) for model, figures in record.evaluation.items() if task in figures]
        trace = go.Scatter(
            x=[figure.mean for _, figure in rows],
            y=[model for model, _ in rows],
            mode="markers",
            marker={"color": COLOURS[0], "size": 10},
            error_x={**make_arms([(one.low, one.mean, one.high) for _, one in rows]), "color": COLOURS[0]},
            hovertemplate="%{y}: %{x:.3f}<extra></extra>",
        )
        seeds = [(model, value) for model, figure in rows for value in figure.seeds]
        points = go.Scatter(
            x=[value for _, value in seeds],
            y=[model for model, _ in seeds],
            mode="markers",
            marker={"color": COLOURS[1], "size": 7, "symbol": "circle-open"},
            hovertemplate="%{y}, one seed: %{x:.3f}<extra></extra>",
        )
        plots.append(
            Plot(
                f"evaluation-{len(plots)}",
                task,
                "",
                "; ".join(f"{model}: {figure.mean:.3f}" for model, figure in rows) + ".",
                make_figure(
                    [trace, points] if seeds else [trace],
                    "mean and 95 % interval" + (", each seed" if seeds else ""),
                    "",
                    yaxis={"type": "category", "range": [len(rows) - 0.4, -0.6]},
                    showlegend=False,
                ),
                ("model", "mean", "low", "high", "n", "each seed"),
                [
                    [model, one.mean, one.low, one.high, one.n, ", ".join(f"{seed:.3f}" for seed in one.seeds)]
                    for model, one in rows
                ],
                shape="low",
            )
        )
    return plots


def tasks(record: RunRecord) -> list[str]:
    """Returns the names of all figures of all evaluations, in the order in which they come."""
    return list(dict.fromkeys(task for figures in record.evaluation.values() for task in figures))


def evaluation_cell(figure: Figure | None) -> str:
    """Formats a figure with its interval for the table."""
    if figure is None:
        return "-"
    interval = "" if figure.low is None or figure.high is None else f" [{figure.low:.3f}, {figure.high:.3f}]"
    return f"{figure.mean:.3f}{interval}" + ("" if figure.n is None else f", n = {figure.n}")


def plots(record: RunRecord) -> dict[str, list[Plot]]:
    """Returns all figures that can be drawn, by section of the page."""
    there = functools.partial(filter, lambda plot: plot is not None)
    return {
        "society": list(
            there(
                [
                    society_path(record),
                    measured(record),
                    opinions(record),
                    *by_attributes(record),
                    *relations(record),
                    recalls(record),
                ]
            )
        ),
        "ratings": list(there([ratings(record), before_after(record), followed(record), gain(record)])),
        "running": [*validity(record), *over_time(record)],
        "data": list(there([data_scores(record)])),
        "training": training(record),
        "evaluation": evaluation(record),
        "generations": by_generation(record),
    }
