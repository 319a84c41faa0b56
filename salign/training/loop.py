"""One training stage: a plain DeepSpeed loop over groups."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from salign import models
from salign.config import Config, RunData, TrainStage
from salign.errors import REQUEUE
from salign.locks import lock
from salign.manifest import noted_model, require_model
from salign.markers import mark_done, recording_failure, require_done
from salign.run import RunDir
from salign.seeds import derive
from salign.tracking.metrics import MetricsLog, keep_rows, read_metrics
from salign.tracking.mirror import Mirror, open_mirror
from salign.training import checkpoint
from salign.training.attention import require
from salign.training.card import Facts, model_card
from salign.training.data import Groups, Order, build_tokens, context_length, longest, split
from salign.training.distributed import Ranks, StopSignal, init_ranks, leave_ranks, share_from_main
from salign.training.export import complete_generation_config, trained_weights, write_model
from salign.training.lora import add_adapters, merge, require_peft
from salign.training.reference import earlier_references, reference_path, with_references
from salign.training.settings import deepspeed_config
from salign.training.tokens import TokenStore
from salign.training.trainer import Numbered, Trainer

logger = logging.getLogger(__name__)


def base_model(run: RunDir, config: Config, stage: TrainStage) -> tuple[str, dict[str, str]]:
    """Returns the model that a stage starts from (another stage's, or the base) with its digest.

    Raises:
        StageError: That stage is not complete.
        ConfigError: The base is not the model that the run was begun with.
    """
    before = config.train.start_of(stage.name)
    if before == "base":
        return config.model, {"model": require_model(run, config.model).digest}
    remedy = f"Run `python jobs/train.py {run.path} --stage {before}`, or launch again."
    done = require_done(run.stage(before), f"train stage {before}", remedy)
    return str(run.model(before)), {f"train/{before}": done.digest}


@dataclass(frozen=True)
class _Job:
    """What one rank works on."""

    run: RunDir
    config: Config
    stage: TrainStage
    ranks: Ranks

    @property
    def folder(self) -> Path:
        return self.run.stage(self.stage.name)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Rank 0 holds the stage's lock and records its failure."""
        with contextlib.ExitStack() as stack:
            if self.ranks.is_main:
                stack.enter_context(lock(self.folder / ".lock", f"train stage {self.stage.name} of {self.run.path}"))
                stack.enter_context(recording_failure(self.folder))
            yield


class _StoppedTogether(SystemExit):
    """All ranks stop after the same step, so that they can wait for each other before they end."""


@dataclass(frozen=True)
class _Work:
    """What there is to do: the groups of each step, those held out, and where it may go on from."""

    order: Order
    held_out: Sequence[Numbered]
    store: checkpoint.Store
    found: checkpoint.Found | None


def _run_steps(job: _Job, trainer: Trainer, work: _Work, mirror: Mirror) -> None:
    """All steps that are left, with metrics and checkpoints.

    Raises:
        _StoppedTogether: A signal asked for it; what was done is saved.
    """
    stage = job.stage
    state = checkpoint.resume(trainer.engine, work.found, adapters=work.store.adapters)
    first = 0
    if state is not None:
        first, trainer.num_tokens = state["step"], state["num_tokens"]
        logger.info("train stage %s continues after step %d", stage.name, first)
    stop = StopSignal()
    with contextlib.ExitStack() as stack:
        log = None
        if job.ranks.is_main:
            keep_rows(job.folder / "metrics.jsonl", lambda row: row["train/global_step"] <= first)
            log = stack.enter_context(MetricsLog(job.folder / "metrics.jsonl"))
        for step in range(first, trainer.num_steps):
            # Dropout's draws are a function of the step: what is stopped goes on as if it had not been.
            torch.manual_seed(derive(job.config.run.seed, stage.name, "torch", step, job.ranks.rank))
            row = trainer.step(step, work.order.groups(step))
            row["train/epoch"] = round(work.order.epoch(step + 1), 4)
            last = step + 1 == trainer.num_steps
            if work.held_out and ((step + 1) % stage.evaluate_every_steps == 0 or last):
                row |= trainer.evaluate(work.held_out)
            if log is not None:
                log.log(row)
            mirror.log(row)
            asked = stop.any(job.ranks.device)
            # After the last one too: whatever goes wrong while the model is written, no step is made again.
            if last or asked or (step + 1) % stage.checkpoint_every_steps == 0:
                state = {"step": step + 1, "num_tokens": trainer.num_tokens}
                checkpoint.save(trainer.engine, work.store, job.ranks, state)
            if asked and not last:
                logger.info("train stage %s was asked to stop: saved after step %d", stage.name, step + 1)
                raise _StoppedTogether(REQUEUE)


def train(run: RunDir, config: Config, name: str) -> None:
    """Trains one stage from its last complete checkpoint on; every rank calls it.

    Args:
        run: The run's folder.
        config: Its config.
        name: The stage's.

    Raises:
        ConfigError: No such stage; a DeepSpeed file or a checkpoint that does not fit.
        StageError: What it starts from is not complete, or the loss is not finite.
        DataError: Its data cannot be read.
    """
    stage = config.stage(name)
    job = _Job(run, config, stage, init_ranks())
    try:
        _train(job)
    except _StoppedTogether:
        leave_ranks()
        raise
    leave_ranks()


def _train(job: _Job) -> None:
    run, config, stage, ranks = job.run, job.config, job.stage, job.ranks
    with job.alone():
        require(stage.attention, ranks.device)
        if stage.lora is not None:
            require_peft()
        origin = _find_origin(job)
        settings = deepspeed_config(stage, ranks.size)
        seed = config.run.seed
        data = TokenStore(origin.tokens)
        trained, held_out = split(data, stage, seed)
        num_steps = Order(data, stage, seed, trained).num_steps
        made_by = checkpoint.made_by(stage, seed, origin.tokens.name.removeprefix("tokens-"), origin.inputs)
        folder = job.folder / "checkpoints"
        store = checkpoint.Store(
            folder,
            origin.stages,
            stage.keep_checkpoints,
            made_by,
            adapters=stage.lora is not None,
            decays=stage.weight_decay > 0,
        )
        known = _known_references(job, data)
        found = checkpoint.find(store, ranks, int(settings.get("zero_optimization", {}).get("stage", 0)))
        if found is not None and found.universal:
            settings["checkpoint"] = {**settings.get("checkpoint", {}), "load_universal": True}
        model = _load(job, origin, settings)
        trainer = Trainer(stage, ranks, model, settings, num_steps=num_steps, lengths=longest(data, stage))
        groups: Groups = data
        if stage.objective.needs_reference:
            path = reference_path(origin.tokens, origin.inputs, stage.dtype, known)
            groups = with_references(data, path, ranks, trainer.nll_of, known)
        order = Order(groups, stage, seed, trained)
        work = _Work(order, [(int(number), groups[int(number)]) for number in held_out], store, found)
        with contextlib.ExitStack() as stack:
            mirror = Mirror(None)
            if ranks.is_main:
                mirror = stack.enter_context(open_mirror(run, config, "train", stage.name))
            _run_steps(job, trainer, work, mirror)
            _finish(job, origin, trainer, model)
            name_of_model = f"{config.run.name}-{stage.name}"
            mirror.artifact(name_of_model, "model", [run.model(stage.name)], upload=config.tracking.upload_model)
        if ranks.is_main:
            files = [
                str(path.relative_to(job.folder)) for path in sorted(run.model(stage.name).rglob("*")) if path.is_file()
            ]
            mark_done(job.folder, [*files, "metrics.jsonl"], origin.inputs, _counts(trainer, data))
            checkpoint.prune(store, stage.keep_checkpoints)


@dataclass(frozen=True)
class _Origin:
    """What a stage is made from: a model with its tokenizer, the folder of its data in tokens, the stages before."""

    model: str
    tokenizer: PreTrainedTokenizerBase
    tokens: Path
    inputs: dict[str, str]

    @property
    def stages(self) -> dict[str, str]:
        """Those of its inputs that are other stages of the run."""
        return {name: digest for name, digest in self.inputs.items() if name != "model"}


def _find_origin(job: _Job) -> _Origin:
    """Finds it, and tokenises the data; every rank calls it."""
    model, inputs = base_model(job.run, job.config, job.stage)
    tokenizer = models.load_tokenizer(model, job.config.train.template)
    built = None
    if job.ranks.is_main:
        context = context_length(model)
        if context is not None and context < job.stage.max_tokens:
            logger.warning(
                "train stage %s: the model learns texts of %d tokens, fewer than max_tokens %d; longer ones are "
                "left out",
                *(job.stage.name, context, job.stage.max_tokens),
            )
        built = build_tokens(job.run, job.stage, job.config.run.seed, tokenizer, context)
    tokens, more = share_from_main(built)
    return _Origin(model, tokenizer, tokens, {**inputs, **more})


def _known_references(job: _Job, data: TokenStore) -> NDArray[np.float32] | None:
    """What replayed groups are measured from, where that is not the model that the stage starts from."""
    if not (job.stage.objective.keeps_references and data.num_replayed):
        return None
    shares = [part.replay for part in job.stage.parts if isinstance(part, RunData)]
    folders = {age: its.stage(job.stage.name) for replay in shares for age, _, its in job.run.replayed(replay)}
    return share_from_main((earlier_references(data, folders),) if job.ranks.is_main else None)[0]


def _load(job: _Job, origin: _Origin, settings: dict[str, Any]) -> PreTrainedModel:
    """The model as the stage starts; under ZeRO-3 this rank's share of it."""
    with sharded_loading(settings):
        model = models.load_model(origin.model, getattr(torch, job.stage.dtype))
    complete_generation_config(model, origin.tokenizer)
    if job.stage.lora is not None:
        add_adapters(model, job.stage.lora, derive(job.config.run.seed, job.stage.name, "lora"))
    return model


def _counts(trainer: Trainer, data: TokenStore) -> dict[str, int]:
    return {
        "num_steps": trainer.num_steps,
        "num_tokens": trainer.num_tokens,
        "num_groups": len(data),
        **({"num_replayed_groups": data.num_replayed} if trainer.replays else {}),
        **{f"num_{what}_left_out": count for what, count in data.left_out.items()},
    }


def _finish(job: _Job, origin: _Origin, trainer: Trainer, model: PreTrainedModel) -> None:
    """Writes the model and its card; every rank calls it."""
    stage = job.stage
    weights = trained_weights(trainer.engine, model, adapters=stage.lora is not None)
    if job.ranks.is_main:
        if stage.lora is not None:
            assert weights is not None
            model, weights = merge(origin.model, stage.lora, weights, getattr(torch, stage.dtype)), None
        zero_stage = trainer.engine.zero_optimization_stage()
        counts = _counts(trainer, TokenStore(origin.tokens))
        data = origin.tokens.name.removeprefix("tokens-")
        facts = Facts(counts, data, job.ranks.size, zero_stage, noted_model(job.run, job.config.model))
        rows = read_metrics(job.folder / "metrics.jsonl")
        card = model_card(job.config, stage, origin.model, facts, rows)
        write_model(job.run.model(stage.name), model, weights, origin.tokenizer, card)
    dist.barrier()


@contextlib.contextmanager
def sharded_loading(settings: dict[str, Any]) -> Iterator[None]:
    """Under ZeRO-3, `from_pretrained` in the block gives each rank its share of the weights alone."""
    if settings.get("zero_optimization", {}).get("stage") != 3:
        yield
        return
    from transformers.integrations.deepspeed import HfDeepSpeedConfig

    alive = HfDeepSpeedConfig(settings)  # transformers keeps a weak reference
    yield
    del alive
