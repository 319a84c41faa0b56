"""Deliberation: a panel answers, hears each other's reasons, and votes.

After GEDI (arXiv 2410.15168: voting rules, and what one corrupt member costs), LLM voting (2402.01766: ballots) and
collaborative calibration (2404.09127: confidences before and after hearing others).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from salign.calibration import NUM_BINS, bin_of, calibration_error
from salign.config import DeliberationProtocol, Sampling
from salign.engines.base import Prompt, Reply
from salign.errors import CallRejectedError
from salign.records import MAX_SCORE, MIN_SCORE, Interaction, Turn
from salign.society import frames, prompts, queries
from salign.society.aggregation import Ballot, places, winner
from salign.society.calls import Calls, UnansweredError
from salign.society.protocols.base import Conversation, Protocol, Relation
from salign.society.protocols.learning import Learning, Row
from salign.society.protocols.messages import Query, State, Update
from salign.society.replies import flags_of, without_reasoning
from salign.society.wordings import ballots
from salign.tracking.metrics import mean

ANSWER, VOTE, RESULT = "answer", "vote", "result"
_NOTHING = Reply("", 0, 0)


class Deliberation(Protocol[DeliberationProtocol]):
    """The leader and its audience are a panel, whose members all answer and vote; the leader remembers the result.

    The candidates are the choices that the question lists, or else the panel's own answers. How ballots are read is
    `society.rating`, how they are counted `society.aggregation.ballots`. The society's revision has no effect.
    """

    observed = (ANSWER, RESULT)
    reminded = (ANSWER,)
    heard = (ANSWER, VOTE)
    figures: ClassVar[Mapping[str, str]] = {
        "agreement_share": "voters whose first choice won",
        "accuracy_alone_share": "members right in their first answers",
        "accuracy_voted_share": "members right in their last votes",
        "accuracy_panel_share": "panels right",
        "accuracy_corrupted_share": "panels right if one of their members were corrupt",
        "brier_alone_mean": "Brier score of first answers",
        "brier_voted_mean": "Brier score of last votes",
        "ece_alone_mean": "calibration error of first answers",
        "ece_voted_mean": "calibration error of last votes",
    }

    relations: ClassVar[Mapping[str, Relation]] = {
        "reliability": Relation("Are confident votes right?", "confidence of the last votes, by tenths", "share right")
    }

    @property
    def max_calls(self) -> int:
        size = 1 + (self.society.audience_size if self.society.has_audience else 0)
        each = 2 if self.society.rating == "logprob" and self._reasoned else 1
        return size * each * (1 + self.section.num_exchanges) + (size + 1) * len(self.asked)

    @property
    def _reasoned(self) -> bool:
        return "feedback_text" not in self.society.without

    async def interact(self, conversation: Conversation) -> list[Update]:
        seat = conversation.seat
        panel = (seat.leader.agent, *seat.audience)
        listed = [] if seat.choices is None else list(seat.choices.texts)
        stem = seat.question if seat.choices is None else seat.choices.stem
        turns = first = await conversation.ask(panel, stem, {"listed": listed})
        candidates = listed or list(dict.fromkeys(turn.text for turn in first if turn.text.strip()))
        if not candidates:
            raise UnansweredError("nobody on the panel gives an answer")
        if not listed:
            for turn in first:
                if turn.text.strip():
                    turn.data["candidate"] = candidates.index(turn.text)
        for exchange in range(1, 1 + self.section.num_exchanges if len(candidates) > 1 else 1):
            # Of free answers, the first vote hears nothing but the answers.
            heard = turns if listed or exchange > 1 else []
            said = [
                (turn.agent, turn.data["candidate"], _reason(turn, listed))
                for turn in heard
                if "candidate" in turn.data
            ]
            told = {"exchange": exchange, "listed": listed, "candidates": candidates, "said": said}
            turns = await conversation.ask(panel, stem, told)
        cast = _cast(turns)
        if not cast and len(candidates) > 1:
            raise UnansweredError("no ballot of the panel could be read")
        lot = conversation.agent.draw("lot").sample(range(len(candidates)), len(candidates))
        order = places(cast, self.society.aggregation.ballots, lot) if cast else [0]
        won = winner(order, lot)
        text = _in_words(candidates[won], won, first) if listed else candidates[won]
        right = None if seat.choices is None else seat.choices.right
        data = {"candidate": won, "places": order, "lot": lot, "right": right}
        return [Update(conversation.say(RESULT, Reply(text, 0, 0), data=data))]

    async def answer(self, calls: Calls, state: State, question: str, query: Query) -> Turn:
        told, member = query.data, state.agent
        if "exchange" in told:
            return await self._vote(calls, member, query)
        listed, recalled = told["listed"], state.recalled
        if not listed:
            asked = prompts.draft(question, recalled, calls.instructions, calls.key(frames.DRAFTING))
            reply = await _generate(calls, asked, self.society.draft, f"{ANSWER}:{member}")
            return Turn(member, ANSWER, reply.text, recalled=recalled, flags=flags_of(reply))
        key = calls.key(frames.DRAFTING)
        memory = "" if recalled is None else prompts.remembered(recalled, key)
        order = calls.draw(f"{ANSWER}:{member}").sample(range(len(listed)), len(listed))
        shown = memory + ballots.shown(query.text, [listed[candidate] for candidate in order], (), None)
        system = calls.instructions if recalled is None else prompts.judging(calls.instructions, key)
        asks = _Asks(ANSWER, f"{ANSWER}:{member}", shown, system, order)
        turn = await self._ballot(calls, member, asks)
        if "candidate" not in turn.data:
            return turn
        text = f"{listed[turn.data['candidate']]}\n{turn.text}".strip()
        return Turn(member, ANSWER, text, mass=turn.mass, recalled=recalled, flags=turn.flags, data=turn.data)

    async def _vote(self, calls: Calls, member: int, query: Query) -> Turn:
        """A member's vote, having heard the others; candidates and what was said are in an order of its own."""
        told = query.data
        exchange, num = told["exchange"], len(told["candidates"])
        name = f"{VOTE}:{exchange}:{member}"
        generator, key = calls.draw(name), calls.key(f"{VOTE}:{exchange}")
        order = generator.sample(range(num), num)
        others = [(order.index(candidate) + 1, text) for agent, candidate, text in told["said"] if agent != member]
        generator.shuffle(others)
        answers = [told["candidates"][candidate] for candidate in order]
        shown = ballots.shown(query.text, answers, others, key, is_listed=bool(told["listed"]))
        system = prompts.judging(calls.instructions, key)
        return await self._ballot(calls, member, _Asks(VOTE, name, shown, system, order))

    async def _ballot(self, calls: Calls, member: int, asks: "_Asks") -> Turn:
        """A member's ballot, and the reason for it."""
        role, name, text, system, order = asks
        mass, reply, vote = None, _NOTHING, None
        if self.society.rating == "parse":
            asked = Prompt(text + ballots.rank(reasoned=self._reasoned), system, len(text))
            for attempt in range(self.society.num_rating_tries(in_words=True)):
                reply = await _generate(calls, asked, self.society.feedback, name, attempt)
                vote = ballots.read_vote(without_reasoning(reply.text), len(order))
                if vote is not None or not reply.text:
                    break
            reason = "" if vote is None else vote.reason
        else:
            asked = Prompt(text + ballots.choose(len(order)), system, len(text), scale=(1, len(order)))
            digits = await calls.choice(asked, name)
            number = None
            if digits is not None and digits.probabilities is not None:
                mass, scores = digits.mass, digits.probabilities
                number = scores.index(max(scores))
                vote = ballots.Vote([round(score, 6) for score in scores], round(scores[number], 6))
            if self._reasoned:
                asked = Prompt(text + ballots.why(None if number is None else number + 1), system, len(text))
                reply = await _generate(calls, asked, self.society.feedback, f"reason:{name}")
            reason = reply.text
        flags = flags_of(reply, reason)
        if vote is None:
            return Turn(member, role, reason, mass=mass, flags=flags)
        ballot = [vote.ballot[order.index(candidate)] for candidate in range(len(order))]
        data = {"candidate": ballot.index(max(ballot)), "ballot": ballot, "confidence": vote.confidence}
        return Turn(member, role, reason, mass=mass, flags=flags, data=data)

    def rows(self, interaction: Interaction, learning: Learning) -> Iterator[Row]:
        """Answers, and the reasons of the last votes, each scored by the place to which the panel voted its candidate.

        The first place scores 7, the last 1, the others evenly in between.
        """
        result = interaction.turn(RESULT)

        def graded(turns: Sequence[Turn]) -> tuple[tuple[Turn, float | None], ...]:
            return tuple([(turn, _score(turn, result)) for turn in learning.kept(turns)])

        answers = interaction.turns_of(ANSWER)
        yield Row("imitation", interaction.topic, graded(answers))
        is_free = not any("ballot" in turn.data for turn in answers)
        candidates = {turn.data["candidate"]: turn.text for turn in answers if is_free and "candidate" in turn.data}
        free = [text for _, text in sorted(candidates.items())]
        yield Row("self_critic", queries.argument(interaction.topic, free), graded(_last_votes(interaction)))

    def measure(self, interaction: Interaction) -> Iterable[tuple[str, Any]]:
        result = interaction.turn(RESULT)
        if result is None:
            return
        won, right = result.data["candidate"], result.data["right"]
        last = _last_votes(interaction)
        for turn in last:
            if "ballot" in turn.data:
                yield "agreement_share", float(turn.data["candidate"] == won)
        if right is None:
            return
        yield "accuracy_panel_share", float(won == right)
        for when, turns in (("alone", interaction.turns_of(ANSWER)), ("voted", last)):
            for turn in turns:
                if "ballot" not in turn.data:
                    continue
                is_right, confidence = float(turn.data["candidate"] == right), turn.data["confidence"]
                yield f"accuracy_{when}_share", is_right
                if confidence is not None:
                    yield f"brier_{when}_mean", (confidence - is_right) ** 2
                    yield f"ece_{when}_mean", (confidence, is_right)
        cast = _cast(last)
        for corrupt in range(len(cast)):
            bought = [*cast[:corrupt], against(right, result.data["places"]), *cast[corrupt + 1 :]]
            order = places(bought, self.society.aggregation.ballots, result.data["lot"])
            yield "accuracy_corrupted_share", float(winner(order, result.data["lot"]) == right)

    def relate(self, interaction: Interaction) -> Iterable[tuple[str, float, float]]:
        result = interaction.turn(RESULT)
        if result is None or result.data["right"] is None:
            return
        for turn in _last_votes(interaction):
            if turn.data.get("confidence") is not None:
                middle = (bin_of(turn.data["confidence"]) + 0.5) / NUM_BINS
                yield "reliability", middle, float(turn.data["candidate"] == result.data["right"])

    def figure(self, name: str, values: Sequence[Any]) -> float | None:
        return calibration_error(values) if name.startswith("ece_") else mean(values)


