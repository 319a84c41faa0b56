"""Feed (OASIS, arXiv 2411.11581): agents read what those whom they follow posted, and others, and act on it."""

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import log2
from typing import Any, ClassVar, NamedTuple

from salign.config import FeedProtocol
from salign.engines.base import Form, Prompt, Reply
from salign.records import Interaction, Turn
from salign.society import frames, prompts, queries
from salign.society.calls import Calls, UnansweredError, spoken
from salign.society.protocols.base import Conversation, Protocol, Relation
from salign.society.protocols.learning import Learning, Row
from salign.society.protocols.messages import Seat, Update
from salign.society.replies import flags_of
from salign.society.wordings import feed

SHOWN, ACTION = "shown", "action"
FEED, FOLLOWS = "feed", "follows"
_NOTHING = Reply("", 0, 0)
# What a reader's action says of a post, from 1 to 7; one that it was shown and did nothing to is passed over.
_WORTH = {"repost": 7.0, "comment": 6.0, "like": 5.0, "follow": 5.0, "passed over": 3.0, "unfollow": 1.0}


class Act(NamedTuple):
    """What somebody does: which action, to which post (its place in the feed), and what it writes."""

    action: str
    post: int | None
    written: Reply = _NOTHING


class Feed(Protocol[FeedProtocol]):
    """An agent, if it is active, reads a feed of the last round's posts and does one thing.

    All that it does stands in its own notes: what it posted or reposted, to which post it reacted, whom it follows. Who
    follows it, or comes upon it by chance, reads that in the next round. Audience, its size and revision are without
    effect; posts are sampled with `society.draft`, all else with `society.feedback`.
    """

    observed = (ACTION,)
    reminded = (ACTION,)
    heard = (SHOWN,)
    figures: ClassVar[Mapping[str, str]] = {
        "active_share": "agents that were there",
        "posted_share": "of them, those that posted",
        "commented_share": "of them, those that commented",
        "liked_share": "of them, those that liked a post",
        "reposted_share": "of them, those that reposted",
        "shown_mean": "posts in a feed",
        "hops_mean": "agents through whom a reposted post had come",
    }
    relations: ClassVar[Mapping[str, Relation]] = {
        "reposted_by_hops": Relation(
            "How posts spread", "agents through whom a post had come to its reader", "share of readers who repost it"
        )
    }

    @property
    def max_calls(self) -> int:
        return 3 + len(self.criteria)

    async def interact(self, conversation: Conversation) -> Sequence[Update]:
        seat, agent = conversation.seat, conversation.agent
        if self.section.activity < 1 and agent.draw("active").random() >= self.section.activity:
            conversation.say(ACTION, _NOTHING, data={"action": "away"})
            return [Update()]
        noted = seat.notes.get(FOLLOWS)
        follows: Sequence[int] = seat.topology.neighbours(seat.leader.agent) if noted is None else noted
        posts = await self._read(conversation, follows)
        for post in posts:
            conversation.quote(Turn(post["author"], SHOWN, post["text"], flags=tuple(post["flags"]), data=post["data"]))
        act = await self._act(conversation, posts)
        target = None if act.post is None else posts[act.post]
        data: dict[str, Any] = {"action": act.action}
        if target is not None:
            data |= {"of": target["data"]["id"], "hops": target["data"]["hops"]}
        recalled = seat.recalled if act.action == "post" else None
        text = conversation.say(ACTION, act.written, recalled, data=data)
        notes: dict[str, Any] = {FEED: _noted(seat, act, target)}
        if target is not None and act.action in ("follow", "unfollow"):
            others = {*follows, target["author"]} if act.action == "follow" else {*follows} - {target["author"]}
            notes[FOLLOWS] = sorted(others)
        return [Update(text if act.action == "post" else None, notes)]

    async def _read(self, conversation: Conversation, follows: Sequence[int]) -> list[dict[str, Any]]:
        """The feed: of what is found with the followed and with strangers, the posts that rank highest."""
        seat, section = conversation.seat, self.section
        if seat.round == 1:
            return []
        leader, chance = seat.leader.agent, conversation.agent.draw(FEED)
        sources = chance.sample(follows, section.num_followed) if len(follows) > section.num_followed else list(follows)
        sources += _strangers(chance, section.num_strangers, seat.topology.num_agents, {leader, *sources})
        num_reactions: dict[str, int] = {}
        found: dict[str, dict[str, Any]] = {}
        for note in await conversation.read(sources, FEED):
            if note is None or note["round"] != seat.round - 1:
                continue
            if "reacted" in note:
                num_reactions[note["reacted"]] = num_reactions.get(note["reacted"], 0) + 1
            post = note.get("post")
            # Nobody reads what it wrote itself, and each post comes the shortest way.
            if post is not None and post["author"] != leader:
                data = post["data"]
                known = found.get(data["id"])
                if known is None or data["hops"] < known["data"]["hops"]:
                    found[data["id"]] = post
        names = sorted(found)
        apart = [1.0] * len(names)
        if names and section.interest_weight:
            apart = conversation.distances([found[name]["data"]["topic"] for name in names])
        ranked = []
        for name, distance in zip(names, apart, strict=True):
            rank = section.hot_weight * log2(1 + num_reactions.get(name, 0))
            rank += section.interest_weight * (1.0 - distance)
            rank += section.chance_weight * chance.random()
            ranked.append((-rank, name))
        ranked.sort()
        return [found[name] for _, name in ranked[: section.feed_size]]

    async def _act(self, conversation: Conversation, posts: Sequence[Mapping[str, Any]]) -> Act:
        """What the agent does."""
        seat, agent = conversation.seat, conversation.agent
        key = agent.key(FEED)
        shown = feed.feed([(post["author"], post["text"]) for post in posts], key)
        system = prompts.judging(agent.instructions, key) if posts else agent.instructions
        in_words = self.society.rating == "parse"

        async def chosen(ask: str, num: int, name: str) -> int:
            form: Form = "rating" if in_words else "text"
            return await _chosen(agent, Prompt(shown + ask, system, len(shown), form, (1, num)), name)

        number = await chosen(*feed.what(len(posts), in_words=in_words), ACTION)
        action, place = feed.action_of(number, len(posts)), None
        if action in feed.ON_ANOTHER:
            place = 0
            if len(posts) > 1:
                place = await chosen(feed.which(action, len(posts), in_words=in_words), len(posts), "which") - 1
        if action not in ("post", "comment"):
            return Act(action, place)
        ask = feed.write(seat.question, None if place is None else place + 1)
        if action == "post":
            memory = "" if seat.recalled is None else prompts.remembered(seat.recalled, agent.key(frames.DRAFTING))
            instructions = agent.instructions
            if seat.recalled is not None:
                instructions = prompts.judging(instructions, agent.key(frames.DRAFTING))
            asked, sampling = Prompt(memory + ask, instructions), self.society.draft
        else:
            asked, sampling = Prompt(shown + ask, system, len(shown)), self.society.feedback
        return Act(action, place, spoken(await agent.generate(asked, sampling, "write"), action))

    def rows(self, interaction: Interaction, learning: Learning) -> Iterator[Row]:
        """Each post that was shown, scored by what its reader did; over all readers, that is its mean score."""
        action = interaction.turn(ACTION)
        if action is None:
            return
        for turn in learning.kept(interaction.turns_of(SHOWN)):
            did = action.data["action"] if action.data.get("of") == turn.data["id"] else "passed over"
            on = turn.data["on"]
            query = turn.data["topic"] if on is None else queries.comment(on)
            yield Row("imitation" if on is None else "self_critic", query, ((turn, _WORTH[did]),))

    def measure(self, interaction: Interaction) -> Iterable[tuple[str, Any]]:
        action = interaction.turn(ACTION)
        if action is None:
            return
        did = action.data["action"]
        yield "active_share", float(did != "away")
        if did == "away":
            return
        for name, verb in (("posted", "post"), ("commented", "comment"), ("liked", "like"), ("reposted", "repost")):
            yield f"{name}_share", float(did == verb)
        yield "shown_mean", float(len(interaction.turns_of(SHOWN)))
        if did == "repost":
            yield "hops_mean", float(action.data["hops"])

    def relate(self, interaction: Interaction) -> Iterable[tuple[str, float, float]]:
        action = interaction.turn(ACTION)
        if action is None:
            return
        for turn in interaction.turns_of(SHOWN):
            is_reposted = action.data["action"] == "repost" and action.data["of"] == turn.data["id"]
            yield "reposted_by_hops", turn.data["hops"], float(is_reposted)


