"""Models that score an answer by a number: reward models, and what a trained model's likelihoods say of it.

A score is mapped onto a share of the scale by labelled pairs. One answer is read at a time: what a score is does not
depend on what else is scored.
"""

import asyncio
import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, cast

from pydantic import Field

from salign import architecture, models
from salign.chat import chat_template, conversation
from salign.config import ImplicitReward, RewardModel, Sampling, Scorer
from salign.digests import name_of
from salign.documents import read_json
from salign.engines import kept
from salign.engines.base import SHARES, Prompt, RatingReply, Reply
from salign.errors import CallRejectedError, ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def models_of(section: Scorer) -> tuple[str, ...]:
    """The models that a scorer loads."""
    return (section.model,) if isinstance(section, RewardModel) else (section.model, section.reference)


def check_scorer(place: str, section: Scorer) -> None:
    """Makes sure, without torch, that a scorer's models are there and are what it needs, as far as this machine knows.

    Args:
        place: Where in the config it stands.
        section: Of the scorer.

    Raises:
        ConfigError: A model does not exist, has no or several outputs, or two models have different tokenizers.
    """
    for model in models_of(section):
        models.check_name(model)
    if isinstance(section, RewardModel):
        _check_one_output(place, section.model)
        return
    words = [_words_of(model) for model in models_of(section)]
    if None not in words and words[0] != words[1]:
        raise ConfigError(
            f"{place}: the models {section.model} and {section.reference} have different tokenizers, so that the "
            "likelihoods of an answer cannot be compared. Name the model that training started from as the reference."
        )


def _check_one_output(place: str, model: str) -> None:
    folder = models.find_local(model)
    if folder is None or not (folder / "config.json").is_file():
        return  # it is fetched, and tried when it is opened
    try:
        config = read_json(folder / "config.json", f"{place}.model {model}: config.json", dict[str, Any])
    except DataError as error:
        raise ConfigError(f"{error}. Fetch the model again.") from None
    kinds = [str(kind) for kind in config.get("architectures") or ()]
    if not any(kind.endswith("ForSequenceClassification") for kind in kinds):
        raise ConfigError(
            f"{place}.model {model} is no reward model: its config.json says {', '.join(kinds) or 'nothing'} "
            "(architectures), and one for sequence classification is needed, such as LlamaForSequenceClassification."
        )
    outputs = config.get("num_labels") or len(config.get("id2label") or (0, 1))
    if outputs != 1:
        raise _outputs(place, model, outputs)


def _outputs(place: str, model: str, outputs: int) -> ConfigError:
    return ConfigError(
        f"{place}.model {model} has {outputs} outputs (num_labels), and a reward model has one: the score. A "
        "classifier of several labels says nothing of which answer is better."
    )


def _words_of(model: str) -> dict[str, int] | None:
    """A model's vocabulary, as far as its files here say it."""
    folder = models.find_local(model)
    path = None if folder is None else folder / "tokenizer.json"
    if path is None or not path.is_file():
        return None
    try:
        words: Any = read_json(path, f"model {model}: tokenizer.json", dict[str, Any])["model"]["vocab"]
    except (DataError, KeyError, TypeError):
        return None
    return words if isinstance(words, dict) else None


class Calibration(kept.Measurement):
    """A model's scores as a share of the scale, 1 / (1 + exp(-(slope * score + offset))), by labelled pairs.

    Attributes:
        num_pairs: Of which it had scores.
        agreement: In which share of them the good answer has the higher score.
    """

    measured: ClassVar[str] = "how scores are mapped onto the scale"

    slope: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    offset: Annotated[float, Field(allow_inf_nan=False)]
    num_pairs: int
    agreement: float


