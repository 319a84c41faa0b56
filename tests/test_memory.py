"""What agents remember, and what they are reminded of."""

import itertools
import random
import threading
import time

import numpy as np
import pytest
from waits import wait_until

from salign import locks
from salign.config import HashingEmbedder, TransformersEmbedder
from salign.society import memory as module
from salign.society.embedders import embed
from salign.society.memory import InternalMemory, Memory, QuestionTable, embeddings_of

SISTER = "How do I apologise to my sister after a fight?"
BROTHER = "How do I apologise to my brother after a fight?"
TAXES = "Should everybody pay taxes?"


def table_of(*questions: str, max_distance: float = 0.9) -> QuestionTable:
    return QuestionTable(questions, embed(HashingEmbedder(), questions), max_distance)


TABLE = table_of(SISTER, BROTHER, TAXES)


def nearest(table: QuestionTable, question: int) -> tuple[int, ...]:
    """The questions under the table's largest distance, as an agent that remembers all would be reminded of them."""
    left, found = set(range(len(table.questions))), []
    while (memory := InternalMemory(dict.fromkeys(left, "")).recall(table, question, 0)) is not None:
        found.append(memory.question)
        left.remove(memory.question)
    return tuple(found)


def shown(memory: Memory | None) -> tuple[int, str] | None:
    return None if memory is None else (memory.question, memory.answer)


def recall(memory: InternalMemory, question: str, after_round: int, table: QuestionTable = TABLE):
    """What is remembered of a question: question and answer."""
    found = memory.recall(table, table.number[question], after_round)
    return None if found is None else (table.questions[found[0]], found[1])


def memory_of(*answers: tuple[str, str], table: QuestionTable = TABLE) -> InternalMemory:
    return InternalMemory({table.number[question]: answer for question, answer in answers})


def remember(memory: InternalMemory, question: str, answer: str, round_: int, **how) -> None:
    memory.remember(TABLE.number[question], answer, round_, **how)


# --- which questions are similar -----------------------------------------------------------------


def test_the_questions_of_a_table_are_numbered():
    assert table_of("b", "a").number == {"b": 0, "a": 1}


def test_a_question_is_nearest_to_itself():
    assert nearest(TABLE, 0) == (0, 1)  # taxes have nothing to do with it
    assert nearest(TABLE, 1) == (1, 0)
    assert nearest(TABLE, 2) == (2,)


def test_the_threshold_is_exclusive():
    # {alpha, beta, alpha beta} and {alpha, beta, gamma, alpha beta, beta gamma}
    distance = round(1 - 3 / (3 * 5) ** 0.5, 5)
    pair = ("alpha beta", "alpha beta gamma")
    assert nearest(table_of(*pair, max_distance=distance), 0) == (0,)
    assert nearest(table_of(*pair, max_distance=distance + 1e-5), 0) == (0, 1)
    assert nearest(table_of(*pair, max_distance=0), 0) == ()  # no question is nearer than 0, not even itself
    assert nearest(table_of(*pair).within(0), 0) == ()
    assert InternalMemory({1: ""}).recall(table_of(*pair), 0, 0).distance == distance


def test_of_questions_equally_near_the_first_of_the_table_comes_first():
    assert nearest(table_of("alpha one", "beta two", "alpha beta", max_distance=1), 2) == (2, 0, 1)
    assert nearest(table_of("beta two", "alpha one", "alpha beta", max_distance=1), 2) == (2, 0, 1)


