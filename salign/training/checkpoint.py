"""Checkpoints of a stage: DeepSpeed's files with a marker, and the newest complete one to continue from."""

import logging
import pickle
import pkgutil
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.serialization import get_unsafe_globals_in_checkpoint

from salign.compose import leaves
from salign.config import Effect, TrainStage, selected
from salign.errors import ConfigError, StageError
from salign.markers import Done, damaged, mark_done, read_done
from salign.storage import new_folder, noticing_full_disk
from salign.training.distributed import Ranks, share_from_main

logger = logging.getLogger(__name__)

_UNIVERSAL = "universal-"
# From the first ZeRO stage to the second, at whatever number of ranks; others DeepSpeed 0.19 cannot.
_CONVERTIBLE = {(1, 2)}


@dataclass(frozen=True)
class Store:
    """A stage's folder of checkpoints.

    Attributes:
        folder: Theirs.
        inputs: What they are trained from: stage to digest. One that was trained from something else does not count.
        keep: How many are kept.
        made_by: What else decides what is learnt, by its names; a checkpoint of another is refused.
        adapters: Whether low-rank adapters alone are trained, and saved: the model's own weights are where they were.
    """

    folder: Path
    inputs: dict[str, str]
    keep: int
    made_by: dict[str, Any] = field(default_factory=dict)
    adapters: bool = False
    decays: bool = False


def made_by(stage: TrainStage, seed: int, data: str, inputs: Mapping[str, str]) -> dict[str, Any]:
    """Returns the inputs that decide what a stage learns, beside earlier stages: names with plain values.

    Args:
        stage: The stage; all of its settings that decide count, whichever they are.
        seed: The run's.
        data: The digest of its data in tokens.
        inputs: Of the stage; `model` is the base model's digest, where it starts from there.
    """
    model = {"model": inputs["model"]} if "model" in inputs else {}
    # A checkpoint of one group of parameters does not fit into an optimizer of two.
    parts = {"weight_decay_of": "matrices"} if stage.weight_decay else {}
    return {"data": data, **model, "seed": seed, **parts, **leaves(selected(stage, Effect.DECIDES))}


def _complete(store: Store) -> list[tuple[Path, Done]]:
    """Complete checkpoints that were trained from the same inputs, with their markers; the newest last."""
    found = [(folder, read_done(folder)) for folder in sorted(store.folder.glob("step-*"))]
    return [(folder, done) for folder, done in found if done is not None and done.inputs == store.inputs]


def save(engine: Any, store: Store, ranks: Ranks, state: dict[str, Any]) -> None:
    """Saves model, optimizer and schedule; every rank calls it. It counts as done only when all have written.

    Args:
        engine: DeepSpeed's.
        store: Where the stage's checkpoints are.
        ranks: This rank among all.
        state: The loop's own: step, counts.
    """
    checkpoints = store.folder
    name = f"step-{state['step']:07d}"
    folder = checkpoints / name
    if ranks.is_main:
        shutil.rmtree(folder, ignore_errors=True)
    dist.barrier()
    checkpoints.mkdir(parents=True, exist_ok=True)
    with noticing_full_disk(checkpoints):
        kept = {**state, "universal_checkpoint_info": {"universal_checkpoint_version": 0.2}}
        engine.save_checkpoint(
            str(checkpoints),
            tag=name,
            client_state=kept,
            save_latest=False,
            **({"exclude_frozen_parameters": True} if store.adapters else {}),
        )
    dist.barrier()
    if ranks.is_main:
        names = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()]
        zero_stage = engine.zero_optimization_stage()
        facts = {**state, "num_ranks": ranks.size, "zero_stage": zero_stage, "made_by": store.made_by}
        mark_done(folder, names, store.inputs, facts)
        prune(store, max(1, store.keep))
    dist.barrier()


def prune(store: Store, keep: int) -> None:
    """Removes all but the newest complete checkpoints, and those that were trained from other inputs."""
    kept = [folder for folder, _ in _complete(store)[-keep:]] if keep else []
    for folder in store.folder.glob("step-*"):
        if folder not in kept:
            shutil.rmtree(folder)
    for folder in store.folder.glob(f"{_UNIVERSAL}*"):
        shutil.rmtree(folder)
    if not kept:
        shutil.rmtree(store.folder, ignore_errors=True)


@dataclass(frozen=True)
class Found:
    """A checkpoint to go on from; `universal` if it was converted from another number of ranks or ZeRO stage."""

    folder: Path
    universal: bool


def find(store: Store, ranks: Ranks, zero_stage: int) -> Found | None:
    """Finds the newest whole checkpoint with the same inputs; every rank calls it before its engine is made.

    One that was written by another number of ranks is converted to DeepSpeed's universal form, once. One that is not
    what its marker vouches for is passed over with a warning.

    Raises:
        ConfigError: It is of another model, data or config, holds what no checkpoint does, or was written under a ZeRO
            stage that DeepSpeed cannot convert to this one.
        StageError: The conversion failed.
    """
    return share_from_main((_find(store, ranks, zero_stage),) if ranks.is_main else None)[0]


