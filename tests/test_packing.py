"""A row of groups gives each response the likelihood, and the model the gradient, that it has by itself."""

import copy
import json

import pytest
import torch
import transformers
from torch import Tensor
from torch.nn import functional as F

from salign import models
from salign.config import DPOObjective, StableObjective
from salign.errors import ConfigError
from salign.records import AlignmentGroup
from salign.training import model as model_module
from salign.training import settings
from salign.training.data import context_length
from salign.training.model import GroupLoss, check_layout, response_nll
from salign.training.objectives import stable_losses
from salign.training.packing import Lengths, lay_out, sample_responses
from salign.training.tokens import TokenGroup, tokenize

GROUPS = [
    AlignmentGroup("Is it fine to lie?", ("No.", "Sure, why not, everybody does it.", "It depends."), (7.0, 1.0, 4.0)),
    AlignmentGroup("What is a good present for my father?", ("Ask him what he likes.", "Nothing."), (6.0, 2.0)),
    AlignmentGroup("Why?", ("Because.",), (3.0,)),
]


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return models.load_tokenizer(str(tiny_model))


@pytest.fixture
def model(tiny_model):
    return models.load_model(str(tiny_model), torch.float64).eval()


def naive_nll(model, group: TokenGroup) -> list[Tensor]:
    """Each response with a query of its own, full logits, token by token."""
    found = []
    for response in group.responses:
        logps = model(torch.tensor([group.query + response])).logits[0].log_softmax(-1)
        start = len(group.query) - 1
        found.append(-torch.stack([logps[start + i, token] for i, token in enumerate(response)]).mean())
    return found


def naive_loss(model, groups: list[TokenGroup], objective: StableObjective) -> Tensor:
    """Each group by itself, padded to nothing."""
    losses = [
        stable_losses(
            torch.stack(naive_nll(model, group))[None],
            torch.tensor([group.scores]),
            ratio=objective.ratio,
            margin=objective.margin,
            scale=objective.scale,
        )
        for group in groups
    ]
    return torch.cat(losses).sum()


