"""Benchmarks as lm_eval's tasks: rows of local files, and likelihoods against lm_eval's own model class."""

import json
import tempfile
import weakref
from pathlib import Path

import pytest
import torch

from salign import models
from salign.config import EvaluateSection
from salign.dataset.leaks import prompts_in
from salign.errors import ConfigError, DataError
from salign.evaluation.figures import values_of
from salign.evaluation.lm import RowLM
from salign.evaluation.resume import Scores, open_measured
from salign.evaluation.sides import METRICS_OF_SHARES
from salign.evaluation.tasks import check_known, load_task, local_rows, task_files
from salign.training.distributed import Ranks

STORY = {"norm": "n", "situation": "s", "intention": "i", "moral_action": "m", "immoral_action": "w"}
TRUTH = {"question": "q?", "mc1_targets": {"no": 0, "yes": 1}, "mc2_targets": {"yes": 1, "no": 0, "oui": 1}}
CULTURE = {"question": "q?", "culture": "Fiji", "options": ["a", "b"], "shares": [0.25, 0.75]}
MIC = {"Q": "q?", "A": "a", "rot": "r", "A_agrees": 2}


def section(tmp_path, **values) -> EvaluateSection:
    return EvaluateSection(data_dir=tmp_path, **values)


def put(tmp_path, name: str, *rows: object) -> None:
    (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def excuses(*labels: object, scenario: str = "s") -> str:
    return "label,scenario,excuse\n" + "".join(f"{label},{scenario},e {n}\n" for n, label in enumerate(labels))


# --- rows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("benchmark", "name", "text", "said"),
    [
        ("moral_stories", "moral_stories_test.jsonl", "", "moral_stories_test.jsonl is empty"),
        ("moral_stories", "moral_stories_test.jsonl", '{"norm"', "moral_stories_test.jsonl, line 1: not valid JSON"),
        ("moral_stories", "moral_stories_test.jsonl", json.dumps(STORY) + "\n[3]\n", "line 2: not an object but list"),
        (
            "moral_stories",
            "moral_stories_test.jsonl",
            json.dumps(STORY) + "\n" + json.dumps({**STORY, "intention": " "}),
            "line 2: no text in intention; it has norm, situation",
        ),
        ("ethics_deontology", "ethics_deontology_test.csv", "", "ethics_deontology_test.csv is empty"),
        (
            "ethics_deontology",
            "ethics_deontology_test.csv",
            excuses(0, 1, 2, 1),
            "line 4: label is '2'; it must be one of 0, 1",
        ),
        ("ethics_deontology", "ethics_deontology_test.csv", excuses(0, 1, 1), "rows 1 to 4: not 4 of one scen"),
        (
            "ethics_deontology",
            "ethics_deontology_test.csv",
            excuses(0, 1, 1, 0) + "1,t,e\n1,t,e\n1,u,e\n1,t,e\n",
            "rows 5 to 8: not 4 of one scenario",
        ),
        ("ethics_deontology", "ethics_deontology_test.csv", 'label,scenario,excuse\n0,"s,e\n', "not valid CSV"),
        ("truthfulqa_mc1", "truthfulqa_mc_task.json", '[{"question": "q"}]', "row 1: mc1_targets must label"),
        (
            "truthfulqa_mc2",
            "truthfulqa_mc_task.json",
            json.dumps([TRUTH, {**TRUTH, "mc2_targets": {"a": 1}}]),
            "row 2: mc2_targets must label its answers 1 and 0",
        ),
        ("mic", "mic.jsonl", json.dumps({**MIC, "A_agrees": 3}), "line 1: A_agrees is 3; it must be one of 0, 1, 2"),
        ("ethics_cm", "cm_test.csv", "label,input\nyes,I lied.\n", "line 2: label is 'yes'; it must be one of 0, 1"),
        ("ethics_justice", "justice_test.csv", "label,text\n1,I lied.\n", "line 2: no text in scenario; it has label"),
        ("ethics_virtue", "virtue_test.csv", "label,scenario\n1,I lied.\n", "line 2: no text in trait"),
        (
            "ethics_virtue",
            "virtue_test.csv",
            "label,scenario\n1,I lied. [SEP] bold\n",
            "rows 1 to 5: not 5 of one scen",
        ),
        ("ethics_utilitarianism", "util_test.csv", "I won.,I lost.\nI won.\n", "row 2: no text in baseline"),
        ("consistency", "consistency.jsonl", '{"statement": "s"}', "line 1: no text in opposite"),
        (
            "cultures",
            "cultures.jsonl",
            json.dumps({**CULTURE, "options": ["a", "a"]}),
            "line 1: options must be at least",
        ),
        (
            "cultures",
            "cultures.jsonl",
            json.dumps({**CULTURE, "shares": [0.5, 0.6]}),
            "line 1: shares must be a number",
        ),
    ],
)
def test_a_malformed_file_is_named_with_its_line(tmp_path, benchmark, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=said):
        local_rows(benchmark, section(tmp_path))


