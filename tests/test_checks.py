"""What a launch looks at before anything runs."""

import json

import pytest

from salign import compose
from salign.errors import ConfigError, DataError, StageError
from salign.evaluation.check import visible
from salign.launch import check_inputs


def config(tmp_path, **tree):
    (tmp_path / "ds.json").write_text(json.dumps({"zero_optimization": {"stage": 2}}))
    return compose.parse({"run": {"root": str(tmp_path)}, **tree}, "test")


def stage(tmp_path, **settings):
    given = {"name": "s", "objective": {"kind": "sft"}, "data": {"kind": "run"}, "deepspeed": str(tmp_path / "ds.json")}
    return {"stages": [{**given, **settings}]}


def file(tmp_path, name: str, *rows) -> str:
    (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path / name)


def test_the_files_of_a_run_are_hashed(tmp_path):
    path = file(tmp_path, "q.jsonl", {"question": "What about it?"})
    questions = {"kind": "json", "path": path}
    found = check_inputs(config(tmp_path, society={"questions": questions}, train=stage(tmp_path)))
    assert set(found) == {path, str(tmp_path / "ds.json")}
    assert all(len(digest) == 64 for digest in found.values())


def test_a_hugging_face_dataset_may_give_the_questions(tmp_path):
    import datasets

    datasets.Dataset.from_list([{"question": "What about it?"}]).save_to_disk(str(tmp_path / "set"))
    questions = {"kind": "dataset", "path": str(tmp_path / "set")}
    assert check_inputs(config(tmp_path, society={"questions": questions})) == {}


def test_a_prior_with_too_few_answers(tmp_path):
    path = file(tmp_path, "prior.jsonl", {"question": "q", "answer": "a"})
    with pytest.raises(DataError, match=r"has 1 answers labelled 'good'; agents of .* start with"):
        check_inputs(config(tmp_path, society={"prior": {"kind": "json", "path": path}, "populations": ["all_good"]}))


def test_stories_without_their_fields(tmp_path):
    file(tmp_path, "moral_stories_test.jsonl", {"situation": "s"})
    evaluate = {"benchmarks": ["moral_stories"], "data_dir": str(tmp_path)}
    with pytest.raises(DataError, match=r"moral_stories_test\.jsonl, line 1: no text in norm, intention, moral_action"):
        check_inputs(config(tmp_path, evaluate=evaluate))


def test_a_folder_of_benchmarks_that_is_not_there(tmp_path):
    evaluate = {"benchmarks": ["moral_stories"], "data_dir": str(tmp_path / "evil")}
    with pytest.raises(ConfigError, match=r"evaluate\.data_dir .*/evil is no folder"):
        check_inputs(config(tmp_path, evaluate=evaluate))
    check_inputs(config(tmp_path, evaluate={**evaluate, "allow_missing": True}))


def test_a_dry_run_says_whose_data_must_come_from_the_hubs_cache(tmp_path):
    evaluate = {"benchmarks": ["moral_stories", "general"], "data_dir": str(tmp_path)}
    from_cache, ours = visible(config(tmp_path, evaluate=evaluate))
    assert f"hub's cache: moral_stories_test.jsonl is not in evaluate.data_dir ({tmp_path})" in from_cache
    assert "cache" not in ours


@pytest.mark.slow
def test_benchmarks_that_are_not_known_or_have_no_data(tmp_path):
    with pytest.raises(ConfigError, match="has a benchmark 'moral_storys'; did you mean 'moral_stories'"):
        check_inputs(config(tmp_path, evaluate={"benchmarks": ["moral_storys"]}))
    missing = {"benchmarks": ["hh", "questions"], "data_dir": str(tmp_path)}
    with pytest.raises(DataError, match=r"benchmark hh has no data here: put hh_harmless_test\.jsonl\.gz into"):
        check_inputs(config(tmp_path, evaluate=missing))
    check_inputs(config(tmp_path, evaluate={**missing, "allow_missing": True}))
    with pytest.raises(ConfigError, match=r"(?s)has a benchmark 'no_such'.*benchmark hh has no data"):
        check_inputs(config(tmp_path, evaluate={**missing, "benchmarks": ["no_such", "hh"]}))


def test_answers_without_a_good_one(tmp_path):
    path = file(tmp_path, "a.jsonl", {"question": "q", "answer": "a", "label": "bad"})
    source = {"kind": "json", "path": path, "label": "label"}
    with pytest.raises(DataError, match="no answer labelled 'good'"):
        check_inputs(config(tmp_path, train=stage(tmp_path, data={"kind": "answers", "source": source})))


def test_evaluation_prompts_in_the_prior(tmp_path):
    with pytest.raises(
        StageError, match="evaluation prompts are in the society's questions, the agents' initial memory or the"
    ):
        check_inputs(config(tmp_path, evaluate={"questions": {"kind": "everyday", "split": "society"}}))


def test_a_deepspeed_file_of_another_shape(tmp_path):
    made = config(tmp_path, train=stage(tmp_path))
    (tmp_path / "ds.json").write_text('{"zero_optimization": 3}')
    with pytest.raises(ConfigError, match="zero_optimization"):
        check_inputs(made)


def test_malformed_rows_of_all_rated_sources_are_skipped_and_counted_if_that_is_asked_for(tmp_path, caplog):
    good = {"query": "q", "responses": ["a", "b"], "scores": [1, 2]}
    path = file(tmp_path, "g.jsonl", good, {**good, "scores": [1]}, {**good, "scores": [1, 9]}, good)
    made = config(tmp_path, train=stage(tmp_path, data={"kind": "groups", "path": path}))
    with pytest.raises(DataError, match=r"g\.jsonl, row 2: 2 responses and 1 scores.*row 3: score 9.0.*skip_bad"):
        check_inputs(made)
    with caplog.at_level("WARNING"):
        check_inputs(compose.skipping_bad(made))
    assert f"2 malformed rows of the training data {path} were skipped (skip_bad)" in caplog.text
    answers = config(tmp_path, train=stage(tmp_path, data={"kind": "answers"}))
    assert compose.skipping_bad(answers) == answers
    assert compose.differences(made, compose.skipping_bad(made)) == ["train.stages.s.data.skip_bad"]
    rows = {"kind": "json", "path": path}
    tree = {
        "society": {"questions": rows, "prior": rows},
        "evaluate": {"questions": {"kind": "hh", "path": path}},
        "train": stage(tmp_path, data={"kind": "several", "parts": [{"kind": "answers", "source": rows}]}),
    }
    sources = config(tmp_path, **tree)
    skipping = compose.skipping_bad(sources)
    assert skipping.society.questions.skip_bad
    assert skipping.society.prior.skip_bad
    assert skipping.evaluate.questions.skip_bad
    assert skipping.train.stages[0].parts[0].source.skip_bad
    assert not sources.society.questions.skip_bad
