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

    yield init_ranks()
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
