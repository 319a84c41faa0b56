"""The estimate of a stage's memory, from the config alone, against what real models keep."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from rich.console import Console

from salign import compose
from salign.cache import cache_folder
from salign.config import StableObjective, TrainStage
from salign.training import memory
from salign.training.lora import add_adapters
from salign.training.memory import estimate, find_shape, layer_bytes, num_trained, print_memory, shape_of
from salign.training.model import GroupLoss, recompute
from salign.training.packing import lay_out
from salign.training.tokens import TokenGroup

SIZES = {
    "vocab_size": 512,
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
}
CONFIGS = Path(__file__).parents[1] / "configs"


def stage(**given) -> TrainStage:
    plain = {"name": "s", "objective": {"kind": "stable"}, "data": {"kind": "run"}, "deepspeed": "none.json"}
    return TrainStage.model_validate({**plain, **given})


def build(config: str = "LlamaConfig", **given):
    return transformers.AutoModelForCausalLM.from_config(getattr(transformers, config)(**{**SIZES, **given}))


@pytest.mark.parametrize(
    ("config", "given"),
    [
        ("LlamaConfig", {}),
        ("LlamaConfig", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
        ("MistralConfig", {"head_dim": 24}),
        ("Qwen2Config", {}),
        ("Qwen3Config", {"head_dim": 24}),
        ("GemmaConfig", {"head_dim": 16}),
        ("GraniteConfig", {"tie_word_embeddings": True}),
    ],
)
def test_parameters_are_counted_as_the_model_has_them(tmp_path, config, given):
    model = build(config, **given)
    model.config.save_pretrained(tmp_path)
    shape = shape_of(json.loads((tmp_path / "config.json").read_text()))
    assert shape is not None
    assert shape.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    for lora in ({"rank": 4}, {"rank": 8, "target_modules": ["q_proj", "down_proj"]}):
        made = stage(lora=lora)
        adapted = build(config, **given)
        add_adapters(adapted, made.lora, 0)
        assert num_trained(made, shape) == sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def test_known_models_are_what_they_are_known_for():
    assert find_shape("smollm2-135m").num_parameters == 134_515_008
    assert find_shape("huggyllama/llama-7b").num_parameters == 6_738_415_616


def test_the_embedded_model_is_as_it_is_known():
    folder = cache_folder() / "smollm2-135m" / "huggingface"
    if not folder.is_dir():
        pytest.skip("the embedded model is not in the cache")
    assert find_shape(str(folder)) == find_shape("smollm2-135m")


def test_a_model_that_is_not_here_and_a_family_that_is_not_known(tmp_path):
    assert find_shape("somebody/something") is None
    assert shape_of({"model_type": "rwkv"}) is None
    for text in ("{", "[]", '{"model_type": "llama"}'):
        (tmp_path / "config.json").write_text(text)
        assert find_shape(str(tmp_path)) is None


# --- what a forward pass keeps -------------------------------------------------------------------


def kept_bytes(model, dtype: torch.dtype, groups: list[TokenGroup]) -> int:
    """Bytes of all tensors that autograd keeps of a forward pass, parameters apart; each storage once."""
    model = model.to(dtype).train()
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    loss = GroupLoss(model, StableObjective(kind="stable"))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        total, _, _ = loss(lay_out(groups))
    assert total.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


GROUP = TokenGroup(list(range(5, 165)), [list(range(5, 45)) for _ in range(4)], [4.0, 3.0, 2.0, 1.0])


@pytest.mark.parametrize(
    ("dtype", "given"),
    [
        ("float32", {}),
        ("bfloat16", {}),
        ("float32", {"gradient_checkpointing": True}),
        ("float32", {"lora": {"rank": 4}}),
        ("float32", {"lora": {"rank": 4, "dropout": 0.1}}),
    ],
)
def test_what_a_forward_pass_keeps_is_estimated_to_a_tenth(dtype, given):
    model = build(num_hidden_layers=8)
    made = stage(dtype=dtype, **given)
    if made.lora is not None:
        add_adapters(model, made.lora, 0)
    if made.gradient_checkpointing:
        recompute(model)
    found = kept_bytes(model, getattr(torch, dtype), [GROUP])
    shape = shape_of({"model_type": "llama", **SIZES, "num_hidden_layers": 8})
    size = 2 if dtype == "bfloat16" else 4
    layers = 8 * (SIZES["hidden_size"] * size if made.gradient_checkpointing else layer_bytes(made, shape))
    softmax = 4 * sum(map(len, GROUP.responses)) * SIZES["vocab_size"]
    expected = GROUP.num_tokens * (layers + SIZES["hidden_size"] * (4 + 3 * size)) + softmax
    assert found == pytest.approx(expected, rel=0.1)


# --- what ranks and ZeRO make of it ---------------------------------------------------------------


def parts(level: int, num_ranks: int = 4, given=None, **stage_given):
    shape = shape_of({"model_type": "llama", **SIZES})
    zero = {"stage": level, "reduce_bucket_size": 1000, "overlap_comm": False, **(given or {})}
    settings = {"zero_optimization": zero}
    return estimate(stage(**stage_given), settings, shape, num_ranks), shape.num_parameters


@pytest.mark.parametrize(
    ("level", "dtype", "parameters", "gradients", "optimizer"),
    [
        (0, "float32", 4, 4, 8),
        (1, "float32", 4, 4, 3),
        (1, "bfloat16", 2, 6, 3),
        (2, "bfloat16", 2, 1, 3),
        (3, "bfloat16", 0.5, 1, 3),
    ],
)
def test_bytes_a_parameter_under_each_zero_stage_of_four_ranks(level, dtype, parameters, gradients, optimizer):
    found, count = parts(level, dtype=dtype)
    assert (found.parameters, found.gradients, found.optimizer) == (
        parameters * count,
        gradients * count,
        optimizer * count,
    )
    assert found.in_backward > found.parameters + found.gradients + found.optimizer
    step = {0: gradients, 3: gradients + 3}.get(level, 3)
    assert found.in_step == (parameters + optimizer + step) * count
    assert found.peak == max(found.in_backward, found.in_step)


def test_what_is_offloaded_is_not_on_the_device():
    plain, _ = parts(3, dtype="bfloat16")
    away, _ = parts(3, given={"offload_optimizer": {"device": "cpu"}}, dtype="bfloat16")
    assert away.optimizer == 0
    assert away.in_backward == plain.in_backward - plain.optimizer
    assert away.in_step == plain.parameters + plain.gradients
    assert away.offloaded == 2 * plain.optimizer


def test_adapters_need_gradients_and_an_optimizer_for_themselves_alone():
    whole, count = parts(2, dtype="bfloat16")
    found, _ = parts(2, dtype="bfloat16", lora={"rank": 2})
    assert found.parameters == whole.parameters == 2 * count
    assert found.optimizer == 12 * found.num_trained / 4 < 0.1 * whole.optimizer


def test_checkpointing_and_shorter_rows_need_less():
    plain, _ = parts(2, row_tokens=4096)
    assert parts(2, row_tokens=4096, gradient_checkpointing=True)[0].activations < 0.6 * plain.activations
    assert parts(2)[0].row_tokens == 4 * 480
    assert parts(2)[0].activations < plain.activations


# --- as a user sees it ----------------------------------------------------------------------------


def said(config) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        print_memory(config, console)
    return capture.get()


def test_the_papers_recipe_fits_8_gpus_of_80_gb():
    config = compose.load(CONFIGS / "train" / "paper.yaml")
    text = said(config)
    assert "memory per training rank, of 8, at most (6.738 billion parameters)" in text
    assert "stable (bfloat16, ZeRO 3, rows of up to 2048 tokens, gradient checkpointing)" in text
    peaks = [float(line.split("): ")[1].split(" GiB")[0]) for line in text.splitlines() if line.endswith(" GiB")]
    assert len(peaks) == 3
    assert max(peaks) < 70


def test_a_model_that_is_not_here_is_said_to_be_unknown():
    config = compose.load(CONFIGS / "train" / "paper.yaml", ["model=somebody/something"])
    assert "memory of training: unknown, because the config.json of somebody/something is not on this machine" in said(
        config
    )
    assert said(compose.parse({}, "no stage")) == ""


def test_the_estimate_loads_no_torch():
    code = f"import sys; import {memory.__name__} as m; m.find_shape('smollm2-135m'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
