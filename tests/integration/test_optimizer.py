"""What DeepSpeed's optimizers do to weights, in one process: what decays, and in which numbers it is added up."""

import json

import pytest
import torch

from salign import models
from salign.config import TrainStage
from salign.training import settings
from salign.training.packing import Lengths
from salign.training.tokens import TokenGroup

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore")]

GROUP = TokenGroup([5, 6, 7], [[8, 9, 1], [10, 1]], [2.0, 1.0])


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    from salign.training.distributed import init_ranks, leave_ranks

    # ZeRO-3 puts its own in its place, which keeps more for the gradient, for the rest of the process.
    linear = torch.nn.functional.linear
    yield init_ranks()
    torch.nn.functional.linear = linear
    leave_ranks()


def trainer_of(tmp_path, ranks, model, zero: int, **given):
    from salign.training.trainer import Trainer

    (tmp_path / "zero.json").write_text(json.dumps({"zero_optimization": {"stage": zero}}))
    stage = TrainStage.model_validate(
        {
            **{"name": "s", "objective": {"kind": "sft"}, "data": {"kind": "run"}, "warmup_share": 0.0},
            **{"deepspeed": str(tmp_path / "zero.json"), "groups_per_step": 1, **given},
        }
    )
    made = settings.deepspeed_config(stage, ranks.size)
    return Trainer(stage, ranks, model, made, num_steps=1000, lengths=Lengths.of([GROUP]))


@pytest.mark.parametrize("zero", [0, 1, 2])
def test_a_matrix_decays_and_a_norm_does_not(tiny_model, tmp_path, ranks, zero, monkeypatch):
    model = models.load_model(str(tiny_model), torch.float32)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trainer = trainer_of(tmp_path, ranks, model, zero, weight_decay=0.5, learning_rate=1e-3)
    # No gradient: what moves a weight is its decay alone.
    for parameter in model.parameters():
        parameter.register_hook(torch.zeros_like)
    trainer.step(0, [(0, GROUP)])
    after = dict(model.named_parameters())
    for name, parameter in after.items():
        share = 1.0 if "norm" in name else 1 - 1e-3 * 0.5
        torch.testing.assert_close(parameter.detach(), before[name] * share, rtol=1e-6, atol=0)


# --- bfloat16 -------------------------------------------------------------------------------------

ZERO = pytest.mark.parametrize("zero", [1, 2, 3])


def loaded(tiny_model, zero: int):
    from salign.training.loop import sharded_loading

    given = {"zero_optimization": {"stage": zero}, "bf16": {"enabled": True}, "train_micro_batch_size_per_gpu": 1}
    with sharded_loading(given):
        return models.load_model(str(tiny_model), torch.bfloat16)


def whole(model) -> dict[str, torch.Tensor]:
    """The weights of a model that ZeRO-3 may have shared out."""
    import deepspeed

    shared = any(hasattr(parameter, "ds_id") for parameter in model.parameters())
    with deepspeed.zero.GatheredParameters(list(model.parameters()), enabled=shared):
        return {name: parameter.detach().clone().view(-1) for name, parameter in model.named_parameters()}


def constant_gradients(model, values: list[float]) -> None:
    """The gradient of every value of every weight, backward pass after backward pass."""
    for parameter in model.parameters():
        given = iter(values)
        parameter.register_hook(lambda gradient, given=given: torch.full_like(gradient, next(given)))


@ZERO
def test_steps_too_small_for_bfloat16_add_up_in_the_master_weights(tiny_model, tmp_path, ranks, zero):
    """Adam's step is the rate, 1e-5; weights from 0.125 on are spaced by 1e-3 and more. None of 5 is lost after 200."""
    model = loaded(tiny_model, zero)
    before = whole(model)
    trainer = trainer_of(tmp_path, ranks, model, zero, dtype="bfloat16", learning_rate=1e-5, max_grad_norm=1e9)
    constant_gradients(model, [1.0] * 1000)
    large = {name: (value.abs() > 0.125) & (value.abs() < 0.25) for name, value in before.items()}
    for step in range(5):
        trainer.step(step, [(0, GROUP)])
    few = whole(model)
    moved = [(few[name] != value)[large[name]].float().mean() for name, value in before.items() if large[name].any()]
    assert max(moved) < 0.05, "a step is seen in bfloat16 by itself"
    for step in range(5, 200):
        trainer.step(step, [(0, GROUP)])
    after = whole(model)
    for name, value in before.items():
        if large[name].sum() > 100:
            gone = (value.float() - after[name].float())[large[name]]
            assert gone.mean().item() == pytest.approx(200 * 1e-5, rel=0.1), name


@ZERO
def test_gradients_too_small_for_bfloat16_add_up_over_rows(tiny_model, tmp_path, ranks, zero):
    """A gradient of 1 and 64 of 2^-9: bfloat16 would leave the sum at 1, and in float32 it is 1.125."""
    model = loaded(tiny_model, zero)
    trainer = trainer_of(
        tmp_path, ranks, model, zero, dtype="bfloat16", groups_per_step=65, learning_rate=1e-9, max_grad_norm=1e9
    )
    constant_gradients(model, [1.0, *[2.0**-9] * 64])
    row = trainer.step(0, [(number, GROUP) for number in range(65)])
    num_values = sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in model.parameters())
    assert row["train/grad_norm"] == pytest.approx(1.125 * num_values**0.5, rel=1e-2)
