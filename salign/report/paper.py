"""The report's figures as PNG and SVG, for a paper."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from salign.config import KINDS
from salign.report import curves, figures
from salign.report.record import RunRecord
from salign.shown import neutral
from salign.society.protocols import protocol_of
from salign.storage import new_file
from salign.tracking.metrics import mean
from salign.tracking.names import mean_rating

# Okabe and Ito's colours, told apart by everybody, also on paper.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
STYLES = ("-", "--", ":", "-.")
_STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "legend.frameon": False,
    "svg.hashsalt": "salign",  # the same figure gives the same file
    "savefig.dpi": 200,
}


def draw_figures(record: RunRecord, folder: Path, formats: Sequence[str] = ("png", "svg")) -> list[Path]:
    """Writes each figure that the record has data for, as `NAME.FORMAT`.

    Returns:
        The files, each written whole.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    canvases: dict[str, Any] = {"png": (FigureCanvasAgg, {}), "svg": (FigureCanvasSVG, {"Date": None})}
    drawings: dict[str, Callable[[RunRecord, Any], bool]] = {
        "society": _society,
        "ratings": _ratings,
        "before-after": _before_after,
        "map": _map,
        "followed": _followed,
        "data": _data,
        "loss": _loss,
        "evaluation": _evaluation,
    }
    written = []
    with mpl.rc_context(_STYLE):
        for name, draw in drawings.items():
            figure = Figure(figsize=(3.4, 2.6), layout="constrained")
            if not draw(record, figure):
                continue
            for suffix in formats:
                canvas, metadata = canvases[suffix]
                path = folder / f"{name}.{suffix}"
                with new_file(path) as file:
                    canvas(figure).print_figure(file, format=suffix, metadata=metadata)
                figure.set_layout_engine("none")  # the places that it has found stay
                written.append(path)
    return written


def _society(record: RunRecord, figure: Any) -> bool:
    criteria = figures.path_axes(record.config)
    if not record.paths or criteria is None:
        return False
    axes, seen = figure.add_subplot(), set()
    for path in figures.drawn_paths(record.paths):
        number = figures.POPULATIONS.index(path.population)
        x, y = (path.values(mean_rating(criterion)) for criterion in criteria)
        name = None if path.population in seen else path.population
        axes.plot(x, y, STYLES[number], color=COLOURS[number], lw=0.9, marker=".", ms=3, label=name, alpha=0.8)
        axes.plot(x[:1], y[:1], "o", mfc="none", color=COLOURS[number], ms=5)
        if path.stop is not None:
            axes.plot(x[-1:], y[-1:], "D" if path.stop == "max_rounds" else "s", color=COLOURS[number], ms=4)
        seen.add(path.population)
    axes.set(xlabel=f"mean {criteria[0]}", ylabel=f"mean {criteria[1]}")
    axes.legend(fontsize=7)
    return True


