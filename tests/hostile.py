"""What somebody hostile or careless may write: values for settings, contents of files, and things that are no files."""

import gzip
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# As YAML, which here is JSON but for what JSON cannot say.
NUMBERS = (
    *("0", "-1", "1.5", "true", ".nan", ".inf", "-.inf", "1e308", "5e-324", "2147483648", "9223372036854775808"),
    *("1" + 30 * "0", "9" * 5000, "-" + "9" * 5000, "010", "1:30:00", "1_000", "0x10", "2026-02-31"),
)
TEXTS = (
    *("", " ", "x" * 10_000, "\0", "a\0b", "\ud800", "\x1b]0;title\x07\x1b[2J", "[/x]", "[red]x", "\u202etxt.exe"),
    *("../../../x", "~nobody_is_called_so/x", "~", "a/b/c", "{x}", "%s%n", "$(false)", "a\nb", "--help", ".", "/"),
    *(
        "host:99999",
        "http://[::1",
        "http://a:b@c/v1",
        "http://x:99999/v1",
        "http:///v1",
        "http://\0/v1",
        "http://x y/v1",
    ),
    *("http://" + "x" * 5000 + "/v1", "http://xn--\u0130/v1", "http://x/v1#k", "https://..", "file:///etc/passwd"),
)
STRUCTURES = ("null", "[]", "{}", "[[[]]]", "{kind: []}", "{kind: {}}", "{kind: null}", "{kind: nothing}", "[null]")
DEEP = ("[" * 45 + "]" * 45, "[" * 100 + "]" * 100, "[" * 20_000, "{a: " * 2000 + "}" * 2000)


def values() -> list[str]:
    """Every hostile value, as YAML."""
    return [*NUMBERS, *map(json.dumps, TEXTS), *STRUCTURES, *DEEP]


def places(folder: Path) -> list[Path]:
    """What is no ordinary file with text in it, made in a folder."""
    folder.mkdir()
    made = {
        "empty": b"",
        "newline": b"\n",
        "nul": b"\0" * 100,
        "latin": "caf\xe9\n".encode("latin-1"),
        "bom": b"\xff\xfe",
        "random": random.Random(0).randbytes(4096),
        "bomb.gz": gzip.compress(b"[" + b"\0" * 50_000_000, 1),
        "cut.gz": gzip.compress(b'{"question": "a"}\n' * 1000)[:-40],
        "fake.parquet": b"PAR1" + b"\xff" * 200 + b"PAR1",
        "long-line.jsonl": b'{"question": "' + b"x" * 10_000_000 + b'"}\n',
        "deep.jsonl": b'{"question": ' + b"[" * 100_000,
        "deep-array.json": b"[" + b'{"a":' * 100_000,
        "digits.jsonl": b'{"question": "a", "answer": "b", "label": ' + b"9" * 10_000 + b"}\n",
        "surrogate.jsonl": b'{"question": "\\ud800 is what?", "answer": "\\udfff"}\n',
        "escapes.jsonl": b'{"\\u001b]0;x\\u0007": 1}\n',
        "nan.jsonl": b'{"question": NaN, "answer": Infinity}\n',
        "twice.csv": b"question,question\na,b\n",
        "quote.csv": b'question,answer\n"a,b\n' * 1000,
        "wide.csv": b",".join(b"c%d" % n for n in range(50_000)) + b"\n",
    }
    paths = []
    for name, content in made.items():
        paths.append(folder / name)
        paths[-1].write_bytes(content)
    (folder / "folder").mkdir()
    os.mkfifo(folder / "fifo")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "dangling").symlink_to(folder / "nothing")
    paths += [
        folder / name for name in ("folder", "fifo", "loop", "dangling", "absent", "empty/x", "a" * 300, "a/" * 3000)
    ]
    return [*paths, Path("/dev/zero"), Path("/dev/null"), Path("/dev/full"), Path("/proc/self/mem")]