class ScorerEngine(ABC):
    """An engine that rates what a prompt has as `scored`, on the scale `SHARES`, and says nothing.

    Attributes:
        identity: The models' names, the digests of their files, and the number format.
    """

    def __init__(self, section: Scorer) -> None:
        import torch

        device = section.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._section = section
        self._device, self._dtype = torch.device(device), getattr(torch, section.dtype)
        self.identity = f"{' over '.join(map(name_of, models_of(section)))} ({section.kind}, {section.dtype})"
        self._map: Calibration | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="scorer")

    @abstractmethod
    def _score(self, question: str, answer: str) -> tuple[float, int]:
        """An answer's score, and how many tokens were read."""

    def _placed(self, model: "PreTrainedModel") -> "PreTrainedModel":
        try:
            placed: Any = model.eval()
            return cast("PreTrainedModel", placed.to(self._device))
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(f"scorer.device {self._section.device!r} cannot be used here: {error}") from error

    def _fitting(self, model: "PreTrainedModel", ids: Sequence[int]) -> None:
        most = architecture.max_positions(model.config.get_text_config())
        if most is not None and len(ids) > most:
            raise CallRejectedError(f"question and answer have {len(ids)} tokens, and {self.identity} takes {most}")

    async def generate(self, prompt: Prompt, sampling: Sampling, seed: int) -> Reply:
        raise ConfigError(f"{self.identity} scores answers and says nothing: it can rate by a criterion alone")

    async def rate(self, prompt: Prompt, seed: int) -> RatingReply:
        score, num_tokens = await self.score(prompt.user, prompt.scored or "")
        if not math.isfinite(score):
            return RatingReply(None, 0.0, num_tokens, 0, lowest=SHARES[0])
        assert self._map is not None, "its scores are not mapped onto the scale"
        share = 1 / (1 + math.exp(-min(max(self._map.slope * score + self._map.offset, -700.0), 700.0)))
        return RatingReply((1 - share, share), 1.0, num_tokens, 0, lowest=SHARES[0])

    async def score(self, question: str, answer: str) -> tuple[float, int]:
        """An answer's score, as the model gives it, and how many tokens were read.

        Raises:
            CallRejectedError: They are more than the model takes.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._score, question, answer)

    def facts(self) -> dict[str, Any]:
        if self._map is None:
            return {}
        return {
            "calibration": [round(self._map.slope, 6), round(self._map.offset, 6)],
            "num_calibration_pairs": self._map.num_pairs,
            "calibration_agreement": round(self._map.agreement, 4),
        }

    async def calibrate(self, pairs: Sequence[tuple[str, str, str]], folder: Path | None) -> None:
        """Maps scores onto the scale by pairs: each a question, a good and a bad answer.

        Args:
            pairs: Of which.
            folder: Where a run keeps the map: it is one for all of its processes, whose arithmetic may differ. None for
                nowhere.

        Raises:
            ConfigError: Of too few of the pairs the model has scores, it scores the bad answers as high, or what is
                kept is damaged.
        """
        path = None if folder is None else folder / kept.file_name("scale", self.identity, {"pairs": list(pairs)}, None)
        self._map = await kept.once(path, Calibration, lambda: self._mapped(pairs))

    async def _mapped(self, pairs: Sequence[tuple[str, str, str]]) -> Calibration:
        found: list[tuple[float, float]] = []
        for question, *answers in pairs:
            with contextlib.suppress(CallRejectedError):
                good, bad = [(await self.score(question, answer))[0] for answer in answers]
                if math.isfinite(good) and math.isfinite(bad):
                    found.append((good, bad))
        if len(found) < _FEWEST_PAIRS:
            raise ConfigError(
                f"{self.identity} has scores of {len(found)} of the {len(pairs)} pairs by which they are mapped onto "
                f"the scale, and {_FEWEST_PAIRS} are needed: give a scorer.pairs with more, or shorter answers."
            )
        slope, offset = platt([good for good, _ in found], [bad for _, bad in found])
        agreement = sum((good > bad) + 0.5 * (good == bad) for good, bad in found) / len(found)
        if slope <= 0:
            raise ConfigError(
                f"{self.identity} scores the bad answers of scorer.pairs as high as the good ones (it agrees with "
                f"{agreement:.0%} of {len(found)} pairs): as a reward it would teach the reverse. Check the model and "
                "its template, or name pairs that are about what it scores."
            )
        return Calibration(slope=slope, offset=offset, num_pairs=len(found), agreement=agreement)

    def close(self) -> None:
        self._thread.shutdown()


_FEWEST_PAIRS = 10


def platt(good: Sequence[float], bad: Sequence[float]) -> tuple[float, float]:
    """Fits p(good | score) = 1 / (1 + exp(-(slope * score + offset))) to the scores of labelled answers.

    The targets are Platt's, (n + 1) / (n + 2) and 1 / (n + 2) for n answers of the label, so that the fit is finite
    where the labels are told apart without an error (Platt 1999, "Probabilistic outputs for support vector machines",
    section 2.2; Newton's method as in Lin, Lin and Weng 2007).

    Args:
        good: Scores of good answers, at least one.
        bad: Of bad ones, at least one.

    Returns:
        Slope and offset; a slope of 0 where all scores are the same.
    """
    import numpy as np

    scores = np.array([*good, *bad], dtype=np.float64)
    centre, width = scores.mean(), scores.std()
    if width < 1e-12 * max(1.0, abs(centre)):
        return 0.0, 0.0
    design = np.stack([(scores - centre) / width, np.ones_like(scores)], axis=1)
    targets = np.repeat([(len(good) + 1) / (len(good) + 2), 1 / (len(bad) + 2)], [len(good), len(bad)])

    def loss(at: "np.ndarray[Any, Any]") -> float:
        logits = design @ at
        return float((np.logaddexp(0, logits) - targets * logits).sum())

    weights = np.zeros(2)
    for _ in range(100):
        chances = 1 / (1 + np.exp(-design @ weights))
        gradient = design.T @ (chances - targets)
        curvature = design.T @ (design * (chances * (1 - chances))[:, None]) + 1e-12 * np.eye(2)
        step, size = np.linalg.solve(curvature, gradient), 1.0
        while loss(weights - size * step) > loss(weights) and size > 1e-8:
            size /= 2
        weights = weights - size * step
        if np.abs(gradient).max() < 1e-9:
            break
    return float(weights[0] / width), float(weights[1] - weights[0] * centre / width)


class _RewardModel(ScorerEngine):
    """The one output of a classifier, for a conversation of the question and the answer."""

    def __init__(self, section: RewardModel) -> None:
        super().__init__(section)
        self._tokenizer, has_template = models.load_reward_tokenizer(section.model)
        self._template = chat_template(self._tokenizer) if has_template else None
        self._model = self._placed(models.load_reward_model(section.model, self._dtype))
        embedding: Any = self._model.get_input_embeddings()
        rows = embedding.weight.shape[0]
        if len(self._tokenizer) > rows:
            raise ConfigError(
                f"the reward model {section.model} has an embedding of {rows} tokens, and its tokenizer has "
                f"{len(self._tokenizer)}: it is another model's. Put the tokenizer beside it that it was trained with."
            )
        outputs = self._model.config.num_labels
        if outputs != 1:
            raise _outputs("scorer", section.model, outputs or 0)

    def _score(self, question: str, answer: str) -> tuple[float, int]:
        import torch

        if self._template is None:  # as cross-encoders read a pair of texts
            self._tokenizer.split_special_tokens = True
            inputs: Any = self._tokenizer(question, answer, return_tensors="pt").to(self._device)
        else:
            ids = _conversation(self._tokenizer, question, answer)
            inputs = {"input_ids": torch.tensor([[*ids[0], *ids[1]]], device=self._device)}
        self._fitting(self._model, inputs["input_ids"][0])
        with torch.inference_mode():
            return float(self._model(**inputs).logits[0, 0]), inputs["input_ids"].shape[1]


class _Implicit(ScorerEngine):
    """How much likelier an answer is under one model than under another, in nats."""

    def __init__(self, section: ImplicitReward) -> None:
        super().__init__(section)
        both = [models.load_tokenizer(model) for model in models_of(section)]
        if both[0].get_vocab() != both[1].get_vocab():
            raise ConfigError(f"the models {section.model} and {section.reference} have different tokenizers")
        self._tokenizer = both[0]
        self._models = [self._placed(models.load_model(model, self._dtype)) for model in models_of(section)]

    def _score(self, question: str, answer: str) -> tuple[float, int]:
        query, response = _conversation(self._tokenizer, question, answer)
        self._fitting(self._models[0], [*query, *response])
        trained, reference = (log_probability(model, query, response) for model in self._models)
        return trained - reference, 2 * (len(query) + len(response))


def log_probability(model: "PreTrainedModel", query: Sequence[int], response: Sequence[int]) -> float:
    """The sum of log p(token | query, earlier tokens) over a response's tokens, in nats."""
    import torch

    ids = torch.tensor([[*query, *response]], device=model.device)
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=len(response) + 1).logits[0]
        logits = logits[-len(response) - 1 : -1].float()
        of_tokens = logits.gather(1, ids[0, len(query) :, None])[:, 0] - logits.logsumexp(1)
    return float(of_tokens.double().sum())


def _conversation(tokenizer: "PreTrainedTokenizerBase", question: str, answer: str) -> tuple[list[int], list[int]]:
    """The tokens of a question up to where the answer begins, and of the answer with the token that ends its turn."""
    template = chat_template(tokenizer)
    texts = [*template.prompts([conversation(question)], answer=True), template.response(answer)]
    query, response = template.encode(texts)
    return query, [*response, template.end]


@contextlib.asynccontextmanager
async def open_scorer(
    section: Scorer, pairs: Sequence[tuple[str, str, str]] | None = None, folder: Path | None = None
) -> AsyncIterator[ScorerEngine]:
    """The scorer of a section, mapped onto the scale by pairs; closed at the end of the block.

    Args:
        section: Which.
        pairs: Each a question, a good and a bad answer; None: only its scores are wanted.
        folder: As for `ScorerEngine.calibrate`.

    Raises:
        ConfigError: A model cannot be loaded, is no scorer, or does not tell the pairs apart.
    """
    engine = _RewardModel(section) if isinstance(section, RewardModel) else _Implicit(section)
    try:
        if pairs is not None:
            await engine.calibrate(pairs, folder)
        yield engine
    finally:
        engine.close()
