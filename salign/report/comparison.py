"""Several runs on one page: their rounds in figures, with intervals over worlds, and differences paired by seed."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from salign.errors import ConfigError
from salign.evaluation.statistics import CONFIDENCE
from salign.report.figures import COLOURS, Plot, make_figure, make_line, round_axis
from salign.report.html import render_figures
from salign.report.record import WorldPath, read_paths
from salign.run import RunDir
from salign.society.protocols import protocol_of
from salign.society.protocols.base import Protocol
from salign.storage import write_atomic
from salign.tracking.names import mean_rating

_POWER = 0.8


@dataclass(frozen=True)
class Compared:
    """One of the runs: what it is called on the page, its seed, and its worlds."""

    name: str
    seed: int
    paths: list[WorldPath]


@dataclass(frozen=True)
class Interval:
    """A mean over worlds with its 95 % interval by Student's t, which a single world has not."""

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def visible(self) -> float | None:
        """The smallest mean that so few worlds tell from 0 in 80 % of cases, by Student's test at 5 %.

        So many standard errors as the quantiles of t at 97.5 % and 80 % are together: for six worlds 3.5.
        """
        if self.low is None or self.high is None:
            return None
        from scipy.stats import t

        needed, power = t.ppf([(1 + CONFIDENCE) / 2, _POWER], self.n - 1)
        return float((self.high - self.low) / 2 / needed * (needed + power))

    @classmethod
    def of(cls, values: Sequence[float]) -> "Interval":
        """Of one value or more, each an independent world's."""
        from scipy.stats import t

        middle, num = fmean(values), len(values)
        if num < 2:
            return cls(middle, None, None, num)
        half = float(t.ppf((1 + CONFIDENCE) / 2, num - 1)) * stdev(values) / num**0.5
        return cls(middle, middle - half, middle + half, num)

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.mean:.3f} (one world)"
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}] (n = {self.n})"


def read_compared(runs: Sequence[RunDir]) -> list[Compared]:
    """The runs, as far as they have come.

    Raises:
        ConfigError: One has no society, or none of its rounds is complete.
    """
    compared, names = [], [run.path.name for run in runs]
    for run in runs:
        config = run.config()
        paths = read_paths(run, config) if config.has_society else []
        if not paths:
            raise ConfigError(f"{run.path} has no round of a society that is complete, so there is nothing to compare")
        paths = _with_changes(paths, protocol_of(config.society))
        # Of two runs of one name, the paths differ.
        name = run.path.name if names.count(run.path.name) == 1 else str(run.path)
        compared.append(Compared(name, config.run.seed, paths))
    return compared


def _with_changes(paths: Sequence[WorldPath], protocol: Protocol[Any]) -> list[WorldPath]:
    """The same, with by how much each round's outcomes are rated above its first answers, by each criterion."""
    if len(protocol.observed) < 2:
        return list(paths)
    both = {name: (mean_rating(name, protocol.observed[0]), mean_rating(name)) for name in protocol.criteria}

    def changed(row: Mapping[str, Any]) -> dict[str, Any]:
        found = {name: (row.get(first), row.get(last)) for name, (first, last) in both.items()}
        changes = {
            f"{mean_rating(name).removesuffix('_mean')}_change_mean": last - first
            for name, (first, last) in found.items()
            if first is not None and last is not None
        }
        return {**row, **changes}

    return [replace(path, rounds=tuple(map(changed, path.rounds))) for path in paths]


def metrics_of(compared: Sequence[Compared]) -> list[str]:
    """The means and shares that every run has of its rounds, in the order of the first."""
    measured = [
        {
            name
            for path in one.paths
            for row in path.rounds
            for name, value in row.items()
            if name.startswith("sim/") and name.endswith(("_mean", "_share")) and value is not None
        }
        for one in compared
    ]
    everywhere = set.intersection(*measured)
    return [name for name in compared[0].paths[0].rounds[0] if name in everywhere]


def by_round(paths: Sequence[WorldPath], name: str) -> dict[int, Interval]:
    """A metric of each round, over the worlds that came so far."""
    return _over_worlds([dict(_rounds(path, name)) for path in paths])


def differences(first: Compared, other: Compared, name: str) -> dict[int, Interval]:
    """By round, by how much a metric is higher in another run, over the worlds that both have: paired, one by one."""
    return _over_worlds(list(_paired(first, other, name)))


def overall(first: Compared, other: Compared, name: str) -> Interval | None:
    """The same over all rounds that two worlds have in common; None where no worlds can be paired."""
    means = [fmean(by.values()) for by in _paired(first, other, name) if by]
    return Interval.of(means) if means else None


def _rounds(path: WorldPath, name: str) -> list[tuple[int, float]]:
    return [(row["sim/round"], row[name]) for row in path.rounds if row.get(name) is not None]


def _paired(first: Compared, other: Compared, name: str) -> list[dict[int, float]]:
    """Of each world of one seed, number and population in both runs, the difference by round."""
    if first.seed != other.seed:
        return []
    there = {(path.world, path.population): dict(_rounds(path, name)) for path in other.paths}
    pairs = [(dict(_rounds(path, name)), there.get((path.world, path.population), {})) for path in first.paths]
    return [
        {round_: after[round_] - before[round_] for round_ in before.keys() & after.keys()} for before, after in pairs
    ]