def leaves(tree: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The place of every value in a tree, sections and lists too."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from leaves(value, (*path, key))


def with_value(tree: Any, path: tuple[str | int, ...], value: str) -> str:
    """The tree as YAML, with another value, itself YAML, in one place."""
    marker = "@the value@"

    def changed(tree: Any, path: tuple[str | int, ...]) -> Any:
        if not path:
            return marker
        copy = dict(tree) if isinstance(tree, dict) else list(tree)
        copy[path[0]] = changed(tree[path[0]], path[1:])
        return copy

    return json.dumps(changed(tree, path)).replace(json.dumps(marker), value)


def scene(folder: Path) -> dict[str, Any]:
    """A config that passes a dry run, with every file that it reads, in a folder."""
    folder.mkdir()
    files = {
        "zero2.json": {"zero_optimization": {"stage": 2}},
        "questions.txt": "what is it?\nand that?\n",
        "pairs.jsonl": {"question": "Is it so?", "answer": "yes", "label": "good"},
        "answers.csv": "question,answer,label\nIs it?,yes,good\n",
        "evaluated.csv": "question,answer,label\nWhere does the mail go on Sundays?,home,good\n",
        "leaks.csv": "question\nWhich of the two rivers is longer?\n",
        "groups.jsonl": {"query": "what is that there?", "responses": ["a b", "c"], "scores": [1, 5]},
        "hh.jsonl": {"chosen": "\n\nHuman: a b\n\nAssistant: d", "rejected": "\n\nHuman: a b\n\nAssistant: e"},
        "stories.jsonl": {"situation": "s", "intention": "i", "moral_action": "m", "immoral_action": "n"},
        "edges.txt": "0 1\n1 2\n2 3\n3 4\n4 0\n",
        "people.jsonl": {"persona": "You are Ada.", "name": "Ada", "label": "good", "age": 31},
    }
    for name, content in files.items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content) + "\n")
    csv = {"kind": "csv", "path": f"{folder}/answers.csv", "label": "label"}
    server = {"kind": "openai", "base_url": "http://127.0.0.1:9/v1", "model": "m"}
    answers = [
        {"kind": "hh", "path": f"{folder}/hh.jsonl"},
        {"kind": "moral_stories", "path": f"{folder}/stories.jsonl"},
        csv,
    ]
    stage = {"deepspeed": f"{folder}/zero2.json"}
    several = [{"kind": "run"}, *({"kind": "answers", "source": source} for source in answers[1:])]
    return {
        "run": {"root": f"{folder}/runs"},
        "engine": {"kind": "scripted"},
        "society": {
            "num_worlds": 2,
            "num_shards": 2,
            "topology": {"kind": "edges", "path": f"{folder}/edges.txt"},
            "max_rounds": 2,
            "audience_size": 2,
            "num_initial_memories": 5,
            "populations": ["mixed_half_half", "all_bad"],
            "mixture": [
                {"name": "p", "share": 0.4, "engine": {"kind": "transformers", "device": "cpu"}, "instructions": "x"},
                {"name": "q", "share": 0.2, "engine": server},
            ],
            "observer": {"kind": "server", "program": "llama_cpp", "model": "smollm2-135m"},
            "criteria": [
                {"name": "alignment"},
                {"name": "tone", "scale": [0, 100], "wording": "How kind? Rate it from 0 (not at all) to 100 (very)."},
                {"name": "polite", "rule": {"kind": "pattern", "pattern": "please|thank"}},
                {"name": "short", "rule": {"kind": "length", "min_words": 1, "max_words": 40}},
            ],
            "survey": {"questions": [{"name": "mood", "wording": "How are you? 1 (bad) to 7 (well)."}], "share": 0.5},
            "reflection": {"every": 2},
            "interventions": [
                {"name": "told", "from_round": 1, "agents": [1], "instructions": "x", "part": "p"},
                {"name": "news", "from_round": 2, "label": "bad", "broadcast": {"question": "a?", "answer": "b"}},
                {"name": "apart", "from_round": 2, "share": 0.5, "links": {"kind": "isolated", "num_agents": 5}},
            ],
            "profiles": {"kind": "json", "path": f"{folder}/people.jsonl", "columns": {"culture": "from"}},
            "observer_check": {"pairs": {"kind": "json", "path": f"{folder}/pairs.jsonl", "label": "label"}},
            "questions": {"kind": "text", "path": f"{folder}/questions.txt"},
        },
        "dataset": {"ratio": {}, "leak_check": [f"{folder}/leaks.csv"]},
        "train": {
            "stages": [
                {
                    **{"name": "sft", "objective": {"kind": "sft"}, "lora": {}, "max_steps": 3, **stage},
                    "data": {"kind": "answers", "source": answers[0]},
                },
                {
                    **{"name": "dpo", "objective": {"kind": "dpo"}, "start": "base", **stage},
                    "data": {"kind": "groups", "path": f"{folder}/groups.jsonl", "score_range": [1, 7]},
                },
                {
                    **{"name": "stable", "objective": {"kind": "stable"}, **stage},
                    "data": {"kind": "several", "parts": several},
                },
            ]
        },
        "evaluate": {
            "models": ["base", "sft"],
            "data_dir": str(folder),
            "questions": {**csv, "path": f"{folder}/evaluated.csv"},
            "judges": [{"name": "j", "engine": {"kind": "scripted"}}],
        },
        "cluster": {
            **{"kind": "slurm", "setup": ["true"], "python": "python", "min_shards": 1},
            **{"more_environment": ["Q"], "sbatch": {"exclude": "n1"}, "throughput": {"calls_per_s": 1}},
            **{"train": {"sbatch": {"qos": "high"}, "srun": {"mpi": "pmix"}}},
        },
        "generations": {"num": 2, "stage": "stable"},
        "tracking": {"wandb": False, "price_per_1000_tokens": {"prompt": 1, "completion": 2}},
    }


