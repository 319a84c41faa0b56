"""Where every unit of a run stands, and what went wrong."""

import hashlib
from collections import Counter

from rich.console import Console
from rich.table import Table

from salign.cluster.plan import complete, state, units
from salign.config import Config
from salign.run import RunDir, is_locked, require_done

_LAST_LINES = 5


def digest(run: RunDir, config: Config) -> str:
    """The sha256 of all interactions in canonical order (world, round, agent), however they were cut into shards.

    Raises:
        StageError: A shard is not complete, or its file has changed.
    """
    total = hashlib.sha256()
    for shard in range(config.society.num_shards):  # contiguous worlds, each file in order
        folder = run.shard(shard)
        require_done(
            folder, f"shard {shard} of {run.path}", f"Run `python jobs/simulate.py {run.path} --shard {shard}`."
        )
        with (folder / "interactions.jsonl").open("rb") as file:
            while block := file.read(1 << 20):
                total.update(block)
    return total.hexdigest()


def print_status(run: RunDir, config: Config, console: Console) -> None:
    """Prints a table of units, then the errors and last log lines of what failed, then how to go on."""
    everything = units(run, config)
    done = complete(everything)
    states = {unit.key: state(unit, done) for unit in everything}
    table = Table(title=f"Run {run.path}", title_justify="left")
    for column in ("unit", "state", "log"):
        table.add_column(column, overflow="fold")
    for unit in everything:
        log = run.logs / unit.log_name
        table.add_row(
            " ".join(unit.command), states[unit.key][0], str(log.relative_to(run.path)) if log.exists() else ""
        )
    console.print(table)
    for unit in everything:
        word, error = states[unit.key]
        if word != "failed":
            continue
        console.print(f"{' '.join(unit.command)} failed: {error}", markup=False, highlight=False, soft_wrap=True)
        log = run.logs / unit.log_name
        if log.exists():
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-_LAST_LINES:]
            console.print(
                f"the last lines of {log}:", *lines, sep="\n  ", markup=False, highlight=False, soft_wrap=True
            )
    counts = Counter(word for word, _ in states.values())
    console.print(", ".join(f"{count} {word}" for word, count in counts.items()), highlight=False)
    if counts["done"] < len(everything):
        place = f"run.root={run.path.parent} run.name={run.path.name}"  # it may have been moved
        again = f"python jobs/launch.py {run.config_file} {place}"
        what = "a launch is at work" if is_locked(run.launch_lock) else again
        console.print(f"to go on: {what}", markup=False, highlight=False, soft_wrap=True)
