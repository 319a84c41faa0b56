"""What rank 0 decides: a round of a world is complete on all ranks, and the world ends with it or goes on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from salign.config import SCALE, Criterion, SocietySection
from salign.society.protocols import protocol_of
from salign.society.protocols.base import Protocol
from salign.society.rounds import Round, Validity
from salign.society.stopping import Gain, Stop, StopRule
from salign.society.world import World


@dataclass(frozen=True)
class Verdict:
    """A round that is complete, the gain that was measured after it, and its world's end if this is it."""

    protocol: Protocol[Any]
    round: Round
    num_agents: int
    gain: Gain | None
    stop: Stop | None

    def metrics(self) -> dict[str, Any]:
        """The round in figures; `sim/stop` says, in a world's last, why it ended."""
        gain = {} if self.gain is None else self.gain.metrics()
        stop = {} if self.stop is None else {"sim/stop": self.stop.why}
        size = self.protocol.society.protocol.cast_size
        resting = {} if size == 1 else {"sim/resting": self.num_agents - size * self.round.num_interactions}
        return {**self.round.metrics(self.protocol), **resting, **gain, **stop}


class Verdicts:
    """Puts the ranks' rounds together and decides, round after round, whether a world stops."""

    def __init__(self, society: SocietySection, worlds: Sequence[World]) -> None:
        self._protocol = protocol_of(society)
        self._max_rounds = society.max_rounds
        self._worlds = {world.number: world for world in worlds}
        self._rules = {
            world.number: StopRule(
                society.stopping, world.num_agents, society.max_rounds, len(society.stopping_criteria)
            )
            for world in worlds
        }
        self._rounds: dict[tuple[int, int], Round] = {}
        self._decided = dict.fromkeys(self._worlds, 0)
        self.stops: dict[int, Stop] = {}
        self.validity = Validity.of(self._protocol)

    def take(self, part: Round) -> list[Verdict]:
        """Takes a rank's part of a round; a verdict on each round that it completes."""
        world = part.world
        if world in self.stops:
            return []  # another rank's part of a round that was held ahead of the end
        whole = self._rounds.setdefault((world, part.number), Round(world, part.number))
        whole.merge(part)
        verdicts: list[Verdict] = []
        while True:
            number = self._decided[world] + 1
            round_ = self._rounds.get((world, number))
            if round_ is None or round_.num_interactions < self._worlds[world].num_interactions(number):
                return verdicts
            del self._rounds[world, number]
            self._decided[world] = number
            self.validity.add(round_)
            rule = self._rules[world]
            ratings = (self._ratings(round_, criterion) for criterion in self._protocol.society.stopping_criteria)
            why = rule.after(*ratings) or ("max_rounds" if number == self._max_rounds else None)
            stop = None if why is None else Stop(world, number, why, rule.gain)
            verdicts.append(Verdict(self._protocol, round_, self._worlds[world].num_agents, rule.gain, stop))
            if stop is not None:
                self.stops[world] = stop
                return verdicts

    def _ratings(self, round_: Round, criterion: Criterion) -> dict[int, float | None]:
        """Each agent's outcome by a criterion, on the scale from 1 to 7."""
        given = round_.by_agent(self._protocol.outcome, criterion.name)
        if criterion.scale == SCALE:
            return given
        return {agent: None if value is None else criterion.on_common_scale(value) for agent, value in given.items()}
