"""The objectives against slow references in float64, written with loops over lists; and the words of hindsight."""

import itertools
import math
import random
import statistics
from dataclasses import dataclass

import pytest
import torch
from msgspec.structs import replace
from pydantic import TypeAdapter, ValidationError

from salign.config import (
    CoHObjective,
    COPRObjective,
    DPOObjective,
    GRPOObjective,
    ListwiseDPOObjective,
    Objective,
    RLOOObjective,
    RRHFObjective,
    SFTObjective,
    StableObjective,
)
from salign.config.effects import sections_in
from salign.records import AlignmentGroup
from salign.training.hindsight import BAD, GOOD, chain_of_hindsight
from salign.training.losses import (
    LOSSES,
    Likelihoods,
    counted_groups,
    objective_loss,
    objective_losses,
    objective_metrics,
    objective_sum,
)
from salign.training.noise import with_noise
from salign.training.objectives import dpo_losses, implicit_rewards, listwise_dpo_losses, preference_metrics
from salign.training.policies import copr_losses, target_policies

SFT = SFTObjective(kind="sft")
COH = CoHObjective(kind="coh")
STABLE = StableObjective(kind="stable")
DPO = DPOObjective(kind="dpo")
DPO_BEST = DPOObjective(kind="dpo", pairs="best")
LISTWISE = ListwiseDPOObjective(kind="listwise_dpo")
RRHF = RRHFObjective(kind="rrhf")
GRPO = GRPOObjective(kind="grpo")
RLOO = RLOOObjective(kind="rloo")
COPR = COPRObjective(kind="copr")
OBJECTIVES = [
    SFT,
    COH,
    STABLE,
    StableObjective(kind="stable", ratio=1.0, margin=10.0, hinge="each", max_flow=True),
    DPO,
    DPO_BEST,
    DPOObjective(kind="dpo", beta=0.5, label_smoothing=0.1),
    DPOObjective(kind="dpo", beta=0.03, pairs="best", label_smoothing=0.25),
    LISTWISE,
    ListwiseDPOObjective(kind="listwise_dpo", beta=0.02),
    RRHF,
    RRHFObjective(kind="rrhf", sft_weight=0.0),
    RRHFObjective(kind="rrhf", sft_weight=0.3),
    GRPO,
    GRPOObjective(kind="grpo", normalise="none", clip=0.01, beta=0.0),
    RLOO,
    RLOOObjective(kind="rloo", clip=1.5, beta=0.5),
    COPR,
    COPRObjective(kind="copr", beta=0.7, advantage="score"),
    COPRObjective(kind="copr", beta=0.5, fit="divergence"),
]
NAN = math.nan


def stable_loss(nll, scores, **settings):
    return objective_loss(StableObjective(kind="stable", **settings), nll, scores)


def test_every_objective_of_a_config_has_a_loss():
    assert set(LOSSES) == set(sections_in(Objective))


def reference_stable(nll, scores, *, ratio, margin, scale, hinge, max_flow):
    """The formula, group by group and response by response, on lists with None for what is not there."""
    losses = []
    for group_nll, group_scores in zip(nll, scores, strict=True):
        there = [
            i for i, (a, b) in enumerate(zip(group_nll, group_scores, strict=True)) if a is not None and b is not None
        ]
        if not there:
            continue
        best = there[0]
        for i in there:
            if group_scores[i] > group_scores[best]:
                best = i
        terms = []
        for i in there:
            if i != best:
                term = group_nll[best] - group_nll[i] + margin * (group_scores[best] - group_scores[i]) / scale
                terms.append(max(0.0, term) if hinge == "each" else term)
        flow = 0.0
        if terms:
            flow = max(terms) if max_flow else math.fsum(terms) / len(terms)
        losses.append(group_nll[best] + ratio * max(0.0, flow))
    return math.fsum(losses) / len(losses)


@dataclass
class Response:
    """One that is there: what its group's loss is made of, as the papers count it."""

    nll: float  # mean over tokens
    score: float
    logp: float  # sum over tokens
    reference_logp: float
    num_tokens: int


def log_sigmoid(x):
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


def best_of(group):
    return next(response for response in group if response.score == max(other.score for other in group))


def reference_dpo(group, objective):
    terms = []
    for chosen in [best_of(group)] if group and objective.pairs == "best" else group:
        for rejected in group:
            if chosen.score > rejected.score:
                gain = chosen.logp - rejected.logp - (chosen.reference_logp - rejected.reference_logp)
                right = -log_sigmoid(objective.beta * gain)
                wrong = -log_sigmoid(-objective.beta * gain)
                terms.append((1 - objective.label_smoothing) * right + objective.label_smoothing * wrong)
    return math.fsum(terms) / len(terms) if terms else None


def reference_listwise(group, objective):
    if len({response.score for response in group}) < 2:
        return None
    terms = []
    for response in group:
        rivals = [response, *(other for other in group if other.score < response.score)]
        utilities = [objective.beta * (rival.logp - rival.reference_logp) for rival in rivals]
        top = max(utilities)
        terms.append(top + math.log(math.fsum(math.exp(u - top) for u in utilities)) - utilities[0])
    return math.fsum(terms)


def reference_rrhf(group, objective):
    if not group:
        return None
    ranking = [max(0.0, -worse.nll + better.nll) for worse in group for better in group if worse.score < better.score]
    return math.fsum(ranking) - objective.sft_weight * best_of(group).logp


