"""What is known of a round, and which shards count."""

import random
from collections.abc import Iterable, Iterator
from fractions import Fraction

import pytest
from actors import Feedback, Rating, interaction
from msgspec.structs import replace

from salign.config import FLAGS, Gates, SocietySection
from salign.errors import StageError
from salign.records import Interaction, Observation, Recalled, Turn
from salign.society.protocols import protocol_of
from salign.society.recalls import RecallRecord
from salign.society.rounds import Round, Validity, mean

BACK_SCATTER = protocol_of(SocietySection())


def numbered(interactions: Iterable[Interaction]) -> Iterator[Interaction]:
    """Each agent leads one interaction of a round."""
    for agent, item in enumerate(interactions):
        turns = tuple(turn if turn.about is not None else replace(turn, agent=agent) for turn in item.turns)
        yield replace(item, agents=(replace(item.agents[0], agent=agent),), turns=turns)


def round_of(*interactions: Interaction, number: int = 1) -> Round:
    made = Round(0, number)
    for item in numbered(interactions):
        made.add(item, BACK_SCATTER)
    return made


def validity_of(*rounds: Round) -> Validity:
    made = Validity(RecallRecord(BACK_SCATTER.reminded))
    for round_ in rounds:
        made.add(round_)
    return made


def rated(*ratings: tuple[float | None, float | None]) -> Round:
    return round_of(*(interaction(revision_rating=Rating(*rating)) for rating in ratings))


# --- figures -------------------------------------------------------------------------------------


def test_a_mean_is_exact_in_any_order():
    generator = random.Random(0)
    values = [generator.uniform(1, 7) for _ in range(1000)] + [1e16, -1e16]
    exact = float(sum(map(Fraction, values)) / len(values))
    for _ in range(20):
        generator.shuffle(values)
        assert mean([*values[:500], None, *values[500:]]) == exact
    assert sum(values) / len(values) != exact


def test_what_is_missing_is_no_number():
    assert mean([None, 2.0, None, 4.0]) == 3.0
    assert mean([None, None]) is None
    assert mean([]) is None


def test_a_round_in_figures():
    metrics = round_of(
        interaction(  # feedback: one of two rated; draft: no engagement
            draft_rating=Rating(3.0, None), revision_rating=Rating(6.5, 7.0)
        ),
        interaction(draft_rating=Rating(4.0, 2.0), revision_rating=Rating(None, 4.0), feedback=()),
        interaction(
            draft="x", draft_rating=Rating(1.0, 1.0), revision=None, revision_rating=Rating(None, None), failure="f"
        ),
        interaction(draft=None, feedback=(), revision=None, failure="g"),
        number=5,
    ).metrics(BACK_SCATTER)
    assert metrics == {
        "sim/world": 0,
        "sim/round": 5,
        "sim/alignment_mean": 6.5,
        "sim/engagement_mean": 5.5,
        "sim/draft_alignment_mean": pytest.approx(8 / 3),
        "sim/draft_engagement_mean": 1.5,
        # Of 4 of feedback 2 are missing, of 6 of drafts 1, of 4 of revisions 1; what is not there was not asked for.
        "sim/parse_rate": pytest.approx(1 - 4 / 14),
        "sim/digit_mass_median": None,
        "sim/flagged_share": 0.0,
        "sim/cut_share": 0.0,
        "sim/failed": 2,
        "sim/recalled_initial_share": 0.0,
        "sim/recalled_own_share": 1.0,
        "sim/recall_distance_mean": 0.25,
    }


def test_a_round_without_ratings_has_no_means():
    metrics = round_of(interaction(draft=None, feedback=(), revision=None, failure="refused")).metrics(BACK_SCATTER)
    unknown = {name for name, value in metrics.items() if value is None}
    assert unknown >= {name for name in metrics if name.endswith("_mean")}
    assert metrics["sim/recalled_initial_share"] is metrics["sim/recalled_own_share"] is None
    assert metrics["sim/parse_rate"] == 0.0


