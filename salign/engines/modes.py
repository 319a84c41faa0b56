"""Whether a model answers many calls together or one at a time, and a check that the answers are the same.

Families differ in what they keep of a text (keys and values, a recurrent state, both) and in how they count its
positions. What is right for one is garbage for another, without an error. So each model is tried when it is opened.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from salign.engines.batching import Batch, can_share, prefill
from salign.errors import ConfigError, EngineError

logger = logging.getLogger(__name__)

# shared: prompts that begin together lie in one row, what they share computed once; batched: each prompt is computed by
# itself, and replies grow together; alone: one call after the other, by transformers' own `generate`.
Mode = Literal["shared", "batched", "alone"]

# How far logits may be from the model's own: the root mean square of the difference, in standard deviations of the
# logits. Rounding gives 1e-6 to 1e-5 in float32 and 0.01 to 0.03 in bfloat16; another text, about 1.
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
_ROUGH_TOLERANCE = 0.1
# Alone it is transformers' own way of going on, and its error: up to 0.009 where a state is scanned (nemotron_h), and
# 0.1 to 1.4 of encoders, which see what comes after.
_TOLERANCE_ALONE = 0.05

# What a family that has another mode raises when it is asked for this one.
_REFUSALS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class _Trial:
    """A prompt and what is said after it. It joins the batch before step `joins` and leaves after its last token."""

    prompt: list[int]
    says: list[int]
    joins: int


def find_mode(model: Any, *, alone: bool = False) -> Mode:
    """The fastest mode in which a model says what it says by itself.

    That is found by three texts of 18 to 30 tokens, each in one pass by itself and then as they are said in that mode:
    about as much work as a reply of 12 tokens.

    Args:
        model: A causal language model, on its device.
        alone: Only "alone" will do.

    Raises:
        ConfigError: It does so in none.
        EngineError: There is not enough memory for a text of 30 tokens.
    """
    trials = _trials(model.config.get_text_config().vocab_size)
    tolerance = _TOLERANCE.get(model.dtype, _ROUGH_TOLERANCE)
    family = model.config.model_type
    modes: tuple[Mode, ...] = ("shared", "batched", "alone") if can_share(model) else ("batched", "alone")
    modes = modes[-1:] if alone else modes
    refused: list[str] = []
    with torch.inference_mode():
        try:
            expected = [_by_itself(model, trial) for trial in trials]
            for mode in modes:
                most = max(tolerance, _TOLERANCE_ALONE) if mode == "alone" else tolerance
                reason = _reason_against(model, mode, trials, expected, most)
                if reason is None:
                    if mode == "alone" and not alone:
                        logger.warning(
                            "models of the family %s process one call at a time here, which is slow (%s)",
                            *(family, "; ".join(refused)),
                        )
                    return mode
                refused.append(f"{mode}: {reason}")
        except torch.OutOfMemoryError as error:
            raise EngineError(f"not enough memory for a text of 30 tokens beside the model: {error}") from error
        except _REFUSALS as error:
            refused.append(f"its own forward pass: {_said(error)}")
    raise ConfigError(
        f"models of the family {family!r} cannot be run in this process ({'; '.join(refused)}). Serve the model with a "
        "program that knows it (engine.kind: server or openai), or choose another."
    )


def _trials(vocabulary: int) -> list[_Trial]:
    """Two prompts of different length with a common beginning, and one that joins later."""

    def tokens(count: int, step: int) -> list[int]:
        return [3 + (step * number) % max(1, min(vocabulary, 1000) - 3) for number in range(1, count + 1)]

    begins = tokens(5, 7)
    return [
        _Trial(begins + tokens(19, 11), tokens(6, 5), joins=0),
        _Trial(begins + tokens(4, 13), tokens(3, 17), joins=0),
        _Trial(tokens(14, 19), tokens(4, 23), joins=2),
    ]


def _by_itself(model: Any, trial: _Trial) -> Tensor:
    """Logits [tokens said + 1, vocabulary] of one forward pass over the whole text, without a cache."""
    ids = torch.tensor([[*trial.prompt, *trial.says]], device=model.device)
    logits: Tensor = model(input_ids=ids, use_cache=False).logits[0, len(trial.prompt) - 1 :]
    return logits.float()


def _reason_against(
    model: Any, mode: Mode, trials: list[_Trial], expected: list[Tensor], tolerance: float
) -> str | None:
    """Why the mode is not the model's; None where it is."""
    try:
        said = _alone(model, trials) if mode == "alone" else _together(model, trials, shared=mode == "shared")
        far = max(_distance(*pair) for pair in zip(said, expected, strict=True))
    except torch.OutOfMemoryError:
        raise
    except _REFUSALS as error:
        return _said(error)
    if far <= tolerance:
        return None
    return f"logits differ from the model's own by {far:.2g} standard deviations, more than rounding ({tolerance:g})"


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"


