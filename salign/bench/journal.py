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
from salign.errors import ConfigError, StageError
from salign.recordlog import RecordLog

TEXTS = "eval/hh_harmless_test.jsonl.gz"
_KIB, _MIB = 1 << 10, 1 << 20
# A reply has 256 tokens at most; a rating by probabilities is of seven digits.
_MAX_CHARACTERS = 1_000
_NUM_DIGITS = 7


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
    log = RecordLog(folder, {}, 0)
    seconds, processor = time.perf_counter() - start, time.process_time() - processor
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KIB
    log.close()
    return {"seconds": seconds, "processor": processor, "peak": peak, "keys": len(log)}


def _reopening(num: int, file: Path) -> list[Figure]:
    texts = _texts(file)
    rng = random.Random(0)
    rows = _rows("replies", texts, rng)
    with tempfile.TemporaryDirectory(prefix="salign-bench-") as folder:
        log = RecordLog(Path(folder), {}, 0)
        for start in range(0, num, len(texts)):
            few = min(len(texts), num - start)
            batch: list[Record] = [(rng.randbytes(KEY_BYTES), orjson.dumps(next(rows))) for _ in range(few)]
            log.append(batch)
            log.sync()
        log.close()
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
        num: How many calls the journal has that is reopened.
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
    }
    return measure_parts("journal", parts, only, say)


if __name__ == "__main__":
    print(json.dumps(reopen(Path(sys.argv[1]))))
