"""Which question an agent asks in which round."""

from array import array

from salign.seeds import rng

# Passes whose order is kept. Agents run ahead of each other by little; another is drawn again, the same.
_NUM_KEPT = 4


class QuestionOrder:
    """Each agent goes through all questions, and then again and again, each pass in an order of its own, drawn by seed.

    In a round, all agents that are in one block of as many agents as there are questions ask different ones: of each
    pass two permutations are drawn, of the questions and of the steps by which all agents move along them. So
    nothing is kept for an agent, and who asks a question after whom follows no pattern in the agents' numbers.

    Args:
        num_questions: Questions are numbered from 0.
        *place: What makes the order this one: run seed, world.
    """

    def __init__(self, num_questions: int, *place: int | str) -> None:
        self._num = num_questions
        self._place = place
        self._passes: dict[int, tuple[array[int], array[int]]] = {}

    def question(self, agent: int, round_: int) -> int:
        """The number of the question that an agent asks in a round (counted from 1)."""
        number, step = divmod(round_ - 1, self._num)
        order, moves = self._passes.get(number) or self._draw(number)
        return order[(agent + moves[step]) % self._num]

    def _draw(self, number: int) -> "tuple[array[int], array[int]]":
        generator = rng(*self._place, "questions", number)
        drawn = tuple(array("i", generator.sample(range(self._num), self._num)) for _ in range(2))
        if len(self._passes) >= _NUM_KEPT:
            del self._passes[min(self._passes)]
        self._passes[number] = drawn[0], drawn[1]
        return self._passes[number]
