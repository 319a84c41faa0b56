"""The configuration of a run, section by section. `salign.compose` loads it from YAML files and the command line."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from salign.config.aggregation import Aggregation, BallotRule
from salign.config.base import (
    AbsolutePath,
    CountOrZero,
    FolderOrHub,
    Name,
    NotBool,
    NotNegative,
    Positive,
    Sampling,
    Section,
    unless,
)
from salign.config.cluster import ClusterSection, LocalCluster, SlurmCluster, SlurmResources, Throughput
from salign.config.criteria import SCALE, WORDINGS, Criterion, Scale
from salign.config.effects import NOT_FREE, Effect, selected, settings_of
from salign.config.embedders import Embedder, HashingEmbedder, OpenAIEmbedder, TransformersEmbedder
from salign.config.engines import (
    EngineSection,
    OpenAIEngine,
    RatingWay,
    ScriptedEngine,
    ServerAddress,
    ServerEngine,
    TransformersEngine,
)
from salign.config.evaluation import JUDGED, EvaluateSection, Judge
from salign.config.gates import Gates, ObserverCheck, Stopping
from salign.config.objectives import (
    CoHObjective,
    DPOObjective,
    GRPOObjective,
    ListwiseDPOObjective,
    Objective,
    RLOOObjective,
    RRHFObjective,
    SFTObjective,
    StableObjective,
)
from salign.config.protocols import (
    BackScatterProtocol,
    CriticsProtocol,
    DeliberationProtocol,
    ProtocolSection,
    RehearsalProtocol,
    SampleProtocol,
)
from salign.config.society import (
    Ablation,
    CompleteTopology,
    EdgesTopology,
    GridTopology,
    IsolatedTopology,
    MixturePart,
    Population,
    ScaleFreeTopology,
    SmallWorldTopology,
    SocietySection,
    TopologySection,
    empty_parts,
    num_agents_of,
    part_sizes,
)
from salign.config.sources import (
    CsvSource,
    DatasetSource,
    EverydaySource,
    FieldsSource,
    HHSource,
    HubRows,
    JsonSource,
    MoralStoriesSource,
    ParquetSource,
    Rows,
    Source,
    TextSource,
)
from salign.config.training import (
    FLAGS,
    KINDS,
    AnswersData,
    Attention,
    DataPart,
    DatasetData,
    DatasetSection,
    Flag,
    GroupsData,
    Kind,
    LoRA,
    RatedData,
    Ratio,
    RunData,
    SeveralData,
    TrainingData,
    TrainSection,
    TrainStage,
)
from salign.errors import ConfigError

__all__ = [
    "FLAGS",
    "JUDGED",
    "KINDS",
    "NOT_FREE",
    "SCALE",
    "WORDINGS",
    "Ablation",
    "Aggregation",
    "AnswersData",
    "Attention",
    "BackScatterProtocol",
    "BallotRule",
    "ClusterSection",
    "CoHObjective",
    "CompleteTopology",
    "Config",
    "Criterion",
    "CriticsProtocol",
    "CsvSource",
    "DPOObjective",
    "DataPart",
    "DatasetData",
    "DatasetSection",
    "DatasetSource",
    "DeliberationProtocol",
    "EdgesTopology",
    "Effect",
    "Embedder",
    "EngineSection",
    "EvaluateSection",
    "EverydaySource",
    "FieldsSource",
    "Flag",
    "GRPOObjective",
    "Gates",
    "GridTopology",
    "GroupsData",
    "HHSource",
    "HashingEmbedder",
    "HubRows",
    "IsolatedTopology",
    "JsonSource",
    "Judge",
    "Kind",
    "ListwiseDPOObjective",
    "LoRA",
    "LocalCluster",
    "MixturePart",
    "MoralStoriesSource",
    "Objective",
    "ObserverCheck",
    "OpenAIEmbedder",
    "OpenAIEngine",
    "ParquetSource",
    "Population",
    "Price",
    "ProtocolSection",
    "RLOOObjective",
    "RRHFObjective",
    "RatedData",
    "RatingWay",
    "Ratio",
    "RehearsalProtocol",
    "Rows",
    "RunData",
    "RunSection",
    "SFTObjective",
    "SampleProtocol",
    "Sampling",
    "Scale",
    "ScaleFreeTopology",
    "ScriptedEngine",
    "Section",
    "ServerAddress",
    "ServerEngine",
    "SeveralData",
    "SlurmCluster",
    "SlurmResources",
    "SmallWorldTopology",
    "SocietySection",
    "Source",
    "StableObjective",
    "Stopping",
    "TextSource",
    "Throughput",
    "TopologySection",
    "TrackingSection",
    "TrainSection",
    "TrainStage",
    "TrainingData",
    "TransformersEmbedder",
    "TransformersEngine",
    "empty_parts",
    "num_agents_of",
    "part_sizes",
    "selected",
    "settings_of",
]


class RunSection(Section):
    root: Annotated[AbsolutePath, Effect.FREE] = Field(default=Path("runs"), validate_default=True)
    """The folder of runs."""
    name: Annotated[Name, Effect.FREE] = "quickstart"
    """Name of the run's folder; a renamed or moved folder is still the same run."""
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
    dataset: DatasetSection = DatasetSection()
    """Which interactions become alignment data."""
    train: TrainSection = TrainSection()
    """Training stages, in order."""
    evaluate: EvaluateSection = EvaluateSection()
    """What the models are evaluated on."""
    cluster: Annotated[ClusterSection, Effect.FREE] = LocalCluster()
    """Where the run is executed."""
    tracking: Annotated[TrackingSection, Effect.FREE] = TrackingSection()
    """What is logged, and where."""

    @property
    def evaluated_models(self) -> tuple[str, ...]:
        if self.evaluate.models:
            return self.evaluate.models
        return ("base", *(stage.name for stage in self.train.stages[-1:]))

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
        unknown = [name for name in self.evaluate.models if name not in known]
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
        fewest = self.cluster.min_shards
        if fewest is not None and fewest > self.society.num_shards:
            mistakes.append(f"cluster.min_shards {fewest} exceeds society.num_shards {self.society.num_shards}")
        return unless(self, mistakes)
