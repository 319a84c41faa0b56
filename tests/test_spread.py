"""How far what one agent is told travels, with replies that are a function of the prompt alone."""

import pytest

from salign.bench.validity.spread import reached
from salign.config import EverydaySource, SocietySection
from salign.society import sources


def count(folder, num_rounds=3, **settings) -> list[int]:
    society = {"max_rounds": num_rounds, "stopping": None, "audience_size": 2, **settings}
    return reached(SocietySection.model_validate(society), 0, sources.questions(EverydaySource())[:9], folder)


def test_the_isolated_reach_nobody_and_a_line_lets_it_pass_no_faster_than_a_cell_a_round(tmp_path):
    assert count(tmp_path, topology={"kind": "isolated", "num_agents": 4}) == [1, 1, 1]
    edges = tmp_path / "line.txt"
    edges.write_text("0 1\n1 2\n2 3\n3 4\n")
    line = count(tmp_path, 6, topology={"kind": "edges", "path": str(edges)}, num_initial_memories=0)
    assert all(found <= 2 + number for number, found in enumerate(line))
    assert line[0] == 2
    assert max(line) > 2


@pytest.mark.parametrize(("without", "expected"), [((), 3), (("audience",), 1)])
def test_all_who_hear_it_are_reached_at_once(tmp_path, without, expected):
    everybody = {"kind": "complete", "num_agents": 3}
    assert count(tmp_path, 1, topology=everybody, without=without) == [expected]
