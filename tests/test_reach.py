"""Rows in layers with windows, chunks and positions of several kinds: each response as by itself, at its length."""

import copy

import families
import pytest
import torch
from test_packing import assert_same_gradients, gradients, naive_nll
from torch.nn import functional as F
from torch.nn.attention.flex_attention import create_mask, flex_attention

from salign.architecture import Reach, longrope_switch, max_positions, reaches
from salign.config import StableObjective
from salign.errors import ConfigError
from salign.training.attention import block_mask, mask_of, prepare
from salign.training.model import GroupLoss, check_layout, response_nll
from salign.training.packing import Lengths, Row, lay_out
from salign.training.tokens import TokenGroup

CPU = torch.device("cpu")


def words(count: int, start: int) -> list[int]:
    return [3 + (start + 7 * number) % 60 for number in range(count)]


# Queries and responses that are longer than a window of 8 and a chunk of 16, and some that are not.
GROUPS = [
    TokenGroup(words(21, 1), [words(5, 2), words(14, 3), words(1, 4)], [3.0, 2.0, 1.0]),
    TokenGroup(words(3, 5), [words(12, 6)], [1.0]),
    TokenGroup(words(9, 7), [words(20, 8), words(4, 9)], [1.0, 2.0]),
]
# As many responses, of several lengths, that they are put beside each other.
MANY = TokenGroup(words(9, 1), [words(n, n) for n in (5, 12, 14, 1, 13, 14)], [3.0, 2.0, 1.0, 4.0, 5.0, 6.0])
WINDOWED = ["mistral", "phi3", "gemma2", "gemma3_text", "gpt_oss", "olmo3", "cohere2", "exaone4", "llama4_text"]


def slow_mask(row: Row, window: int | None = None, chunk: int | None = None) -> torch.Tensor:
    """Token by token: of the same group and not later, of the query or the same response, and near enough in it."""
    groups, segments, at = row.group_of.tolist(), row.segment_of.tolist(), row.position_ids[0].tolist()

    def sees(a: int, b: int) -> bool:
        same = groups[a] == groups[b] and segments[b] in (0, segments[a])
        near = (window is None or at[a] - at[b] < window) and (chunk is None or at[a] // chunk == at[b] // chunk)
        return a >= b and same and near

    return torch.tensor([[sees(a, b) for b in range(len(at))] for a in range(len(at))])


# --- what a config says ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("llama", {"": Reach()}),
        ("mistral", {"": Reach(window=8)}),
        ("gemma3_text", {"full_attention": Reach(), "sliding_attention": Reach(window=8)}),
        ("llama4_text", {"chunked_attention": Reach(chunk=16), "full_attention": Reach()}),
        ("qwen2", {"full_attention": Reach()}),  # has a window, and does not use it
    ],
)
def test_how_far_the_layers_of_a_family_see(family, expected):
    assert reaches(families.config_of(family)) == expected


@pytest.mark.parametrize("family", ["llama", "gpt2", "mpt", "opt", "gptj"])
def test_the_longest_text_has_many_names(family):
    assert max_positions(families.config_of(family)) == families.CONTEXT


def test_a_reach_is_none_in_texts_that_are_no_longer():
    assert Reach(window=8).within(8) == Reach(chunk=8).within(8) == Reach().within(8) == Reach()
    assert Reach(window=8).within(9) == Reach(window=8)
    assert Reach(chunk=8).within(9) == Reach(chunk=8)


# --- the mask -------------------------------------------------------------------------------------


@pytest.mark.parametrize("reach", [Reach(), Reach(window=8), Reach(window=1), Reach(chunk=16)], ids=str)
def test_the_mask_is_that_of_the_rule(reach):
    row = lay_out(GROUPS)
    expected = slow_mask(row, reach.window, reach.chunk)
    assert torch.equal(row.attention_mask(reach)[0, 0], expected)

    def sees(batch, head, token, other):
        return row.sees(token, other, reach)

    length = row.input_ids.shape[1]
    assert torch.equal(create_mask(sees, None, None, length, length, "cpu")[0, 0], expected)


@pytest.mark.filterwarnings("ignore")  # uncompiled, for the comparison
def test_flex_attention_has_the_same_window():
    row = lay_out(GROUPS)
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, row.input_ids.shape[1], 16, dtype=torch.float64)
    found = flex_attention(query, key, value, block_mask=block_mask(row, Reach(window=8)))
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=row.attention_mask(Reach(window=8)))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", ["eager", "sdpa", "salign_by_group", "flex_attention"])
def test_each_kind_of_layer_gets_its_mask_and_one_mask_serves_where_they_agree(kind):
    model = families.build("gemma3_text")
    prepare(model, "sdpa")
    model.set_attn_implementation(kind)
    given = mask_of(model, lay_out(GROUPS))
    assert set(given["attention_mask"]) == {"full_attention", "sliding_attention"}
    assert given.get("row_reaches", True)
    short = mask_of(model, lay_out([TokenGroup([5, 6, 7], [[8], [9, 10]], [1.0, 2.0])]))
    assert not isinstance(short["attention_mask"], dict)
    assert not short.get("row_reaches", False)


