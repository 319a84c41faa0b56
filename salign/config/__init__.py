"""The configuration of a run, section by section. `salign.compose` loads it from YAML files and the command line."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from salign.config.base import AbsolutePath, Count, CountOrZero, FolderOrHub, Name, NotBool, Sampling, Section, unless
from salign.config.engines import (
    EngineSection,
    OpenAIEngine,
    ScriptedEngine,
    ServerAddress,
    ServerEngine,
    TransformersEngine,
)
from salign.config.evaluation import JUDGED, EvaluateSection, Judge
from salign.config.society import (
    Ablation,
    CompleteTopology,
    EdgesTopology,
    Embedder,
    Gates,
    GridTopology,
    HashingEmbedder,
    IsolatedTopology,
    MixturePart,
    OpenAIEmbedder,
    Population,
    ScaleFreeTopology,
    SmallWorldTopology,
    SocietySection,
    Stopping,
    TopologySection,
    TransformersEmbedder,
    num_agents_of,
)
from salign.config.sources import (
    DatasetSource,
    EverydaySource,
    FieldsSource,
    HHSource,
    JsonSource,
    MoralStoriesSource,
    Source,
    TextSource,
)
from salign.config.training import (
    KINDS,
    AnswersData,
    CoHObjective,
    DatasetData,
    DatasetSection,
    DPOObjective,
    GroupsData,
    Kind,
    ListwiseDPOObjective,
    Objective,
    Ratio,
    RRHFObjective,
    RunData,
    SeveralData,
    SFTObjective,
    StableObjective,
    TrainingData,
    TrainSection,
    TrainStage,
)
from salign.errors import ConfigError

__all__ = [
    "JUDGED",
    "KINDS",
    "Ablation",
    "AnswersData",
    "CoHObjective",
    "CompleteTopology",
    "Config",
    "DPOObjective",
    "DatasetData",
    "DatasetSection",
    "DatasetSource",
    "EdgesTopology",
    "Embedder",
    "EngineSection",
    "EvaluateSection",
    "EverydaySource",
    "FieldsSource",
    "Gates",
    "GridTopology",
    "GroupsData",
    "HHSource",
    "HashingEmbedder",
    "IsolatedTopology",
    "JsonSource",
    "Judge",
    "Kind",
    "ListwiseDPOObjective",
    "LocalCluster",
    "MixturePart",
    "MoralStoriesSource",
    "Objective",
    "OpenAIEmbedder",
    "OpenAIEngine",
    "Population",
    "RRHFObjective",
    "Ratio",
    "RunData",
    "RunSection",
    "SFTObjective",
    "Sampling",
    "ScaleFreeTopology",
    "ScriptedEngine",
    "Section",
    "ServerAddress",
    "ServerEngine",
    "SeveralData",
    "SmallWorldTopology",
    "SocietySection",
    "Source",
    "StableObjective",
    "Stopping",
    "TextSource",
    "TopologySection",
    "TrackingSection",
    "TrainSection",
    "TrainStage",
    "TrainingData",
    "TransformersEmbedder",
    "TransformersEngine",
    "num_agents_of",
]


class RunSection(Section):
    root: AbsolutePath = Field(default=Path("runs"), validate_default=True)
    name: Name = "quickstart"
    seed: Annotated[int, NotBool] = 0


class LocalCluster(Section):
    kind: Literal["local"] = "local"
    num_workers: Count = 2
    """Shards that run at a time."""
    ranks_per_shard: Count = 1
    """MPI processes that simulate one shard together; each world is cut among them."""
    num_ranks: Count = 2
    """Ranks that train a stage, or evaluate a model, together."""


class TrackingSection(Section):
    wandb: bool = True
    project: Name = "salign"
    entity: str | None = None
    num_table_rows: CountOrZero = 100
    upload_model: bool = False
    """False: the model artifact refers to the run's folder; True: its bytes are uploaded too."""


class Config(Section):
    run: RunSection = RunSection()
    model: FolderOrHub = "smollm2-135m"
    """An embedded model's name, a local folder in Hugging Face format, or a hub id."""
    engine: EngineSection = TransformersEngine()
    society: SocietySection = SocietySection()
    dataset: DatasetSection = DatasetSection()
    train: TrainSection = TrainSection()
    evaluate: EvaluateSection = EvaluateSection()
    cluster: LocalCluster = LocalCluster()
    tracking: TrackingSection = TrackingSection()

    @property
    def evaluated_models(self) -> tuple[str, ...]:
        if self.evaluate.models:
            return self.evaluate.models
        return ("base", *(stage.name for stage in self.train.stages[-1:]))

    @property
    def has_society(self) -> bool:
        """Whether anything is simulated: not where stages are trained and none of them on the society's data."""
        stages = self.train.stages
        return not stages or any(part.kind == "run" for stage in stages for part in stage.parts)

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
        ranks = self.cluster.num_ranks
        mistakes += [
            f"train.stages.{stage.name}.groups_per_step {stage.groups_per_step} is less than cluster.num_ranks {ranks}"
            ": some ranks would have nothing to do"
            for stage in self.train.stages
            if stage.groups_per_step < ranks
        ]
        return unless(self, mistakes)
