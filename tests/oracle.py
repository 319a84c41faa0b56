"""The society once more, in plain Python: lock step, one call after another, no scheduler. Its bytes must be the same.

It shares prompts and seeds with the package, and nothing else: neither worlds, conversations, casts, memories nor how
they are read. Societies are complete, ratings one digit, and every reply is a word that no flag is for.
"""

import hashlib
import json
import random
from typing import Any

from salign.records import Recalled, Turn
from salign.seeds import derive
from salign.society import prompts
from salign.society.frames import draw_key
from salign.society.wordings import dialogue


def answer(prompt: Any, seed: int) -> str:
    return "word " + hashlib.blake2b(f"{prompt}{seed}".encode(), digest_size=4).hexdigest()


def digit(prompt: Any) -> int:
    low, high = prompt.scale
    return low + hashlib.blake2b(f"{prompt}".encode(), digest_size=1).digest()[0] % (high - low + 1)


class Society:
    """A world of agents that remember answers, and one record a line."""

    def __init__(self, society: Any, table: Any, num_questions: int, profiles: Any = ()) -> None:
        self.society, self.table, self.num_questions, self.profiles = society, table, num_questions, profiles
        self.num_agents = society.topology.num_agents
        self.wording = prompts.Wording(society)
        self.memories: list[dict[int, str]] = [{} for _ in range(self.num_agents)]
        self.place: tuple[int, ...] = ()
        self.cost = [0, 0, 0]
        drawn: list[int] = []
        generator = random.Random(derive(0, 0, "profiles"))
        while profiles and len(drawn) < self.num_agents:
            num = min(len(profiles), self.num_agents - len(drawn))
            drawn += generator.sample(range(len(profiles)), num)
        self.drawn = drawn

    def question(self, agent: int, round_: int) -> int:
        number, step = divmod(round_ - 1, self.num_questions)
        generator = random.Random(derive(0, 0, "questions", number))
        order, moves = (generator.sample(range(self.num_questions), self.num_questions) for _ in range(2))
        return order[(agent + moves[step]) % self.num_questions]

    def recall(self, agent: int, question: int) -> dict[str, Any] | None:
        known = sorted(self.memories[agent])
        if not known:
            return None
        near = self.table.distances(question, known).tolist()
        distance, number = min(zip(near, known, strict=True))
        if not distance < self.table.max_distance:
            return None
        return {
            "question": self.table.questions[number],
            "answer": self.memories[agent][number],
            "source": "own",
            "distance": distance,
        }

    def generate(self, prompt: Any, name: str) -> str:
        said = answer(prompt, derive(*self.place, name, 0))
        self.count(len(prompt.user), len(said))
        return said

    def rate(self, prompt: Any) -> float:
        self.count(10, 0)  # what the actor says that a rating costs
        return float(digit(prompt))

    def count(self, read: int, said: int) -> None:
        self.cost = [self.cost[0] + 1, self.cost[1] + read, self.cost[2] + said]

    def key(self, role: str) -> str:
        return draw_key(*self.place, role)

    def turn(self, agent: int, role: str, text: str, **fields: Any) -> dict[str, Any]:
        plain = {"about": None, "rating": None, "mass": None, "observed": {}, "recalled": None, "flags": [], "data": {}}
        return {"agent": agent, "role": role, "text": text, **plain, **fields}

    def observed(self, judged: Any, criteria: Any) -> dict[str, Any]:
        rated = {name: self.rate(self.wording.observe(judged, name)) for name in criteria}
        return {name: {"rating": rating, "mass": 1.0, "text": ""} for name, rating in rated.items()}

    def run(self, num_rounds: int, casts: Any, hold: Any) -> bytes:
        lines = []
        for round_ in range(1, num_rounds + 1):
            held, after = {}, [dict(memory) for memory in self.memories]
            for cast in casts(self, round_):
                self.place, self.cost = (0, 0, round_, cast[0]), [0, 0, 0]
                number = self.question(cast[0], round_)
                turns, answers = hold(self, cast, number)
                for agent, said in zip(cast, answers, strict=True):
                    after[agent][number] = said
                held[cast[0]] = self.line(round_, cast, number, turns)
            self.memories = after
            lines += [held[leader] for leader in sorted(held)]
        return "".join(line + "\n" for line in lines).encode()

    def line(self, round_: int, cast: tuple[int, ...], number: int, turns: list[dict[str, Any]]) -> str:
        agents = [{"agent": agent, "label": "good", "part": None, "engine": "actor"} for agent in cast]
        for member in agents:
            if self.profiles:
                member["profile"] = self.drawn[member["agent"]]
        row = {"world": 0, "round": round_, "agents": agents, "protocol": self.society.protocol.kind}
        row |= {"topic": self.table.questions[number], "turns": turns, "failure": None}
        row |= dict(zip(("num_calls", "prompt_tokens", "completion_tokens"), self.cost, strict=True), version=3)
        return json.dumps(row, ensure_ascii=False, separators=(",", ":"))