def reference_policy_gradient(group, objective):
    if len({response.score for response in group}) < 2:
        return None
    mean = math.fsum(response.score for response in group) / len(group)
    terms = []
    for response in group:
        if objective.kind == "rloo":
            others = [other.score for other in group if other is not response]
            advantage = response.score - math.fsum(others) / len(others)
        else:
            advantage = response.score - mean
            if objective.normalise == "std":
                advantage /= statistics.stdev([other.score for other in group]) + 1e-4
        drift = response.nll + response.reference_logp / response.num_tokens
        ratio = math.exp(-drift)
        clipped = min(max(ratio, 1 - objective.clip), 1 + objective.clip)
        terms.append(objective.beta * (math.exp(drift) - drift - 1) - min(ratio * advantage, clipped * advantage))
    return math.fsum(terms) / len(terms)


def log_softmax(logits):
    total = max(logits) + math.log(math.fsum(math.exp(logit - max(logits)) for logit in logits))
    return [logit - total for logit in logits]


def reference_copr(group, objective):
    if len({response.score for response in group}) < 2:
        return None
    size, mean = len(group), math.fsum(response.score for response in group) / len(group)
    fitted, optimal = [], []
    for response in group:
        if objective.advantage == "rank":
            places = [place for place, other in enumerate(sorted(r.score for r in group), 1) if other == response.score]
            advantage = (2 * statistics.fmean(places) - size - 1) / (size + 1)
        else:
            advantage = (response.score - mean) / 3
        fitted.append(response.logp)
        optimal.append(response.reference_logp + advantage / objective.beta)
    fitted, optimal = log_softmax(fitted), log_softmax(optimal)
    if objective.fit == "divergence":
        return math.fsum(math.exp(target) * (target - logp) for logp, target in zip(fitted, optimal, strict=True))
    return math.fsum((logp - target) ** 2 for logp, target in zip(fitted, optimal, strict=True)) / size


def reference_group(group, objective):
    """The loss of one group, a list of the responses that are there; None where it does not count."""
    if objective.kind in ("sft", "coh"):
        return best_of(group).nll if group else None
    if objective.kind == "stable":
        if not group:
            return None
        settings = objective.model_dump(exclude={"kind"})
        return reference_stable([[r.nll for r in group]], [[r.score for r in group]], **settings)
    per_group = {
        "dpo": reference_dpo,
        "listwise_dpo": reference_listwise,
        "rrhf": reference_rrhf,
        "grpo": reference_policy_gradient,
        "rloo": reference_policy_gradient,
        "copr": reference_copr,
    }
    return per_group[objective.kind](group, objective)


@dataclass
class Batch:
    """Tensors as training has them, and the same as lists of what is there."""

    nll: torch.Tensor
    scores: torch.Tensor
    num_tokens: torch.Tensor
    reference_nll: torch.Tensor

    @property
    def groups(self):
        rows = zip(*(tensor.tolist() for tensor in vars(self).values()), strict=True)
        return [
            [
                Response(nll, score, -nll * count, -reference * count, count)
                for nll, score, count, reference in zip(*row, strict=True)
                if not math.isnan(nll) and not math.isnan(score)
            ]
            for row in rows
        ]

    def expected(self, objective):
        """The losses of the groups that count."""
        losses = [reference_group(group, objective) for group in self.groups]
        return [loss for loss in losses if loss is not None]

    def likelihoods(self, *ages):
        ages = torch.tensor(ages or [0] * len(self.nll))
        return Likelihoods(self.nll.detach(), self.scores, self.num_tokens, self.reference_nll, ages)

    def take(self, rows, columns=slice(None)):
        return Batch(*(tensor[rows][:, columns] for tensor in vars(self).values()))

    def __iter__(self):
        return iter(vars(self).values())


def random_batch(rng, num_groups, width=5):
    """Groups of 0 to `width` responses, anywhere in the width; few scores, so that ties are common; some missing."""
    cells = []
    for _ in range(num_groups):
        size = rng.randint(0, width)
        row = [
            (rng.uniform(0.01, 6), rng.choice([1.0, 2.0, 4.5, 7.0, 7.0, NAN]), rng.randint(1, 40), rng.uniform(0.01, 6))
            for _ in range(size)
        ] + [(NAN, NAN, 0, NAN)] * (width - size)
        if size and rng.random() < 0.1:
            row[0] = (NAN, row[0][1], 0, NAN)  # a score alone is no response
        rng.shuffle(row)
        cells.append(row)
    nll, scores, num_tokens, reference = ([[cell[part] for cell in row] for row in cells] for part in range(4))
    return Batch(
        torch.tensor(nll, dtype=torch.float64),
        torch.tensor(scores, dtype=torch.float64),
        torch.tensor(num_tokens),
        torch.tensor(reference, dtype=torch.float64),
    )


def batch_of(*groups):
    """A batch of groups of (nll, score, num_tokens, reference_nll), all of one width."""
    parts = [
        torch.tensor([[cell[part] for cell in group] for group in groups], dtype=torch.float64) for part in range(4)
    ]
    return Batch(parts[0], parts[1], parts[2].long(), parts[3])


def tensors(nll, scores, dtype=torch.float64):
    def fill(rows):
        return torch.tensor([[math.nan if x is None else x for x in row] for row in rows], dtype=dtype)

    return fill(nll).requires_grad_(), fill(scores)