def _ratings(record: RunRecord, figure: Any) -> bool:
    if not record.paths:
        return False
    axes = figure.add_subplot()
    num_roles = len(protocol_of(record.config.society).observed)
    for position, (line, name) in enumerate(figures.rated(record.config).items()):
        values = figures.by_round(record.paths, mean, name)
        rounds = range(1, len(values) + 1)
        style = ":" if position % num_roles < num_roles - 1 else "-"
        axes.plot(
            rounds, values, style, color=COLOURS[position // num_roles % len(COLOURS)], lw=1.2, marker=".", label=line
        )
    axes.set(xlabel="round", ylabel=figures.rating_axis(record.config))
    axes.legend(fontsize=7)
    return True


def _before_after(record: RunRecord, figure: Any) -> bool:
    from matplotlib.colors import LogNorm

    if record.society is None or not record.society.before_after.any():
        return False
    counts, middles = figures.cropped(record.society)
    half = (middles[1] - middles[0]) / 2 if len(middles) > 1 else 0.05
    ends = (middles[0] - half, middles[-1] + half)
    axes = figure.add_subplot()
    shown = np.where(counts > 0, counts, np.nan).T
    norm = LogNorm(1, max(2, counts.max()))
    image = axes.imshow(shown, origin="lower", extent=(*ends, *ends), cmap="cividis", norm=norm)
    axes.plot(ends, ends, ":", color="black", lw=0.8)
    first, outcome, criterion = record.society.observed[0], record.society.observed[-1], record.society.criteria[0]
    axes.set(xlabel=f"{first}'s {criterion}", ylabel=f"{outcome}'s {criterion}")
    figure.colorbar(image, label="interactions")
    return True


def _map(record: RunRecord, figure: Any) -> bool:
    """The first world, in its first, middle and last round."""
    if record.society is None:
        return False
    cells = record.society.cells
    world, last = next(iter(cells.lasts.items()))
    values = cells.values(world)[0]
    held = [number for number, round_ in enumerate(cells.rounds) if round_ <= last]
    chosen = sorted({held[0], held[len(held) // 2], held[-1]})
    if np.isnan(values[chosen]).all():
        return False
    low, high = np.nanmin(values[chosen]), np.nanmax(values[chosen])
    figure.set_size_inches(2.0 * len(chosen) + 0.6, 2.1)
    for axes, number in zip(np.atleast_1d(figure.subplots(1, len(chosen))), chosen, strict=True):
        square = values[number].reshape(cells.side, cells.side)
        image = axes.imshow(square, cmap="cividis", vmin=low, vmax=high)
        axes.set(xticks=[], yticks=[], title=f"round {cells.rounds[number]}")
    figure.colorbar(image, ax=figure.axes, label=cells.measures[0][1])
    return True


def _followed(record: RunRecord, figure: Any) -> bool:
    society = record.society
    taken = {} if society is None else {k: v for k, v in society.followed.taken.items() if v[0]}
    if society is None or not taken:
        return False
    axes, scores = figure.add_subplot(), np.array(list(taken))
    own, chance = figures.taken_up(society.observed[-1])
    for side, name, number in ((-0.2, own, 2), (0.2, chance, 5)):
        shares = [100 * sums[1 if side < 0 else 2] / sums[0] for sums in taken.values()]
        axes.bar(scores + side, shares, 0.4, label=name, color=COLOURS[number], hatch="" if side < 0 else "///")
    axes.set(xlabel="rating given with the reason", ylabel="% of its own words", xticks=scores)
    axes.legend(fontsize=7)
    return True


def _data(record: RunRecord, figure: Any) -> bool:
    if record.card is None:
        return False
    axes, scores = figure.add_subplot(), np.arange(1, 8)
    for number, kind in enumerate(KINDS):
        counts = [record.card["kinds"][kind]["scores"][str(score)] for score in scores]
        axes.bar(
            scores + (number - 1) * 0.27,
            counts,
            0.27,
            label=kind,
            color=COLOURS[number],
            hatch=("", "//", "..")[number],
        )
    axes.set(xlabel="score", ylabel="responses")
    axes.legend(fontsize=7)
    return True


def _loss(record: RunRecord, figure: Any) -> bool:
    axes = figure.add_subplot()
    for number, (stage, rows) in enumerate(record.training.items()):
        for name, style, what in (("train/loss", "-", ""), ("eval/loss", ":", ", held out")):
            points = [(row["train/global_step"], row[name]) for row in rows if row.get(name) is not None]
            if points:
                axes.plot(
                    *zip(*points, strict=True),
                    style,
                    color=COLOURS[number % 6],
                    lw=1,
                    label=neutral(stage + what, "mathtext"),
                )
    if not axes.lines:
        return False
    axes.set(xlabel="step", ylabel="loss")
    axes.legend(fontsize=7)
    return True


def _evaluation(record: RunRecord, figure: Any) -> bool:
    tasks = curves.tasks(record)
    if not tasks:
        return False
    figure.set_size_inches(3.4, 0.45 + len(tasks) * (0.35 + 0.17 * len(record.evaluation)))
    for axes, task in zip(np.atleast_1d(figure.subplots(len(tasks), 1)), tasks, strict=True):
        rows = [(model, row[task]) for model, row in record.evaluation.items() if task in row]
        for number, (_, one) in enumerate(rows):
            axes.plot([one.mean], [number], "o", color=COLOURS[number % 6], ms=4)
            if one.low is not None and one.high is not None:
                axes.plot([one.low, one.high], [number, number], color=COLOURS[number % 6], lw=1.2)
        axes.set(
            yticks=range(len(rows)),
            yticklabels=[neutral(model, "mathtext") for model, _ in rows],
            ylim=(len(rows) - 0.5, -0.5),
        )
        axes.set_title(neutral(task, "mathtext"), fontsize=8)
    return True
