"""The steps of a stage on one rank: rows forward and backward, one optimizer step for all ranks, its metrics."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from salign.config import TrainStage
from salign.errors import StageError
from salign.gpus import peak_flops
from salign.machine import peak_memory
from salign.training.distributed import Ranks, sum_over_ranks
from salign.training.flops import Arithmetic
from salign.training.losses import counted_groups
from salign.training.model import GroupLoss, check_layout, decayed_apart, recompute
from salign.training.packing import Lengths, lay_out
from salign.training.rows import deal
from salign.training.settings import learning_rate_share
from salign.training.tokens import TokenGroup

Numbered = tuple[int, TokenGroup]


@dataclass
class _Sums:
    """What the rows of this rank come to; added up over the ranks."""

    figures: dict[str, float] = field(default_factory=dict)

    def add(self, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            self.figures[name] = self.figures.get(name, 0.0) + value


class Trainer:
    """Runs DeepSpeed's engine around one model: steps, evaluation and measurements.

    Args:
        stage: Objective, rates, layout.
        ranks: This rank among all.
        model: As the stage starts.
        settings: For DeepSpeed.
        num_steps: Optimizer steps of the stage.
        lengths: Of its data.
    """

    def __init__(
        self,
        stage: TrainStage,
        ranks: Ranks,
        model: PreTrainedModel,
        settings: dict[str, Any],
        *,
        num_steps: int,
        lengths: Lengths,
    ) -> None:
        import deepspeed

        self._stage = stage
        self._ranks = ranks
        self.num_tokens = 0
        self.num_steps = num_steps
        self.replays = stage.num_replayed > 0
        self._arithmetic = Arithmetic.of(model) if ranks.device.type == "cuda" else None
        if stage.gradient_checkpointing:
            recompute(model)
        self.engine, _, _, _ = deepspeed.initialize(
            model=GroupLoss(model, stage.objective, stage.attention),
            model_parameters=decayed_apart(model, stage.weight_decay),
            config=settings,
            lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.LambdaLR(
                optimizer, lambda step: learning_rate_share(step, num_steps, stage.warmup_share)
            ),
        )
        check_layout(self.engine, model, lengths, ranks.device)
        self.engine.train()

    # --- rows ------------------------------------------------------------------------------------

    def _rows(self, groups: Sequence[TokenGroup]) -> Iterator[tuple[list[int], bool]]:
        """This rank's rows as positions of groups, and whether one counts: the ranks need as many rows each."""
        lengths = [group.num_tokens for group in groups]
        shortest = lengths.index(min(lengths))
        for row in deal(lengths, self._ranks.size, self._stage.row_tokens)[self._ranks.rank]:
            yield row or [shortest], bool(row)

    def _num_counted(self, groups: Sequence[TokenGroup]) -> int:
        """How many groups of all ranks the objective is about."""
        scores = [torch.tensor([group.scores]) for group in groups]
        return sum(int(counted_groups(self._stage.objective, row)) for row in scores)

    def _run(self, groups: Sequence[Numbered], *, train: bool) -> tuple[dict[str, float], float]:
        """Forward, and where it trains backward, over this rank's rows; sums over all ranks, and seconds for layout.

        The gradient is that of the mean over all groups that count, however they are laid out: DeepSpeed takes the mean
        over the ranks, so each row's sum is weighed by the number of ranks over the number of those groups.
        """
        tokens = [group for _, group in groups]
        num_counted = self._num_counted(tokens)
        sums, layout_s = _Sums(), 0.0
        rows = list(self._rows(tokens))
        for number, (positions, counts) in enumerate(rows):
            start = time.perf_counter()
            row = lay_out([tokens[position] for position in positions]).to(self._ranks.device)
            layout_s += time.perf_counter() - start
            if train:
                self.engine.set_gradient_accumulation_boundary(number == len(rows) - 1)
            total, nll, parts = self.engine(row)
            if train:
                weight = self._ranks.size / num_counted if counts and num_counted else 0.0
                self.engine.backward(total * weight, scale_wrt_gas=False)
            num_tokens = float(row.input_ids.numel())
            if not counts:
                sums.add({"padding": num_tokens})
                continue
            bad = _not_finite(nll, row.num_tokens)
            if bad is not None:
                sums.add({"bad": 1.0, "bad_group": float(groups[positions[bad]][0])})
            sums.add({"loss": float(total.detach()), "tokens": num_tokens})
            if train and self._arithmetic is not None:
                sums.add({"flops": self._arithmetic.flops([tokens[position] for position in positions])})
            sums.add({name: float(value) for name, value in parts.items()})
        names = ("loss", "tokens", "padding", "flops", "bad", "bad_group", *_OF_GROUPS, *_OF_RESPONSES, *_OF_TARGETS)
        figures = {name: sums.figures.get(name, 0.0) for name in names}
        return {**sum_over_ranks(figures, self._ranks.device), "counted": num_counted}, layout_s

    @torch.no_grad()
    def nll_of(self, groups: Sequence[TokenGroup]) -> list[list[float] | None]:
        """Computes each response's mean nll for this rank's groups, None for the others; all ranks call it."""
        self.engine.eval()
        found: list[list[float] | None] = [None] * len(groups)
        for positions, counts in self._rows(groups):
            given = [groups[position] for position in positions]
            blank = [TokenGroup(g.query, g.responses, g.scores, [0.0] * len(g.responses)) for g in given]
            _, nll, _ = self.engine(lay_out(blank).to(self._ranks.device))
            if counts:
                for position, values in zip(positions, nll.tolist(), strict=True):
                    found[position] = values[: len(groups[position].responses)]
        self.engine.train()
        return found

    # --- steps -----------------------------------------------------------------------------------

    def step(self, step: int, groups: Sequence[Numbered]) -> dict[str, Any]:
        """Makes one optimizer step (counted from 0) over all ranks.

        Returns:
            Its metrics, the same on every rank.

        Raises:
            StageError: The loss or its gradient is not finite; the optimizer has not stepped.
        """
        start = time.perf_counter()
        learning_rate = self.engine.get_lr()[0]
        sums, layout_s = self._run(groups, train=True)
        if sums["bad"] or not math.isfinite(sums["loss"]):
            raise self._broken("loss", step, sums)
        norm = self._plain_grad_norm()
        if norm is None:
            self.engine.step()
            norm = self.engine.get_global_grad_norm()
            applied = self.engine.was_step_applied()
        elif applied := math.isfinite(norm):
            self.engine.step()
        if not applied:
            raise self._broken("gradient", step, sums)
        self.num_tokens += int(sums["tokens"])
        seconds = time.perf_counter() - start
        return {
            "train/global_step": step + 1,
            "train/steps_most": self.num_steps,
            **_losses("train", sums),
            **(_replay([group for _, group in groups]) if self.replays else {}),
            "train/learning_rate": learning_rate,
            "train/grad_norm": None if norm is None else float(norm),
            "train/num_tokens": self.num_tokens,
            "perf/step_time_s": round(seconds, 4),
            "perf/data_time_s": round(layout_s, 4),
            "perf/tokens_per_s": round(sums["tokens"] / seconds, 1),
            "perf/padding_share": round(sums["padding"] / (sums["padding"] + sums["tokens"]), 4),
            **self._utilisation(sums["flops"] / seconds),
            **_memory(),
        }

    def _utilisation(self, flops_per_s: float) -> dict[str, float]:
        """The share of what the GPUs of all ranks are built for, where that is known."""
        if self._ranks.device.type != "cuda":
            return {}
        peak = peak_flops(torch.cuda.get_device_name(self._ranks.device), self._stage.dtype)
        return {} if peak is None else {"perf/mfu": round(flops_per_s / (peak * self._ranks.size), 4)}

    def _plain_grad_norm(self) -> float | None:
        """The gradient's norm before a step without ZeRO in float32, in which DeepSpeed does not look at it."""
        if self.engine.zero_optimization() or self.engine.bfloat16_enabled():
            return None
        gradients = [parameter.grad for parameter in self.engine.parameters() if parameter.grad is not None]
        return float(nn.utils.get_total_norm(gradients))

    @torch.no_grad()
    def evaluate(self, groups: Sequence[Numbered]) -> dict[str, Any]:
        """Computes the loss on held-out groups over all ranks."""
        self.engine.eval()
        sums, _ = self._run(groups, train=False)
        self.engine.train()
        return _losses("eval", sums)

    def _broken(self, what: str, step: int, sums: dict[str, float]) -> StageError:
        where = ""
        if sums["bad"]:
            group = int(sums["bad_group"] // sums["bad"]) if sums["bad"] == 1 else None
            where = f" ({int(sums['bad'])} rows)" if group is None else f" (group {group} of its data, counted from 0)"
        return StageError(
            f"train stage {self._stage.name}: the {what} of step {step + 1} is not finite{where}. It did not change "
            "the model. Lower the learning rate, or look at the data; the last checkpoint is kept."
        )


_OF_GROUPS = ("groups", "contrasted", "best", "others", "margin", "likeliest")
_OF_RESPONSES = ("responses", "clipped", "divergence", "advantage")
_OF_TARGETS = ("fitted", "target_divergence", "target_entropy", "replayed", "replayed_divergence")


def _not_finite(nll: Tensor, num_tokens: Tensor) -> int | None:
    """The first group of a row with a response whose nll is none."""
    bad = (~nll.isfinite() & (num_tokens > 0)).any(dim=1)
    return int(bad.nonzero()[0]) if bool(bad.any()) else None


def _losses(prefix: str, sums: dict[str, float]) -> dict[str, Any]:
    """Loss and its two parts, by names as TRL's."""
    contrasted, loss = sums["contrasted"], sums["loss"] / sums["counted"] if sums["counted"] else 0.0
    chosen = sums["best"] / sums["groups"] if sums["groups"] else None
    return {
        f"{prefix}/loss": loss,
        f"{prefix}/loss_best": None if chosen is None else -chosen,
        f"{prefix}/loss_contrast": None if chosen is None else loss + chosen,
        f"{prefix}/logps/chosen": chosen,
        f"{prefix}/logps/rejected": sums["others"] / contrasted if contrasted else None,
        f"{prefix}/rewards/margins": sums["margin"] / contrasted if contrasted else None,
        f"{prefix}/rewards/accuracies": sums["likeliest"] / contrasted if contrasted else None,
        **_policy(prefix, sums),
        **_target(prefix, sums),
    }


def _policy(prefix: str, sums: dict[str, float]) -> dict[str, float]:
    """Means over the responses of a policy gradient; nothing for other objectives."""
    if not sums["responses"]:
        return {}
    return {
        f"{prefix}/policy/clipped_share": sums["clipped"] / sums["responses"],
        f"{prefix}/policy/divergence": sums["divergence"] / sums["responses"],
        f"{prefix}/policy/advantage_size": sums["advantage"] / sums["responses"],
    }


def _target(prefix: str, sums: dict[str, float]) -> dict[str, float]:
    """Means over the groups that COPR fits; nothing for other objectives."""
    fitted, replayed = sums["fitted"], sums["replayed"]
    means = {}
    if fitted:
        means[f"{prefix}/target/divergence"] = sums["target_divergence"] / fitted
        means[f"{prefix}/target/entropy"] = sums["target_entropy"] / fitted
    if replayed:
        means[f"{prefix}/target/replayed_divergence"] = sums["replayed_divergence"] / replayed
    return means


def _replay(groups: Sequence[TokenGroup]) -> dict[str, float]:
    """How old a step's groups are: 0 where the generation's own society made them."""
    ages = [group.age for group in groups]
    return {
        "train/replay/share": sum(age > 0 for age in ages) / len(ages),
        "train/replay/age": sum(ages) / len(ages),
    }


def _memory() -> dict[str, float]:
    peak = {"mem/max_rss_gib": round(peak_memory() / 2**30, 3)}
    if torch.cuda.is_available():
        peak["mem/max_gpu_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 3)
    return peak