def gradients(model) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_same_gradients(ours, theirs, most: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        assert (gradient - theirs[name]).norm() <= most * theirs[name].norm(), name


def test_each_response_has_the_likelihood_that_it_has_by_itself(model, tokenizer):
    groups = tokenize(GROUPS, tokenizer, 512).groups
    packed = response_nll(model, lay_out(groups))
    assert packed.shape == (3, 3)
    for number, group in enumerate(groups):
        alone = torch.stack(naive_nll(model, group))
        torch.testing.assert_close(packed[number, : len(alone)], alone, rtol=1e-6, atol=1e-6)
        assert packed[number, len(alone) :].isnan().all()


@pytest.mark.parametrize("eager", [False, True])
def test_loss_and_gradients_equal_those_of_the_naive_layout(model, tokenizer, eager):
    if eager:  # adds the mask up
        model.set_attn_implementation("eager")
    groups = tokenize(GROUPS, tokenizer, 512).groups
    other = copy.deepcopy(model)
    objective = StableObjective(kind="stable", ratio=1.0, margin=10.0)
    loss, nll, parts = GroupLoss(model, objective)(lay_out(groups))
    loss.backward()
    naive = naive_loss(other, groups, objective)
    naive.backward()
    assert loss.item() == pytest.approx(naive.item(), rel=1e-6)
    # The RMSNorm of the family computes in float32, which sets the floor.
    assert_same_gradients(gradients(model), gradients(other), 1e-6)
    assert not nll.requires_grad
    assert parts["groups"] == 3
    assert parts["contrasted"] == 2


@pytest.mark.parametrize("rows", [[[0, 1, 2]], [[0], [1], [2]], [[2, 0], [1]], [[1, 2], [0]]])
def test_rows_add_up_however_groups_share_them(model, tokenizer, rows):
    groups = tokenize(GROUPS, tokenizer, 512).groups
    other = copy.deepcopy(model)
    objective = StableObjective(kind="stable", ratio=1.0, margin=10.0)
    loss = GroupLoss(model, objective)
    total = 0.0
    for row in rows:
        part, _, _ = loss(lay_out([groups[position] for position in row]))
        part.backward()
        total += part.item()
    naive = naive_loss(other, groups, objective)
    naive.backward()
    assert total == pytest.approx(naive.item(), rel=1e-6)
    assert_same_gradients(gradients(model), gradients(other), 1e-6)


def test_an_empty_response_is_the_end_of_a_turn_and_is_trained_on(model, tokenizer):
    """As training has it: the store's one token, laid out beside other responses."""
    group = AlignmentGroup("Why?", ("", "Because."), (1.0, 7.0), "imitation")
    groups = tokenize([group], tokenizer, 512).groups
    assert groups[0].responses[0] == [tokenizer.eos_token_id]
    packed = response_nll(model, lay_out(groups))
    end = model(torch.tensor([groups[0].query])).logits[0, -1].log_softmax(-1)[tokenizer.eos_token_id]
    torch.testing.assert_close(packed[0, 0], -end, rtol=1e-6, atol=1e-6)
    packed[0, 0].backward()
    assert model.get_output_embeddings().weight.grad[tokenizer.eos_token_id].any()


# --- logits in chunks ----------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [64, 65, 200, 10_000])
@pytest.mark.parametrize("tied", [True, False])
def test_logits_in_chunks_are_those_at_once(tiny_model, tokenizer, monkeypatch, chunk, tied):
    model = models.load_model(str(tiny_model), torch.float64).eval()
    if not tied:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() * 0.5)
    long = AlignmentGroup("Why?", ("Because it is so. " * 12, "I do not know. " * 9, "No."), (3.0, 5.0, 1.0))
    row = lay_out(tokenize([*GROUPS, long], tokenizer, 512).groups)
    other = copy.deepcopy(model)
    made = []
    token_nll = model_module.token_nll

    def counting(states, *args):
        made.append(len(states))
        return token_nll(states, *args)

    monkeypatch.setattr(model_module, "token_nll", counting)
    monkeypatch.setattr(settings, "MAX_LOGITS", chunk * model.config.vocab_size)
    nll = response_nll(model, row)
    num_chunks = -(-len(row.targets) // chunk)
    assert made == [*[chunk] * (num_chunks - 1), len(row.targets) - chunk * (num_chunks - 1)]
    logits = other(input_ids=row.input_ids, attention_mask=row.attention_mask(), position_ids=row.position_ids).logits[
        0, row.predictors
    ]
    per_token = F.cross_entropy(logits, row.targets, reduction="none")
    whole = torch.stack([per_token[row.response_of == k].mean() for k in range(len(row.cell_of))])
    torch.testing.assert_close(nll[~nll.isnan()], whole, rtol=1e-12, atol=0)
    weights = torch.arange(1.0, len(whole) + 1, dtype=torch.float64)
    (nll[~nll.isnan()] * weights).sum().backward()
    assert len(made) == (2 * num_chunks if num_chunks > 1 else 1), "many are made again for the gradient, not kept"
    (whole * weights).sum().backward()
    assert_same_gradients(gradients(model), gradients(other), 1e-10)


def test_logits_of_bfloat16_are_compared_in_float32(tiny_model, tokenizer):
    model = models.load_model(str(tiny_model), torch.bfloat16).eval()
    exact = models.load_model(str(tiny_model), torch.float32).eval()
    row = lay_out(tokenize(GROUPS, tokenizer, 512).groups)
    nll = response_nll(model, row)
    assert nll.dtype == torch.float32
    torch.testing.assert_close(nll, response_nll(exact, row), rtol=0.05, atol=0, equal_nan=True)


# --- which families ------------------------------------------------------------------------------

SMALL = {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
LLAMA_LIKE = {
    **SMALL,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def build(config: str, **settings):
    """A family's model with random weights that are large enough to tell its layouts apart."""
    torch.manual_seed(0)
    made = transformers.AutoModelForCausalLM.from_config(getattr(transformers, config)(**settings))
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3)
    return made


def check(made, text: int = 17, row: int = 40) -> None:
    check_layout(GroupLoss(made, StableObjective(kind="stable")), made, Lengths(text, row), torch.device("cpu"))


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        ("Qwen3Config", {**LLAMA_LIKE, "head_dim": 8}),
        ("GPT2Config", {**SMALL, "n_embd": 32, "n_layer": 2, "n_head": 4}),
        # Logits that are more than states times weights, and attention that adds its mask up.
        ("Gemma2Config", {**LLAMA_LIKE, "head_dim": 8, "final_logit_softcapping": 2.0}),
        ("GraniteConfig", {**LLAMA_LIKE, "logits_scaling": 4.0}),
        ("CohereConfig", {**LLAMA_LIKE, "logit_scale": 0.25}),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_families_that_can_be_trained(config, settings, training):
    made = build(config, **settings).train(training)
    check(made)
    assert made.training == training
    group = TokenGroup([5, 6, 7], [[8, 9, 2], [10, 2]], [2.0, 1.0])
    made.eval()
    packed = response_nll(made, lay_out([TokenGroup([30], [[31]], [1.0]), group]))[1]
    torch.testing.assert_close(packed, torch.stack(naive_nll(made, group)), rtol=1e-4, atol=1e-4)


def test_the_tiny_model_and_a_reference_objective_pass(tiny_model):
    model = models.load_model(str(tiny_model), torch.float32)
    objective = DPOObjective(kind="dpo")
    check_layout(GroupLoss(model, objective), model, Lengths(17, 40), torch.device("cpu"))


@pytest.mark.parametrize(
    ("config", "settings", "said"),
    [
        # It leaves the mask alone, with a warning nobody reads.
        (
            "RwkvConfig",
            {**SMALL, "hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 2},
            r"'rwkv' cannot be trained here: .* gets a negative log-likelihood of \d\.\d+ per token, but \d\.\d+ alone",
        ),
        # Half of its layers are convolutions, which see what stands before.
        ("Lfm2Config", {**LLAMA_LIKE, "layer_types": ["conv", "full_attention"]}, "'lfm2' cannot be trained here"),
        # Its positions are made out of the mask.
        (
            "BloomConfig",
            {**SMALL, "hidden_size": 32, "n_layer": 2, "n_head": 4},
            "'bloom' cannot be trained here: a row of several responses .* ends in ValueError",
        ),
    ],
)
def test_a_family_whose_rows_come_out_otherwise_is_refused(config, settings, said):
    with pytest.raises(ConfigError, match=said):
        check(build(config, **settings))


@pytest.mark.parametrize(
    ("given", "longest"),
    [
        ({"model_type": "mistral", "max_position_embeddings": 4096, "sliding_window": 512}, 4096),
        ({"model_type": "gpt2", "n_positions": 1024}, 1024),
        ({"model_type": "bloom"}, None),
        (
            {
                "model_type": "phi3",
                "max_position_embeddings": 4096,
                "original_max_position_embeddings": 512,
                "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48},
            },
            512,
        ),
    ],
)
def test_a_text_is_as_long_as_the_model_is_made_for_whatever_its_window(tmp_path, given, longest):
    (tmp_path / "config.json").write_text(json.dumps(given))
    (tmp_path / "tokenizer.json").touch()
    assert context_length(str(tmp_path)) == longest


# --- the layout ----------------------------------------------------------------------------------


def test_the_loss_is_on_response_tokens_alone(model, tokenizer):
    """A response's likelihood is the mean over its own tokens and the end token; none of the query's are targets."""
    groups = tokenize(GROUPS[:1], tokenizer, 512).groups
    row = lay_out(groups)
    assert row.targets.tolist() == [token for response in groups[0].responses for token in response]
    assert all(response[-1] == tokenizer.eos_token_id for response in groups[0].responses)
    ends = len(groups[0].query) - 1
    assert row.predictors.tolist().count(ends) == 3  # the first token of each response


def test_a_row_sees_the_query_and_itself_alone(tokenizer):
    row = lay_out([TokenGroup([5, 6], [[7, 8], [9]], [1.0, 2.0]), TokenGroup([5], [[6]], [3.0])])
    assert row.input_ids.tolist() == [[5, 6, 7, 8, 9, 5, 6]]
    assert row.position_ids.tolist() == [[0, 1, 2, 3, 2, 0, 1]]
    seen = [[int(x) for x in line] for line in row.attention_mask()[0, 0]]
    assert seen == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1, 1],
    ]
    assert row.predictors.tolist() == [1, 2, 1, 5]
    assert row.targets.tolist() == [7, 8, 9, 6]
    assert row.response_of.tolist() == [0, 0, 1, 2]


def test_cells_hold_what_is_known_of_each_response():
    row = lay_out(
        [
            TokenGroup([5, 6], [[7, 8]], [3.0]),
            TokenGroup([5], [[6], [7, 8, 9]], [1.0, 2.0], [0.5, 1.5]),
        ]
    )
    assert row.cell_of.tolist() == [0, 2, 3]
    assert row.num_tokens.tolist() == [[2, 0], [1, 3]]
    nan = torch.nan
    torch.testing.assert_close(row.scores, torch.tensor([[3.0, nan], [1.0, 2.0]]), equal_nan=True)
    torch.testing.assert_close(row.reference_nll, torch.tensor([[nan, nan], [0.5, 1.5]]), equal_nan=True)


def test_a_subset_keeps_scores_and_references():
    group = TokenGroup([1], [[2], [3], [4]], [1.0, 7.0, 2.0], [0.1, 0.7, 0.2])
    assert sample_responses(group, 3, 0) is group
    drawn = sample_responses(group, 2, "seed")
    pairs = zip(drawn.responses, drawn.scores, drawn.references, strict=True)
    assert set(map(str, pairs)) < {"([2], 1.0, 0.1)", "([3], 7.0, 0.7)", "([4], 2.0, 0.2)"}
    assert len(drawn.responses) == 2


def test_a_response_that_is_too_long_is_left_out_whole_and_counted(tokenizer):
    query = tokenize(GROUPS[:1], tokenizer, 512).groups[0]
    limit = len(query.query) + len(query.responses[0])
    data = tokenize(GROUPS, tokenizer, limit)
    assert data.groups[0].responses == [query.responses[0]]
    assert data.num_long_responses >= 2
    assert tokenize(GROUPS, tokenizer, 1).num_dropped_groups == len(GROUPS)


def test_the_best_response_is_always_among_the_drawn():
    group = TokenGroup([1], [[10 + i] for i in range(8)], [2.0, 2.0, 7.0, 1.0, 5.0, 7.0, 3.0, 3.0])
    drawn = [sample_responses(group, 4, "seed", draw) for draw in range(50)]
    assert all(len(one.responses) == 4 and [12] in one.responses for one in drawn)
    assert len({str(one.responses) for one in drawn}) > 10
    assert sample_responses(group, 4, "seed", 3) == drawn[3]
    assert all(
        group.scores[group.responses.index(r)] == s
        for one in drawn
        for r, s in zip(one.responses, one.scores, strict=True)
    )


def test_a_base_model_without_a_template_gets_alpacas(tiny_model, tmp_path):
    import shutil

    shutil.copytree(tiny_model, tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").unlink()
    tokenizer = models.load_tokenizer(str(tmp_path / "base"))
    text = tokenizer.decode(models.render(tokenizer, "Is it fine to lie?"))
    assert text == "### Instruction:\nIs it fine to lie?\n\n### Response:\n"
    assert tokenizer.decode(models.render(models.load_tokenizer(str(tiny_model), "alpaca"), "Why?")).startswith(
        "### Instr"
    )
