"""Interactions of all worlds -> alignment data of three kinds (the paper's section 3.3)."""

import contextlib
import itertools
import json
import logging
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from salign.config import FLAGS, KINDS, Config, Kind
from salign.dataset.gathering import build_groups, drawn, kind_of, num_chosen
from salign.dataset.groups import read_groups
from salign.dataset.leaks import Match, Passage, find_leaks, prompts_of
from salign.errors import StageError
from salign.garbage import rare_collections
from salign.locks import lock
from salign.markers import mark_done, read_done, recording_failure, require_done
from salign.plan import is_short
from salign.records import AlignmentGroup, Interaction, read_interactions, read_profiles, to_bytes
from salign.run import RunDir
from salign.seeds import rng
from salign.society import sources
from salign.society.protocols import protocol_of
from salign.society.protocols.base import Protocol
from salign.society.recalls import RecallRecord
from salign.storage import new_file, write_atomic
from salign.tracking.metrics import mean, read_metrics
from salign.tracking.mirror import open_mirror

logger = logging.getLogger(__name__)

_COMPARED = "the society's questions, the agents' initial memory or the training data"
# Characters of a prompt that a message quotes.
_MAX_SHOWN = 200


class GroupCounts:
    """Counts the groups and responses of each kind, with histograms of their scores."""

    _NAMES = ("num_groups", "num_responses", "num_single")

    def __init__(self) -> None:
        self._counts = {kind: dict.fromkeys(self._NAMES, 0) for kind in KINDS}
        self._scores = {kind: dict.fromkeys(range(1, 8), 0) for kind in KINDS}

    def add(self, group: AlignmentGroup) -> None:
        """Counts one group of the society's data."""
        kind = kind_of(group)
        counts, scores, num = self._counts[kind], self._scores[kind], len(group.responses)
        counts["num_groups"] += 1
        counts["num_responses"] += num
        counts["num_single"] += num == 1
        for score in group.scores:
            scores[round(score)] += 1

    def figures(self) -> dict[str, Any]:
        """Returns the counts for the card; scores are rounded to whole ones, 1..7."""
        kinds: dict[str, Any] = {}
        for kind, counts in self._counts.items():
            histogram = {str(score): num for score, num in self._scores[kind].items()}
            kinds[kind] = {**counts, "scores": histogram}
        total = {
            name: sum(counts[name] for counts in self._counts.values()) for name in ("num_groups", "num_responses")
        }
        return {**total, "kinds": kinds}


class _InteractionCounts:
    """What is counted of interactions while they pass by."""

    def __init__(self, config: Config, protocol: Protocol[Any]) -> None:
        self._num_samples = config.tracking.num_table_rows
        self._price = config.tracking.price_per_1000_tokens
        self._rounds: dict[int, list[int]] = {}
        """Calls, prompt tokens and completion tokens."""
        self.num_interactions = 0
        self.flags: Counter[str] = Counter()
        self.recalls = RecallRecord(protocol.reminded)
        self.samples: list[Interaction] = []

    def passing(self, interactions: Iterable[Interaction]) -> Iterator[Interaction]:
        """The same interactions, each counted as it goes on."""
        for item in interactions:
            self.num_interactions += 1
            for turn in item.turns:
                if turn.flags:
                    self.flags.update(turn.flags)
            self.recalls.take(item)
            spent = self._rounds.setdefault(item.round, [0, 0, 0])
            spent[0] += item.num_calls
            spent[1] += item.prompt_tokens
            spent[2] += item.completion_tokens
            if len(self.samples) < self._num_samples:
                self.samples.append(item)
            yield item

    def spent(self) -> dict[int, dict[str, float]]:
        """Calls, tokens and, where the config has a price, cost of each round and those before it."""
        spent: dict[int, dict[str, float]] = {}
        calls = prompt = completion = 0
        for round_, of_round in sorted(self._rounds.items()):
            calls, prompt, completion = calls + of_round[0], prompt + of_round[1], completion + of_round[2]
            spent[round_] = {"sim/calls": calls, "sim/tokens": prompt + completion}
            if self._price is not None:
                spent[round_]["sim/cost"] = self._price.of(prompt, completion)
        return spent