def _find(store: Store, ranks: Ranks, zero_stage: int) -> Found | None:
    for folder, done in reversed(_complete(store)):
        if (name := next(damaged(folder, done), None)) is not None:
            logger.warning("the checkpoint %s is damaged (%s) and is skipped", folder, name)
            continue
        _check_harmless(folder, done, store)
        _check_same(folder, done, store)
        written, num_ranks = done.facts["zero_stage"], done.facts["num_ranks"]
        if written != zero_stage and (written, zero_stage) not in _CONVERTIBLE:
            raise ConfigError(
                f"the checkpoint {folder} was written under ZeRO stage {written}, now it is {zero_stage}, and "
                f"DeepSpeed cannot convert it. Continue with ZeRO stage {written}, or remove {store.folder} to "
                "begin the stage again."
            )
        # Without ZeRO every rank has everything, and the first one's file serves any number of them.
        shared_out = any(folder.glob("*_optim_states.pt"))
        if written == zero_stage and (num_ranks == ranks.size or not shared_out):
            return Found(folder, universal=False)
        if zero_stage == 3 and store.decays and not store.adapters:
            raise ConfigError(
                f"the checkpoint {folder} was written by {num_ranks} ranks under ZeRO stage 3, now there are "
                f"{ranks.size}, and DeepSpeed does not convert its two groups of parameters exactly. Use "
                f"{num_ranks} ranks again, or remove {store.folder} to begin the stage again."
            )
        return Found(universal(folder, num_ranks, ranks.size), universal=True)
    return None


def _check_harmless(folder: Path, done: Done, store: Store) -> None:
    """Refuses what is more than tensors, values and DeepSpeed's objects; DeepSpeed unpickles whatever is there."""
    for name in done.files:
        if not name.endswith(".pt"):
            continue
        try:
            foreign = [found for found in get_unsafe_globals_in_checkpoint(folder / name) if not _of_deepspeed(found)]
        except (ValueError, RuntimeError, EOFError, pickle.UnpicklingError):
            foreign = ["something else than torch.save's form"]
        if foreign:
            raise ConfigError(
                f"the checkpoint {folder} is not loaded: {name} holds {', '.join(sorted(foreign)[:5])}, which training "
                f"does not save and which could run code of somebody else's. Remove {store.folder} to begin the stage "
                "again."
            )


def _of_deepspeed(name: str) -> bool:
    """Whether a name in a pickle is that of a class of DeepSpeed's own."""
    if not name.startswith("deepspeed."):
        return False
    try:
        found = pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return isinstance(found, type) and found.__module__.startswith("deepspeed.")


def _check_same(folder: Path, done: Done, store: Store) -> None:
    before, now = done.facts.get("made_by", {}), store.made_by
    other = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if before and other:
        said = ", ".join(f"{name} (was {before.get(name)!r}, is {now.get(name)!r})" for name in other)
        raise ConfigError(
            f"the checkpoint {folder} is of another model, data or config; it differs in {said}. Restore that, or "
            f"remove {store.folder} to begin the stage again."
        )


def universal(folder: Path, written_by: int, num_ranks: int) -> Path:
    converted = folder.with_name(f"{_UNIVERSAL}{folder.name}")
    if not converted.is_dir():
        logger.info("converting the checkpoint %s from %d ranks to %d", folder, written_by, num_ranks)
        with new_folder(converted) as part:
            words = ["--input_folder", str(folder), "--output_folder", str(part), "--inject_missing_state"]
            command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", *words]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise StageError(
                    f"the checkpoint {folder} of {written_by} ranks cannot be converted for {num_ranks}: "
                    f"{(done.stderr.strip().splitlines() or ['no message'])[-1]}. Continue with {written_by} ranks."
                )
    return converted


def resume(engine: Any, found: Found | None, *, adapters: bool = False) -> dict[str, Any] | None:
    """Loads a checkpoint; every rank calls it.

    Args:
        engine: DeepSpeed's.
        found: Which.
        adapters: Whether it has low-rank adapters alone.

    Returns:
        The loop's own state, or None where there is no checkpoint.
    """
    if found is None:
        return None
    how = {"load_module_strict": False} if adapters else {}
    decays = [group["weight_decay"] for group in engine.optimizer.param_groups]
    _, state = engine.load_checkpoint(str(found.folder.parent), tag=found.folder.name, **how)
    for group, decay in zip(engine.optimizer.param_groups, decays, strict=True):
        group["weight_decay"] = decay  # out of a converted checkpoint of ZeRO-3 all groups get the first one's
    return dict(state)