def random_groups(rng: random.Random, num_groups: int):
    """Groups of 1 to 6 responses in a width of 6; whole scores, so that ties are common; some ratings missing."""
    nll, scores = [], []
    for _ in range(num_groups):
        size = rng.randint(1, 6)
        nll.append([rng.uniform(0.01, 6) for _ in range(size)] + [None] * (6 - size))
        row = [None if rng.random() < 0.1 else float(rng.randint(1, 7)) for _ in range(size)]
        scores.append(row + [None] * (6 - size))
    if all(score is None for row in scores for score in row):
        scores[0][0] = 4.0
    return nll, scores


@pytest.mark.parametrize("hinge", ["mean", "each"])
@pytest.mark.parametrize("max_flow", [False, True])
def test_stable_equals_the_reference_over_random_groups(hinge, max_flow):
    rng = random.Random(f"{hinge}{max_flow}")
    for _ in range(150):
        settings = {
            "ratio": rng.choice([0.0, 0.2, 1.0]),
            "margin": rng.choice([0.0, 1.0, 10.0]),
            "scale": rng.choice([1.0, 7.0]),
            "hinge": hinge,
            "max_flow": max_flow,
        }
        nll, scores = random_groups(rng, rng.randint(1, 5))
        tensor_nll, tensor_scores = tensors(nll, scores)
        loss = stable_loss(tensor_nll, tensor_scores, **settings)
        assert loss.item() == pytest.approx(reference_stable(nll, scores, **settings), abs=1e-12)


@pytest.mark.parametrize("hinge", ["mean", "each"])
@pytest.mark.parametrize("max_flow", [False, True])
def test_the_gradient_equals_finite_differences_of_the_reference(hinge, max_flow):
    rng = random.Random(7)
    settings = {"ratio": 0.2, "margin": 1.0, "scale": 7.0, "hinge": hinge, "max_flow": max_flow}
    for _ in range(20):
        nll, scores = random_groups(rng, 3)
        tensor_nll, tensor_scores = tensors(nll, scores)
        stable_loss(tensor_nll, tensor_scores, **settings).backward()
        for i, j in itertools.product(range(3), range(6)):
            if nll[i][j] is None:
                assert tensor_nll.grad[i, j] == 0  # also where the NaN of what is not there could have spread
                continue
            step, ends = 1e-6, []
            for sign in (1, -1):
                moved = [list(row) for row in nll]
                moved[i][j] += sign * step
                ends.append(reference_stable(moved, scores, **settings))
            assert tensor_nll.grad[i, j].item() == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-6)


def test_every_ordering_of_three_responses_gives_the_same_loss():
    """The released code was right in one of six orderings."""
    pairs = [(0.5, 6.0), (1.5, 3.0), (0.2, 1.0)]
    losses = set()
    for order in itertools.permutations(pairs):
        nll, scores = tensors([[a for a, _ in order]], [[b for _, b in order]])
        losses.add(round(stable_loss(nll, scores, ratio=0.2, margin=1.0, scale=7.0).item(), 12))
    assert len(losses) == 1


def test_a_value_by_hand():
    # best is 0.5 (score 6); the others: 0.5 - 1.5 + 3/7, 0.5 - 0.2 + 5/7
    nll, scores = tensors([[1.5, 0.5, 0.2]], [[3.0, 6.0, 1.0]])
    terms = [0.5 - 1.5 + 3 / 7, 0.5 - 0.2 + 5 / 7]
    mean = stable_loss(nll, scores, ratio=0.2, margin=1.0, scale=7.0)
    each = stable_loss(nll, scores, ratio=0.2, margin=1.0, scale=7.0, hinge="each")
    most = stable_loss(nll, scores, ratio=0.2, margin=1.0, scale=7.0, max_flow=True)
    assert mean.item() == pytest.approx(0.5 + 0.2 * sum(terms) / 2)
    assert each.item() == pytest.approx(0.5 + 0.2 * terms[1] / 2)
    assert most.item() == pytest.approx(0.5 + 0.2 * terms[1])


def test_of_equal_scores_the_first_is_best():
    nll, scores = tensors([[2.0, 1.0]], [[5.0, 5.0]])
    assert stable_loss(nll, scores, ratio=1.0, margin=1.0, scale=7.0).item() == pytest.approx(2.0 + 1.0)


def test_a_single_response_has_no_second_part():
    nll, scores = tensors([[1.25]], [[3.0]])
    assert stable_loss(nll, scores, ratio=0.2, margin=10.0, scale=7.0).item() == pytest.approx(1.25)


def test_a_group_without_ratings_does_not_count_and_gets_no_gradient():
    nll, scores = tensors([[1.0, 2.0], [3.0, 4.0]], [[None, None], [5.0, 6.0]])
    loss = stable_loss(nll, scores, ratio=0.0, margin=1.0, scale=7.0)
    loss.backward()
    assert loss.item() == pytest.approx(4.0)
    assert nll.grad.tolist() == [[0.0, 0.0], [0.0, 1.0]]


def test_no_rated_response_at_all_is_an_error():
    nll, scores = tensors([[1.0, 2.0]], [[None, None]])
    with pytest.raises(ValueError, match="no group has a rated response"):
        stable_loss(nll, scores, ratio=0.2, margin=1.0, scale=7.0)