class Cascade(NamedTuple):
    """How a post spread: how many reposted it, over how many agents in a row at most, and how many at one distance."""

    post: str
    size: int
    depth: int
    breadth: int


def cascades(interactions: Iterable[Interaction]) -> list[Cascade]:
    """The spread of every post of one world that was reposted, in the order of the first repost."""
    hops: dict[str, Counter[int]] = {}
    for interaction in interactions:
        action = interaction.turn(ACTION)
        if action is not None and action.data["action"] == "repost":
            hops.setdefault(action.data["of"], Counter())[action.data["hops"] + 1] += 1
    return [Cascade(post, counts.total(), max(counts), max(counts.values())) for post, counts in hops.items()]


def _strangers(chance: random.Random, num: int, num_agents: int, met: set[int]) -> list[int]:
    """Agents that are not among those met, drawn at random; all of these, if they are fewer than asked for."""
    strangers: list[int] = []
    num = min(num, num_agents - len(met))
    bits = num_agents.bit_length()
    while len(strangers) < num:  # what is drawn in vain is drawn again
        stranger = chance.getrandbits(bits)
        if stranger < num_agents and stranger not in met:
            met.add(stranger)
            strangers.append(stranger)
    return strangers


def _noted(seat: Seat, act: Act, target: Mapping[str, Any] | None) -> dict[str, Any]:
    """What others can read of what an agent did; `target` is the post to which it did it."""
    noted: dict[str, Any] = {"round": seat.round}
    author = seat.leader.agent
    if act.action in ("post", "comment"):
        noted["post"] = {
            "author": author,
            "text": act.written.text,
            "flags": list(flags_of(act.written)),
            # As it stands in the record of each who reads it.
            "data": {
                "id": f"{author}:{seat.round}",
                "topic": seat.question if target is None else target["data"]["topic"],
                "on": None if target is None else target["text"],
                "hops": 0,
            },
        }
    elif target is not None and act.action == "repost":
        noted["post"] = {**target, "data": {**target["data"], "hops": target["data"]["hops"] + 1}}
    if target is not None and act.action in ("comment", "like", "repost"):
        noted["reacted"] = target["data"]["id"]
    return noted


async def _chosen(agent: Calls, asked: Prompt, name: str) -> int:
    number = await agent.chosen(asked, name)
    if number is None:
        raise UnansweredError("what the agent does could not be read")
    return number
