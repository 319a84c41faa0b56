"""Who the agents are: read from files, drawn or placed, told to the models, and kept in the record."""

import json
from collections import Counter

import msgspec
import pytest
from actors import QUESTIONS, Actor, live, metered
from pydantic import TypeAdapter

from salign.config import PeopleProfiles, ProfilesSection, SampleProtocol, SocietySection
from salign.errors import ConfigError, DataError
from salign.records import Profile
from salign.society.calls import Speaker
from salign.society.check import check_society
from salign.society.profiles import draw_profiles, load_profiles

ROWS = [
    {"persona": "You are curt.", "name": "Ada", "culture": "London", "age": 30, "town": "Leeds", "id": "p-1"},
    {"persona": "You are kind.", "label": "bad", "part": "sceptics"},
    {"persona": "You are new here.", "label": "good", "age": None},
]


def section(**fields):
    return TypeAdapter(ProfilesSection).validate_python(fields)


def society(path=None, rows=ROWS, *, kind="json", mixture=({"name": "sceptics", "share": 0},), **fields):
    if path is not None:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        fields = {"profiles": {"kind": kind, "path": str(path), **fields}}
    return SocietySection(topology={"size": 3}, num_initial_memories=4, mixture=mixture, **fields)


def test_a_row_is_a_person_and_other_columns_are_attributes(tmp_path):
    first, second, third = load_profiles(society(tmp_path / "people.jsonl"))
    assert first == Profile(0, "You are curt.", "Ada", "London", attributes={"age": 30, "town": "Leeds", "id": "p-1"})
    assert (second.label, second.part, second.name) == ("bad", "sceptics", None)
    assert third.attributes == {}


def test_tables_and_datasets_are_read_as_well(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [
        {"Name": "Ada", "description": "You are curt.", "town": "Leeds"},
        {"Name": "Bo", "description": "x", "town": "y"},
    ]
    table = datasets.Dataset.from_list(rows)
    table.to_csv(tmp_path / "people.csv", index=False)
    table.to_parquet(tmp_path / "people.parquet")
    table.save_to_disk(tmp_path / "people")
    columns = {"persona": "description", "name": "Name"}
    expected = [
        Profile(0, "You are curt.", "Ada", attributes={"town": "Leeds"}),
        Profile(1, "x", "Bo", attributes={"town": "y"}),
    ]
    for kind, name in (("csv", "people.csv"), ("parquet", "people.parquet"), ("dataset", "people")):
        profiles = section(kind=kind, path=str(tmp_path / name), columns=columns)
        assert load_profiles(SocietySection(profiles=profiles)) == expected


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"persona": " "}, "row 2: no text in the field 'persona'"),
        ({"persoan": "x"}, "did you mean 'persoan'"),
        ({"persona": 7}, "the field 'persona' is int; it must be a text"),
        ({"persona": "x" * 4001}, "the field 'persona' has 4,001 characters; at most 4,000"),
        ({"persona": "x", "label": "ugly"}, "the label in 'label' is 'ugly'; it must be 'good' or 'bad'"),
        ({"persona": "x", "part": "believers"}, "the part is 'believers', and society.mixture has sceptics"),
        ({"persona": "x", "likes": ["tea"]}, r"the attribute 'likes' is list; .* ignore_columns: \[likes\]"),
        (
            {"persona": "x", "goal": "win"},
            "there is a goal in 'goal', and the protocol back_scatter tells",
        ),
        ({"persona": "x", "secret": "s"}, r"leave it out with ignore_columns: \[secret\]"),
        (["x"], "it is not an object but list"),
    ],
)
def test_a_row_of_no_use_is_an_error_with_file_row_and_field(tmp_path, row, message):
    path = tmp_path / "people.jsonl"
    with pytest.raises(DataError, match=rf"people.jsonl, .*{message}"):
        load_profiles(society(path, [ROWS[0], row]))


def test_columns_may_be_ignored(tmp_path):
    row = {"persona": "x", "goal": "win", "likes": ["tea"]}
    (profile,) = load_profiles(society(tmp_path / "p.jsonl", [row], ignore_columns=["goal", "likes"]))
    assert profile == Profile(0, "x")


def test_an_empty_file_and_one_that_is_not_there_are_errors(tmp_path):
    (tmp_path / "empty.json").write_text("[]")
    for name, message in (("empty.json", "contains no profile"), ("no.json", "no data file")):
        with pytest.raises(DataError, match=message):
            load_profiles(SocietySection(profiles={"kind": "json", "path": str(tmp_path / name)}))