# --- nll and gradients ----------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", *WINDOWED])
@pytest.mark.parametrize("groups", [GROUPS, [MANY, *GROUPS]], ids=["few", "many"])
def test_nll_and_gradients_beyond_a_window_are_those_of_each_response_alone(family, groups):
    # gpt_oss' experts are computed in float32 at most.
    exact = family != "gpt_oss"
    model = families.build(family, torch.float64 if exact else torch.float32)
    other = copy.deepcopy(model)
    prepare(model, "sdpa")
    row = lay_out(groups)
    if "row_groups" in (given := mask_of(model, row)):
        assert [fold is not None for fold in given["row_groups"].folds] == [group is MANY for group in groups]
    nll = response_nll(model, row)
    alone = [torch.stack(naive_nll(other, group)) for group in groups]
    for packed, expected in zip(nll, alone, strict=True):
        torch.testing.assert_close(packed[: len(expected)], expected, rtol=1e-5, atol=1e-5)
    weights = torch.linspace(-1, 1.3, nll.numel(), dtype=nll.dtype).view_as(nll)
    (nll.nan_to_num() * weights).sum().backward()
    sum((expected * weights[number, : len(expected)]).sum() for number, expected in enumerate(alone)).backward()
    # Norms and softmax compute in float32 in most of these families, which sets the floor.
    assert_same_gradients(gradients(model), gradients(other), 1e-4 if exact else 1e-3)


@pytest.mark.parametrize("family", ["mistral", "gemma3_text", "gpt_oss"])
def test_without_its_window_a_row_is_another_text(family):
    """So that the test above can fail."""
    model = families.build(family)
    row = lay_out(GROUPS)
    whole = response_nll(model, row)
    mask = row.attention_mask()
    lowest = torch.zeros_like(mask, dtype=model.dtype).masked_fill(~mask, torch.finfo(model.dtype).min)
    logits = model(input_ids=row.input_ids, attention_mask=lowest, position_ids=row.position_ids).logits[0]
    flat = F.cross_entropy(logits[row.predictors], row.targets, reduction="none")
    first = flat[row.response_of == 1].mean()
    assert abs(first.item() - whole[0, 1].item()) > 1e-2


# --- the check ------------------------------------------------------------------------------------


def check(model, text: int, row: int) -> None:
    check_layout(GroupLoss(model, StableObjective(kind="stable")), model, Lengths(text, row), CPU)


@pytest.mark.parametrize("family", WINDOWED)
def test_a_family_with_windows_is_trained_at_any_length(family):
    for text, row in ((6, 12), (17, 17), (60, 200)):
        check(families.build(family), text, row)


def longrope():
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [8.0] * 4, "rope_theta": 10000.0}
    return families.build(
        "phi3",
        sliding_window=None,
        original_max_position_embeddings=32,
        rope_parameters={**rope, "original_max_position_embeddings": 32},
    )


def test_longrope_beside_a_longer_text_is_refused_and_below_its_switch_it_is_right():
    model = longrope()
    assert longrope_switch(model.config) == 32
    check(model, 32, 100)
    with pytest.raises(ConfigError, match=r"'phi3' cannot be trained here: .* \(a row of 100 tokens, its longest text"):
        check(model, 33, 100)


def test_a_window_of_a_familys_own_is_refused_where_rows_are_longer():
    model = families.build("gpt_neo")  # its local layers count 8 places
    with pytest.raises(ConfigError, match="'gpt_neo' cannot be trained here"):
        check(model, 17, 40)


@pytest.mark.parametrize("family", ["gpt2", "opt", "gptj", "gpt_bigcode", "biogpt", "codegen"])
def test_rows_may_be_longer_than_the_context_where_positions_restart(family):
    model = families.build(family)
    check(model, families.CONTEXT, 3 * families.CONTEXT)


def test_a_text_that_is_longer_than_learned_positions_is_refused_and_no_index_error():
    with pytest.raises(ConfigError, match=r"'gpt2' cannot be trained here: .* its longest text 130\) ends in Index"):
        check(families.build("gpt2"), 130, 130)


def test_want_of_memory_names_what_can_be_lowered(monkeypatch):
    model = families.build("llama")
    loss = GroupLoss(model, StableObjective(kind="stable"))

    def fail(*_, **__):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(loss, "forward", fail)
    with pytest.raises(ConfigError, match=r"not enough memory for a row of 100 tokens.* Lower the stage's max_tokens"):
        check_layout(loss, model, Lengths(40, 100), CPU)
