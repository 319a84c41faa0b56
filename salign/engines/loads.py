"""Who has the fewest calls in flight, found without looking at everybody."""

import contextlib
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class Loads(Generic[T]):
    """Members by their calls in flight. Of those with as few, the one goes first that has been so for the longest."""

    def __init__(self) -> None:
        self._loads: dict[T, int] = {}
        self._with: dict[int, dict[T, None]] = {}  # by load, in the order in which they came to it
        self._least = 0  # no member has fewer

    def __len__(self) -> int:
        return len(self._loads)

    def add(self, member: T, load: int = 0) -> None:
        """Takes somebody in who has so many calls in flight."""
        self._put(member, load)

    def remove(self, member: T) -> None:
        """Lets somebody go who may have gone already; calls that it has in flight may end later."""
        if (load := self._loads.pop(member, None)) is not None:
            del self._with[load][member]

    def least(self) -> T:
        """Who has the fewest; there must be somebody."""
        while not self._with.get(self._least):
            self._least += 1
        return next(iter(self._with[self._least]))

    @contextlib.contextmanager
    def one_more(self, member: T) -> Iterator[None]:
        """A call of a member, in flight during the block."""
        self._move(member, 1)
        try:
            yield
        finally:
            self._move(member, -1)

    def _move(self, member: T, by: int) -> None:
        load = self._loads.get(member)
        if load is not None:  # it is still there
            del self._with[load][member]
            self._put(member, load + by)

    def _put(self, member: T, load: int) -> None:
        self._loads[member] = load
        self._with.setdefault(load, {})[member] = None
        self._least = min(self._least, load)