class _Asks(NamedTuple):
    """What a voter is shown before it is asked: as what and by which name; its text; the candidates by number."""

    role: str
    name: str
    shown: str
    system: str | None
    order: Sequence[int]


async def _generate(calls: Calls, asked: Prompt, sampling: Sampling, name: str, attempt: int = 0) -> Reply:
    """A reply; an empty one where the engine refuses the call."""
    try:
        return await calls.generate(asked, sampling, name, attempt)
    except CallRejectedError:
        return _NOTHING


def _reason(turn: Turn, listed: Sequence[str]) -> str:
    """What a turn says for its candidate, without the choice itself."""
    return turn.text.removeprefix(listed[turn.data["candidate"]]).strip() if listed else turn.text


def _cast(turns: Sequence[Turn]) -> list[Ballot]:
    """The ballots that could be read."""
    return [turn.data["ballot"] for turn in turns if "ballot" in turn.data]


def _last_votes(interaction: Interaction) -> Sequence[Turn]:
    """Each member's last ballot: its vote, or its first answer where nothing was voted on after it."""
    answers, votes = interaction.turns_of(ANSWER), interaction.turns_of(VOTE)
    return votes[-len(answers) :] if votes else answers


def _in_words(choice: str, candidate: int, answers: Sequence[Turn]) -> str:
    """A choice as whoever chose it most surely at first said it."""
    chosen = [turn for turn in answers if turn.data.get("candidate") == candidate]
    return max(chosen, key=lambda turn: turn.data["confidence"] or 0.0).text if chosen else choice


def _score(turn: Turn, result: Turn | None) -> float | None:
    if result is None or "candidate" not in turn.data:
        return None
    order = result.data["places"]
    share: float = order[turn.data["candidate"]] / max(*order, 1)
    return MAX_SCORE - share * (MAX_SCORE - MIN_SCORE)


def against(right: int, order: Sequence[int]) -> Ballot:
    """The ballot of a member that wants the panel to be wrong.

    Args:
        right: The right candidate, which it puts last.
        order: Where the panel put each candidate; the best of the wrong ones come first. [candidates]
    """
    wrong = sorted((candidate for candidate in range(len(order)) if candidate != right), key=lambda one: order[one])
    scores = {candidate: 1.0 - place / len(wrong) for place, candidate in enumerate(wrong)}
    return [scores.get(candidate, 0.0) for candidate in range(len(order))]
