"""Dialogue: agents with private goals talk, and observers rate each side (Sotopia, arXiv 2310.11667).

Rated candidates at each state are after Sotopia-RL (2508.03905), whole talks that reach a goal after Sotopia-pi
(2403.08715).
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

from salign.config import DialogueProtocol
from salign.engines.base import Reply
from salign.records import Interaction, Turn
from salign.society import prompts
from salign.society.calls import UnansweredError, spoken, together
from salign.society.protocols.base import Conversation, Protocol
from salign.society.protocols.learning import Learning, Row
from salign.society.protocols.messages import State, Update
from salign.society.wordings import dialogue
from salign.society.wordings.dialogue import Said, Side

OPENING, UTTERANCE, CANDIDATE, CLOSING, FINDING = "opening", "utterance", "candidate", "closing", "finding"
_SPOKEN = (OPENING, UTTERANCE)


class Dialogue(Protocol[DialogueProtocol]):
    """The cast talks by turns, until somebody leaves or `max_turns` is reached; then each side is rated.

    At each state several utterances are sampled (with `society.draft`) and rated by the first criterion; one of them is
    drawn by seed, not by its rating, and said. A `closing` holds a side's last words, and the ratings of its whole
    part. Each remembers its last words. Feedback and revision of the society's settings are without effect.
    """

    observed = (CLOSING,)
    reminded = (OPENING,)
    heard = _SPOKEN
    figures: ClassVar[Mapping[str, str]] = {
        "reached_share": "sides that reach their goal",
        "left_share": "talks that somebody left",
        "utterances_mean": "utterances of a talk",
        "found_share": "what a side alone knew that another has found out",
    }

    @property
    def max_calls(self) -> int:
        each = 2 if self.section.num_candidates > 1 else 1
        sides = self.section.num_speakers * len(self.criteria)
        found = self.section.num_speakers * (self.section.num_speakers - 1) if self.section.asks_facts else 0
        return self.section.max_turns * self.section.num_candidates * each + sides + found

    async def interact(self, conversation: Conversation) -> list[Update]:
        seat = conversation.seat
        sides = [_side(state, place, seat.states) for place, state in enumerate(seat.states)]
        said, last = list[Said](), dict[int, Reply]()
        for number in range(self.section.max_turns):
            place = number % len(sides)
            reply = await self._next(conversation, sides, said, number)
            if dialogue.leaves(reply.text):
                break
            said.append(Said(sides[place].name, reply.text))
            last[place] = reply
        if len(last) < len(sides):
            raise UnansweredError("somebody left before all had spoken")
        await self._find(conversation, sides, said)
        for place, side in enumerate(sides):
            name = f"{CLOSING}:{place}"
            shown = dialogue.judged(seat.question, side, said, conversation.agents[place].key(name))
            conversation.say(CLOSING, last[place], name=name, by=place, shown=shown)
        return [Update(last[place].text) for place in range(len(sides))]

    async def _find(self, conversation: Conversation, sides: list[Side], said: list[Said]) -> None:
        """Asks each side, after the talk, for what each other alone knew."""
        asked = [
            (place, owner, other.question)
            for place in range(len(sides))
            for owner, other in enumerate(sides)
            if owner != place and other.question not in (None, sides[place].question)
        ]

        async def answer(place: int, owner: int, question: str) -> Reply:
            calls, name = conversation.agents[place], f"{FINDING}:{place}:{owner}"
            key = calls.key(name)
            system = prompts.judging(calls.instructions, key)
            others = _others(sides, sides[place])
            prompt = dialogue.finding(
                conversation.seat.question, sides[place], others, said, question=question, system=system, key=key
            )
            return await calls.reason(prompt, name)

        replies = await together(*(answer(*one) for one in asked))
        for (place, owner, question), reply in zip(asked, replies, strict=True):
            found = dialogue.names(reply.text, sides[owner].answer or "")
            data = {"of": conversation.seat.cast[owner].agent, "question": question, "found": found}
            conversation.say(FINDING, reply, by=place, data=data)

    async def _next(self, conversation: Conversation, sides: list[Side], said: list[Said], number: int) -> Reply:
        """Samples what may be said next, and draws what is."""
        seat, place = conversation.seat, number % len(sides)
        calls, side, state, is_first = conversation.agents[place], sides[place], seat.states[place], number < len(sides)
        key = calls.key(f"{UTTERANCE}:{number}")
        recalled = state.recalled if is_first else None
        asked = dialogue.utterance(
            seat.question,
            side,
            _others(sides, side),
            said,
            instructions=calls.instructions,
            memory="" if recalled is None else prompts.remembered(recalled, key),
            key=key,
        )
        names = [f"{UTTERANCE}:{number}:{candidate}" for candidate in range(self.section.num_candidates)]
        replies = await together(*(calls.generate(asked, self.society.draft, name) for name in names))
        there = [candidate for candidate, reply in enumerate(replies) if reply.text.strip()]
        drawn = calls.draw(names[0]).choice(there) if there else 0
        spoken(replies[drawn], UTTERANCE)
        role = OPENING if is_first else UTTERANCE
        for candidate in sorted(there, key=lambda one: one != drawn):
            reply = replies[candidate]
            data: dict[str, Any] = {"state": number}
            if candidate == drawn and is_first:
                data |= {"side": side.facts}
            name = names[candidate]
            talk = [*said, Said(side.name, reply.text)]
            conversation.say(
                role if candidate == drawn else CANDIDATE,
                reply,
                recalled if candidate == drawn else None,
                name,
                by=place,
                data=data,
                shown=dialogue.judged(seat.question, side, talk, calls.key(name)),
                criteria=self.asked[:1] if len(names) > 1 else (),
            )
        reply = replies[drawn]
        assert isinstance(reply, Reply)
        return reply

    def rows(self, interaction: Interaction, learning: Learning) -> Iterator[Row]:
        """At each state its candidates; and of each side that reached its goal, all that it said, with that rating."""
        turns = [turn for turn in interaction.turns if "state" in turn.data]
        sides = {turn.agent: Side(**turn.data["side"]) for turn in turns if "side" in turn.data}
        reached = {
            turn.agent: learning.score(turn) for turn in interaction.turns_of(CLOSING) if self._has_reached(turn)
        }
        said: list[Said] = []
        for number in range(self.section.max_turns):
            here = [turn for turn in turns if turn.data["state"] == number]
            chosen = next((turn for turn in here if turn.role in _SPOKEN), None)
            if chosen is None:
                return
            side = sides[chosen.agent]
            query = dialogue.query(interaction.topic, side, _others(list(sides.values()), side), said)
            kept = [turn for turn in learning.kept(here) if not dialogue.leaves(turn.text)]
            if len(here) > 1:
                yield Row("imitation", query, tuple([(turn, learning.score(turn)) for turn in kept]))
            elif kept and chosen.agent in reached:
                yield Row("imitation", query, ((chosen, reached[chosen.agent]),))
            said.append(Said(side.name, chosen.text))

    def _has_reached(self, turn: Turn) -> bool:
        rating = turn.observed_rating(self.criteria[0])
        return rating is not None and rating >= self.section.goal_threshold

    def measure(self, interaction: Interaction) -> Iterable[tuple[str, float]]:
        for turn in interaction.turns_of(CLOSING):
            if turn.observed_rating(self.criteria[0]) is not None:
                yield "reached_share", float(self._has_reached(turn))
        for turn in interaction.turns_of(FINDING):
            yield "found_share", float(turn.data["found"])
        utterances = [turn for turn in interaction.turns if turn.role in _SPOKEN]
        if interaction.failure is None:
            left = dialogue.leaves(utterances[-1].text)
            yield "left_share", float(left)
            yield "utterances_mean", float(len(utterances) - left)


def _side(state: State, place: int, states: tuple[State, ...]) -> Side:
    profile = state.profile
    assert profile is not None
    assert profile.goal is not None
    name = profile.name or f"Speaker {place + 1}"
    if any(other.profile is not None and other.profile.name == name for other in states[:place]):
        name = f"{name} ({place + 1})"
    asked = [other.profile.question for other in states if other is not state and other.profile is not None]
    sought = [question for question in asked if question is not None and question != profile.question]
    persona = prompts.persona(profile, None)
    return Side(name, persona, profile.goal, profile.secret, profile.question, profile.answer, sought)


def _others(sides: list[Side], side: Side) -> list[str]:
    return [other.name for other in sides if other.name != side.name]
