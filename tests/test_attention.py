"""A row's mask in every form that attention takes it, and attention by group against attention under the whole mask."""

import pytest
import torch
from test_packing import LLAMA_LIKE, SMALL, build
from torch.nn import functional as F
from torch.nn.attention.flex_attention import create_mask, flex_attention

from salign.config import StableObjective
from salign.errors import ConfigError
from salign.training import attention
from salign.training.attention import block_mask, mask_of, prepare, require
from salign.training.model import GroupLoss, check_layout, response_nll
from salign.training.packing import Lengths, Row, lay_out
from salign.training.tokens import TokenGroup

ROW = lay_out(
    [
        TokenGroup([5, 6, 7], [[8, 9, 2], [10, 2]], [2.0, 1.0]),
        TokenGroup([11], [[12]], [1.0]),
        TokenGroup([13, 14], [[15, 16, 17, 18], [19], [20, 2]], [3.0, 2.0, 1.0]),
    ]
)
CPU = torch.device("cpu")


def slow_mask(row: Row) -> torch.Tensor:
    """Token by token: the same group, not later, and of the query or of the same response."""
    groups, segments = row.group_of.tolist(), row.segment_of.tolist()
    rows = [
        [a >= b and groups[a] == groups[b] and segments[b] in (0, segments[a]) for b in range(len(groups))]
        for a in range(len(groups))
    ]
    return torch.tensor(rows)


def long_row(num_tokens: int) -> Row:
    groups = [
        TokenGroup(list(range(90)), [list(range(3, 3 + 20 * k)) for k in range(1, 5)], [4.0, 3.0, 2.0, 1.0])
        for _ in range(num_tokens // 290)
    ]
    return lay_out(groups)


# --- the mask ------------------------------------------------------------------------------------


def test_the_mask_is_that_of_the_rule():
    assert torch.equal(ROW.attention_mask()[0, 0], slow_mask(ROW))
    assert ROW.spans == ((0, 3, 8), (8, 9, 10), (10, 12, 19))


def test_the_mask_for_flex_attention_is_the_same():
    def sees(batch, head, token, other):
        return ROW.sees(token, other)

    length = ROW.input_ids.shape[1]
    assert torch.equal(create_mask(sees, None, None, length, length, "cpu")[0, 0], slow_mask(ROW))


def test_the_block_mask_names_the_blocks_that_have_something_to_see():
    row = long_row(870)
    length = row.input_ids.shape[1]
    blocks = block_mask(row).to_dense()[0, 0]
    size = -(-length // len(blocks))
    padded = F.pad(slow_mask(row), (0, len(blocks) * size - length, 0, len(blocks) * size - length))
    expected = padded.view(len(blocks), size, len(blocks), size).any(dim=3).any(dim=1)
    assert torch.equal(blocks.bool(), expected)
    assert not expected.all(), "nothing is left out"


@pytest.mark.filterwarnings("ignore")  # uncompiled, for the comparison
def test_flex_attention_under_the_block_mask_is_scaled_dot_product_attention_under_the_mask():
    row = long_row(580)
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, row.input_ids.shape[1], 16, dtype=torch.float64)
    found = flex_attention(query, key, value, block_mask=block_mask(row))
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=row.attention_mask())
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", ["eager", "sdpa", "salign_by_group"])
def test_attention_that_adds_its_mask_gets_nothing_where_something_is_seen(kind):
    model = build("LlamaConfig", **LLAMA_LIKE)
    model.set_attn_implementation(kind)
    given = mask_of(model, ROW)
    mask = given["attention_mask"][0, 0]
    assert mask.dtype == model.dtype
    assert torch.equal(mask == 0, slow_mask(ROW))
    assert (mask[~slow_mask(ROW)] <= torch.finfo(model.dtype).min).all()
    assert ("row_groups" in given) == (kind == "salign_by_group")


# --- by group ------------------------------------------------------------------------------------