def evaluation_prompts(config: Config) -> list[str]:
    """Returns every prompt that the run is evaluated on, and those of the files in `dataset.leak_check`."""
    prompts = sources.questions(config.evaluate.questions)
    for path in (*config.evaluate.prompt_files, *config.dataset.leak_check):
        prompts += prompts_of(path)
    return prompts


def _passages(config: Config, groups: Iterable[AlignmentGroup]) -> Iterator[Passage]:
    """All that is asked, remembered or trained on."""
    if config.has_society:
        for number, question in enumerate(sources.questions(config.society.questions), start=1):
            yield Passage((question,), ("question",), "society.questions", number)
        yield from _passages_of_exemplars("society.prior", sources.load(config.society.prior))
    yield from passages_of_groups("dataset/groups.jsonl", groups)
    for part in dict.fromkeys(part for stage in config.train.stages for part in stage.parts):
        if part.kind == "answers":
            yield from _passages_of_exemplars("the training answers", sources.load(part.source))
        elif part.kind != "run":
            left_out: Counter[str] = Counter()
            yield from passages_of_groups(str(part.path), read_groups(part, left_out))
            if left_out["bad_rows"]:
                logger.warning(
                    "%d malformed rows of the training data %s were skipped (skip_bad)", left_out["bad_rows"], part.path
                )


def _passages_of_exemplars(source: str, exemplars: Iterable[sources.Exemplar]) -> Iterator[Passage]:
    for number, exemplar in enumerate(exemplars, start=1):
        answer = () if exemplar.answer is None else (exemplar.answer,)
        yield Passage((exemplar.question, *answer), ("question", "answer"), source, number)


def passages_of_groups(source: str, groups: Iterable[AlignmentGroup]) -> Iterator[Passage]:
    for number, group in enumerate(groups, start=1):
        texts, parts = [group.query], ["query"]
        if group.context:
            texts += [message.content for message in group.context]
            parts += ["context"] * len(group.context)
        question = group.provenance.get("question")
        if question is not None and question != group.query:
            texts.append(question)
            parts.append("question")
        texts += group.responses
        parts += ["response"] * len(group.responses)
        yield Passage(texts, parts, source, number)


def check_leaks(config: Config, groups: Iterable[AlignmentGroup], prompts: Iterable[str] = ()) -> dict[str, Any]:
    """Compares all that is asked, remembered or trained on, responses too, with the evaluation prompts.

    Near-copies are warned of and counted, and no reason to refuse: of Anthropic's harmless test prompts 7 % have one
    in their authors' other questions, nearly all of which ask the same of somebody else.

    Args:
        config: Names what is trained on, and what the evaluation reads.
        groups: The society's.
        prompts: Of benchmarks that are no files.

    Returns:
        What was compared and found, for a card.

    Raises:
        StageError: Some are in it word for word, with their number, the first of them, and where they are.
        DataError: A stage's data is missing or malformed; all of its rows are read here.
    """
    leaks = find_leaks(_passages(config, groups), [*evaluation_prompts(config), *prompts])
    if leaks.exact:
        raise StageError(
            f"{len(leaks.exact)} of {leaks.num_prompts} evaluation prompts are in {_COMPARED}, the first: "
            f"{_named(leaks.exact)}. A result on them would mean nothing: remove those rows there, or evaluate on "
            "others."
        )
    if leaks.near:
        logger.warning(
            "%d of %d evaluation prompts have a near-copy in %s; look at the first ones and decide: %s",
            len(leaks.near),
            leaks.num_prompts,
            _COMPARED,
            _named(leaks.near),
        )
    return leaks.facts()


def _named(matches: Sequence[Match]) -> str:
    return "; ".join(f"{match.prompt[:_MAX_SHOWN]!r} ({match.place})" for match in matches[:3])