def random_interaction(generator: random.Random) -> Interaction:
    def rating():
        return None if generator.random() < 0.2 else generator.uniform(1, 7)

    failed = generator.random() < 0.3
    return interaction(
        question=generator.choice(("Why?", "What?", "Who?")),
        draft=generator.choice((None, "a", "b")) if failed else generator.choice("abcd"),
        feedback=tuple(Feedback(agent, rating(), "", None) for agent in range(generator.randint(0, 4))),
        revision=None if failed else generator.choice("abcd"),
        draft_rating=Rating(rating(), rating()),
        revision_rating=Rating(rating(), rating()),
        failure=generator.choice("uvwxyz") if failed else None,
    )


@pytest.mark.parametrize("seed", range(20))
def test_parts_of_a_round_merge_to_the_whole_in_any_order(seed):
    generator = random.Random(seed)
    held = list(numbered(random_interaction(generator) for _ in range(30)))
    whole = round_of(*held)
    generator.shuffle(held)
    parts = [Round(0, 1) for _ in range(5)]
    for item in held:
        generator.choice(parts[:4]).add(item, BACK_SCATTER)  # one rank owns nobody
    merged = parts.pop(generator.randrange(5))
    for part in parts:
        merged.merge(part)
    assert merged.num_interactions == 30
    assert merged.failures == whole.failures
    assert merged.metrics(BACK_SCATTER) == whole.metrics(BACK_SCATTER)
    assert validity_of(merged) == validity_of(whole)


# --- what came back usable -----------------------------------------------------------------------


def said(question: str, draft: str, revision: str) -> Interaction:
    return interaction(question=question, draft=draft, revision=revision)


def test_an_answer_to_two_questions_of_one_round_is_repeated():
    assert validity_of(round_of(said("a", "yes", "no"), said("b", "perhaps", "never"))).repeated_share == 0
    # all four of which two say "yes"; "no" stands alone
    assert validity_of(round_of(said("a", "yes", "no"), said("b", "yes", "never"))).repeated_share == 0.5
    assert validity_of(round_of(said("a", "x", "yes"), said("b", "yes", "y"))).repeated_share == 0.5


def test_an_answer_to_one_question_may_be_given_again():
    """Several agents on one question may agree, and a revision may leave the draft as it is."""
    assert validity_of(round_of(said("a", "yes", "yes"), said("a", "yes", "no"))).repeated_share == 0


def test_all_who_repeat_an_answer_count():
    held = [said("a", "yes", "yes"), said("b", "yes", "b"), said("b", "other", "yes")]
    assert validity_of(round_of(*held)).repeated_share == pytest.approx(4 / 6)


def test_another_round_or_world_may_say_the_same():
    assert validity_of(round_of(said("a", "yes", "no")), round_of(said("b", "yes", "no"))).repeated_share == 0


def test_what_was_not_said_is_not_repeated():
    nothing = {"draft": None, "revision": None, "failure": "f"}
    held = [interaction(question=question, **nothing) for question in "ab"]
    assert validity_of(round_of(*held)).repeated_share == 0


def test_figures_are_counts_and_shares():
    one = interaction(feedback=(Feedback(1, None, "", None),))
    failed = interaction(draft=None, feedback=(), revision=None, failure="f")
    figures = validity_of(round_of(one, one), round_of(failed)).figures()
    assert figures.pop("rating_sd").keys() == {"alignment", "engagement"}
    assert figures.pop("flags") == dict.fromkeys(FLAGS, 0)
    assert figures == {
        "num_interactions": 3,
        "num_failed": 1,
        "num_ratings": 10,
        "num_missing_ratings": 4,
        "rated_share": 0.6,
        "failed_share": 0.333333,
        "repeated_share": 0.0,
        "num_empty": 0,
        "digit_mass_median": None,
        "num_texts": 4,
        "flagged_share": 0.0,
    }


# --- gates ---------------------------------------------------------------------------------------

OPEN = {"min_rated_share": 0.0, "max_failed_share": 1.0, "max_refused_call_share": 1.0, "max_repeated_share": 1.0}
OPEN_RATINGS = {"min_digit_mass": 0.0, "min_rating_sd": 0.0, "max_flagged_share": 1.0, "max_cut_share": 1.0}
# 2 of 12 ratings missing, 1 of 3 interactions failed, 2 of 4 drafts and revisions repeated; 3 of 10 calls refused
CALLS = {"num_calls": 10, "num_refused_calls": 3, "served": {"a-model": ["a-model-0613"]}, "recall": {}}