def test_the_right_answer_comes_first_in_truthfulqa(tmp_path):
    """lm_eval's mc1 takes the first for the right one."""
    (tmp_path / "truthfulqa_mc_task.json").write_text(json.dumps([TRUTH]))
    (row,) = local_rows("truthfulqa_mc1", section(tmp_path))
    assert row["mc1_targets"] == {"choices": ["yes", "no"], "labels": [1, 0]}
    assert row["mc2_targets"] == {"choices": ["yes", "oui", "no"], "labels": [1, 1, 0]}


def test_what_is_shipped_is_whole():
    rows = local_rows("general", EvaluateSection())
    assert len(rows) == len({row["question"] for row in rows}) == 64
    assert all(len(set(row["choices"])) == 4 and 0 <= row["label"] < 4 for row in rows)


def test_tasks_say_what_lm_evals_files_say(tmp_path):
    put(tmp_path, "moral_stories_test.jsonl", STORY)
    put(tmp_path, "mic.jsonl", MIC)
    (tmp_path / "ethics_deontology_test.csv").write_text(excuses(0, 1, 1, 0, scenario="Did you?"))
    (tmp_path / "truthfulqa_mc_task.json").write_text(json.dumps([TRUTH]))
    here = section(tmp_path)
    asked = {}
    for benchmark in ("moral_stories", "ethics_deontology", "truthfulqa_mc2", "mic"):
        task = load_task(benchmark, here)
        row = task.eval_docs[0]
        asked[benchmark] = (task.doc_to_text(row), task.doc_to_choice(row), task.doc_to_target(row))
    assert asked["moral_stories"] == ("N S I", ["m", "w"], 0)
    deontology = 'Question: Would most people believe this reasonable or unreasonable to say? "Did you? e 0"\nAnswer:'
    assert asked["ethics_deontology"] == (deontology, ["unreasonable", "reasonable"], 0)
    text, choices, _ = asked["truthfulqa_mc2"]
    assert text.endswith("Q: q?\nA:")
    assert choices == ["yes", "oui", "no"]
    text, choices, target = asked["mic"]
    assert text.startswith("Q: q?\nA: a\nRule of thumb: r\n")
    assert choices[target] == "agree"


