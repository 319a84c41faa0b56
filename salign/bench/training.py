"""Measures training: groups in one row against each response with its own query, the loop, the data.

Each side of a comparison runs in a process of its own, so that peaks of memory are its own.
"""

import importlib.util
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from salign.bench.figures import Figure, measure_parts
from salign.bench.memory import memory_cost, memory_figures
from salign.bench.workload import (
    MODEL,
    NUM_GROUPS,
    NUM_RESPONSES,
    QUERY,
    RESPONSE,
    SHAPE,
    Shape,
    bench_groups,
    read_shape,
)
from salign.config import GroupsData
from salign.errors import StageError
from salign.machine import peak_memory

_MIB = 1 << 20
_BOUND_THAT_COUNTS = 2.0
"""Where a row has half the tokens of the naive layout or more, what packing costs hardly shows."""


# --- in a process of its own ---------------------------------------------------------------------


def layout_cost(
    layout: str, shape: str = str(SHAPE), num_groups: int = NUM_GROUPS, num_passes: int = 3
) -> dict[str, float]:
    """Seconds of a forward and backward pass over the groups, and the peak of memory (MiB).

    Args:
        layout: `packed`: a row a group, as training lays it out; `naive`: each response with its own query, padded,
            with logits everywhere.
        shape: Of the groups, as `read_shape` reads it.
        num_groups: That are gone through in a pass.
        num_passes: After a first one, the fastest of which counts.
    """
    import torch
    from torch.nn import functional as F

    from salign import models
    from salign.config import StableObjective
    from salign.gpus import peak_flops
    from salign.training.flops import Arithmetic
    from salign.training.losses import objective_loss
    from salign.training.model import GroupLoss
    from salign.training.packing import lay_out

    on_gpu = torch.cuda.is_available()
    device, dtype = torch.device("cuda" if on_gpu else "cpu"), "bfloat16" if on_gpu else "float32"
    model = models.load_model(MODEL, getattr(torch, dtype)).train().to(device)
    lengths = read_shape(shape)
    groups = bench_groups(lengths, num_groups)
    loaded = _peak_mib()
    objective = StableObjective(kind="stable")
    loss_of = GroupLoss(model, objective)
    scores = torch.tensor([group.scores for group in groups], device=device)
    ids = torch.tensor([[*group.query, *response] for group in groups for response in group.responses], device=device)

    def packed() -> None:
        for group in groups:
            (loss_of(lay_out([group]).to(device))[0] / len(groups)).backward()

    def naive() -> None:
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[:, :-1].float()
        token_nll = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(len(ids), -1)
        nll = token_nll[:, lengths.query - 1 :].mean(1).view_as(scores)
        objective_loss(objective, nll, scores).backward()

    run = packed if layout == "packed" else naive
    seconds, cpu = [], []
    for _ in range(1 + num_passes):
        model.zero_grad(set_to_none=True)
        start, used = time.perf_counter(), time.process_time()
        run()
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        cpu.append(time.process_time() - used)
    found = {"seconds": min(seconds[1:]), "cpu": min(cpu[1:]), "peak": _peak_mib(), "loaded": loaded}
    flops = peak_flops(torch.cuda.get_device_name(), dtype) if on_gpu else None
    if flops is not None:
        found["mfu"] = Arithmetic.of(model).flops(groups) / found["seconds"] / flops
    return found


def _peak_mib() -> float:
    """The most memory that this process has had: of the GPU, where there is one."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / _MIB
    return peak_memory() / _MIB


def loop_cost(objective: str) -> dict[str, float]:
    """Seconds of the trainer's step (median, least) and of the same rows by hand: forward, backward, optimizer step."""
    import torch

    from salign import models
    from salign.config import TrainStage
    from salign.training.distributed import init_ranks
    from salign.training.packing import Lengths, lay_out
    from salign.training.settings import deepspeed_config
    from salign.training.trainer import Trainer

    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        file.write('{"zero_optimization": {"stage": 1}}')
        file.flush()
        stage = TrainStage.model_validate(
            {
                "name": "bench",
                "objective": {"kind": objective, **({"pairs": "best"} if objective == "dpo" else {})},
                "data": {"kind": "run"},
                "groups_per_step": NUM_GROUPS,
                "deepspeed": file.name,
            }
        )
        settings = deepspeed_config(stage, 1)
    ranks = init_ranks()
    groups = [(n, replace(g, references=[1.0] * len(g.responses))) for n, g in enumerate(bench_groups())]
    lengths = Lengths.of([group for _, group in groups])
    trainer = Trainer(stage, ranks, models.load_model(MODEL, torch.float32), settings, num_steps=1000, lengths=lengths)
    rows = [lay_out([group]) for _, group in groups]
    engine = trainer.engine

    def by_hand() -> None:
        for number, row in enumerate(rows):
            engine.set_gradient_accumulation_boundary(number == len(rows) - 1)
            engine.backward(engine(row)[0] / len(rows), scale_wrt_gas=False)
        engine.step()

    seconds: dict[str, list[float]] = {"loop": [], "bare": []}
    for step in range(6):  # by turns, so that what else the machine does meets both
        for name, run in (("loop", lambda step=step: trainer.step(step, groups)), ("bare", by_hand)):
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    peak = peak_memory() / _MIB
    least = {f"{name}_least": min(values[1:]) for name, values in seconds.items()}
    return {**{name: median(values[1:]) for name, values in seconds.items()}, **least, "peak": peak}