@pytest.mark.parametrize(("max_product", "max_kept"), [(1, 10**6), (100, 10**6), (1 << 22, 10**6), (100, 10)])
@pytest.mark.parametrize("max_distance", [0.2, 0.55, 2.0])
def test_retrieval_is_that_of_a_search_through_all_known_questions(max_product, max_kept, max_distance, monkeypatch):
    """Few words, so that many questions are equally near; asked in any order, in blocks of any size, kept or not."""
    monkeypatch.setattr(module, "MAX_PRODUCT", max_product)
    monkeypatch.setattr(module, "MAX_KEPT", max_kept)
    generator = random.Random(7)
    words = "who what you can say do not".split()
    texts = {" ".join(generator.choices(words, k=generator.randint(1, 5))) for _ in range(60)}
    questions = sorted(texts, key=lambda text: (len(text), text[::-1]))
    table = table_of(*questions, max_distance=max_distance)
    vectors = embed(HashingEmbedder(), questions).toarray()
    distances = np.round(1 - vectors @ vectors.T, 5)
    assert len(np.unique(distances[0])) < len(questions) / 2
    found_nothing = 0
    for _ in range(300):
        asked = generator.randrange(len(questions))
        known = generator.sample(range(len(questions)), generator.randint(0, 12))
        initial = known[: len(known) // 2]
        memory = InternalMemory({number: f"initial {number}" for number in initial})
        for number in known[len(known) // 2 :]:
            memory.remember(number, f"own {number}", 1)
        nearest = min(known, key=lambda number: (distances[asked, number], number), default=None)
        expected = None
        if nearest is not None and distances[asked, nearest] < max_distance:
            expected = nearest, f"{'initial' if nearest in initial else 'own'} {nearest}"
        assert shown(memory.recall(table, asked, 1)) == expected
        found_nothing += expected is None
    assert 0 < found_nothing < 300


@pytest.mark.parametrize("max_kept", [10**6, 1])
def test_distances_from_questions_in_words_are_those_from_their_numbers(max_kept, monkeypatch):
    monkeypatch.setattr(module, "MAX_KEPT", max_kept)
    table = table_of(SISTER, BROTHER, TAXES)
    by_number = table.distances(0, np.asarray([2, 0, 1], np.int32))
    assert table.between(0, [TAXES, SISTER, BROTHER]) == by_number.tolist()
    assert table.between(0, []) == []


def test_embeddings_of_a_model_are_had_once_for_all_that_start_in_a_folder(tmp_path, monkeypatch):
    asked = []

    def embedded(section, texts):
        asked.append((section, tuple(texts)))
        return np.eye(len(texts), dtype=np.float32)

    monkeypatch.setattr(module, "embed", embedded)
    section = TransformersEmbedder(kind="transformers", model="some/model")
    found = [embeddings_of(section, (SISTER, TAXES), tmp_path) for _ in range(3)]
    assert asked == [(section, (SISTER, TAXES))]
    assert all((embeddings == np.eye(2)).all() for embeddings in found)
    other = section.model_copy(update={"model": "another/model"})
    for changed in ((other, (SISTER, TAXES)), (section, (TAXES, SISTER)), (section, (SISTER,))):
        embeddings_of(*changed, tmp_path)
    assert len(asked) == 4
    assert not list(tmp_path.glob("*.part"))


def test_of_those_that_start_together_one_asks_the_model_and_the_others_wait_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE_S", 0.0)
    sleep, waits = time.sleep, threading.Event()
    monkeypatch.setattr(time, "sleep", lambda seconds: (waits.set(), sleep(seconds)))
    section, found, asked = TransformersEmbedder(kind="transformers", model="some/model"), [], []
    second = threading.Thread(target=lambda: found.append(embeddings_of(section, (SISTER, TAXES), tmp_path)))

    def embedded(_, texts):
        asked.append(texts)
        second.start()
        wait_until(lambda: waits.is_set() or not second.is_alive())
        return np.eye(len(texts), dtype=np.float32)

    monkeypatch.setattr(module, "embed", embedded)
    found.append(embeddings_of(section, (SISTER, TAXES), tmp_path))
    second.join()
    assert len(asked) == 1
    assert len(found) == 2


# --- what is remembered --------------------------------------------------------------------------


def test_an_empty_memory_recalls_nothing():
    assert recall(InternalMemory({}), SISTER, after_round=9) is None
    assert len(InternalMemory({})) == 0


def test_the_nearest_question_that_is_known_is_recalled():
    memory = memory_of((TAXES, "yes"), (BROTHER, "call him"))
    assert recall(memory, SISTER, 0) == (BROTHER, "call him")
    remember(memory, SISTER, "write to her", 1)
    assert recall(memory, SISTER, 1) == (SISTER, "write to her")
    assert recall(memory, BROTHER, 1) == (BROTHER, "call him")


def test_a_memory_says_where_an_answer_comes_from_and_how_near_its_question_is():
    memory = memory_of((SISTER, "first"), (TAXES, "yes"))
    remember(memory, BROTHER, "call him", 2)
    asked = TABLE.number[SISTER]
    assert memory.recall(TABLE, asked, 2) == Memory(asked, "first", "initial", 0.0)
    distance = memory_of((BROTHER, "")).recall(TABLE, asked, 0).distance
    assert 0 < distance < 0.9
    own = InternalMemory({})
    own.remember(TABLE.number[BROTHER], "call him", 1)
    assert own.recall(TABLE, asked, 1) == Memory(TABLE.number[BROTHER], "call him", "own", distance)
    remember(memory, SISTER, "second", 3)  # of one question, the agent's own answer
    assert memory.recall(TABLE, asked, 3).source == "own"
    assert memory.recall(TABLE, asked, 2).source == "initial"


def test_an_unrelated_question_is_not_recalled():
    assert recall(memory_of((TAXES, "yes")), SISTER, 0) is None


def test_a_memory_is_read_as_it_stood_after_a_round():
    memory = memory_of((SISTER, "first"))
    remember(memory, SISTER, "second", 2)
    remember(memory, SISTER, "third", 3)
    found = [recall(memory, SISTER, after_round) for after_round in range(5)]
    assert found == [(SISTER, text) for text in ("first", "first", "second", "third", "third")]


def test_a_question_answered_later_does_not_hide_an_earlier_one():
    memory = memory_of((BROTHER, "call him"))
    remember(memory, SISTER, "write to her", 2)
    assert recall(memory, SISTER, 1) == (BROTHER, "call him")
    assert recall(memory, SISTER, 2) == (SISTER, "write to her")


def test_a_memory_has_one_answer_to_a_question():
    memory = memory_of((SISTER, "first"), (TAXES, "yes"))
    for round_ in (1, 2):
        remember(memory, SISTER, "again", round_)
        remember(memory, BROTHER, "call him", round_)
    assert len(memory) == 3


def test_a_replaced_answer_is_kept_as_long_as_it_may_be_read_and_no_longer():
    memory = memory_of()
    for round_ in range(1, 20):
        read_after = max(0, round_ - 3)
        remember(memory, SISTER, f"of round {round_}", round_, read_after=read_after)
        for after in range(max(1, read_after), round_ + 2):
            assert recall(memory, SISTER, after) == (SISTER, f"of round {min(after, round_)}")
    assert memory.num_versions == 4  # of rounds 16 to 19
    remember(memory, SISTER, "of round 20", 20, read_after=20)
    assert memory.num_versions == 1
    assert recall(memory, SISTER, 20) == (SISTER, "of round 20")


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_dropped_nobody_sees_a_difference(seed):
    """Agents answer this and that; what may still be read is what all versions together would give."""
    generator = random.Random(seed)
    sparing, complete = memory_of((TAXES, "yes")), memory_of((TAXES, "yes"))
    read_after = 0
    for round_ in range(1, 30):
        read_after = generator.randint(read_after, round_ - 1)
        if generator.random() < 0.8:  # an interaction that failed leaves nothing
            question = generator.choice(TABLE.questions)
            remember(sparing, question, f"of round {round_}", round_, read_after=read_after)
            remember(complete, question, f"of round {round_}", round_)
        for question, after in itertools.product(TABLE.questions, range(read_after, round_ + 1)):
            assert recall(sparing, question, after) == recall(complete, question, after)
        assert len(sparing) == len(complete)
    assert sparing.num_versions < complete.num_versions


def test_what_agents_start_with_is_shared_and_what_they_say_is_not():
    answer = "".join(["write", " to her"])  # no constant, which would be one in any case
    one, other = memory_of((SISTER, answer)), memory_of((SISTER, answer))
    assert recall(one, SISTER, 0)[1] is answer
    assert recall(other, SISTER, 0)[1] is answer
    remember(one, SISTER, "call her", 1)
    remember(one, TAXES, "yes", 1)
    assert (len(one), len(other)) == (2, 1)
    assert recall(other, SISTER, 1) == (SISTER, answer)
    assert recall(other, TAXES, 1) is None
