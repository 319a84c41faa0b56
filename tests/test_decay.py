"""What weight decay pulls towards 0."""

import families
import pytest

from salign.training.model import decayed_apart


def names(model, group) -> set[str]:
    known = {id(parameter): name for name, parameter in model.named_parameters()}
    return {known[id(parameter)] for parameter in group["params"]}


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "qwen3", "gpt_oss", "mamba", "opt"])
def test_norms_and_biases_are_left_alone_and_every_parameter_is_trained(family):
    model = families.build(family)
    matrices, vectors = decayed_apart(model, 0.1)
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.1, 0.0)
    decayed, spared = names(model, matrices), names(model, vectors)
    assert decayed | spared == {name for name, _ in model.named_parameters()}
    assert not decayed & spared
    assert not {name for name in decayed if "norm" in name or name.endswith("bias")}
    assert all(
        "norm" in name or "ln_" in name or "bias" in name or p.ndim == 1
        for name, p in model.named_parameters()
        if name in spared
    )
    assert any("embed" in name or "wte" in name for name in decayed)


def test_it_is_what_the_trainer_of_transformers_decays():
    from transformers import Trainer

    for family in ("llama", "gpt2", "qwen2", "opt"):
        model = families.build(family)
        own = {name for name, _ in model.named_parameters()}  # a tied weight has one name here
        theirs = set(Trainer.get_decay_parameter_names(None, model)) & own
        assert names(model, decayed_apart(model, 0.1)[0]) == theirs


def test_where_adapters_alone_are_trained_there_is_no_empty_group():
    model = families.build("llama")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("q_proj" in name)
    (only,) = decayed_apart(model, 0.1)
    assert names(model, only) == {f"model.layers.{layer}.self_attn.q_proj.weight" for layer in range(2)}