@rare_collections()
def collect(run: RunDir, config: Config) -> None:
    """Reads every shard, writes `dataset/groups.jsonl` and `card.json`; `done.json` last.

    Raises:
        StageError: A shard is not complete, an evaluation prompt leaks, or no group comes out.
    """
    folder = run.dataset
    with lock(folder / ".lock", f"the dataset of {run.path}"), recording_failure(folder):
        inputs: dict[str, str] = {}
        recall: dict[str, Any] = {}
        missing = _missing_shards(run, config)
        # A shard's worlds follow those of the one before, and its file is in order: so are all of them together.
        shards = [shard for shard in range(config.society.num_shards) if shard not in missing]
        for shard in shards:
            remedy = f"Run `python jobs/simulate.py {run.path} --shard {shard}`, or launch again."
            done = require_done(run.shard(shard), f"shard {shard}", remedy)
            if is_short(done, config.society.max_rounds):
                raise StageError(
                    f"shard {shard} was simulated for {done.facts['max_rounds']} rounds, and the run has "
                    f"society.max_rounds = {config.society.max_rounds} by now. {remedy}"
                )
            inputs[f"simulate/{shard}"], recall = done.digest, done.facts["recall"]
        protocol = protocol_of(config.society)
        seen = _InteractionCounts(config, protocol)
        files = (read_interactions(run.shard(shard) / "interactions.jsonl") for shard in shards)
        everything = seen.passing(itertools.chain.from_iterable(files))
        left_out: Counter[str] = Counter()
        contents = GroupCounts()
        gathered = build_groups(everything, protocol, config.dataset, left_out)
        with _chosen_groups(gathered, config, folder) as groups, new_file(folder / "groups.jsonl") as file:

            def written() -> Iterator[AlignmentGroup]:
                for group in groups:
                    file.write(to_bytes(group))
                    contents.add(group)
                    yield group

            stream = written()
            leaks = check_leaks(config, stream)
            for _ in stream:  # where there is nothing to look for
                pass
            figures = contents.figures()
            if not figures["num_groups"]:
                raise StageError(
                    f"{seen.num_interactions} interactions produced no group of alignment data. Look at the "
                    f"interactions in {run.path / 'simulate'}, and at dataset.kinds and dataset.ratio."
                )
        card = {
            "num_interactions": seen.num_interactions,
            **figures,
            "left_out": dict(left_out),
            "missing_shards": missing,
            "flags": {flag: seen.flags[flag] for flag in FLAGS},
            "leak_check": leaks,
            # From which distance on agents recall is the same for all shards; what they recalled is counted over all.
            "recall": {**recall, **seen.recalls.figures()},
        }
        write_atomic(folder / "card.json", json.dumps(card, indent=2) + "\n")
        _mirror(run, config, seen, card, protocol)
        mark_done(folder, ["groups.jsonl", "card.json"], inputs, {"num_groups": figures["num_groups"]})


@contextlib.contextmanager
def _chosen_groups(
    groups: Iterable[AlignmentGroup], config: Config, folder: Path
) -> Iterator[Iterable[AlignmentGroup]]:
    """The groups that keep the kinds in `dataset.ratio`. How many there are of each is known at their end only."""
    ratio = config.dataset.ratio
    if ratio is None:
        yield groups
        return
    with tempfile.TemporaryFile(dir=folder, buffering=1 << 18) as file:
        counts: Counter[Kind] = Counter()
        for group in groups:
            counts[kind_of(group)] += 1
            file.write(to_bytes(group))
        file.seek(0)
        yield _read_chosen(file, counts, num_chosen(counts, ratio), config.run.seed)


def _read_chosen(
    lines: Iterator[bytes], counts: Mapping[Kind, int], num_kept: Mapping[Kind, int], seed: int
) -> Iterator[AlignmentGroup]:
    """So many groups of each kind, drawn at random; the kinds follow each other."""
    decode = msgspec.json.Decoder(AlignmentGroup).decode
    for kind, num in counts.items():
        is_kept = drawn(num, num_kept[kind], rng(seed, "ratio", kind))
        for line in itertools.compress(itertools.islice(lines, num), is_kept):
            yield decode(line)