OTHERS: dict[str, dict[str, Any]] = {
    "grid": {"kind": "grid", "size": 3, "radius": 2.0, "metric": "moore", "torus": True},
    "small_world": {"kind": "small_world", "num_agents": 9, "num_neighbours": 4, "rewired_share": 0.1},
    "scale_free": {"kind": "scale_free", "num_agents": 9, "num_links": 2},
    "complete": {"kind": "complete", "num_agents": 9},
    "isolated": {"kind": "isolated", "num_agents": 9},
}
"""Topologies that are settings alone."""

PROTOCOLS: dict[str, dict[str, Any]] = {
    "critics": {"num_rounds": 1},
    "deliberation": {"num_exchanges": 1},
    "dialogue": {"num_speakers": 2, "max_turns": 4, "num_candidates": 2, "goal_threshold": 7.0},
    "feed": {
        **{"activity": 0.5, "num_followed": 20, "num_strangers": 5, "feed_size": 5},
        **{"hot_weight": 1.0, "interest_weight": 1.0, "chance_weight": 1.0},
    },
    "game": {
        "game": "public_goods",
        "num_players": 2,
        "num_turns": 3,
        "multiplier": 1.5,
        "penalty": 3.0,
        "payoffs": None,
    },
    "norms": {"norms": ["Be fair."], "entrepreneurs": 0.1, "max_norms": 5, "merge_every": 5, "reflection": {}},
    "rehearsal": {"num_people": 3, "num_steps": 4, "scene": {"max_tokens": 160}},
    "relay": {"num_looks": 1},
    "sample": {"num_answers": 4},
}
"""Settings of each protocol that has some."""

WORDS = (
    *("", "\0", "\x1b[2J", "a=b", "=", "a.b=", "a..b=1", ".=1", "--x", "-", "\ud800=1", "\udcff", "x" * 5000),
    *("--shard=" + "9" * 30, "--stage=x", "--model=y", "--compare=a,,b", "run.name=" + "[" * 50_000),
    *("society.num_worlds=" + "9" * 5000, "train.stages.0=1", "train.stages.sft.x.y.z=1", "run.root=/x/[/x]r"),
    *("society.topology.size=1e400", "model=[]", "engine={kind: transformers, model: /dev/zero}", "/dev/zero"),
    *("society.num_shards=1000000", "society.topology={kind: complete, num_agents: 1000000000}", "run={a: &a [*a]}"),
)
"""Of a command line."""