def alone(society: Society, round_: int) -> list[tuple[int, ...]]:
    return [(agent,) for agent in range(society.num_agents)]


def pairs(society: Society, round_: int) -> list[tuple[int, ...]]:
    order = list(range(society.num_agents))
    random.Random(derive(0, 0, round_, "casts")).shuffle(order)
    return list(zip(order[::2], order[1::2], strict=False))


# --- Back-Scatter ---------------------------------------------------------------------------------


def back_scatter(society: Society, cast: tuple[int, ...], number: int) -> tuple[list[dict[str, Any]], list[str]]:
    (agent,), question = cast, society.table.questions[number]
    others = [other for other in range(society.num_agents) if other != agent]
    audience = sorted(random.Random(derive(*society.place, "audience")).sample(others, society.society.audience_size))
    remembered = society.recall(agent, number)
    draft = society.generate(prompts.draft(question, said(remembered), None, society.key("drafting")), "draft")
    judged = prompts.Judged(question, draft, society.key("draft"))
    turns = [society.turn(agent, "draft", draft, recalled=remembered)]
    feedback = []
    for member in audience:
        recalled = society.recall(member, number)
        about = (judged, said(recalled), None)
        rating = society.rate(society.wording.feedback_rating(*about))
        reason = society.generate(society.wording.feedback_reason(*about), f"reason:{member}")
        turns.append(society.turn(member, "feedback", reason, about=0, rating=rating, mass=1.0, recalled=recalled))
        feedback.append(Turn(member, "feedback", reason, rating=rating, mass=1.0))
    asked = society.wording.revision(prompts.Judged(question, draft, society.key("revising")), feedback, None)
    revision = society.generate(asked, "revision")
    turns.append(society.turn(agent, "revision", revision))
    criteria = [criterion.name for criterion in society.society.observed_criteria]
    for turn in (turns[0], turns[-1]):
        turn["observed"] = society.observed(prompts.Judged(question, turn["text"], society.key(turn["role"])), criteria)
    return turns, [revision]


def said(remembered: dict[str, Any] | None) -> Any:
    """A memory as prompts take it."""
    return None if remembered is None else Recalled(**remembered)


# --- dialogue -------------------------------------------------------------------------------------


def talk(society: Society, cast: tuple[int, ...], number: int) -> tuple[list[dict[str, Any]], list[str]]:
    section, question = society.society.protocol, society.table.questions[number]
    who = [society.profiles[society.drawn[agent]] for agent in cast]
    sides = [dialogue.Side(one.name, prompts.persona(one, None), one.goal, one.secret) for one in who]
    assert len({side.name for side in sides}) == len(sides)
    criteria = [criterion.name for criterion in society.society.observed_criteria]
    turns: list[dict[str, Any]] = []
    heard: list[dialogue.Said] = []
    last = {}
    for state in range(section.max_turns):
        place = state % len(cast)
        side, key = sides[place], society.key(f"utterance:{state}")
        recalled = society.recall(cast[place], number) if state < len(cast) else None
        asked = dialogue.utterance(
            question,
            side,
            [other.name for other in sides if other is not side],
            heard,
            instructions=side.persona,
            memory="" if recalled is None else prompts.remembered(said(recalled), key),
            key=key,
        )
        names = [f"utterance:{state}:{candidate}" for candidate in range(section.num_candidates)]
        texts = [society.generate(asked, name) for name in names]
        drawn = random.Random(derive(*society.place, names[0])).choice(range(len(texts)))
        for candidate in [drawn, *(one for one in range(len(texts)) if one != drawn)]:
            is_said, text = candidate == drawn, texts[candidate]
            shown = dialogue.judged(
                question, side, [*heard, dialogue.Said(side.name, text)], society.key(names[candidate])
            )
            role = "candidate" if not is_said else "opening" if state < len(cast) else "utterance"
            told = {"name": side.name, "persona": side.persona, "goal": side.goal, "secret": side.secret}
            data = {"state": state} | ({"side": told} if role == "opening" else {})
            rated = society.observed(shown, criteria[:1] if len(texts) > 1 else ())
            memory = recalled if is_said else None
            turns.append(society.turn(cast[place], role, text, observed=rated, recalled=memory, data=data))
        heard.append(dialogue.Said(side.name, texts[drawn]))
        last[place] = texts[drawn]
    for place, side in enumerate(sides):
        shown = dialogue.judged(question, side, heard, society.key(f"closing:{place}"))
        turns.append(society.turn(cast[place], "closing", last[place], observed=society.observed(shown, criteria)))
    return turns, [last[place] for place in range(len(cast))]