def _distance(said: Tensor, expected: Tensor) -> float:
    """Of the token that is worst; infinite where either is not finite."""
    if said.shape != expected.shape:
        raise ValueError(f"logits of shape {tuple(said.shape)} instead of {tuple(expected.shape)}")
    far = (said - expected).square().mean(-1).sqrt() / expected.std(-1)
    return float(far.nan_to_num(nan=torch.inf).max())


def _together(model: Any, trials: list[_Trial], *, shared: bool) -> list[Tensor]:
    """Each trial's logits [tokens said + 1, vocabulary], in a batch that they join and leave."""
    batch, running = Batch(model), list[int]()
    logits: list[list[Tensor]] = [[] for _ in trials]
    for step in range(max(trial.joins + len(trial.says) for trial in trials) + 1):
        if running:
            stepped = batch.step([trials[row].says[len(logits[row]) - 1] for row in running])
            for row, found in zip(running, stepped, strict=True):
                logits[row].append(found)
        going = [place for place, row in enumerate(running) if len(logits[row]) <= len(trials[row].says)]
        if len(going) < len(running):
            running = [running[place] for place in going]
            batch.keep(going)
        joining = [number for number, trial in enumerate(trials) if trial.joins == step]
        for group in [joining] if shared and joining else [[number] for number in joining]:
            computed = prefill(model, [trials[number].prompt for number in group])
            batch.join(computed, list(range(len(group))))
            for number, found in zip(group, computed.logits, strict=True):
                logits[number].append(found)
            running += group
    return [torch.stack(found) for found in logits]


def _alone(model: Any, trials: list[_Trial]) -> list[Tensor]:
    logits: list[list[Tensor]] = [[] for _ in trials]
    for trial, found in zip(trials, logits, strict=True):
        says: Iterator[int] = iter([*trial.says, 0])  # the last one is not read again

        def choose(seen: Tensor, found: list[Tensor] = found, says: Iterator[int] = says) -> int:
            found.append(seen)
            return next(says)

        speak(model, trial.prompt, choose, len(trial.says) + 1, lambda: False)
    return [torch.stack(found) for found in logits]


def speak(
    model: Any, ids: list[int], choose: Callable[[Tensor], int], max_tokens: int, ended: Callable[[], bool]
) -> None:
    """Says something after a prompt with whatever the family keeps of a text: by transformers' own `generate`.

    Args:
        model: A causal language model.
        ids: The prompt's tokens.
        choose: From logits [vocabulary] in float32 to the next token.
        max_tokens: That are said at most.
        ended: Whether the token before was the last.
    """

    class Chosen(LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            only = torch.full_like(scores, -torch.inf)
            only[0, choose(scores[0].float())] = 0
            return only

    class Ended(StoppingCriteria):
        def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
            return torch.tensor([ended()], device=input_ids.device)

    prompt = torch.tensor([ids], device=model.device)
    # Not what the model's own file says of sampling: that is the config's.
    model.generation_config = GenerationConfig(do_sample=False, pad_token_id=0, eos_token_id=None)
    model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=max_tokens,
        logits_processor=LogitsProcessorList([Chosen()]),
        stopping_criteria=StoppingCriteriaList([Ended()]),
    )