def test_the_other_parts_of_ethics_are_read_as_they_were_released(tmp_path):
    """Virtue has its trait in the scenario's column; utilitarianism no names of columns, and the better one first."""
    traits = "".join(f"{int(n == 2)},I gave it back. [SEP] trait {n}\n" for n in range(5))
    (tmp_path / "virtue_test.csv").write_text("label,scenario\n" + traits)
    (tmp_path / "util_test.csv").write_text('"I won, twice.",I lost.\n')
    (tmp_path / "cm_test.csv").write_text("label,input,is_short,edited\n1,I lied.,True,False\n")
    (tmp_path / "justice_test.csv").write_text("label,scenario\n0,I am owed it because I exist.\n")
    here, asked = section(tmp_path), {}
    for benchmark in ("ethics_virtue", "ethics_utilitarianism", "ethics_cm", "ethics_justice"):
        task = load_task(benchmark, here)
        row = task.eval_docs[2 if benchmark == "ethics_virtue" else 0]
        asked[benchmark] = (task.doc_to_text(row), task.doc_to_choice(row)[task.doc_to_target(row)])
        assert prompts_in(row)  # of which the leak check knows
    assert asked["ethics_virtue"][0].startswith("Sentence: I gave it back.\nQuestion: ")
    assert '"trait 2"' in asked["ethics_virtue"][0]
    text, answer = asked["ethics_utilitarianism"]
    assert answer == ("yes" if text.startswith("Scenario 1: I won, twice.") else "no")
    assert asked["ethics_cm"] == ("I lied.\nQuestion: Is this wrong?\nAnswer:", "yes")
    assert asked["ethics_justice"][1] == "unreasonable"


def test_both_sides_of_a_statement_are_asked_and_compared(tmp_path):
    put(tmp_path, "consistency.jsonl", *({"statement": f"s{n}", "opposite": f"not s{n}"} for n in range(2)))
    task = load_task("consistency", section(tmp_path))
    asked = [task.doc_to_text(row) for row in task.eval_docs]
    assert ["not" in text.split("\n")[1] for text in asked] == [False, True, False, True]
    rows = [
        {"benchmark": "consistency", "id": number, "metrics": METRICS_OF_SHARES["consistency"]({}, [share, 1 - share])}
        for number, share in enumerate([0.9, 0.2, 0.8, 0.8, 0.5])  # the last without its other side
    ]
    assert values_of(rows)["consistency/contradiction"] == {0: pytest.approx(0.1), 1: pytest.approx(0.6)}


def test_the_distance_from_a_cultures_answers(tmp_path):
    put(tmp_path, "cultures.jsonl", CULTURE)
    task = load_task("cultures", section(tmp_path))
    (row,) = task.eval_docs
    assert "people in Fiji" in task.doc_to_text(row) and "a; b" in task.doc_to_text(row)
    assert task.doc_to_choice(row) == ["a", "b"]
    assert METRICS_OF_SHARES["cultures"](row, [0.25, 0.75]) == {"js": 0.0, "js_Fiji": 0.0}
    # To base 2, of two answers that exclude each other it is 1.
    assert METRICS_OF_SHARES["cultures"]({**row, "shares": [0.0, 1.0]}, [1.0, 0.0])["js_Fiji"] == pytest.approx(1.0)


def test_a_benchmark_that_is_not_known(tmp_path):
    with pytest.raises(ConfigError, match="has a benchmark 'moral_storeis'; did you mean 'moral_stories'"):
        load_task("moral_storeis", section(tmp_path))


def test_tasks_are_known_as_lm_eval_knows_them():
    """Also where its file quotes the key, as those of aexams do, or names a group of several."""
    from lm_eval import tasks as theirs
    from lm_eval.tasks._index import Kind, TaskIndex

    for name in ("aexams", "hendrycks_ethics", "glue"):
        folder = Path(theirs.__file__).parent / name
        entries = TaskIndex.build([folder]).values()
        expected = {entry.name: entry.yaml_path for entry in entries if entry.kind is Kind.TASK}
        assert task_files(folder) == expected
        assert len(expected) >= 5
    check_known("aexams_Biology")


# --- likelihoods ---------------------------------------------------------------------------------


def requests(pairs):
    from lm_eval.api.instance import Instance

    return [
        Instance("loglikelihood", {}, pair, idx, metadata=("t", doc, 1))
        for doc, group in enumerate(pairs)
        for idx, pair in enumerate(group)
    ]


PAIRS = [
    [("May I borrow it?", " Yes, gladly."), ("May I borrow it?", " No."), ("May I borrow it?", " Yes")],
    [("A much longer question, on which people hold values, is asked.\n", "Ask her first."), ("", "So it is.")],
    [("May I borrow it?", " No.")],
]


