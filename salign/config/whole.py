"""The whole configuration of a run: what holds the other sections."""

from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import Field, model_validator

from salign.config.base import (
    AbsolutePath,
    CountOrZero,
    FolderOrHub,
    Name,
    NotBool,
    NotNegative,
    Positive,
    Section,
    unless,
)
from salign.config.cluster import ClusterSection, LocalCluster
from salign.config.effects import Effect
from salign.config.engines import EngineSection, OpenAIEngine, TransformersEngine
from salign.config.evaluation import EvaluateSection, Judge
from salign.config.fleets import Fleet, fleets_of
from salign.config.generations import Generations
from salign.config.scorers import Scorer
from salign.config.society import SocietySection
from salign.config.training import DatasetSection, TrainSection, TrainStage
from salign.errors import ConfigError
from salign.seeds import derive


class RunSection(Section):
    root: Annotated[AbsolutePath, Effect.FREE] = Field(default=Path("runs"), validate_default=True)
    """The folder of runs."""
    name: Annotated[Name, Effect.FREE] = "quickstart"
    """Name of the run's folder; a renamed or moved folder is still the same run."""
    private: Annotated[bool, Effect.FREE] = False
    """True: nobody else can read what the run writes; False: whoever the umask lets."""
    seed: Annotated[int, NotBool] = 0
    """All randomness follows from it: two runs that differ only in the seed are two independent draws."""


class Price(Section):
    """What an engine's tokens cost."""

    prompt: NotNegative
    """Per 1,000 tokens read."""
    completion: NotNegative
    """Per 1,000 tokens written."""
    currency: str = "USD"

    def of(self, prompt_tokens: float, completion_tokens: float) -> float:
        """The cost of this many tokens."""
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1000


class TrackingSection(Section):
    wandb: bool = True
    """Logs to Weights & Biases: offline into the run's folder, or to the server where `WANDB_API_KEY` is set."""
    project: Name = "salign"
    """W&B's project."""
    entity: str | None = None
    """W&B's team or user; None: the key's own."""
    num_table_rows: CountOrZero = 100
    """Interactions in W&B's table of samples."""
    upload_model: bool = False
    """False: the model artifact only refers to the run's folder; True: its files are uploaded too."""
    finish_timeout_s: Positive = 10.0
    """How long W&B may delay the end of a job; `jobs/dashboard.py sync` sends what was left."""
    price_per_1000_tokens: Price | None = None
    """For the society's cost in the report and in W&B; None: no cost is shown."""