def _missing_shards(run: RunDir, config: Config) -> list[int]:
    """Shards that are not complete, where `cluster.min_shards` allows that some are not; else none."""
    fewest = config.cluster.min_shards
    if fewest is None:
        return []
    found = [read_done(run.shard(shard)) for shard in range(config.society.num_shards)]
    most = config.society.max_rounds
    missing = [shard for shard, done in enumerate(found) if done is None or is_short(done, most)]
    there = config.society.num_shards - len(missing)
    if there < fewest:
        raise StageError(
            f"{there} shards are complete, cluster.min_shards is {fewest}; missing: {', '.join(map(str, missing))}. "
            f"`python jobs/status.py {run.path}` says why; then launch again."
        )
    if missing:
        names = ", ".join(map(str, missing))
        logger.warning("the data is made from %d of %d shards; missing: %s", there, there + len(missing), names)
    return missing


def _facts_of_profiles(run: RunDir, shards: Sequence[int]) -> dict[int | None, dict[str, Any]]:
    """What is known of each profile, by its number; where not all that a name stands for are numbers, as text."""
    found: dict[int | None, dict[str, Any]] = {}
    for shard in shards:
        found |= {number: one.facts for number, one in read_profiles(run.shard(shard) / "profiles.jsonl").items()}
    texts = {name for known in found.values() for name, value in known.items() if isinstance(value, str | bool)}
    return {
        number: {name: str(value) if name in texts else value for name, value in known.items()}
        for number, known in sorted(found.items())
    }


def _mirror(
    run: RunDir, config: Config, seen: _InteractionCounts, card: dict[str, Any], protocol: Protocol[Any]
) -> None:
    """The society's W&B run: shards open none, so the collector shows their curves, samples and data."""
    rounds: dict[int, list[dict[str, Any]]] = {}
    missing = card["missing_shards"]
    for shard in sorted(set(range(config.society.num_shards)) - set(missing)):
        for row in read_metrics(run.shard(shard) / "metrics.jsonl"):
            if "sim/round" in row:
                rounds.setdefault(row["sim/round"], []).append(row)
    spent = seen.spent()
    with open_mirror(run, config, "simulate") as mirror:
        for round_, rows in sorted(rounds.items()):
            ends = (
                "_mean",
                "_sd",
                "_share",
                "_median",
                "sim/parse_rate",
                *(f"sim/{name}" for name in protocol.figures),
            )
            names = [name for name in rows[0] if name.endswith(ends)]
            means = {name: mean(row[name] for row in rows) for name in names}
            failed = sum(row["sim/failed"] for row in rows)
            mirror.log({"sim/round": round_, **means, "sim/failed": failed, **spent.get(round_, {})})
        num_done = config.society.num_shards - len(missing)
        mirror.summarize({"sim/shards_done": num_done, "sim/shards_failed": len(missing)})
        mirror.summarize({"sim/interactions": seen.num_interactions, "data/groups": card["num_groups"]})
        mirror.summarize({f"data/{kind}": card["kinds"][kind]["num_groups"] for kind in KINDS})
        first = read_done(run.shard(0))
        observer = None if first is None else first.facts.get("observer")
        if observer is not None:
            mirror.summarize({f"observer/{name}": observer[name] for name in ("agreement", "length_correlation")})
        roles = protocol.observed
        rated = [(role, criterion) for criterion in protocol.criteria for role in roles]
        who = _facts_of_profiles(run, [n for n in range(config.society.num_shards) if n not in missing])
        facts = list(dict.fromkeys(name for known in who.values() for name in known))
        columns = ["world", "round", "agent", "question", *roles, *(" ".join(both) for both in rated)]
        columns += [f"profile.{name}" for name in facts]
        samples = []
        for item in seen.samples:
            turns = {role: item.turn(role) for role in roles}
            ratings = [(turn := turns[role]) and turn.observed_rating(criterion) for role, criterion in rated]
            known = who.get(item.agents[0].profile, {})
            said = (turn and turn.text for turn in turns.values())
            samples.append([*item.key, item.topic, *said, *ratings, *(known.get(name) for name in facts)])
        mirror.table("sim/samples", columns, samples)
        mirror.artifact(f"{config.run.name}-data", "dataset", [run.dataset / "groups.jsonl", run.dataset / "card.json"])
