"""Shows how far stages are: bars in a terminal, plain lines elsewhere. Reads the metrics that the stages write."""

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from salign.plan import Unit
from salign.tracking.metrics import WAITING_S, Row, read_metrics

_DRAW_EVERY_S = 0.5
LINE_EVERY_S = 10.0


@dataclass(frozen=True)
class Watched:
    """A stage to watch: its metrics files (one for each shard) and what of them is shown.

    `done` and `most` name the metrics that count up to each other, summed over the files; `sums` and `lasts` map
    further metrics to how they are shown.
    """

    title: str
    files: Sequence[Path]
    done: str
    most: str
    unit: str
    sums: Mapping[str, str] = field(default_factory=dict)
    lasts: Mapping[str, str] = field(default_factory=dict)


def _metrics(units: Sequence[Unit]) -> list[Path]:
    return [unit.folder / "metrics.jsonl" for unit in units]


def watch_simulation(shards: Sequence[Unit]) -> Watched:
    """Returns how to show the progress of shards."""
    return Watched(
        "simulate",
        _metrics(shards),
        "sim/calls",
        "sim/calls_most",
        "calls",
        sums={
            "sim/calls_per_s": "{:.1f} calls/s",
            "sim/calls_reused": "{:.0f} calls reused",
            "sim/tokens": "{:.0f} tokens",
            "sim/interactions": "{:.0f} interactions",
        },
        lasts={"sim/round": "round {} done"},
    )


def watch_training(units: Sequence[Unit]) -> Watched:
    """Returns how to show the progress of a training stage."""
    return Watched(
        units[0].name,
        _metrics(units),
        "train/global_step",
        "train/steps_most",
        "steps",
        sums={"train/num_tokens": "{:.0f} tokens"},
        lasts={"train/loss": "loss {:.3f}", "perf/tokens_per_s": "{:.0f} tokens/s"},
    )


def watch_evaluation(units: Sequence[Unit]) -> Watched:
    """Returns how to show the progress of evaluations."""
    return Watched(
        f"evaluate {', '.join(unit.argument for unit in units)}",
        _metrics(units),
        "eval/calls",
        "eval/calls_most",
        "calls",
        sums={"eval/tokens": "{:.0f} tokens", "eval/calls_per_s": "{:.1f} calls/s"},
    )


def reached(watched: Watched) -> tuple[float, float, str]:
    """Returns how much is done, the total, and a text, as the files have it now."""
    last: list[Row] = []
    for file in watched.files:
        merged: dict[str, Any] = {}
        for row in read_metrics(file, last_bytes=1 << 16):
            merged.update({name: value for name, value in row.items() if value is not None})
        last.append(merged)
    total = sum(row.get(watched.most, 0) for row in last)
    done = sum(row.get(watched.done, 0) for row in last)
    shown = _waits(last)
    for name, form in watched.lasts.items():
        values = [row[name] for row in last if name in row]
        if values:
            shown.append(form.format(min(values)))
    for name, form in watched.sums.items():
        if any(name in row for row in last):
            shown.append(form.format(sum(row.get(name, 0) for row in last)))
    return done, total, ", ".join(shown)


def _waits(last: Sequence[Row]) -> list[str]:
    """How many of some shards wait for their engine, and since when."""
    since = [row["time"] - row[WAITING_S] for row in last if row.get(WAITING_S)]
    if not since:
        return []
    who = "waiting" if len(last) == 1 else f"{len(since)} of {len(last)} waiting"
    return [f"{who} for the engine since {time.strftime('%H:%M:%S', time.localtime(min(since)))}"]


def waits(shards: Sequence[Unit]) -> str:
    """Returns how many of some shards wait for their engine, and since when; "" for none."""
    last = [next(reversed(read_metrics(file, last_bytes=1 << 12)), {}) for file in _metrics(shards)]
    return "".join(_waits(last))


@contextlib.contextmanager
def watching(watched: Watched, console: Console) -> Iterator[None]:
    """Shows a stage's progress while the block runs."""
    stop = threading.Event()
    draw = _draw_bar if console.is_terminal else _print_lines
    thread = threading.Thread(target=draw, args=(watched, console, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _draw_bar(watched: Watched, console: Console, stop: threading.Event) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[unit]}"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[shown]}"),
    )
    with Progress(*columns, console=console, transient=False) as progress:
        task = progress.add_task(watched.title, total=0, unit=watched.unit, shown="starting")
        while True:
            over = stop.wait(_DRAW_EVERY_S)
            done, total, shown = reached(watched)
            progress.update(task, completed=done, total=total, shown=shown or "starting")
            if over:
                return


def _print_lines(watched: Watched, console: Console, stop: threading.Event) -> None:
    start, said = time.monotonic(), ""
    before, _, _ = reached(watched)  # what was done when the watch began took none of its time
    while True:
        over = stop.wait(LINE_EVERY_S)
        done, total, shown = reached(watched)
        elapsed = time.monotonic() - start
        eta = f", ETA {elapsed * (total - done) / (done - before):.0f} s" if before < done < total else ""
        line = f"{watched.title}: {done:.0f}/{total:.0f} {watched.unit}, {shown}"
        if total and line != said:
            console.print(f"{line} ({elapsed:.0f} s{eta})", highlight=False, soft_wrap=True)
            said = line
        if over:
            return