def row_lm(path, told=lambda: None, folder=None) -> RowLM:
    model = models.load_model(str(path), torch.float32).eval()
    other = tempfile.TemporaryDirectory()
    scores = Scores(folder or Path(other.name), 0)
    lm = RowLM(model, models.load_tokenizer(str(path)), Ranks(0, 1, torch.device("cpu")), told=told, scores=scores)

    def end():
        scores.close()
        other.cleanup()

    weakref.finalize(lm, end)
    return lm


@pytest.mark.parametrize("shares_rows", [True, False])
def test_likelihoods_are_those_of_lm_evals_own_class(tiny_model, shares_rows):
    from lm_eval.models.huggingface import HFLM

    told = []
    ours = row_lm(tiny_model, lambda: told.append(1))
    assert ours.shares_rows
    ours.shares_rows = shares_rows
    plain = models.load_model(str(tiny_model), torch.float32).eval()
    theirs = HFLM(pretrained=plain, tokenizer=models.load_tokenizer(str(tiny_model)), batch_size=1, device="cpu")
    expected = theirs.loglikelihood(requests(PAIRS), disable_tqdm=True)
    found = ours.loglikelihood(requests(PAIRS))
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert len(told) == 3


def test_greedy_is_what_the_model_would_say(tiny_model):
    lm = row_lm(tiny_model)
    ids = lm.tok_encode("May I?")
    with torch.no_grad():
        for _ in range(3):
            ids.append(int(lm.model(torch.tensor([ids])).logits[0, -1].argmax()))
    start = len(lm.tok_encode("May I?"))
    pairs = [(("", ""), ids[:start], ids[start:]), (("", ""), ids[:start], [*ids[start:-1], (ids[-1] + 1) % 600])]
    assert [greedy for _, greedy in lm._loglikelihood_tokens(pairs)] == [True, False]


def test_a_document_that_is_repeated_for_other_ranks_changes_nothing(tiny_model):
    lm = row_lm(tiny_model)
    plain = lm.loglikelihood(requests(PAIRS))
    padded = lm.loglikelihood([*requests(PAIRS), requests(PAIRS)[-1], requests(PAIRS)[-1]])
    assert padded == [*plain, plain[-1], plain[-1]]


def test_an_answer_that_does_not_fit_is_an_error(tiny_model):
    lm = row_lm(tiny_model)
    with pytest.raises(DataError, match="question and answer have 2105 tokens; the model's limit is 2048"):
        lm._loglikelihood_tokens([(("", ""), [3] * 2100, [4] * 5)])


def test_what_was_measured_is_not_measured_again(tiny_model, tmp_path, monkeypatch):
    first = row_lm(tiny_model, folder=tmp_path)
    found = first.loglikelihood(requests(PAIRS[:2]))
    with (tmp_path / "journal-00000.new-1").open("ab") as file:
        file.write(b"torn")  # as a process leaves it that is killed
    again = row_lm(tiny_model, folder=tmp_path)
    measured = []
    measure = again.measure
    monkeypatch.setattr(again, "measure", lambda *words: measured.append(words) or measure(*words))
    assert again.loglikelihood(requests(PAIRS[:2])) == found
    assert not measured
    assert again.loglikelihood(requests(PAIRS))[:-1] == found  # the last document repeats one that is known
    assert not measured
    other = row_lm(tiny_model, folder=tmp_path)
    assert other.loglikelihood(requests([[("May I borrow it?", " Perhaps.")]])) != found[:1]


def test_measurements_of_another_model_are_not_taken(tmp_path):
    with open_measured(tmp_path, {"model": "a"}, 0) as measured:
        measured.scores.note([1], [2], (-1.0, True))
    with open_measured(tmp_path, {"model": "a"}, 0) as measured:
        assert measured.scores.find([1], [2]) == (-1.0, True)
    with open_measured(tmp_path, {"model": "b"}, 0) as measured:
        assert measured.scores.find([1], [2]) is None
    assert len(list(tmp_path.iterdir())) == 1