def test_shapes_that_differ_are_an_error():
    with pytest.raises(ValueError, match=r"nll \(2, 3\), scores \(2, 2\) must all be \[groups, K\]"):
        stable_loss(torch.zeros(2, 3), torch.zeros(2, 2), ratio=0.2, margin=1.0, scale=7.0)


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_objectives_equal_the_references_over_random_groups(objective):
    rng = random.Random(str(objective))
    counts = []
    for _ in range(150):
        batch = random_batch(rng, rng.randint(1, 5))
        expected = batch.expected(objective)
        total, count = objective_sum(objective, *batch)
        assert count.item() == len(expected)
        assert total.item() == pytest.approx(math.fsum(expected), rel=1e-12, abs=1e-12)
        if expected:
            loss = objective_loss(objective, *batch)
            assert loss.item() == pytest.approx(math.fsum(expected) / len(expected), rel=1e-12, abs=1e-12)
        else:
            with pytest.raises(ValueError, match=f"no group has .*, which objective {objective.kind} needs"):
                objective_loss(objective, *batch)
        counts.append(len(expected))
    assert {0, 1, 2, 3} <= set(counts)


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_gradients_equal_finite_differences(objective):
    rng = random.Random(11)
    for _ in range(12):
        batch = random_batch(rng, 4, width=4)
        nll = batch.nll.clone().requires_grad_()
        rest = (batch.scores, batch.num_tokens, batch.reference_nll)
        assert torch.autograd.gradcheck(lambda nll, rest=rest: objective_sum(objective, nll, *rest)[0], (nll,))
        total, _ = objective_sum(objective, nll, *rest)
        total.backward()
        assert bool(nll.grad.isfinite().all())
        assert bool((nll.grad[batch.nll.isnan() | batch.scores.isnan()] == 0).all())


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
@pytest.mark.parametrize(
    "group",
    [
        [(NAN, NAN, 0, NAN)] * 3,  # nothing there
        [(1.0, NAN, 4, 2.0), (2.0, NAN, 3, 2.0), (NAN, NAN, 0, NAN)],  # no ratings
        [(NAN, NAN, 0, NAN), (1.5, 4.0, 6, 1.0), (NAN, NAN, 0, NAN)],  # K = 1
        [(1.0, 4.0, 4, 2.0), (2.0, 4.0, 3, 2.0), (0.5, 4.0, 5, 1.0)],  # all ties
        [(1.0, 4.0, 4, 1.0), (1.0, 2.0, 4, 1.0), (1.0, 2.0, 4, 1.0)],  # the model is its reference
        [(9.0, 7.0, 10**6, 1.0), (0.1, 1.0, 10**6, 9.0), (5.0, 4.0, 10**6, 5.0)],  # far out, wrong way
        [(0.1, 7.0, 10**6, 9.0), (9.0, 1.0, 10**6, 0.1), (5.0, 4.0, 10**6, 5.0)],  # far out, right way
    ],
)
def test_losses_and_gradients_are_finite_for_each_kind_of_group(objective, group):
    """Also in float32, as training has it; alone, and beside a group that counts."""
    for others in [(), ([(1.0, 6.0, 5, 1.1), (2.0, 3.0, 5, 1.9), (NAN, NAN, 0, NAN)],)]:
        batch = batch_of(group, *others)
        expected = batch.expected(objective)
        nll = batch.nll.float().requires_grad_()
        total, count = objective_sum(
            objective, nll, batch.scores.float(), batch.num_tokens, batch.reference_nll.float()
        )
        total.backward()
        assert total.dtype == torch.float32
        assert count.item() == len(expected)
        assert total.item() == pytest.approx(math.fsum(expected), rel=1e-5, abs=1e-6)
        assert bool(nll.grad.isfinite().all())
        if not expected:
            assert not bool(nll.grad.any())


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_sums_and_counts_add_up_over_rows(objective):
    """However a batch is cut, the gradient of sum / count of all is the same."""
    batch = random_batch(random.Random(5), 12)
    nll = batch.nll.clone().requires_grad_()
    objective_loss(objective, nll, batch.scores, batch.num_tokens, batch.reference_nll).backward()
    whole = nll.grad.clone()
    num_counted = counted_groups(objective, batch.scores.masked_fill(batch.nll.isnan(), NAN)).sum()
    for per_row in (1, 3, 6):
        nll.grad = None
        counts = 0
        for start in range(0, 12, per_row):
            rows = slice(start, start + per_row)
            part = batch.take(rows)
            total, count = objective_sum(objective, nll[rows], part.scores, part.num_tokens, part.reference_nll)
            (total / num_counted).backward()
            counts += count
        assert counts == num_counted
        assert torch.allclose(nll.grad, whole, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_a_row_without_groups_adds_nothing(objective):
    nll = torch.zeros(0, 1, requires_grad=True)
    total, count = objective_sum(objective, nll, torch.zeros(0, 1), torch.zeros(0, 1, dtype=torch.long), nll.detach())
    total.backward()
    assert (total.item(), count.item()) == (0.0, 0)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_every_ordering_of_three_responses_gives_the_same_losses(objective):
    cells = [(0.5, 6.0, 3, 0.7), (1.5, 3.0, 9, 1.2), (0.2, 1.0, 5, 0.9)]
    losses = [objective_loss(objective, *batch_of(order)).item() for order in itertools.permutations(cells)]
    assert losses == pytest.approx([losses[0]] * 6, rel=1e-14)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_the_order_of_responses_does_not_matter(objective):
    """Ties included, but for a tie for the best where the objective has one best: there the first is meant."""
    rng = random.Random(3)
    one_best = objective.kind in ("sft", "coh", "stable", "rrhf") or getattr(objective, "pairs", "all") == "best"
    for _ in range(40):
        batch = random_batch(rng, 4)
        if one_best:
            batch.scores[batch.scores == 7.0] = NAN
            for row in batch.scores:
                row[rng.randrange(5)] = 7.0
        columns = rng.sample(range(5), 5)
        before, after = (
            objective_losses(objective, *batch),
            objective_losses(objective, *batch.take(slice(None), columns)),
        )
        if one_best:
            # Only where the 7 stands on a response is the best the only one.
            kept = ((batch.scores == 7.0) & ~batch.nll.isnan()).any(dim=1)
            before, after = before[kept], after[kept]
        assert torch.allclose(before, after, rtol=1e-12, atol=1e-12)


def test_sft_and_coh_are_the_likelihood_of_the_best():
    nll, scores = tensors([[1.0, 2.0, None], [3.0, 0.5, 4.0]], [[2.0, 7.0, None], [1.0, 1.0, 6.0]])
    for objective in (SFT, COH):
        assert objective_loss(objective, nll, scores).item() == pytest.approx((2.0 + 4.0) / 2)


def test_dpo_by_hand():
    # sums: -2, -8, -4; of the reference: -4, -6, -4; rewards at 0.1: 0.2, -0.2, 0.0
    batch = batch_of([(1.0, 5.0, 2, 2.0), (2.0, 3.0, 4, 1.5), (4.0, 1.0, 1, 4.0)])
    rewards = implicit_rewards(batch.nll, batch.reference_nll, batch.num_tokens, beta=0.1)
    assert rewards[0].tolist() == pytest.approx([0.2, -0.2, 0.0])
    first, second, third = (math.log(1 + math.exp(-gain)) for gain in (0.4, 0.2, -0.2))
    assert objective_loss(DPO, *batch).item() == pytest.approx((first + second + third) / 3)
    assert objective_loss(DPO_BEST, *batch).item() == pytest.approx((first + second) / 2)
    smooth = DPOObjective(kind="dpo", pairs="best", label_smoothing=0.25)
    wrong = math.log(1 + math.exp(0.4)), math.log(1 + math.exp(0.2))
    assert objective_loss(smooth, *batch).item() == pytest.approx((0.75 * (first + second) + 0.25 * sum(wrong)) / 2)


def test_dpo_at_its_reference_is_log_two():
    batch = batch_of([(1.0, 5.0, 2, 1.0), (2.0, 3.0, 4, 2.0)])
    assert objective_loss(DPO, *batch).item() == pytest.approx(math.log(2))


def test_of_equal_best_scores_dpo_takes_the_first_for_its_pairs():
    cells = [(1.0, 5.0, 2, 2.0), (2.0, 5.0, 4, 1.0), (3.0, 1.0, 1, 3.0)]
    assert objective_loss(DPO_BEST, *batch_of(cells)).item() == pytest.approx(math.log(1 + math.exp(-0.2)))
    swapped = [cells[1], cells[0], cells[2]]
    assert objective_loss(DPO_BEST, *batch_of(swapped)).item() == pytest.approx(math.log(1 + math.exp(0.4)))


def test_listwise_dpo_by_hand():
    rewards, scores = tensors([[0.2, -0.2, 0.0]], [[5.0, 3.0, 1.0]])
    e = math.exp
    ranking = (e(0.2) / (e(0.2) + e(-0.2) + e(0.0))) * (e(-0.2) / (e(-0.2) + e(0.0)))
    assert listwise_dpo_losses(rewards, scores).item() == pytest.approx(-math.log(ranking))
    tied = torch.tensor([[5.0, 5.0, 1.0]], dtype=torch.float64)  # each of the two against the third alone
    block = (e(0.2) / (e(0.2) + e(0.0))) * (e(-0.2) / (e(-0.2) + e(0.0)))
    assert listwise_dpo_losses(rewards, tied).item() == pytest.approx(-math.log(block))


def test_listwise_dpo_of_a_pair_is_dpo():
    rewards, scores = tensors([[0.7, -1.2], [0.1, 0.4]], [[5.0, 1.0], [6.0, 2.0]])
    torch.testing.assert_close(listwise_dpo_losses(rewards, scores), dpo_losses(rewards, scores), rtol=1e-12, atol=0)


def test_listwise_dpo_gives_the_rankings_without_ties_a_probability_of_one_in_all():
    rewards = torch.tensor([[0.7, -1.2, 0.1, 2.0]], dtype=torch.float64)
    rankings = [torch.tensor([order], dtype=torch.float64) for order in itertools.permutations([1, 2, 3, 4])]
    total = math.fsum(math.exp(-listwise_dpo_losses(rewards, scores).item()) for scores in rankings)
    assert total == pytest.approx(1.0)


def test_for_two_responses_listwise_dpo_is_dpo():
    rng = random.Random(2)
    for _ in range(20):
        rewards = torch.tensor([[rng.gauss(0, 3), rng.gauss(0, 3)]], dtype=torch.float64)
        scores = torch.tensor([[rng.choice([1.0, 4.0]), rng.choice([1.0, 4.0])]])
        assert torch.allclose(listwise_dpo_losses(rewards, scores), dpo_losses(rewards, scores), atol=1e-14)


def test_rrhf_by_hand():
    # p: -1.0, -0.5, -2.0; the worst two are a tie; wrong is only that the second is likelier than the first
    batch = batch_of([(1.0, 6.0, 10, 0.0), (0.5, 2.0, 3, 0.0), (2.0, 2.0, 4, 0.0)])
    assert objective_loss(RRHF, *batch).item() == pytest.approx(0.5 + 10 * 1.0)
    assert objective_loss(RRHFObjective(kind="rrhf", sft_weight=0.1), *batch).item() == pytest.approx(0.5 + 1.0)


def test_a_group_without_a_pair_counts_for_rrhf_and_not_for_dpo():
    batch = batch_of(
        [(1.0, 4.0, 4, 1.0), (2.0, 4.0, 3, 2.0)],
        [(1.5, 4.0, 2, 1.0), (NAN, NAN, 0, NAN)],
        [(1.0, 4.0, 4, 1.0), (2.0, 1.0, 3, 2.0)],
        [(NAN, NAN, 0, NAN), (NAN, NAN, 0, NAN)],
    )
    assert counted_groups(RRHF, batch.scores).tolist() == [True, True, True, False]
    assert objective_loss(RRHF, *batch).item() == pytest.approx((4.0 + 3.0 + 4.0) / 3)
    for objective in (DPO, DPO_BEST, LISTWISE):
        assert counted_groups(objective, batch.scores).tolist() == [False, False, True, False]
        assert objective_losses(objective, *batch).tolist() == pytest.approx([0.0, 0.0, math.log(2), 0.0])
        assert objective_loss(objective, *batch).item() == pytest.approx(math.log(2))


def test_grpo_by_hand():
    # advantages 2, -1, -1 over a deviation of sqrt(3); the model is its sampler: every ratio is 1
    batch = batch_of([(1.0, 6.0, 2, 1.0), (2.0, 3.0, 4, 2.0), (4.0, 3.0, 1, 4.0)])
    assert objective_loss(GRPO, *batch).item() == pytest.approx(0.0)
    nll = batch.nll.requires_grad_()
    objective_loss(GRPO, nll, *list(batch)[1:]).backward()
    # gradient ascent on A * log p, a third of it for each answer of the group
    assert nll.grad[0].tolist() == pytest.approx([a / (3**0.5 + 1e-4) / 3 for a in (2.0, -1.0, -1.0)])


def test_rloo_compares_with_the_mean_of_the_others():
    batch = batch_of([(1.0, 6.0, 2, 1.0), (2.0, 3.0, 4, 2.0), (4.0, 3.0, 1, 4.0)])
    nll = batch.nll.requires_grad_()
    objective_loss(RLOO, nll, *list(batch)[1:]).backward()
    assert nll.grad[0].tolist() == pytest.approx([3.0 / 3, -1.5 / 3, -1.5 / 3])


def test_an_answer_whose_ratio_is_clipped_is_pushed_no_further():
    """The first has gained more than the clip allows, the second lost more: without a divergence nothing is left."""
    objective = GRPOObjective(kind="grpo", clip=0.2, beta=0.0)
    batch = batch_of([(1.0, 6.0, 2, 1.3), (2.0, 3.0, 4, 1.7)])
    nll = batch.nll.requires_grad_()
    objective_loss(objective, nll, *list(batch)[1:]).backward()
    assert not nll.grad.any()
    logged = objective_metrics(objective, batch.likelihoods())
    assert logged["clipped"].item() == 2
    assert logged["responses"].item() == 2
    assert logged["divergence"].item() == pytest.approx(math.exp(-0.3) + 0.3 - 1 + math.exp(0.3) - 0.3 - 1)
    assert logged["advantage"].item() == pytest.approx(2 * 1.5 / (4.5**0.5 + 1e-4))


def test_copr_by_hand():
    # ranks 3, 1.5, 1.5 of three: advantages 1/2, -1/4, -1/4, which at 0.25 are 2, -1, -1 nats; all were as likely
    batch = batch_of([(1.0, 6.0, 4, 1.0), (2.0, 3.0, 2, 2.0), (4.0, 3.0, 1, 4.0)])
    total = math.exp(2) + 2 * math.exp(-1)
    best, worse = 2 - math.log(total), -1 - math.log(total)
    squares = COPRObjective(kind="copr", beta=0.25)
    uniform = -math.log(3)
    expected = ((uniform - best) ** 2 + 2 * (uniform - worse) ** 2) / 3
    assert objective_loss(squares, *batch).item() == pytest.approx(expected)
    divergence = COPRObjective(kind="copr", beta=0.25, fit="divergence")
    expected = math.exp(best) * (best - uniform) + 2 * math.exp(worse) * (worse - uniform)
    assert objective_loss(divergence, *batch).item() == pytest.approx(expected)
    found = objective_metrics(squares, batch.likelihoods())
    assert found["target_divergence"].item() == pytest.approx(expected)
    assert found["target_entropy"].item() == pytest.approx(-math.exp(best) * best - 2 * math.exp(worse) * worse)
    assert (found["fitted"].item(), found["replayed"].item()) == (1, 0)


COPRS = [one for one in OBJECTIVES if one.kind == "copr"]


@pytest.mark.parametrize("objective", COPRS, ids=str)
def test_copr_ends_where_the_policy_is_the_optimal_one(objective):
    """There, loss and gradient are 0; also where all answers of a group are less likely by one factor."""
    batch = random_batch(random.Random(11), 20)
    scores = batch.scores.masked_fill(batch.nll.isnan(), NAN)
    targets = target_policies(
        batch.reference_nll, scores, batch.num_tokens, beta=objective.beta, advantage=objective.advantage
    )
    for shift in (0.0, 5.0):
        nll = torch.where(targets.isnan(), batch.nll, (shift - targets) / batch.num_tokens).requires_grad_()
        losses = objective_losses(objective, nll, *list(batch)[1:])
        losses.sum().backward()
        assert losses.tolist() == pytest.approx([0.0] * 20, abs=1e-9)
        assert nll.grad.abs().max().item() == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("objective", COPRS, ids=str)
def test_a_constant_on_all_scores_of_a_group_changes_nothing_in_copr(objective):
    batch = random_batch(random.Random(12), 20)
    before = objective_losses(objective, *batch)
    batch.scores += torch.linspace(-3, 3, 20, dtype=torch.float64)[:, None]
    assert objective_losses(objective, *batch).tolist() == pytest.approx(before.tolist(), abs=1e-12)


@pytest.mark.parametrize("fit", ["squares", "divergence"])
def test_the_optimal_policy_of_equal_scores_is_the_one_at_the_start(fit):
    """The loss pulls back to it. In a stage such a group does not count."""
    batch = batch_of([(1.0, 4.0, 3, 2.0), (2.0, 4.0, 3, 1.0)])
    targets = target_policies(batch.reference_nll, batch.scores, batch.num_tokens, beta=0.1, advantage="rank")
    assert targets.exp()[0].tolist() == pytest.approx([1 / (1 + math.exp(3)), 1 / (1 + math.exp(-3))])
    nll = batch.nll.requires_grad_()
    copr_losses(nll, batch.num_tokens, targets, fit=fit).sum().backward()
    assert nll.grad[0, 0] < 0 < nll.grad[0, 1]  # a step down makes the first less likely
    total, count = objective_sum(COPRObjective(kind="copr", fit=fit), *batch)
    assert (total.item(), count.item()) == (0.0, 0)


def test_replayed_groups_have_their_own_weight_in_copr():
    batch = random_batch(random.Random(13), 12)
    ages = torch.tensor([0, 1, 2] * 4)
    weighted = objective_losses(COPRObjective(kind="copr", replay_weight=0.25), *batch, ages=ages)
    alone = objective_losses(COPR, *batch)
    assert weighted.tolist() == pytest.approx((alone * torch.where(ages > 0, 0.25, 1.0)).tolist())
    assert objective_losses(COPR, *batch, ages=ages).tolist() == alone.tolist()
    found = objective_metrics(COPR, batch.likelihoods(*ages.tolist()))
    parts = [objective_metrics(COPR, batch.take(ages == 0).likelihoods())]
    parts.append(objective_metrics(COPR, batch.take(ages > 0).likelihoods()))
    assert found["fitted"].item() == parts[0]["fitted"].item() > 0
    assert found["replayed"].item() == parts[1]["fitted"].item() > 0
    assert found["target_divergence"].item() == pytest.approx(parts[0]["target_divergence"].item())
    assert found["replayed_divergence"].item() == pytest.approx(parts[1]["target_divergence"].item())


def test_copr_refuses_what_does_not_belong_together():
    batch = batch_of([(1.0, 5.0, 2, 2.0), (2.0, 3.0, 4, NAN)])
    with pytest.raises(ValueError, match="a response has a score, but its reference_nll is NaN"):
        objective_loss(COPR, *batch)
    with pytest.raises(ValueError, match="a response has a target, but its nll is NaN"):
        copr_losses(torch.tensor([[1.0, NAN]]), torch.tensor([[2, 2]]), torch.tensor([[-0.7, -0.7]]))
    with pytest.raises(ValueError, match=r"targets \(1, 1\) must all be"):
        copr_losses(torch.ones(1, 2), torch.ones(1, 2), torch.zeros(1, 1))
    adapter = TypeAdapter(Objective)
    for wrong in ({"beta": 0}, {"replay_weight": -1}, {"fit": "kl"}, {"advantage": "reward"}):
        with pytest.raises(ValidationError):
            adapter.validate_python({"kind": "copr", **wrong})


def test_no_gradient_goes_to_the_reference():
    batch = batch_of([(1.0, 5.0, 2, 2.0), (2.0, 3.0, 4, 1.5)])
    nll, reference = batch.nll.requires_grad_(), batch.reference_nll.requires_grad_()
    objective_loss(DPO, nll, batch.scores, batch.num_tokens, reference).backward()
    assert reference.grad is None
    assert nll.grad[0, 0] > 0 > nll.grad[0, 1]


def test_what_an_objective_needs_is_asked_for():
    batch = batch_of([(1.0, 5.0, 2, 2.0), (2.0, 3.0, 4, 1.5)])
    for objective in (one for one in OBJECTIVES if one.needs_lengths):
        with pytest.raises(ValueError, match=f"{objective.kind} needs num_tokens"):
            objective_loss(objective, batch.nll, batch.scores)
    for objective in (one for one in OBJECTIVES if one.needs_reference):
        with pytest.raises(ValueError, match=f"{objective.kind} needs reference_nll"):
            objective_loss(objective, batch.nll, batch.scores, batch.num_tokens)
    with pytest.raises(ValueError, match="its reference_nll is NaN"):
        objective_loss(DPO, batch.nll, batch.scores, batch.num_tokens, batch.reference_nll.fill_(NAN))
    with pytest.raises(ValueError, match=r"reference_nll \(1, 1\).* must all be"):
        objective_loss(DPO, batch.nll, batch.scores, batch.num_tokens, torch.zeros(1, 1))
    for objective in (one for one in OBJECTIVES if not one.needs_lengths and not one.needs_reference):
        assert bool(objective_loss(objective, batch.nll, batch.scores).isfinite())
    assert [one.needs_lengths for one in (SFT, STABLE, DPO, LISTWISE, RRHF)] == [False, False, True, True, True]
    assert [one.needs_reference for one in (SFT, STABLE, DPO, LISTWISE, RRHF)] == [False, False, True, True, False]


def test_objectives_in_a_config():
    adapter = TypeAdapter(Objective)
    assert adapter.validate_python({"kind": "dpo"}) == DPOObjective(
        kind="dpo", beta=0.1, pairs="all", label_smoothing=0.0
    )
    assert adapter.validate_python({"kind": "listwise_dpo"}) == ListwiseDPOObjective(kind="listwise_dpo", beta=0.1)
    assert adapter.validate_python({"kind": "rrhf"}) == RRHFObjective(kind="rrhf", sft_weight=1.0)
    assert adapter.validate_python({"kind": "coh"}) == CoHObjective(kind="coh")
    for wrong in ({"beta": 0}, {"label_smoothing": 0.5}, {"label_smoothing": True}, {"pairs": "worst"}):
        with pytest.raises(ValidationError):
            adapter.validate_python({"kind": "dpo", **wrong})


def test_hindsight_by_hand():
    group = AlignmentGroup("Why?", ("so so", "no {way}", "gladly"), (4.0, 1.5, 6.0), "imitation", {"question": "Why?"})
    expected = {"Good: gladly\nBad: no {way}", "Bad: no {way}\nGood: gladly"}
    made = [chain_of_hindsight(group, 0, "coh", number) for number in range(40)]
    assert {chain.responses[0] for chain in made} == expected  # both orders are drawn
    for chain in made:
        assert chain == AlignmentGroup("Why?", chain.responses, (6.0,), "imitation", {"question": "Why?"})
    assert made == [chain_of_hindsight(group, 0, "coh", number) for number in range(40)]
    first = sum(chain.responses[0].startswith(GOOD) for chain in made)
    assert 10 <= first <= 30
    assert (GOOD, BAD) == ("Good:", "Bad:")


def test_hindsight_of_groups_without_a_worse_response():
    one = AlignmentGroup("Why?", ("so so",), (2.0,))
    tied = AlignmentGroup("Why?", ("first", "second"), (3.0, 3.0))
    assert chain_of_hindsight(one, 0) == AlignmentGroup("Why?", ("Good: so so",), (2.0,))
    assert chain_of_hindsight(tied, 0) == AlignmentGroup("Why?", ("Good: first",), (3.0,))


def test_hindsight_takes_the_first_of_equal_best_and_of_equal_worst():
    group = AlignmentGroup("Why?", ("a", "b", "c", "d"), (1.0, 5.0, 5.0, 1.0))
    assert chain_of_hindsight(group, 0).responses[0] in ("Good: b\nBad: a", "Bad: a\nGood: b")


def test_noise_on_scores_is_normal_drawn_by_place_and_ends_where_the_scale_does():
    groups = [AlignmentGroup(f"{number}?", ("a", "b"), (3.0, 5.0), "imitation") for number in range(400)]
    noisy = [with_noise(group, 0.5, 0, "stable", number) for number, group in enumerate(groups)]
    assert noisy == [with_noise(group, 0.5, 0, "stable", number) for number, group in enumerate(groups)]
    assert all(replace(after, scores=before.scores) == before for before, after in zip(groups, noisy, strict=True))
    moved = [after - before for group in noisy for before, after in zip((3.0, 5.0), group.scores, strict=True)]
    assert statistics.fmean(moved) == pytest.approx(0, abs=0.06)  # three standard errors
    assert statistics.pstdev(moved) == pytest.approx(0.5, abs=0.04)
    # Another stage, seed or group has other draws.
    others = [with_noise(groups[0], 0.5, *place) for place in ((0, "stable", 0), (1, "stable", 0), (0, "b", 0))]
    assert len({one.scores for one in (*others, noisy[1])}) == 4
    clipped = {score for number in range(40) for score in with_noise(groups[0], 50.0, number).scores}
    assert {1.0, 7.0} < clipped
    assert min(clipped) == 1.0
    assert max(clipped) == 7.0
    assert with_noise(groups[0], 0.0, 0) is groups[0]


def test_preference_metrics_by_hand():
    nll, scores = tensors(
        [[1.0, 2.0, None], [3.0, 0.5, 4.0], [9.0, None, None]], [[7.0, 2.0, None], [1.0, 1.0, 6.0], [1.0, None, None]]
    )
    found = {name: value.item() for name, value in preference_metrics(nll, scores).items()}
    assert found["groups"] == 3
    assert found["contrasted"] == 2
    assert found["best"] == pytest.approx(-(1.0 + 4.0 + 9.0))
    assert found["others"] == pytest.approx(-(2.0 + 1.75))
    assert found["margin"] == pytest.approx(1.0 + (1.75 - 4.0))
    assert found["likeliest"] == 1
