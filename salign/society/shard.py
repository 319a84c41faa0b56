"""One shard of the simulation: some worlds, their journal, and their interactions in canonical order."""

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from salign.config import Config, SocietySection
from salign.engines.check import models_of_society
from salign.engines.journal import Journal, written_header
from salign.engines.meter import MeteredEngine, merge_by_kind
from salign.engines.opening import metered
from salign.engines.reuse import open_reused
from salign.errors import REQUEUE, SalignError
from salign.garbage import rare_collections
from salign.locks import lock
from salign.machine import share_out, visible_devices
from salign.manifest import require_model
from salign.markers import mark_done, record_failure, recording_failure
from salign.run import RunDir
from salign.shown import redact
from salign.society.branch import journals_of_beginnings, open_beginnings, settings_before
from salign.society.headers import journal_header
from salign.society.messages import Progress
from salign.society.models import asked, meter_all, observing, open_engines, open_replay
from salign.society.observer import measure
from salign.society.prompts import PROMPTS_VERSION
from salign.society.protocols import protocol_of
from salign.society.ranks import Ranks, join, place_here
from salign.society.simulation import Simulation
from salign.society.spool import Spool, write_sorted
from salign.society.verdicts import Verdict
from salign.society.world import World
from salign.society.worlds import make_worlds, write_graphs, write_profiles
from salign.tracking.metrics import WAITING_S, MetricsLog

logger = logging.getLogger(__name__)

# A machine that fails takes so much of the journal with it at most.
_SYNC_EVERY_S = 1.0

# So long mpiexec is given to pass on what was said before all is ended.
_LAST_WORDS_S = 0.5