def test_where_the_protocol_needs_goals_each_has_one(tmp_path, monkeypatch):
    monkeypatch.setattr(SampleProtocol, "needs_goals", True)
    assert isinstance(SocietySection(protocol={"kind": "sample"}).population_profiles, PeopleProfiles)
    rows = [{"persona": "x", "goal": "win"}, {"persona": "y"}]
    with pytest.raises(DataError, match="row 2: no text in the field 'goal': the protocol sample needs a goal"):
        load_profiles(
            society(tmp_path / "p.jsonl", rows).model_copy(update={"protocol": SampleProtocol(kind="sample")})
        )


def test_the_embedded_people_are_64_of_many_places():
    people = load_profiles(SocietySection(profiles={"kind": "people"}))
    assert (
        len(people) == 64 == len({profile.name for profile in people}) == len({profile.persona for profile in people})
    )
    assert len({profile.attributes["occupation"] for profile in people}) == 64
    assert all(profile.goal and profile.secret and profile.culture for profile in people)


# --- who has which --------------------------------------------------------------------------------


@pytest.mark.parametrize("num_agents", [5, 64, 300, 100_000])
def test_each_is_drawn_as_often_as_any_other_but_for_a_remainder(num_agents):
    drawn = draw_profiles(PeopleProfiles(), 64, num_agents, 0, 0)
    counts = Counter(drawn)
    assert len(drawn) == num_agents
    assert set(counts.values()) <= {num_agents // 64, num_agents // 64 + 1}
    assert drawn == draw_profiles(PeopleProfiles(), 64, num_agents, 0, 0)
    assert drawn != draw_profiles(PeopleProfiles(), 64, num_agents, 0, 1)


def test_there_may_be_as_many_as_agents():
    assert sorted(draw_profiles(PeopleProfiles(), 1000, 1000, 0, 0)) == list(range(1000))


def test_placed_are_in_the_order_of_the_rows_and_as_many_as_agents(tmp_path):
    assert list(draw_profiles(PeopleProfiles(placed=True), 9, 9, 0, 0)) == list(range(9))
    with pytest.raises(ConfigError, match="there are 3 profiles and 9 agents"):
        check_society(society(tmp_path / "p.jsonl", placed=True), 0)


def life(path, num_ranks=1):
    actor = Actor()
    rows = [{**row, "name": f"N{number}"} for number, row in enumerate(ROWS * 3)]
    mixture = ({"name": "sceptics", "share": 0, "instructions": "You doubt."},)
    fields = {"max_rounds": 2, "stopping": None, "audience_size": 4}
    made = society(path, rows, mixture=mixture, placed=True).model_copy(update=fields)
    engine = metered(actor)
    speakers = [Speaker(engine), Speaker(engine, "You doubt.")]
    return live(actor, speakers=speakers, num_ranks=num_ranks, society=made, questions=QUESTIONS[:4]), actor


def test_an_agent_is_told_who_it_is_in_each_call_and_the_record_has_its_number(tmp_path):
    held, actor = life(tmp_path / "p.jsonl")
    drafts = {call.agent: call.prompt for call in actor.calls if call.step == "draft" and call.round == 1}
    assert drafts[0].system == "You are N0. You are curt. You are from London."
    assert drafts[1].system == "You are N1. You are kind.\n\nYou doubt."
    for call in actor.calls:
        if call.step.startswith(("rating", "reason", "feedback")):
            member = int(call.step.split(":")[1])
            assert call.prompt.system.startswith(f"You are N{member}. ")
        if call.step.startswith("observe"):
            assert "You are N" not in call.prompt.system
    for interaction in held.interactions:
        (member,) = interaction.agents
        assert member.profile == member.agent
        if member.agent % 3 == 1:
            assert (member.label, member.part) == ("bad", "sceptics")
        if member.agent % 3 == 2:
            assert (member.label, member.part) == ("good", None)
    assert b"You are curt" not in held.file
    assert life(tmp_path / "p.jsonl", num_ranks=3)[0].file == held.file


def test_without_profiles_the_record_has_nothing_of_them():
    assert b'"profile"' not in live(Actor(), max_rounds=1).file
    member = msgspec.json.encode(live(Actor(), max_rounds=1).interactions[0].agents[0])
    assert set(json.loads(member)) == {"agent", "label", "part", "engine"}