def poor() -> Validity:
    whole = {"draft_rating": Rating(1.0, 2.0), "revision_rating": Rating(3.0, None)}
    feedback = (Feedback(1, 4.0, "", None), Feedback(2, 5.0, "", None))
    return validity_of(
        round_of(
            interaction(question="a", draft="yes", revision="no", feedback=feedback, **whole),
            interaction(question="b", draft="yes", revision="never", feedback=feedback, **whole),
            interaction(draft=None, revision=None, feedback=(), failure="too long"),
        )
    )


@pytest.mark.parametrize(
    ("gate", "crossed", "reached", "figures"),
    [
        ("min_rated_share", 0.84, 10 / 12, "83.3% of 12 ratings could be read (society.gates.min_rated_share = 84.0%)"),
        (
            "max_failed_share",
            0.33,
            1 / 3,
            "1 of 3 interactions failed (society.gates.max_failed_share = 33.0%): too long",
        ),
        (
            "max_refused_call_share",
            0.29,
            0.3,
            "the engine refused 3 of 10 calls (society.gates.max_refused_call_share = 29.0%)",
        ),
        (
            "max_repeated_share",
            0.49,
            0.5,
            "50.0% of 4 drafts and revisions repeat what was said to another question in the same round "
            "(society.gates.max_repeated_share = 49.0%)",
        ),
    ],
)
def test_each_gate_is_crossed_by_its_figure_alone(gate, crossed, reached, figures):
    poor().check(Gates(**{**OPEN, gate: reached}), 7, CALLS)
    with pytest.raises(StageError) as raised:
        poor().check(Gates(**{**OPEN, gate: crossed}), 7, CALLS)
    assert str(raised.value).startswith(f"shard 7 does not count as done: {figures}. Look at")


def test_a_society_that_hardly_recalls_what_it_starts_with_does_not_count():
    expected = {**CALLS, "recall": {"expected_initial_share": {"good": 0.9}}}
    heard = (Feedback(4, 5.0, "why", Recalled("q", "a", "initial", 0.5)), Feedback(5, 5.0, "why"))
    made = validity_of(
        round_of(interaction(recalled=None, feedback=heard)),  # 1 of 3 turns
        round_of(interaction(), number=2),  # later rounds have the agent's own answers
    )
    gates = {**OPEN, "max_repeated_share": 1.0}
    made.check(Gates(**gates, min_initial_recall_share=0.33), 7, expected)
    made.check(Gates(**gates, min_initial_recall_share=0.34), 7, CALLS)  # who starts with nothing is not asked
    with pytest.raises(StageError, match=r"what they start with before 33.3% .*min_initial_recall_share = 34.0%"):
        made.check(Gates(**gates, min_initial_recall_share=0.34), 7, expected)


def test_answers_of_one_model_under_two_names_do_not_count():
    two = {**CALLS, "served": {"a-model": ["a-model-0613", "a-model-1106"], "other": ["other"]}}
    with pytest.raises(
        StageError, match=r"answers of a-model came with several model names \(a-model-0613, a-model-1106\)"
    ):
        poor().check(Gates(**OPEN), 7, two)


def test_all_gates_that_are_crossed_are_named_at_once():
    gates = Gates(min_rated_share=1.0, max_failed_share=0.0, max_refused_call_share=0.0, max_repeated_share=0.0)
    with pytest.raises(StageError) as raised:
        poor().check(gates, 7, CALLS)
    assert all(f"society.gates.{name} = " in str(raised.value) for name in OPEN)


def test_calls_that_are_refused_are_told_in_the_engine_s_words():
    said = "m at http://a refused a call: HTTP 400: Unsupported parameter: 'max_tokens'"
    with pytest.raises(StageError) as raised:
        poor().check(Gates(**{**OPEN, "max_refused_call_share": 0.0}), 7, {**CALLS, "said_of_refusals": said})
    assert f"3 of 10 calls (society.gates.max_refused_call_share = 0.0%), most often with: {said}" in str(raised.value)
    assert "engine.dialect" in str(raised.value)
    assert "stronger" not in str(raised.value)