def _over_worlds(worlds: Sequence[dict[int, float]]) -> dict[int, Interval]:
    rounds = sorted(set().union(*worlds))
    return {round_: Interval.of([world[round_] for world in worlds if round_ in world]) for round_ in rounds}


def write_comparison(runs: Sequence[RunDir], page: Path) -> None:
    """Writes the page, and beside it its table as JSON.

    Raises:
        ConfigError: There is nothing to compare.
        DataError: A file of a run is malformed.
    """
    compared = read_compared(runs)
    first, *others = compared
    names = metrics_of(compared)
    plots = [plot for name in names for plot in _plots(compared, name)]
    rows = []
    for name in names:
        row = [_title(name), *(str(Interval.of(_means(one, name))) for one in compared)]
        for other in others:
            found = overall(first, other, name)
            row.append("not paired" if found is None else f"{found}{_verdict(found)}")
        rows.append(row)
    columns = ["", *(one.name for one in compared), *(f"{other.name} - {first.name}" for other in others)]
    remark = (
        "Means over worlds of their means over rounds, with 95 % intervals over worlds. Differences are of the rounds "
        "that both worlds of a pair have; worlds are paired if run.seed, number and population are the same. A change "
        "is by how much outcomes are rated above first answers. Visible: the smallest difference that so few worlds "
        "tell from 0 in 80 % of cases."
    )
    write_atomic(page.with_suffix(".json"), to_json(compared))
    write_atomic(page, render_figures(" against ".join(one.name for one in compared), remark, columns, rows, plots))


def to_json(compared: Sequence[Compared]) -> str:
    """Each run's means over its worlds, and its differences from the first run: null where no worlds are paired."""
    first, *others = compared
    figures, differences_ = dict[str, Any](), dict[str, Any]()
    for name in metrics_of(compared):
        figures[name] = {one.name: asdict(Interval.of(_means(one, name))) for one in compared}
        found = {other.name: overall(first, other, name) for other in others}
        differences_[name] = {
            other: None if one is None else {**asdict(one), "visible": one.visible} for other, one in found.items()
        }
    rows = {"first": first.name, "figures": figures, "differences": differences_}
    return json.dumps(rows, indent=2) + "\n"


def _means(one: Compared, name: str) -> list[float]:
    found = [[value for _, value in _rounds(path, name)] for path in one.paths]
    return [fmean(values) for values in found if values]


def _verdict(found: Interval) -> str:
    if found.low is None or found.high is None or found.visible is None:
        return ""
    star = "" if found.low <= 0 <= found.high else " *"
    return f"{star}, visible: {found.visible:.3f}"


def _title(name: str) -> str:
    return name.removeprefix("sim/").replace("_", " ")


def _plots(compared: Sequence[Compared], name: str) -> list[Plot]:
    """The metric of each run, and its differences from the first."""
    first, *others = compared
    curves = [(one.name, by_round(one.paths, name)) for one in compared]
    changes = [(f"{other.name} - {first.name}", differences(first, other, name)) for other in others]
    plots = [_plot(name, _title(name), "means over worlds", curves)]
    if any(found for _, found in changes):
        shown = [(label, found) for label, found in changes if found]
        plots.append(_plot(f"{name}-difference", f"Difference in {_title(name)}", "paired by world", shown, offset=1))
    return plots


def _plot(
    key: str, title: str, how: str, curves: Sequence[tuple[str, dict[int, Interval]]], *, offset: int = 0
) -> Plot:
    traces = []
    for number, (label, found) in enumerate(curves, start=offset):
        rounds = list(found)
        ends: list[Callable[[Interval], float]] = [lambda one: _end(one.high, one), lambda one: _end(one.low, one)]
        for end, filled in zip(ends, (None, "tonexty"), strict=True):
            band: dict[str, Any] = {"mode": "lines", "line": {"width": 0}, "showlegend": False, "hoverinfo": "skip"}
            fill = {} if filled is None else {"fill": filled, "fillcolor": COLOURS[number % 6], "opacity": 0.2}
            traces.append(make_line(label, rounds, list(map(end, found.values())), number, **band, **fill))
        traces.append(make_line(label, rounds, [one.mean for one in found.values()], number))
    rounds = sorted(set().union(*(found for _, found in curves)))
    return Plot(
        key.replace("/", "-"),
        title[0].upper() + title[1:],
        f"By round, {how}, with 95 % intervals.",
        "; ".join(f"{label}: {list(found.values())[-1]} at last" for label, found in curves) + ".",
        make_figure(traces, "round", title, xaxis=round_axis(rounds), hovermode="x unified"),
        ("what", "round", "mean", "low", "high", "worlds"),
        [[label, n, one.mean, one.low, one.high, one.n] for label, found in curves for n, one in found.items()],
    )


def _end(value: float | None, one: Interval) -> float:
    return one.mean if value is None else value
