"""Measures the journal: bytes on the disk, processor time of an append, and what reopening a large one takes.

Beside each figure stands that of the same records as JSON Lines, written and read in the same run.
"""

import functools
import gzip
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson

from salign.bench.figures import Figure, measure_parts
from salign.blocks import KEY_BYTES, Record
from salign.engines.reuse import open_reused
from salign.errors import ConfigError, StageError
from salign.recordlog import RecordLog

TEXTS = "eval/hh_harmless_test.jsonl.gz"
_KIB, _MIB = 1 << 10, 1 << 20
# A reply has 256 tokens at most; a rating by probabilities is of seven digits.
_MAX_CHARACTERS = 1_000
_NUM_DIGITS = 7
_HEADER = {"model": "a/model", "engine.kind": "openai"}


def _texts(file: Path) -> list[str]:
    """What the assistant says in Anthropic's transcripts, each answer once."""
    if not file.is_file():
        raise ConfigError(f"no transcripts at {file}; name the folder that has {TEXTS} with --data")
    found: dict[str, None] = {}
    with gzip.open(file) as lines:
        for line in lines:
            for turn in json.loads(line)["chosen"].split("\n\nHuman:"):
                _, _, answer = turn.partition("\n\nAssistant:")
                if answer.strip():
                    found[answer.strip()[:_MAX_CHARACTERS]] = None
    return list(found)


def _rows(kind: str, texts: Sequence[str], rng: random.Random) -> Iterator[dict[str, Any]]:
    """Answers as the journal records them, without end: what is said comes again after some thousands."""
    number = 0
    while True:
        seconds = round(rng.lognormvariate(0.5, 0.6), 4)
        if kind == "replies":
            text = texts[number % len(texts)]
            yield {"seconds": seconds, "text": text, "finish": "stop", "tokens": [rng.randint(80, 900), len(text) // 4]}
        else:
            weights = [rng.lognormvariate(0, 1.5) for _ in range(_NUM_DIGITS)]
            probabilities = [weight / sum(weights) for weight in weights]
            yield {
                "seconds": seconds,
                "probabilities": probabilities,
                "mass": rng.betavariate(20, 2),
                "tokens": [rng.randint(80, 900), 0],
            }
        number += 1


def _records(kind: str, texts: Sequence[str], num: int) -> list[tuple[bytes, dict[str, Any]]]:
    rng = random.Random(kind)
    rows = _rows(kind, texts, rng)
    return [(rng.randbytes(KEY_BYTES), next(rows)) for _ in range(num)]


def _size_and_time(kind: str, file: Path) -> list[Figure]:
    """One write for each call, as a server's answers come."""
    texts = _texts(file)
    records = _records(kind, texts, len(texts))
    with tempfile.TemporaryDirectory(prefix="salign-bench-") as folder:
        lines = Path(folder) / "lines"
        start = time.process_time()
        descriptor = os.open(lines, os.O_WRONLY | os.O_CREAT)
        for key, row in records:
            os.write(descriptor, orjson.dumps({"key": key.hex(), **row}, option=orjson.OPT_APPEND_NEWLINE))
        os.close(descriptor)
        between = time.process_time()
        log = RecordLog(Path(folder) / "log", {}, 0)
        for key, row in records:
            log.append([(key, orjson.dumps(row))])
        log.close()
        end = time.process_time()
        as_lines = lines.stat().st_size / len(records)
        size = sum(path.stat().st_size for path in (Path(folder) / "log").iterdir()) / len(records)
    before, after = (1e6 * seconds / len(records) for seconds in (between - start, end - between))
    share = f"{size / as_lines:.2f} of it"
    of = f"{kind}, one write each ({len(records):,})"
    return [
        Figure(f"{of}: bytes a call", size, "bytes", "<= 0.38 of it", f"{as_lines:.0f} as JSON Lines", share),
        Figure(f"{of}: append, compression included", after, "us of a core", "", f"{before:.1f} as JSON Lines"),
    ]


def reopen(folder: Path) -> dict[str, float]:
    """Opens a log in this process: seconds, those of a processor, the peak of memory (bytes), its keys."""
    start, processor = time.perf_counter(), time.process_time()
    log = RecordLog(folder, _HEADER, 0)
    seconds, processor = time.perf_counter() - start, time.process_time() - processor
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KIB
    log.close()
    return {"seconds": seconds, "processor": processor, "peak": peak, "keys": len(log)}


def _write(folder: Path, num: int, texts: Sequence[str]) -> list[bytes]:
    """Writes so many calls, as a shard does; their keys."""
    rng, keys = random.Random(0), list[bytes]()
    rows = _rows("replies", texts, rng)
    log = RecordLog(folder, _HEADER, 0)
    for start in range(0, num, len(texts)):
        few = min(len(texts), num - start)
        batch: list[Record] = [(rng.randbytes(KEY_BYTES), orjson.dumps(next(rows))) for _ in range(few)]
        keys += [key for key, _ in batch]
        log.append(batch)
        log.sync()
    log.close()
    return keys


def _reusing(num: int, file: Path) -> list[Figure]:
    """Calls are asked for in the order in which the other run made them, as a changed run does."""
    with tempfile.TemporaryDirectory(prefix="salign-bench-") as folder:
        run, kept = Path(folder) / "run", Path(folder) / "kept"
        keys = _write(run / "simulate" / "shard-00000", num, _texts(file))
        start = time.process_time()
        [reused] = open_reused([run], _HEADER, kept)
        built = time.process_time() - start
        size = sum(path.stat().st_size for path in kept.glob("*/*"))
        start = time.process_time()
        num_found = sum(reused.records.find(key) is not None for key in keys)
        seconds = time.process_time() - start
    assert num_found == num
    return [
        Figure(f"{num:,} calls of another run: index", size / num, "bytes a call", "<= 100", f"{built:.1f} s to make"),
        Figure("found in it, in the order of that run", num / seconds, "a second of a core", ">= 100,000"),
    ]


def _reopening(num: int, file: Path) -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="salign-bench-") as folder:
        _write(Path(folder), num, _texts(file))
        words = [sys.executable, "-m", "salign.bench.journal", folder]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            raise StageError(f"the journal cannot be reopened: {done.stderr.strip()}")
        usage: dict[str, float] = json.loads(done.stdout)
    note = f"{usage['processor']:.1f} s of a core"
    return [
        Figure(f"reopening {usage['keys']:,.0f} calls", usage["seconds"], "s", "<= 15 for 5,000,000", note=note),
        Figure("the same: peak memory", usage["peak"] / _MIB, "MiB", "<= 400 for 5,000,000"),
    ]


def measure(num: int, data: Path, only: Sequence[str], say: Callable[[str], None]) -> list[Figure]:
    """The figures of `python jobs/bench.py journal`.

    Args:
        num: How many calls the journal has that is reopened, or that another run reuses.
        data: A folder with `TEXTS`, which models' answers are taken from.
        only: Names of parts; empty for all.
        say: Told what is being measured.

    Raises:
        ConfigError: There is no such part, or no such file.
    """
    parts: dict[str, Callable[[], list[Figure]]] = {
        "replies": functools.partial(_size_and_time, "replies", data / TEXTS),
        "ratings": functools.partial(_size_and_time, "ratings", data / TEXTS),
        "reopen": functools.partial(_reopening, num, data / TEXTS),
        "reuse": functools.partial(_reusing, num, data / TEXTS),
    }
    return measure_parts("journal", parts, only, say)


if __name__ == "__main__":
    print(json.dumps(reopen(Path(sys.argv[1]))))