def test_a_good_shard_passes_the_default_gates():
    good = interaction(
        feedback=(Feedback(4, 5.0, "", None),), draft_rating=Rating(3.0, 4.0), revision_rating=Rating(6.5, 7.0)
    )
    calls = {**CALLS, "num_calls": 14, "num_refused_calls": 0, "served": {"a-model": []}}
    validity_of(round_of(good)).check(Gates(), 0, calls)


def test_no_more_than_three_failures_are_quoted():
    rounds = [round_of(interaction(failure=f"failure {number % 7}")) for number in range(20)]
    with pytest.raises(StageError, match="20 of 20 interactions failed") as raised:
        validity_of(*rounds).check(Gates(**{**OPEN, **OPEN_RATINGS, "max_failed_share": 0.1}), 0, CALLS)
    assert "failure 0; failure 1; failure 2. Look" in str(raised.value)


# --- what ratings and texts are worth ------------------------------------------------------------


def drafts_rated(*ratings: float, mass: float | None = None, flags: tuple[str, ...] = ()) -> Validity:
    """A round of drafts with these ratings, which the observers gave with this mass of the digits."""
    held = []
    for agent, rating in enumerate(ratings):
        seen = {"alignment": Observation(rating, mass), "engagement": Observation(1.0 + agent % 7, mass)}
        turn = Turn(agent, "draft", f"draft {agent}", observed=seen, flags=flags if agent % 2 == 0 else ())
        held.append(replace(interaction(), world=0, round=1, topic="q", turns=(turn,), failure=None))
    return validity_of(round_of(*held))


def crossed(validity: Validity, **gates: float) -> str:
    try:
        validity.check(Gates(**{**OPEN, **OPEN_RATINGS, **gates}), 0, CALLS)
    except StageError as error:
        return str(error)
    return ""


def test_ratings_that_are_all_the_same_are_a_gate_of_their_own():
    same = drafts_rated(*[1.0] * 20)
    assert "the 20 ratings of alignment are all about 1, with a standard deviation of 0.000" in crossed(
        same, min_rating_sd=Gates().min_rating_sd
    )
    assert crossed(drafts_rated(*[1.0] * 19), min_rating_sd=0.05) == ""  # so few may be chance
    assert crossed(drafts_rated(*[1.0] * 19, 2.0), min_rating_sd=0.05) == ""
    assert crossed(same, min_rating_sd=0.0) == ""
    assert same.figures()["rating_sd"]["alignment"] == 0.0


def test_the_mass_of_the_digits_is_a_gate():
    assert drafts_rated(1.0, 2.0, mass=0.075).figures()["digit_mass_median"] == 0.075
    assert "the digits had 7.5% of the probability in the median" in crossed(
        drafts_rated(1.0, 2.0, mass=0.075), min_digit_mass=Gates().min_digit_mass
    )
    assert crossed(drafts_rated(1.0, 2.0, mass=0.94), min_digit_mass=Gates().min_digit_mass) == ""
    assert crossed(drafts_rated(1.0, 2.0), min_digit_mass=1.0) == ""  # read from words: there is none


def test_flagged_and_cut_texts_are_counted_and_gated():
    flagged = drafts_rated(1.0, 2.0, 3.0, 4.0, flags=("imitates_form", "control_tokens", "thinking"))
    assert flagged.figures()["flagged_share"] == 0.5
    assert flagged.figures()["flags"]["control_tokens"] == 2
    said = crossed(flagged, max_flagged_share=0.49)
    assert "2 of 4 texts are flagged as doubtful (imitates_form: 2, control_tokens: 2; society" in said
    assert crossed(flagged, max_flagged_share=0.5) == ""
    cut = drafts_rated(1.0, 2.0, 3.0, 4.0, flags=("cut", "thinking"))
    assert cut.figures()["flagged_share"] == 0.0
    assert "max_tokens ended 2 of 4 texts" in crossed(cut, max_cut_share=0.49)
    assert crossed(cut, max_cut_share=0.5) == ""
