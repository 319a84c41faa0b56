"""FLOPs of rows against torch's own count, and devices' peaks."""

import pytest
import torch
from test_packing import LLAMA_LIKE, SMALL, build
from torch.utils.flop_counter import FlopCounterMode

from salign.config import LoRA, SFTObjective
from salign.gpus import peak_flops
from salign.training.flops import Arithmetic
from salign.training.lora import add_adapters
from salign.training.model import GroupLoss
from salign.training.packing import lay_out
from salign.training.tokens import TokenGroup

GROUP = TokenGroup([5] * 40, [[6] * 30, [7] * 10], [2.0, 1.0])
# What of the whole square of tokens a group's tokens see.
SEEN, SQUARE = 40 * 41 // 2 + 30 * 40 + 30 * 31 // 2 + 10 * 40 + 10 * 11 // 2, 80 * 80


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        ("LlamaConfig", LLAMA_LIKE),
        ("Qwen3Config", {**LLAMA_LIKE, "head_dim": 16}),
        ("GPT2Config", {**SMALL, "n_embd": 32, "n_layer": 2, "n_head": 4}),
    ],
)
@pytest.mark.parametrize("lora", [False, True])
def test_they_are_those_that_torch_counts(config, settings, lora):
    model = build(config, **settings)
    if lora:
        add_adapters(model, LoRA(rank=2), 0)
    model.set_attn_implementation("eager")  # products of matrices, which torch counts whole
    loss = GroupLoss(model, SFTObjective(kind="sft"))
    with FlopCounterMode(display=False) as counter:
        loss(lay_out([GROUP]))[0].backward()
    arithmetic = Arithmetic.of(model)
    ours = arithmetic.flops([GROUP]) + 3 * 4.0 * (SQUARE - SEEN) * arithmetic.attention
    # The first layer's input needs no gradient where all before it is frozen.
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.04 if lora else 0.005)


def test_a_forward_pass_is_a_third():
    arithmetic = Arithmetic.of(build("LlamaConfig", **LLAMA_LIKE))
    assert arithmetic.flops([GROUP, GROUP], train=False) == pytest.approx(2 / 3 * arithmetic.flops([GROUP]))


@pytest.mark.parametrize(
    ("device", "dtype", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 312),
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989.4),
        ("NVIDIA H100 PCIe", "bfloat16", 756),
        ("NVIDIA H200", "float32", 66.9),
        ("NVIDIA L40S", "bfloat16", 362),
        ("NVIDIA L4", "bfloat16", 121),
    ],
)
def test_peaks_are_found_by_the_devices_name(device, dtype, tflops):
    assert peak_flops(device, dtype) == pytest.approx(tflops * 1e12)


@pytest.mark.parametrize("device", ["NVIDIA L40", "NVIDIA GeForce GTX 1080", "AMD Instinct MI300X", ""])
def test_a_device_that_is_not_known_has_none(device):
    assert peak_flops(device, "bfloat16") is None


@pytest.mark.gpu
def test_a_step_on_cuda_says_what_share_of_the_device_it_takes(tmp_path, tiny_model):
    import json

    from salign import models
    from salign.config import TrainStage
    from salign.training.distributed import init_ranks, leave_ranks
    from salign.training.packing import Lengths
    from salign.training.settings import deepspeed_config
    from salign.training.trainer import Trainer

    (tmp_path / "z.json").write_text(json.dumps({"zero_optimization": {"stage": 2}}))
    given = {"name": "s", "objective": {"kind": "sft"}, "data": {"kind": "run"}, "deepspeed": str(tmp_path / "z.json")}
    stage = TrainStage.model_validate({**given, "dtype": "bfloat16"})
    model = models.load_model(str(tiny_model), torch.bfloat16)
    trainer = Trainer(stage, init_ranks(), model, deepspeed_config(stage, 1), num_steps=10, lengths=Lengths.of([GROUP]))
    row = trainer.step(0, [(0, GROUP)])
    leave_ranks()
    if peak_flops(torch.cuda.get_device_name(), "bfloat16") is None:
        assert "perf/mfu" not in row
    else:
        assert 0 <= row["perf/mfu"] < 1
