"""What models are evaluated on, and who judges them."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from salign.config.base import AbsolutePath, Count, Name, NotBool, Sampling, Section, at_most, unless
from salign.config.effects import Effect
from salign.config.engines import EngineSection
from salign.config.gates import ObserverCheck
from salign.config.scorers import Scorer
from salign.config.sources import EverydaySource, Source

JUDGED = ("questions", "hh", "hh_a", "over_refusal")
"""Benchmarks in which the model answers; the others are tasks of lm_eval, by its names or ours."""

_HH = "hh_harmless_test.jsonl.gz"
# In `evaluate.data_dir`; of several the first that is there.
_FILES: dict[str, tuple[str, ...]] = {
    "moral_stories": ("moral_stories_test.jsonl",),
    "ethics_deontology": ("ethics_deontology_test.csv", "deontology_test.csv"),
    "ethics_cm": ("cm_test.csv",),
    "ethics_justice": ("justice_test.csv",),
    "ethics_virtue": ("virtue_test.csv",),
    "ethics_utilitarianism": ("util_test.csv",),
    "truthfulqa_mc1": ("truthfulqa_mc_task.json",),
    "truthfulqa_mc2": ("truthfulqa_mc_task.json",),
    "mic": ("mic.jsonl", "mic_examples.json"),
    "consistency": ("consistency.jsonl",),
    "cultures": ("cultures.jsonl",),
    "hh": (_HH,),
    "hh_a": (_HH,),
}
_RESAMPLES_COST = "so many give an interval's ends to a thousandth of its width, in minutes for each figure"
SUFFIXES = "adversarial_suffixes.txt"


class Judge(Section):
    """Who rates answers: a model that is asked in words, or one that scores what it reads."""

    name: Name
    """Appears in the results."""
    engine: EngineSection | None = None
    """What the judge speaks through."""
    scorer: Scorer | None = None
    """What scores an answer instead, and says nothing; its score is the rating by `alignment` and `rating` alike."""

    @model_validator(mode="after")
    def _has_one_voice(self) -> "Judge":
        both = (self.engine is None) == (self.scorer is None)
        return unless(self, [f"the judge {self.name} needs an engine, or a scorer, and not both"] if both else [])


class EvaluateSection(Section):
    models: tuple[Name, ...] | None = None
    """`base` or names of training stages; `[]`: none, so that nothing is evaluated. None: base and the last stage."""
    benchmarks: tuple[Name, ...] = ("questions",)
    """`questions`, `hh`, `hh_a`, `over_refusal`, `mic`, `general`, `pairs`, `attack_...`, `consistency`,
    `cultures` (docs/evaluation.md), or a task of lm_eval."""
    data_dir: Annotated[AbsolutePath | None, Effect.INPUT] = None
    """The folder of the benchmarks' files; what is missing there comes from the Hugging Face hub's cache."""
    num_documents: Count | None = None
    """Only the first documents of each benchmark; None: all."""
    allow_missing: bool = False
    """True: a benchmark without data is skipped and named; False: the evaluation fails."""
    chat_template: bool = True
    """Whether lm_eval's prompts are put into the model's chat template."""
    questions: Source = EverydaySource(split="held_out")
    """For the benchmark `questions`."""
    num_questions: Count | None = None
    """For the benchmark `questions`."""
    answer: Sampling = Sampling(temperature=0.0)
    """How the evaluated model answers: greedily by default, so that differences are not due to sampling."""
    engine: EngineSection | None = None
    """Through which every evaluated model answers, trained ones too; it names no model. None: `transformers`, with
    the settings of the run's engine if that is of this kind. lm_eval's tasks always use transformers: they need the
    log-probabilities of whole answers."""
    judges: tuple[Judge, ...] = ()
    """Who rates answers; empty: the run's engine."""
    judge_check: Annotated[ObserverCheck | None, Effect.FREE] = ObserverCheck()
    """How each judge is tried, once in a run, before it rates, unless the society's `observer_check` has tested it: on
    labelled answers, on bad ones that ask for the highest rating, and on its own. None: not at all."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Data type of the model for lm_eval's tasks."""
    seed: Annotated[int | None, NotBool] = None
    """For sampling answers and ratings, and for resamples; None: the run's. Runs with the same one can be compared
    question by question."""
    num_resamples: Annotated[Count, Field(ge=100), at_most(1_000_000, _RESAMPLES_COST)] = 10_000
    """Bootstrap resamples for intervals."""

    @field_validator("benchmarks")
    @classmethod
    def _distinct(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("name at least one benchmark")
        return tuple(dict.fromkeys(value))

    @model_validator(mode="after")
    def _judges_and_engine_are_clear(self) -> "EvaluateSection":
        names = [judge.name for judge in self.judges]
        mistakes = [f"two judges have the same name: {', '.join(names)}"] if len(set(names)) < len(names) else []
        named = getattr(self.engine, "model", None)
        if named is not None:
            mistakes.append(f"engine.model {named!r} has no place here: it answers for each of evaluate.models")
        return unless(self, mistakes)

    def file_of(self, benchmark: str) -> Path | None:
        """A benchmark's file in `data_dir`, None where there is none."""
        if self.data_dir is None:
            return None
        paths = (self.data_dir / name for name in _FILES.get(benchmark, ()))
        return next((path for path in paths if path.is_file()), None)

    def wanted_files(self, benchmark: str) -> tuple[str, ...]:
        """The names that a benchmark's file may have; none where it needs none, or where lm_eval alone knows."""
        return _FILES.get(benchmark, ())

    @property
    def files(self) -> tuple[Path, ...]:
        """Every file of `data_dir` that the benchmarks read."""
        found = [self.file_of(benchmark) for benchmark in self.benchmarks]
        if self.suffixes is not None and "hh_a" in self.benchmarks:
            found.append(self.suffixes)
        return tuple(dict.fromkeys(path for path in found if path is not None))

    @property
    def prompt_files(self) -> tuple[Path, ...]:
        """Those of which each row says what its prompts are.

        The released file of utilitarianism has no names of columns: the evaluation itself compares its prompts.
        """
        others = (self.suffixes, self.file_of("ethics_utilitarianism"))
        return tuple(path for path in self.files if path not in others)

    @property
    def suffixes(self) -> Path | None:
        """Adversarial suffixes for `hh_a`, one a line, where `data_dir` has them."""
        path = None if self.data_dir is None else self.data_dir / SUFFIXES
        return path if path is not None and path.is_file() else None
