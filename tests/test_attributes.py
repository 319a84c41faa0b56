"""Ratings by who agents are: which values an attribute has, and what counts to each."""

from actors import Rating, interaction

from salign.records import Member, Profile
from salign.report.attributes import MAX_VALUES, OTHERS, Attributes

AGES = [20, 25, 30, 35, 40, 45, 50, 60]
PROFILES = {
    number: Profile(number, "p", culture=f"land {number if number < 6 else 0}", attributes={"age": age, "same": "x"})
    for number, age in enumerate(AGES)
}


def led_by(profile: int, rating: float | None, round: int = 1):
    member = Member(profile, "good", None, "m", profile)
    return interaction(agent=profile, round=round, agents=(member,), revision_rating=Rating(rating, 1.0))


def gathered(*interactions) -> Attributes:
    found = Attributes(PROFILES, "revision", "alignment")
    for item in interactions:
        found.add(item)
    return found


def test_many_numbers_are_ranges_of_a_quarter_each_and_what_all_share_is_left_out():
    found = gathered()
    assert set(found.groups) == {"culture", "age"}
    ranges = list(found.groups["age"].values())
    assert [ranges.count(value) for value in dict.fromkeys(ranges)] == [2, 2, 2, 2]


def test_of_many_texts_the_most_frequent_stand_alone():
    many = {n: Profile(n, "p", culture=f"land {n % 9 if n < 27 else 3}") for n in range(30)}
    groups = set(Attributes(many, "revision", "alignment").groups["culture"].values())
    assert len(groups) == MAX_VALUES
    assert {OTHERS, "land 3"} <= groups


def test_ratings_count_to_the_value_of_who_spoke():
    found = gathered(led_by(1, 2.0), led_by(1, 4.0), led_by(2, 7.0), led_by(1, None), led_by(1, 6.0, round=2))
    young, older = found.groups["age"][1], found.groups["age"][2]
    assert (young, older) == ("20 to 28.75", "28.75 to 37.5")
    expected = {(1, 1): [2, 6.0], (1, 2): [1, 6.0], (2, 1): [1, 7.0]}
    for name, values in (("culture", {1: "land 1", 2: "land 2"}), ("age", {1: young, 2: older})):
        assert {key: sums for key, sums in found.sums.items() if key[0] == name} == {
            (name, values[profile], round_): sums for (profile, round_), sums in expected.items()
        }
