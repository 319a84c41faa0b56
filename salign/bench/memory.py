"""Compares the estimate of a training stage's memory with what a separate process uses."""

import json
import resource
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from salign.bench.figures import Figure
from salign.bench.workload import MODEL, bench_groups
from salign.config import TrainStage
from salign.machine import peak_memory

_TOLERANCE = 15  # percent
_MIB = 1 << 20
_BUCKETS = {"reduce_bucket_size": 5_000_000, "allgather_bucket_size": 5_000_000, "overlap_comm": False}
_ZERO = {
    level: {"stage": level, **_BUCKETS, **({"stage3_max_live_parameters": 5_000_000} if level == 3 else {})}
    for level in (0, 2, 3)
}
# What is measured: the stage's settings, and DeepSpeed's.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "float32, ZeRO 0": ({}, _ZERO[0]),
    "float32, ZeRO 2": ({}, _ZERO[2]),
    "float32, ZeRO 3": ({}, _ZERO[3]),
    "bfloat16, ZeRO 2": ({"dtype": "bfloat16"}, _ZERO[2]),
    "float32, ZeRO 2, gradient checkpointing": ({"gradient_checkpointing": True}, _ZERO[2]),
    "float32, ZeRO 2, LoRA": ({"lora": {"rank": 16}}, _ZERO[2]),
}


def _stage(case: str, folder: Path) -> TrainStage:
    given, zero = CASES[case]
    path = folder / "deepspeed.json"
    path.write_text(json.dumps({"zero_optimization": zero}))
    plain = {"name": "bench", "objective": {"kind": "stable"}, "data": {"kind": "run"}, "groups_per_step": 2}
    return TrainStage.model_validate({**plain, "deepspeed": str(path), **given})


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / _MIB


def memory_cost(case: str) -> dict[str, float]:
    """The peak of two steps of one rank above the process before its model, MiB; and what it is estimated to be."""
    import torch

    from salign import models
    from salign.seeds import derive
    from salign.training.distributed import init_ranks
    from salign.training.lora import add_adapters
    from salign.training.memory import estimate, find_shape
    from salign.training.packing import Lengths
    from salign.training.settings import deepspeed_config
    from salign.training.trainer import Trainer

    with tempfile.TemporaryDirectory() as folder:
        stage = _stage(case, Path(folder))
        settings = deepspeed_config(stage, 1)
    groups = list(enumerate(bench_groups()))
    ranks = init_ranks()
    before = _resident_mib()
    model = models.load_model(MODEL, getattr(torch, stage.dtype))
    if stage.lora is not None:
        add_adapters(model, stage.lora, derive("bench"))
    trainer = Trainer(stage, ranks, model, settings, num_steps=1000, lengths=Lengths.of([group for _, group in groups]))
    for step in range(2):  # in the second the optimizer's state is there
        trainer.step(step, groups)
    peak = peak_memory() / _MIB
    shape = find_shape(MODEL)
    assert shape is not None
    found = estimate(stage, settings, shape, 1, max(group.num_tokens for _, group in groups))
    return {"measured": peak - before, "estimated": found.peak / _MIB}


def memory_figures(own_process: Callable[..., dict[str, float]]) -> list[Figure]:
    """One figure for each case: the estimate over what was measured."""
    figures = []
    for case in CASES:
        # Without this the C library keeps what was freed, and its peak is of two moments together.
        found = own_process("memory", case, MALLOC_MMAP_THRESHOLD_="65536", MALLOC_TRIM_THRESHOLD_="65536")
        off = 100 * (found["estimated"] / found["measured"] - 1)
        note = f"estimated {found['estimated']:,.0f} MiB, measured {found['measured']:,.0f} MiB"
        figures.append(Figure(f"memory estimate, {case}", off, "%", f"+-{_TOLERANCE}", note=note))
    return figures
