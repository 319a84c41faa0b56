"""From which distance on agents recall, and what is said where their memory would do nothing."""

import logging
from collections import Counter

import numpy as np
import pytest
from actors import PRIOR, QUESTIONS, interaction
from msgspec.structs import replace

from salign.config import SocietySection
from salign.errors import ConfigError
from salign.records import Recalled
from salign.society import recall as module
from salign.society import sources
from salign.society.check import check_society
from salign.society.embedders import embed
from salign.society.recall import check_recall, draw_samples, question_table
from salign.society.recalls import Recalls, recalls_of
from salign.society.sources import Exemplar

EVERYDAY = sources.load(SocietySection().prior)
ASKED = sources.questions(SocietySection().questions)
OTHERS = [
    f"what would you say to a {who} who {what}?" for who in ("friend", "boss", "child") for what in ("lies", "steals")
]


def society_of(**settings) -> SocietySection:
    return SocietySection(**settings)


# --- the threshold -------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.4, 0.6, 0.9])
def test_the_threshold_is_that_of_a_search_through_every_sample(share):
    society = society_of(recall_share=share, populations=["half_half"])
    table, recall = question_table(society, 3, ASKED, EVERYDAY)
    samples = draw_samples(society, 3, table.questions, len(ASKED), EVERYDAY)
    vectors = embed(society.embedder, table.questions)
    similarity = (vectors @ vectors.T).toarray()
    nearest = np.array([1 - similarity[one.question, one.memory].max() for one in samples])
    assert (nearest < recall.max_distance).mean() == pytest.approx(share, abs=0.02)
    assert (nearest < recall.max_distance - 2e-4).mean() <= share
    assert table.max_distance == recall.max_distance
    for label in ("good", "bad"):
        of_label = [n < recall.max_distance for n, one in zip(nearest, samples, strict=True) if one.label == label]
        assert recall.expected_initial_share[label] == pytest.approx(np.mean(of_label), abs=1e-4)


@pytest.mark.parametrize(("scale", "at_once"), [(0.05, 1.0), (1.0, 0.0)])
def test_however_close_an_embedder_puts_questions_as_many_are_recalled(scale, at_once, monkeypatch):
    """Of an embedder that puts all questions into one narrow cone, every pair is under 0.3; of another, none is."""
    names = tuple(f"question {number}" for number in range(200))
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(200, 16)) * scale + np.eye(16)[0] * (1 - scale)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    monkeypatch.setattr(module, "embeddings_of", lambda *_: rows.astype(np.float32))
    prior = [Exemplar(name, "answer", "good") for name in names[100:]]
    society = society_of(populations=["all_good"], num_initial_memories=20)
    _, recall = question_table(society, 0, names[:100], prior)
    assert recall.expected_initial_share == {"good": pytest.approx(0.9, abs=0.02)}
    pairs = 1 - rows[:100] @ rows[100:].T
    assert recall.pair_share == pytest.approx((pairs < recall.max_distance).mean(), abs=0.05)
    fixed = question_table(society.model_copy(update={"max_recall_distance": 0.3}), 0, names[:100], prior)[1]
    assert (fixed.max_distance, fixed.recall_share) == (0.3, None)
    assert fixed.expected_initial_share["good"] == pytest.approx(at_once, abs=0.1)


def test_what_has_nothing_in_common_is_never_recalled():
    _, recall = question_table(society_of(num_initial_memories=4, recall_share=1.0), 0, QUESTIONS, PRIOR)
    assert recall.max_distance == 1.0
    assert set(recall.expected_initial_share.values()) == {0.0}


def test_the_threshold_follows_from_config_and_seed_alone():
    society = society_of()
    assert question_table(society, 0, ASKED, EVERYDAY)[1] == question_table(society, 0, ASKED, EVERYDAY)[1]
    drawn = [draw_samples(society, seed, ASKED, len(ASKED), EVERYDAY)[0].question for seed in range(20)]
    assert len(set(drawn)) > 10


def test_a_share_of_nothing_recalls_nothing():
    assert question_table(society_of(recall_share=0.0), 0, ASKED, EVERYDAY)[1].max_distance == 0.0


def test_who_starts_with_nothing_recalls_own_answers_to_similar_questions():
    _, recall = question_table(society_of(num_initial_memories=0), 0, ASKED, [])
    assert recall.expected_initial_share == {}
    assert 0.5 < recall.max_distance < 1.0


def test_without_memory_nothing_is_embedded(monkeypatch):
    monkeypatch.setattr(module, "embeddings_of", None)
    assert question_table(society_of(without=["memory"]), 0, ASKED, EVERYDAY)[1] is None