def test_attention_by_group_is_that_under_the_whole_mask_and_so_are_its_gradients(monkeypatch):
    calls, masks = [], set()
    plain = F.scaled_dot_product_attention

    def counting(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, **kwargs):
        calls.append((query.shape[2], is_causal))
        if attn_mask is not None and attn_mask.shape[-1] < ROW.input_ids.shape[1]:
            assert attn_mask.data_ptr() % 64 == 0  # where memory begins
            assert attn_mask.stride(-2) % 16 == 0
            masks.add(attn_mask.data_ptr())
        return plain(query, key, value, attn_mask, dropout_p, is_causal, **kwargs)

    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", counting)
    model = build("LlamaConfig", **LLAMA_LIKE).double()
    found = []
    for kind in ("sdpa", "salign_by_group"):
        model.set_attn_implementation(kind)
        model.zero_grad()
        nll = response_nll(model, ROW)
        nll.nansum().backward()
        found.append((nll.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}))
    (whole, whole_gradients), (parts, gradients) = found
    torch.testing.assert_close(parts, whole, equal_nan=True, rtol=1e-6, atol=1e-6)
    for name, gradient in gradients.items():
        assert (gradient - whole_gradients[name]).norm() <= 1e-6 * gradient.norm(), name
    by_group = [(3, True), (5, False), (1, True), (1, False), (2, True), (7, False)]
    assert calls[-2 * len(by_group) :] == 2 * by_group
    assert len(masks) == 3  # one for each group, for both layers


def test_a_model_that_is_prepared_still_does_what_it_did():
    model = build("LlamaConfig", **LLAMA_LIKE).eval()
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    before = model(input_ids=ids).logits
    prepare(model, "sdpa")
    assert model.config._attn_implementation == "salign_by_group"
    torch.testing.assert_close(model(input_ids=ids).logits, before)
    padded = torch.tensor([[0, 5, 6, 7, 8, 9]])
    mask = torch.tensor([[0, 1, 1, 1, 1, 1]])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    found = model(input_ids=padded, attention_mask=mask, position_ids=positions).logits[:, 1:]
    torch.testing.assert_close(found, before, rtol=1e-4, atol=1e-4)
    assert model.generate(ids, max_new_tokens=3, do_sample=False).shape == (1, 8)


def test_how_a_model_attends_here_is_not_written_down(tmp_path):
    model = build("LlamaConfig", **LLAMA_LIKE)
    prepare(model, "sdpa")
    model.save_pretrained(tmp_path)
    assert "salign" not in (tmp_path / "config.json").read_text()


def test_a_family_with_plain_attention_alone_keeps_it():
    model = build("Gemma2Config", **LLAMA_LIKE, head_dim=8)
    before = model.config._attn_implementation
    prepare(model, "sdpa")
    assert model.config._attn_implementation == before


# --- flex ----------------------------------------------------------------------------------------


def test_flex_attention_is_refused_where_there_is_no_cuda():
    require("sdpa", CPU)
    require("flex", torch.device("cuda", 0))
    with pytest.raises(ConfigError, match=r"attention flex needs a CUDA device .* and this is cpu"):
        require("flex", CPU)


def test_a_family_without_flex_attention_is_refused():
    model = build("BloomConfig", **SMALL, hidden_size=32, n_layer=2, n_head=4)
    with pytest.raises(ConfigError, match="'bloom' have no FlexAttention"):
        prepare(model, "flex")


@pytest.mark.gpu
def test_flex_attention_on_cuda_trains_as_scaled_dot_product_attention_does():
    device = torch.device("cuda")
    found = []
    for kind in ("sdpa", "flex"):
        model = build("LlamaConfig", **{**LLAMA_LIKE, "hidden_size": 128}).to(device)
        loss = GroupLoss(model, StableObjective(kind="stable"), kind)
        check_layout(loss, model, Lengths(17, 17), device)
        total, nll, _ = loss(ROW.to(device))
        total.backward()
        found.append((nll, {name: p.grad for name, p in model.named_parameters()}))
    (plain, gradients), (flex, flex_gradients) = found
    torch.testing.assert_close(flex, plain, rtol=1e-3, atol=1e-3, equal_nan=True)
    for name, gradient in gradients.items():
        assert (flex_gradients[name] - gradient).norm() <= 1e-2 * gradient.norm(), name


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_tokens", [20, 32, 90, 128, 300, 1000])
@pytest.mark.parametrize("kind", ["sdpa", "flex"])
def test_a_row_of_any_length_on_cuda_is_its_groups_alone(kind, num_tokens, dtype):
    device = torch.device("cuda")
    model = build("LlamaConfig", **{**LLAMA_LIKE, "hidden_size": 256, "max_position_embeddings": 2048})
    model = model.to(device, dtype)
    loss = GroupLoss(model, StableObjective(kind="stable"), kind)
    check_layout(loss, model, Lengths(num_tokens * 2 // 3, num_tokens), device)
    total, _, _ = loss(long_row(num_tokens).to(device) if num_tokens >= 290 else ROW.to(device))
    total.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
