"""Low-rank adapters: they alone learn, and merged they are an ordinary model that says the same."""

import copy
import math
import sys

import pytest
import torch
from test_packing import LLAMA_LIKE, SMALL, build

from salign import compose, models
from salign.config import LoRA, StableObjective
from salign.errors import ConfigError
from salign.training.lora import add_adapters, merge, require_peft
from salign.training.model import GroupLoss, response_nll
from salign.training.packing import lay_out
from salign.training.tokens import TokenGroup

SECTION = LoRA(rank=4, alpha=8.0)
ROW = lay_out([TokenGroup([5, 6, 7], [[8, 9, 1], [10, 1]], [2.0, 1.0]), TokenGroup([11], [[12], [13, 1]], [1.0, 3.0])])


def adapters_of(model) -> dict[str, torch.Tensor]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def trained(tiny_model, section: LoRA = SECTION, dtype=torch.float32):
    """The tiny model with adapters after some steps."""
    model = models.load_model(str(tiny_model), dtype)
    add_adapters(model, section, seed=1)
    loss = GroupLoss(model, StableObjective(kind="stable"))
    optimizer = torch.optim.AdamW(adapters_of(model).values(), lr=1e-2)
    values = []
    for _ in range(5):
        optimizer.zero_grad()
        total, _, _ = loss(ROW)
        total.backward()
        optimizer.step()
        values.append(total.item())
    return model, values


def test_adapters_begin_as_nothing_and_alone_get_gradients(tiny_model):
    plain = models.load_model(str(tiny_model), torch.float32)
    model = copy.deepcopy(plain)
    add_adapters(model, SECTION, seed=1)
    torch.testing.assert_close(response_nll(model, ROW), response_nll(plain, ROW), equal_nan=True)
    GroupLoss(model, StableObjective(kind="stable"))(ROW)[0].backward()
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert with_gradient == set(adapters_of(model))
    assert len(with_gradient) == 2 * 7 * 2  # two matrices for each of seven maps of two layers
    assert all("lora_" in name for name in with_gradient)


def test_their_first_values_are_a_function_of_the_seed(tiny_model):
    first, same, other = (models.load_model(str(tiny_model), torch.float32) for _ in range(3))
    for model, seed in ((first, 1), (same, 1), (other, 2)):
        add_adapters(model, SECTION, seed)
    pairs = [(adapters_of(first)[name], tensor, adapters_of(other)[name]) for name, tensor in adapters_of(same).items()]
    assert all(torch.equal(one, two) for one, two, _ in pairs)
    assert any(not torch.equal(one, three) for one, _, three in pairs)


def test_the_frozen_weights_stay_bitwise_and_the_loss_falls(tiny_model):
    model, values = trained(tiny_model)
    assert values[-1] < values[0] - 0.1
    base = models.load_model(str(tiny_model), torch.float32).state_dict()
    kept = {name.replace(".base_layer", ""): tensor for name, tensor in model.state_dict().items()}
    assert all(torch.equal(kept[name], tensor) for name, tensor in base.items())


@pytest.mark.parametrize("targets", [(), ("q_proj", "down_proj")])
def test_merged_logits_equal_those_with_adapters(tiny_model, targets):
    section = LoRA(rank=4, alpha=8.0, target_modules=targets)
    model, _ = trained(tiny_model, section)
    merged = merge(str(tiny_model), section, adapters_of(model), torch.float32)
    ids = torch.arange(3, 40)[None]
    torch.testing.assert_close(merged(input_ids=ids).logits, model(input_ids=ids).logits, rtol=1e-4, atol=1e-4)
    base = models.load_model(str(tiny_model), torch.float32)
    assert merged.state_dict().keys() == base.state_dict().keys()
    assert (merged(input_ids=ids).logits - base(input_ids=ids).logits).abs().max() > 0.1
    changed = {name for name, tensor in merged.state_dict().items() if not torch.equal(tensor, base.state_dict()[name])}
    assert changed == {
        name for name in base.state_dict() if name.endswith(tuple(f"{t}.weight" for t in targets or ("_proj",)))
    }


def test_the_product_counts_alpha_over_rank_times(tiny_model):
    """Against the formula, in float64: W + alpha / rank * B A."""
    model, _ = trained(tiny_model)
    merged = merge(str(tiny_model), SECTION, adapters_of(model), torch.float32)
    weights = {name: tensor.double() for name, tensor in adapters_of(model).items()}
    base = models.load_model(str(tiny_model), torch.float32).state_dict()
    for name, weight in base.items():
        down = weights.get(name.replace(".weight", ".lora_A.default.weight"))
        up = weights.get(name.replace(".weight", ".lora_B.default.weight"))
        if down is not None and up is not None:
            expected = weight.double() + SECTION.alpha / SECTION.rank * up @ down
            torch.testing.assert_close(merged.state_dict()[name].double(), expected, rtol=1e-5, atol=1e-6)


def test_merging_into_bfloat16_rounds_once(tiny_model):
    model, _ = trained(tiny_model)
    merged = merge(str(tiny_model), SECTION, adapters_of(model), torch.bfloat16)
    exact = merge(str(tiny_model), SECTION, adapters_of(model), torch.float32)
    for name, tensor in merged.state_dict().items():
        assert torch.equal(tensor, exact.state_dict()[name].to(torch.bfloat16))


def test_another_family(tmp_path):
    model = build("GPT2Config", **SMALL, n_embd=32, n_layer=2, n_head=4).eval()
    model.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").touch()
    add_adapters(model, SECTION, seed=1)
    with torch.no_grad():
        for name, parameter in adapters_of(model).items():
            parameter.copy_(torch.full_like(parameter, 0.01 if "lora_A" in name else 0.02))
    merged = merge(str(tmp_path), SECTION, adapters_of(model), torch.float32).eval()
    ids = torch.arange(3, 20)[None]
    torch.testing.assert_close(merged(input_ids=ids).logits, model(input_ids=ids).logits, rtol=1e-4, atol=1e-4)


# --- what is refused ------------------------------------------------------------------------------


def test_a_layer_that_is_not_there_is_named(tiny_model):
    model = models.load_model(str(tiny_model), torch.float32)
    with pytest.raises(ConfigError, match=r"lora\.target_modules: .*q_prj"):
        add_adapters(model, LoRA(target_modules=("q_prj",)), seed=1)


def test_the_output_layer_is_refused():
    model = build("LlamaConfig", **LLAMA_LIKE)
    with pytest.raises(ConfigError, match="names the output layer"):
        add_adapters(model, LoRA(target_modules=("q_proj", "lm_head")), seed=1)


def test_without_peft_it_is_said_how_to_get_it(monkeypatch):
    require_peft()
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"pip install 'salign\[lora\]'"):
        require_peft()


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"alpha": 0}, {"dropout": 1.0}, {"dropout": math.nan}, {"rang": 3}])
def test_an_impossible_section_is_refused(wrong):
    stage = {"name": "s", "objective": {"kind": "sft"}, "data": {"kind": "run"}, "deepspeed": "z.json", "lora": wrong}
    with pytest.raises(ConfigError, match=r"train\.stages\.s\.lora"):
        compose.parse({"train": {"stages": [stage]}}, "test")