def trl_cost() -> dict[str, float]:
    """Seconds of a step of TRL's DPO trainer, with optimizer, on the pairs of the groups: the best with each other."""
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer

    from salign import models

    tokenizer = models.load_tokenizer(MODEL)
    known = [str(tokenizer.decode([token])) for token in range(1000, 20_000)]
    words = [word for word in known if word[:1] == " " and word[1:].isalpha()]
    draw = random.Random(0)

    def text(count: int) -> str:
        return "".join(draw.choice(words) for _ in range(count))

    pairs = []
    for _ in range(NUM_GROUPS):
        query, best = text(QUERY), text(RESPONSE)
        pairs += [{"prompt": query, "chosen": best, "rejected": text(RESPONSE)} for _ in range(NUM_RESPONSES - 1)]
    seconds: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            seconds.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds[-1] = time.perf_counter() - seconds[-1]

    with tempfile.TemporaryDirectory() as folder:
        arguments = DPOConfig(
            output_dir=folder,
            per_device_train_batch_size=len(pairs),
            max_steps=4,
            precompute_ref_log_probs=True,  # as ours has them
            max_length=None,
            gradient_checkpointing=False,
            bf16=False,
            report_to=[],
            logging_strategy="no",
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = DPOTrainer(
            model=models.load_model(MODEL, torch.float32),
            args=arguments,
            train_dataset=Dataset.from_list(pairs * 4),
            processing_class=tokenizer,
            callbacks=[Clock()],
        )
        trainer.train()
    return {"seconds": min(seconds[1:]), "peak": peak_memory() / _MIB}


def token_cost(num_groups: int) -> dict[str, float]:
    """Seconds to read and tokenise this many groups into a store, and the memory (MiB) before and at its peak."""
    from salign import models
    from salign.dataset.groups import read_groups
    from salign.training.tokens import TokenStore

    draw = random.Random(0)
    words = [f"{chr(97 + i % 26)}{'aeiou'[i % 5]}{chr(98 + i % 7)}" for i in range(500)]

    def text(count: int) -> str:
        return " ".join(draw.choice(words) for _ in range(count))

    tokenizer = models.load_tokenizer(MODEL)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "groups.jsonl"
        with path.open("w") as file:
            for _ in range(num_groups):
                row = {"query": text(15), "responses": [text(25) for _ in range(4)], "scores": [7, 5, 3, 1]}
                file.write(json.dumps(row) + "\n")
        before = peak_memory() / _MIB
        start, used = time.perf_counter(), time.process_time()
        left_out: Counter[str] = Counter()
        groups = read_groups(GroupsData(kind="groups", path=path), left_out)
        TokenStore.build(Path(folder) / "tokens", groups, tokenizer, 480, left_out)
        seconds, cpu = time.perf_counter() - start, time.process_time() - used
    return {
        "seconds": seconds,
        "cpu": cpu,
        "before": before,
        "peak": peak_memory() / _MIB,
    }


# --- the table -----------------------------------------------------------------------------------


def _own_process(name: str, *arguments: str, **environment: str) -> dict[str, float]:
    command = [sys.executable, "-m", "salign.bench.training", name, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    if done.returncode:
        raise StageError(f"measuring {name} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _layout() -> list[Figure]:
    packed, naive = (_own_process("layout", name) for name in ("packed", "naive"))
    what = f"query {QUERY}, responses {RESPONSE}, K = {NUM_RESPONSES}, forward and backward"
    if "mfu" in packed:
        what += f", bfloat16 on a GPU (MFU {100 * packed['mfu']:.1f} %)"
    above = {name: found["peak"] - found["loaded"] for name, found in (("packed", packed), ("naive", naive))}
    return [
        Figure(
            f"{what}: speed against the naive layout",
            naive["seconds"] / packed["seconds"],
            "x",
            ">= 3.0",
            note=f"{packed['seconds']:.2f} s and {naive['seconds']:.2f} s for {NUM_GROUPS} groups; of the processors' "
            f"time {naive['cpu'] / packed['cpu']:.2f}x ({packed['cpu']:.2f} s and {naive['cpu']:.2f} s)",
        ),
        Figure(
            "peak memory against it",
            packed["peak"] / naive["peak"],
            "x",
            "<= 0.45",
            note=f"{packed['peak']:.0f} and {naive['peak']:.0f} MiB; above the loaded model {above['packed']:.0f} and "
            f"{above['naive']:.0f} MiB ({above['packed'] / above['naive']:.2f}x)",
        ),
    ]


def _curve(shapes: Sequence[Shape]) -> list[Figure]:
    """Both layouts at each shape, one group each: by how much of the processors' time against how much fewer tokens."""
    figures = []
    for shape in shapes:
        packed, naive = (_own_process("layout", name, str(shape), "1", "1") for name in ("packed", "naive"))
        spent = "seconds" if "mfu" in packed else "cpu"  # a GPU's time is no processor's
        gain = naive[spent] / packed[spent]
        mfu = f"; MFU {packed['mfu']:.1%} and {naive['mfu']:.1%}" if "mfu" in packed else ""
        figures.append(
            Figure(
                f"query {shape.query}, responses {shape.response}, K = {shape.num_responses}: speed as a share of the "
                f"token bound {shape.bound:.2f}",
                gain / shape.bound,
                "",
                ">= 0.95" if shape.bound >= _BOUND_THAT_COUNTS else "",
                note=f"{gain:.2f}x the naive layout; {shape.num_tokens / packed[spent]:,.0f} tokens/s; peaks above the "
                f"loaded model {packed['peak'] - packed['loaded']:,.0f} and {naive['peak'] - naive['loaded']:,.0f} "
                f"MiB{mfu}",
            )
        )
    return figures


def _loop() -> list[Figure]:
    found = _own_process("loop", "stable")
    note = f"{found['loop']:.2f} s and {found['bare']:.2f} s a step"
    share = 100 * (found["loop"] / found["bare"] - 1)
    return [Figure("the loop over bare forward, backward and step", share, "%", "<= 5", note=note)]


def _trl() -> list[Figure]:
    name = "DPO on the same groups, best with each other, with optimizer: groups/s against TRL's trainer"
    if importlib.util.find_spec("trl") is None:
        return [Figure(name, None, "x", ">= 2", note="the package trl is not installed: pip install trl")]
    ours, theirs = _own_process("loop", "dpo"), _own_process("trl")
    seconds = ours["loop_least"], theirs["seconds"]
    note = f"{seconds[0]:.1f} s and {seconds[1]:.1f} s a step; peaks {ours['peak']:.0f} and {theirs['peak']:.0f} MiB"
    return [Figure(name, seconds[1] / seconds[0], "x", ">= 2", note=note)]


def _padding(path: Path) -> list[Figure]:
    name = "padding over real groups, rows of 2048 tokens, 4 ranks, 32 groups a step"
    if not path.is_file():
        return [Figure(name, None, "%", "<= 5", note=f"no groups at {path}; name some with --groups")]
    from salign import models
    from salign.dataset.groups import load_groups
    from salign.training.rows import deal
    from salign.training.tokens import tokenize

    groups = tokenize(load_groups(path).groups, models.load_tokenizer(MODEL), 2048).groups
    lengths = [group.num_tokens for group in groups]
    tokens = padding = 0
    for start in range(0, len(lengths) - 31, 32):
        step = lengths[start : start + 32]
        tokens += sum(step)
        padding += min(step) * sum(not row for own in deal(step, 4, 2048) for row in own)
    note = f"{len(lengths)} groups of {sum(lengths) / len(lengths):.0f} tokens; nothing within a row is padded"
    return [Figure(name, 100 * padding / (tokens + padding), "%", "<= 5", note=note)]


def _tokens() -> list[Figure]:
    few, many = (_own_process("tokens", str(count)) for count in (20_000, 100_000))
    growth = (many["peak"] - many["before"]) - (few["peak"] - few["before"])
    note = (
        f"memory grows by {growth:.0f} MiB from 20,000 to 100,000 groups; {100_000 / many['cpu']:,.0f} groups for each "
    )
    note += "second of one processor"
    return [
        Figure("reading and tokenising 100,000 groups", 100_000 / many["seconds"], "groups/s", ">= 5,000", note=note)
    ]


def measure(groups: Path, shapes: Sequence[Shape], only: Sequence[str], say: Callable[[str], None]) -> list[Figure]:
    """The figures of `python jobs/bench.py training`.

    Args:
        groups: A file of real groups.
        shapes: Of the curve.
        only: Names of parts; empty for all.
        say: Told what is being measured.

    Raises:
        ConfigError: There is no such part.
    """
    parts: dict[str, Callable[[], list[Figure]]] = {
        "layout": _layout,
        "curve": lambda: _curve(shapes),
        "loop": _loop,
        "trl": _trl,
        "padding": lambda: _padding(groups),
        "tokens": _tokens,
        "memory": lambda: memory_figures(_own_process),
    }
    return measure_parts("training", parts, only, say)


if __name__ == "__main__":
    _costs: dict[str, Callable[..., dict[str, float]]]
    _costs = {"layout": layout_cost, "loop": loop_cost, "trl": trl_cost, "tokens": token_cost, "memory": memory_cost}
    _words = [int(word) if word.isdigit() else word for word in sys.argv[2:]]
    print(json.dumps(_costs[sys.argv[1]](*_words)))