def test_the_launch_foresees_what_a_shard_measures():
    society = society_of(questions={"kind": "everyday"}, num_initial_memories=20)
    asked = [*ASKED[:40], *OTHERS]
    _, measured = question_table(society, 5, asked, EVERYDAY)
    assert module.foresee(society, 5, asked, EVERYDAY)[1] == measured


# --- what is said before the run -----------------------------------------------------------------


def test_a_society_that_would_not_recall_is_refused():
    check_recall(society_of(max_recall_distance=0.3), 0, ASKED, EVERYDAY)  # three in ten questions are remembered ones
    with pytest.raises(ConfigError, match=r"'bad' would recall what they start with in 0.0% .*max_recall_distance"):
        check_recall(society_of(max_recall_distance=0.3), 0, OTHERS, EVERYDAY)
    unasked = {"gates": {"min_initial_recall_share": 0}}, {"without": ["memory"]}, {"num_initial_memories": 0}
    for settings in unasked:
        check_recall(society_of(max_recall_distance=0.3, **settings), 0, OTHERS, EVERYDAY)
    check_recall(society_of(), 0, OTHERS, EVERYDAY)


@pytest.mark.parametrize(
    ("settings", "questions", "said"),
    [
        ({}, ASKED, None),
        ({"num_initial_memories": 170}, ASKED, "starts with the question itself in memory in 9"),
        ({}, OTHERS, "meets 6 questions in up to 50 rounds"),
        ({"max_rounds": 6}, OTHERS, None),
        ({"without": ["memory"]}, OTHERS, None),
    ],
)
def test_a_memory_that_only_looks_up_is_warned_of(settings, questions, said, caplog):
    with caplog.at_level(logging.WARNING):
        check_recall(society_of(**settings), 0, questions, EVERYDAY)
    if said is None:
        assert not caplog.records
    else:
        assert "exact look-up" in caplog.text
        assert said in caplog.text


def test_a_population_without_a_world_is_named(caplog):
    check_society(society_of(populations=["all_good", "all_bad"], num_worlds=2), 0)
    assert "no world" not in caplog.text
    check_society(society_of(populations=["all_good", "all_bad"]), 0)
    assert "there is no world of all_bad" in caplog.text


def test_a_part_that_is_nobody_of_a_graph_in_a_file_is_refused(tmp_path):
    path = tmp_path / "links.txt"
    path.write_text("0 1\n1 2\n")
    settings = {"topology": {"kind": "edges", "path": str(path)}, "audience_size": 2}
    check_society(society_of(mixture=[{"name": "few", "share": 0.4}], **settings), 0)
    with pytest.raises(ConfigError, match=r"society.mixture: the share 0.1 of few rounds to no agent of 3"):
        check_society(society_of(mixture=[{"name": "few", "share": 0.1}], **settings), 0)


# --- counts --------------------------------------------------------------------------------------


def recalled(source: str, distance: float):
    return interaction(recalled=Recalled("q", "a", source, distance)).turn("draft")


def test_recalls_are_counted_by_source_and_distance():
    counts = Recalls()
    for turn in (recalled("initial", 0.1), recalled("initial", 0.4), recalled("own", 0.0)):
        counts.add(turn)
    counts.add(replace(recalled("own", 0.0), recalled=None))
    assert counts.figures() == {
        "num_turns": 4,
        "initial_share": 0.5,
        "own_share": 0.25,
        "broadcast_share": 0.0,
        "mean_distance": pytest.approx(0.1667),
        "median_distance": 0.1,
        "heard_share": 0.0,
        "num_tokens_left_out": 0,
    }
    assert Recalls().figures() == dict.fromkeys(counts.figures()) | {"num_turns": 0, "num_tokens_left_out": 0}


def test_parts_of_recalls_add_up_in_any_order():
    turns = [recalled(source, distance / 100) for source in ("initial", "own") for distance in range(40)]
    whole = Recalls()
    for turn in turns:
        whole.add(turn)
    merged = Recalls()
    for start in (60, 0, 20, 40):
        part = Recalls()
        for turn in turns[start : start + 20]:
            part.add(turn)
        merged.merge(part)
    assert merged == whole
    assert merged.distances == Counter(dict.fromkeys(whole.distances, 1))


def test_a_record_has_its_recalls_by_round_and_role():
    near = Recalled("q", "a", "initial", 0.5)
    figures = recalls_of(
        [interaction(round=1, recalled=near), interaction(round=2), interaction(round=2, recalled=None)],
        ("draft", "feedback"),
    )
    drafts, feedback = figures.figures()["draft"], figures.figures()["feedback"]
    assert (drafts["num_turns"], feedback["num_turns"]) == (3, 6)
    assert [drafts["rounds"][number]["initial_share"] for number in "12"] == [1.0, 0.0]
    assert [drafts["rounds"][number]["own_share"] for number in "12"] == [0.0, 0.5]
    assert feedback["initial_share"] == 0.5