class Config(Section):
    run: RunSection = RunSection()
    model: Annotated[FolderOrHub, Effect.INPUT] = "smollm2-135m"
    """An embedded model's name, a local folder in Hugging Face format, or a hub id."""
    engine: EngineSection = TransformersEngine()
    """What agents speak through, and what observes unless `society.observer` names another."""
    society: SocietySection = SocietySection()
    """Who interacts, how, and what counts."""
    reuse: Annotated[tuple[AbsolutePath, ...], Effect.FREE] = ()
    """Folders of runs whose journals are looked into before an engine is asked: a call that one of them has paid for
    is not paid for again. They are only read, and may be at work."""
    dataset: DatasetSection = DatasetSection()
    """Which interactions become alignment data."""
    train: TrainSection = TrainSection()
    """Training stages, in order."""
    evaluate: EvaluateSection = EvaluateSection()
    """What the models are evaluated on."""
    generations: Generations = Generations()
    """How often all of that is repeated, with the model that was trained last."""
    cluster: Annotated[ClusterSection, Effect.FREE] = LocalCluster()
    """Where the run is executed."""
    tracking: Annotated[TrackingSection, Effect.FREE] = TrackingSection()
    """What is logged, and where."""

    @property
    def evaluated_models(self) -> tuple[str, ...]:
        """What is evaluated: of each model that is compared, the copies for all seeds."""
        named = self.compared_models
        copies = [copy for name in named if name != "base" for copy in self.train.copies(name)[1:]]
        return tuple(dict.fromkeys((*named, *copies)))

    @property
    def compared_models(self) -> tuple[str, ...]:
        """What is compared; a stage stands for its copies for other seeds, if there are some."""
        stages = self.train.stages
        named = self.evaluate.models
        if named is None:
            named = ("base", *((self.train.last.name,) if stages else ()))
        return tuple(dict.fromkeys(name if name == "base" else self.train.origin(name) for name in named))

    @property
    def judges(self) -> tuple[Judge, ...]:
        """Who rates answers: the run's engine, where no judge is named."""
        return self.evaluate.judges or (Judge(name="engine", engine=self.engine),)

    @property
    def answering(self) -> EngineSection:
        """By which models under evaluation answer: by transformers, as the run does or by default, if none is named."""
        if self.evaluate.engine is not None:
            return self.evaluate.engine
        return self.engine if isinstance(self.engine, TransformersEngine) else TransformersEngine()

    @property
    def evaluation_seed(self) -> int:
        """The seed by which models are evaluated."""
        return self.run.seed if self.evaluate.seed is None else self.evaluate.seed

    @property
    def has_society(self) -> bool:
        """Whether anything is simulated: not where stages are trained and none of them on the society's data."""
        stages = self.train.stages
        return not stages or any(stage.uses_society for stage in stages)

    def engines(self) -> dict[str, EngineSection]:
        """Every engine that the config names, by its place: the run's, the society's, the evaluation's."""
        named: list[tuple[str, EngineSection | None]] = [("engine", self.engine)]
        named.append(("society.observer", self.society.observer))
        named += [(f"society.mixture.{part.name}.engine", part.engine) for part in self.society.mixture]
        named.append(("evaluate.engine", self.evaluate.engine))
        named += [(f"evaluate.judges.{judge.name}.engine", judge.engine) for judge in self.evaluate.judges]
        return {place: engine for place, engine in named if engine is not None}

    def scorers(self) -> dict[str, Scorer]:
        """Every scorer that the config names, by its place."""
        named = {f"society.criteria.{one.name}.scorer": one.scorer for one in self.society.scored_criteria}
        named |= {f"evaluate.judges.{judge.name}.scorer": judge.scorer for judge in self.evaluate.judges}
        return {place: scorer for place, scorer in named.items() if scorer is not None}

    @property
    def fleets(self) -> list[Fleet]:
        """The fleets of servers that the shards share."""
        of_society = [one for place, one in self.engines().items() if not place.startswith("evaluate.")]
        return fleets_of(of_society, self.model)

    @property
    def stage_of_generation(self) -> str:
        """The training stage through whose model the next generation speaks."""
        return self.generations.stage or self.train.last.name

    def of_generation(self, number: int, trained: Path) -> "Config":
        """The config of a generation after the first, which is a run of its own.

        What rates, and what compares questions, stays as it is in the first.

        Args:
            number: The generation's, from 2.
            trained: The folder of the model that its society speaks through.
        """
        is_base = self.generations.start == "base"
        society = self.society.model_copy(
            update={
                "branch": None,  # no other run began with this one's own model
                "observer": _with_model(self.society.observer or self.engine, self.model),
                "embedder": _with_model(self.society.embedder, self.model),
            }
        )
        seeded = self.run.model_copy(update={"seed": derive(self.run.seed, "generation", number)})
        models = tuple(name for name in self.evaluated_models if name != "base")
        if not models and self.evaluate.models != ():
            models = (self.stage_of_generation,)
        judges = tuple(
            judge.model_copy(update={"engine": judge.engine and _with_model(judge.engine, self.model)})
            for judge in self.judges
        )
        evaluate = {"models": models, "judges": judges, "seed": self.evaluation_seed}
        return self.model_copy(
            update={
                "run": seeded,
                "model": self.model if is_base else str(trained),
                "engine": _with_model(self.engine, str(trained)) if is_base else self.engine,
                "society": society,
                "evaluate": self.evaluate.model_copy(update=evaluate),
                "reuse": (),  # no other run has what this run's own model says
                "generations": self.generations.model_copy(update={"num": 1}),
            }
        )

    def stage(self, name: str) -> TrainStage:
        """The training stage of that name.

        Raises:
            ConfigError: There is none.
        """
        for stage in self.train.stages:
            if stage.name == name:
                return stage
        names = ", ".join(stage.name for stage in self.train.stages) or "none"
        raise ConfigError(f"no training stage is named {name!r}; train.stages has: {names}")

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        known = ("base", *(stage.name for stage in self.train.stages))
        unknown = [name for name in self.evaluate.models or () if name not in known]
        mistakes = []
        if unknown:
            mistakes.append(f"evaluate.models names {', '.join(unknown)}; known: {', '.join(known)}")
        names = [criterion.name for criterion in self.society.observed_criteria]
        unrated = [name for name in self.dataset.criteria or () if name not in names]
        if unrated:
            mistakes.append(
                f"dataset.criteria names {', '.join(unrated)}, and observers rate {', '.join(names)} (society.criteria)"
            )
        ranks = self.cluster.num_ranks
        mistakes += [
            f"train.stages.{stage.name}.groups_per_step {stage.groups_per_step} is less than cluster.num_ranks {ranks}"
            ": some ranks would have no work"
            for stage in self.train.stages
            if stage.groups_per_step < ranks
        ]
        mistakes += self._mistakes_of_generations() + self._mistakes_of_dialects()
        mistakes += self._mistakes_of_fleets()
        fewest = self.cluster.min_shards
        if fewest is not None and fewest > self.society.num_shards:
            mistakes.append(f"cluster.min_shards {fewest} exceeds society.num_shards {self.society.num_shards}")
        return unless(self, mistakes)

    def _mistakes_of_dialects(self) -> list[str]:
        """Engines that are asked for probabilities, and by their dialect give none."""
        society = self.society
        agents = society.rating if society.has_audience or society.protocol.asks_for_numbers else "parse"
        judges = society.rating if "questions" in self.evaluate.benchmarks else "parse"
        asked: dict[str, str] = {place: judges for place in self.engines() if place.startswith("evaluate.judges.")}
        asked |= {place: agents for place in self.engines() if place.startswith("society.mixture.")}
        asked["society.observer"] = society.observers_rate
        asked["engine"] = "parse" if {agents, judges} == {"parse"} else "logprob"
        if society.observer is None and society.observers_rate != "parse":
            asked["engine"] = "logprob"
        return [
            f"{place}.dialect shows no log-probabilities, by which ratings are asked for there: set "
            "society.rating=parse, or name another engine"
            for place, engine in self.engines().items()
            if isinstance(engine, OpenAIEngine) and engine.speaks.max_top_logprobs == 0
            if asked.get(place, "parse") != "parse"
        ]

    def _mistakes_of_fleets(self) -> list[str]:
        """Servers over several nodes whose program has no way to be one."""
        if isinstance(self.cluster, LocalCluster) or (num_nodes := self.cluster.serve.nodes) == 1:
            return []
        return [
            f"cluster.serve.nodes is {num_nodes}, and the fleet of {fleet.model} is of {fleet.section.program}, whose "
            "servers are on one node each: leave it out, or set program=vllm"
            for fleet in self.fleets
            if fleet.section.program != "vllm"
        ]

    def _mistakes_of_generations(self) -> list[str]:
        num, speaker = self.generations.num, self.generations.stage
        replaying = [stage for stage in self.train.stages if stage.num_replayed]
        if num == 1:
            return [
                f"train.stages.{stage.name}.data replays earlier generations, and generations.num is 1: raise it, or "
                "leave `replay` out"
                for stage in replaying
            ]
        names = [stage.name for stage in self.train.stages]
        mistakes = [
            f"train.stages.{stage.name}.data replays earlier generations, whose answers other models sampled than the "
            f"one that {stage.objective.kind} takes them to be of: leave `replay` out, or name another objective"
            for stage in replaying
            if stage.objective.on_policy
        ]
        if not (names and self.has_society):
            mistakes.append(
                f"generations.num {num} needs a training stage on data of kind `run`: a generation's society speaks "
                "through what was trained on the one before"
            )
        if speaker is not None and speaker not in names:
            mistakes.append(f"generations.stage is {speaker!r}; it may be: {', '.join(names) or 'none'}")
        if self.generations.stop is not None:
            mistakes += self._mistakes_of_ending(self.generations.stop.figure)
        if (named := getattr(self.engine, "model", None)) is not None:
            mistakes.append(
                f"engine.model {named!r} would speak in every one of generations.num {num}: name it as `model` instead"
            )
        return mistakes

    def _mistakes_of_ending(self, figure: str) -> list[str]:
        """Whether an evaluation of a trained model has a figure, as far as the config says."""
        benchmark, slash, _ = figure.partition("/")
        rules = [criterion.name for criterion in self.society.observed_criteria if criterion.rule is not None]
        of_questions = ["alignment", "engagement", *rules] if "questions" in self.evaluate.benchmarks else []
        if self.compared_models[-1:] in ((), ("base",)):
            why = "evaluate.models has no model that is trained"
        elif slash and benchmark not in self.evaluate.benchmarks:
            why = f"evaluate.benchmarks are {', '.join(self.evaluate.benchmarks)}"
        elif not slash and figure not in of_questions:
            why = f"it may be {', '.join([*of_questions, 'BENCHMARK/METRIC'])}"
        else:
            return []
        return [f"generations.stop.figure {figure!r} is computed by nobody: {why}"]


_Engine = TypeVar("_Engine", bound=Section)


def _with_model(section: _Engine, model: str) -> _Engine:
    """The section with a model where it may name one and does not."""
    unnamed = "model" in type(section).model_fields and getattr(section, "model") is None  # noqa: B009
    return section.model_copy(update={"model": model}) if unnamed else section