def worlds_of(society: SocietySection, shard: int) -> range:
    """The numbers of a shard's worlds: contiguous, sizes differing by one at most."""
    worlds, shards = society.num_worlds, society.num_shards
    return range(shard * worlds // shards, (shard + 1) * worlds // shards)


class _Progress:
    """Writes the shard's metrics, of all ranks: once a second, and for each round that is complete."""

    def __init__(
        self,
        log: MetricsLog | None,
        config: Config,
        worlds: Sequence[World],
        engines: Sequence[MeteredEngine],
        ranks: Ranks,
    ) -> None:
        self._log = log
        self._engines = list(dict.fromkeys(engines))
        self._ranks = ranks
        self._reuses = bool(config.reuse) or config.society.branch is not None
        self._others: dict[int, dict[str, float]] = {}
        # Without retries, and where everybody finds a whole audience.
        society = config.society
        protocol = protocol_of(society)
        self._most = sum(protocol.most_calls(world.num_agents) for world in worlds) * society.max_rounds
        self.simulation: Simulation

    def _here(self) -> dict[str, float]:
        """How far this process is, in figures that can be added up."""
        engines = self._engines
        reused = {"sim/calls_reused": sum(engine.reused.total() for engine in engines)} if self._reuses else {}
        waiting = [engine.waiting_since for engine in engines if engine.waiting_since is not None]
        return {
            **reused,
            "sim/interactions": self.simulation.num_held,
            "sim/alive": self.simulation.num_alive,
            "sim/in_flight": sum(engine.gate.in_flight for engine in engines),
            "sim/in_flight_limit": sum(engine.gate.limit for engine in engines),
            WAITING_S: round(max((time.time() - since for since in waiting), default=0.0), 1),
            "sim/calls": sum(engine.num_calls for engine in engines),
            "sim/calls_journaled": sum(engine.num_journaled for engine in engines),
            "sim/calls_per_s": round(sum(engine.calls_per_s for engine in engines), 3),
            "sim/tokens": sum(engine.prompt_tokens + engine.completion_tokens for engine in engines),
            "sim/completion_tokens": sum(engine.completion_tokens for engine in engines),
        }

    def _figures(self) -> dict[str, Any]:
        here = self._here()
        total = {name: sum((other[name] for other in self._others.values()), start=here[name]) for name in here}
        total[WAITING_S] = max(rank[WAITING_S] for rank in (here, *self._others.values()))
        return {**total, "sim/calls_most": self._most}

    def told(self, rank: int, figures: dict[str, float]) -> None:
        self._others[rank] = figures

    def tick(self) -> None:
        if self._log is not None:
            self._log.log(self._figures())
        elif self._ranks.rank > 0:
            self._ranks.send(0, Progress(self._here()))

    def complete(self, verdict: Verdict) -> None:
        if self._log is not None:
            self._log.log({**self._figures(), **verdict.metrics()})

    def end(self, facts: dict[str, Any]) -> None:
        """The last figures, with what all ranks count together."""
        if self._log is None:
            return
        tokens = facts["prompt_tokens"] + facts["completion_tokens"]
        total = {"sim/calls": facts["num_calls"], "sim/tokens": tokens, "sim/interactions": facts["num_held"]}
        total["sim/completion_tokens"] = facts["completion_tokens"]
        self._log.log({**self._figures(), **total})


async def _simulate(config: Config, shard: int, folder: Path, ranks: Ranks, replay: bool) -> dict[str, Any] | None:
    """Writes the shard's interactions; the facts for its marker on rank 0, None elsewhere."""
    if replay:
        # Nothing runs ahead of a decision then: each call that is asked for was asked for.
        config = config.model_copy(update={"society": config.society.model_copy(update={"schedule": "lockstep"})})
    _take_own_gpus()
    logs = folder / "servers" if ranks.size == 1 else folder / "servers" / f"rank-{ranks.rank}"
    kept = folder.parent
    opened = open_replay(config, folder, kept) if replay else open_engines(config, logs, kept)
    with contextlib.ExitStack() as stack:
        async with opened as models, open_beginnings(config) as begun:
            header = journal_header(config, [engine.identity for engine, _ in models]) | asked(config.society, models)
            journal = _journal(config, header, folder, None if replay else ranks.rank)
            stack.callback(journal.close)
            engines = meter_all(models, journal)
            before = settings_before(begun, journal)
            place, numbers = (ranks.rank, ranks.size), worlds_of(config.society, shard)
            worlds, recall = make_worlds(config, numbers, engines, folder.parent, place, before=before)
            engines = [*(engine for _, voices, _ in before for engine in voices), *engines]
            spool = stack.enter_context(Spool(folder / f".interactions-{ranks.rank:05d}.part"))
            log = None if replay or ranks.rank > 0 else stack.enter_context(MetricsLog(folder / "metrics.jsonl"))
            progress = _Progress(log, config, worlds, engines, ranks)
            simulation = progress.simulation = Simulation(
                config.society, worlds, spool, ranks=ranks, complete=progress.complete, told=progress.told
            )
            check = config.society.observer_check if (shard, ranks.rank) == (0, 0) else None
            measured = None
            if check is not None:
                # What they are asked here is no part of the society's counts.
                apart = observing(config.society, [metered(*opened, journal) for opened in models])
                measured = await measure(apart, config.society, check, config.run.seed)
            with rare_collections():
                await _until_first(simulation.run(), _tick(progress, journal))
            await journal.sync()
            facts = _facts(worlds, engines, simulation)
        spool.flush()
        everybody = ranks.gather((spool.path, dict(spool.index), facts))
        if everybody is not None:
            facts = _summed([facts for _, _, facts in everybody])
            rounds = [(n, r) for n, last in sorted(simulation.last_rounds.items()) for r in range(1, last + 1)]
            write_sorted(folder / "interactions.jsonl", [(path, index) for path, index, _ in everybody], rounds)
            progress.end(facts)
            facts["recall"] = recall
            simulation.validity.check(config.society.gates, shard, facts)
            facts["recall"] = {**recall, **simulation.validity.recalls.figures()}
            facts |= simulation.validity.figures()
            if measured is not None:
                facts["observer"] = measured
            facts["max_rounds"] = config.society.max_rounds
            facts["stops"] = [stop.facts() for stop in simulation.stops]
            facts["profiles"] = write_profiles(worlds, folder)
            facts["interventions"] = {str(world.number): world.interventions for world in worlds}
            facts["graphs"] = write_graphs(config.society, worlds, folder)
        ranks.barrier()  # nobody removes its spool before it is read
        return None if everybody is None else facts


def _journal(config: Config, header: dict[str, Any], folder: Path, writer: int | None) -> Journal:
    """The shard's journal, before those of other runs; in a replay (no `writer`) it has all."""
    kept = folder.parent / "reuse"
    if writer is None:
        return Journal(folder, header, None)
    reused = [*journals_of_beginnings(config, kept), *open_reused(config.reuse, header, kept)]
    return Journal(folder, header, writer, reused)


def _take_own_gpus() -> None:
    """Of the GPUs that all ranks on this machine see, each takes its share."""
    rank, num_ranks = place_here()
    devices = visible_devices() if num_ranks > 1 else []
    if devices:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(share_out(devices, num_ranks)[rank])


async def _until_first(work: Any, beside: Any) -> None:
    """Does the work, unless what goes on beside it fails first."""
    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(beside)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _tick(progress: _Progress, journal: Journal) -> NoReturn:
    while True:
        progress.tick()
        await journal.sync()
        await asyncio.sleep(_SYNC_EVERY_S)


def _served(engines: Sequence[MeteredEngine]) -> dict[str, list[str]]:
    """Each model's names as servers gave them with their answers."""
    names: dict[str, set[str]] = {engine.identity: set() for engine in engines}
    for engine in engines:
        names[engine.identity] |= set(engine.served)
    return {identity: sorted(given) for identity, given in names.items()}


def _facts(worlds: Sequence[World], engines: Sequence[MeteredEngine], simulation: Simulation) -> dict[str, Any]:
    distinct = list(dict.fromkeys(engines))
    return {
        "worlds": {world.number: world.population for world in worlds},
        "agents": {world.number: world.num_agents for world in worlds},
        "rounds": simulation.last_rounds,
        "models": sorted({engine.identity for engine in distinct}),
        "served": _served(distinct),
        "engines": {engine.identity: engine.facts() for engine in distinct},
        "prompts_version": PROMPTS_VERSION,
        "num_calls": sum(engine.num_calls for engine in distinct),
        "calls_by_kind": merge_by_kind(engine.by_kind for engine in distinct),
        "num_journaled_calls": sum(engine.num_journaled for engine in distinct),
        "reused_calls": dict(sorted(sum((engine.reused for engine in distinct), Counter[str]()).items())),
        "num_refused_calls": sum(engine.num_refused for engine in distinct),
        "said_of_refusals": next(filter(None, (engine.said_of_refusals() for engine in distinct)), ""),
        "num_cut_replies": sum(engine.num_cut for engine in distinct),
        "num_thinking_replies": sum(engine.num_thinking for engine in distinct),
        "num_thinking_cut_replies": sum(engine.num_thinking_cut for engine in distinct),
        "num_pushbacks": sum(engine.gate.num_pushbacks for engine in distinct),
        "prompt_tokens": sum(engine.prompt_tokens for engine in distinct),
        "completion_tokens": sum(engine.completion_tokens for engine in distinct),
        "prompt_characters": sum(engine.prompt_characters for engine in distinct),
        "shared_prompt_characters": sum(engine.shared_characters for engine in distinct),
        "num_held": simulation.num_held,
        "num_discarded_interactions": simulation.num_discarded,
    }


def _summed(everybody: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The facts of all ranks: counts are added up, names put together."""
    total = dict(everybody[0])
    for facts in everybody[1:]:
        for name, value in facts.items():
            if isinstance(value, int):
                total[name] += value
        total["reused_calls"] = dict(Counter(total["reused_calls"]) + Counter(facts["reused_calls"]))
        for identity, names in facts["served"].items():
            total["served"][identity] = sorted({*total["served"].get(identity, []), *names})
    total["calls_by_kind"] = merge_by_kind(facts["calls_by_kind"] for facts in everybody)
    shared, characters = total.pop("shared_prompt_characters"), total.pop("prompt_characters")
    total["shared_prompt_share"] = round(shared / characters, 4) if characters else 0.0
    return total


def run_shard(run: RunDir, config: Config, shard: int, *, replay: bool = False) -> None:
    """Simulates a shard's worlds and writes its folder; `done.json` last.

    What an earlier try was answered is in the journal, and is not asked again.

    Args:
        run: Its folder.
        config: The run's.
        shard: Counted from 0.
        replay: Answers come from the journal alone; no engine is opened.

    Raises:
        StageError: Another process works on the shard, it crosses a gate, or a replay finds no answer.
        ConfigError: The journal is of another model or config, a model is not the one that the run was begun with, or
            the number of ranks is not as configured.
        EngineError: The engine is at fault.
        DataError: Questions or prior cannot be read.
    """
    folder = run.shard(shard)
    ranks = join(config.cluster.ranks_per_shard, alone=replay)
    if ranks.rank > 0:
        ranks.barrier()  # until the shard is this launch's
        _run(config, shard, folder, ranks, replay)
        return
    with contextlib.ExitStack() as stack:
        with _ending_all(ranks):
            stack.enter_context(lock(folder / ".lock", f"shard {shard} of {run.path}"))
            if replay:
                written_header(folder)  # where there is no journal, what is complete stays so
            else:
                stack.enter_context(recording_failure(folder))
                for model in models_of_society(config):
                    require_model(run, model)
                (folder / "metrics.jsonl").unlink(missing_ok=True)
            for left in folder.glob(".*.part"):  # of processes that were killed
                left.unlink()
            ranks.barrier()
        facts = _run(config, shard, folder, ranks, replay)
        assert facts is not None
        mark_done(folder, ["interactions.jsonl", *facts["graphs"], *facts["profiles"]], inputs={}, facts=facts)


@contextlib.contextmanager
def _ending_all(ranks: Ranks) -> Iterator[None]:
    """Where one rank fails, all end: they would wait for it."""
    try:
        yield
    except BaseException as error:
        if ranks.size > 1:
            bug = isinstance(error, Exception) and not isinstance(error, SalignError | OSError)
            said = redact(str(error) or type(error).__name__)
            logger.error("rank %d: %s", ranks.rank, said, exc_info=bug)  # noqa: TRY400
            time.sleep(_LAST_WORDS_S)
            ranks.abort(error.exit_code if isinstance(error, SalignError) else 1)
        raise


def _run(config: Config, shard: int, folder: Path, ranks: Ranks, replay: bool) -> dict[str, Any] | None:
    """`_simulate`; a signal ends it as a cancellation: what was answered is written, servers are ended."""
    codes = {signal.SIGTERM: 128 + signal.SIGTERM, signal.SIGUSR2: REQUEUE}  # the second as Slurm warns of its time
    code = codes[signal.SIGTERM]

    async def simulate() -> dict[str, Any] | None:
        task = asyncio.current_task()
        assert task is not None

        def stop(number: signal.Signals) -> None:
            nonlocal code
            code = codes[number]
            task.cancel()

        for number in codes:
            asyncio.get_running_loop().add_signal_handler(number, stop, number)
        return await _simulate(config, shard, folder, ranks, replay)

    try:
        return asyncio.run(simulate())
    except asyncio.CancelledError:
        print("stopped by a signal; launch again to continue: every answered call is in the journal", file=sys.stderr)
        ranks.abort(code)  # the others may not have been told
        sys.exit(code)
    except KeyboardInterrupt:
        ranks.abort(128 + signal.SIGINT)
        raise
    except BaseException as error:
        with _ending_all(ranks):
            if ranks.size > 1 and isinstance(error, SalignError | OSError):
                record_failure(folder, error)  # nothing that follows is sure to run on rank 0
            raise
