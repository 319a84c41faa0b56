"""Interactions of all worlds -> alignment data of three kinds (method: section 2)."""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from salign.config import FLAGS, KINDS, Config, DatasetSection, Flag, Kind, Ratio
from salign.dataset.groups import read_groups
from salign.dataset.leaks import Match, Text, find_leaks, prompts_of
from salign.dataset.rated import mean_score
from salign.errors import StageError
from salign.records import AlignmentGroup, Interaction, Turn, read_interactions, to_line
from salign.run import RunDir, lock, mark_done, read_done, recording_failure, require_done, write_atomic
from salign.seeds import rng
from salign.society import sources
from salign.society.protocols import protocol_of
from salign.society.protocols.base import Protocol, Row
from salign.society.recalls import recalls_of
from salign.society.rounds import mean
from salign.tracking.metrics import read_metrics
from salign.tracking.mirror import open_mirror

logger = logging.getLogger(__name__)

# Flags that leave a text what it is: nothing is missing of it, or its end, which `_without_cut_best` minds.
_KEPT: tuple[Flag, ...] = ("cut", "thinking")

_COMPARED = "the society's questions, the agents' initial memory or the training data"
# Characters of a prompt that a message quotes.
_MAX_SHOWN = 200


@dataclass(slots=True)
class _Response:
    """The scores of one text, and whether it was ever whole, so that it may be the best."""

    scores: list[float] = field(default_factory=list)
    whole: bool = False


def _rows(
    interaction: Interaction, protocol: Protocol[Any], section: DatasetSection, left_out: Counter[str]
) -> Iterator[Row]:
    """What can be learnt from an interaction; neither flagged texts nor what was said of them."""
    learnt = {*_KEPT, *section.keep_flagged}

    def kept(turns: Iterable[Turn]) -> list[Turn]:
        there = list(turns)
        clean = [turn for turn in there if learnt.issuperset(turn.flags)]
        left_out["flagged"] += len(there) - len(clean)
        return clean

    return protocol.rows(interaction, kept, section.min_realignment_score)


def build_groups(
    interactions: Iterable[Interaction], protocol: Protocol[Any], section: DatasetSection
) -> tuple[list[AlignmentGroup], dict[str, int]]:
    """Rows with the same query become one group.

    Left out are empty responses, those without a rating, flagged ones with what was said of them (a flagged text's
    rating is no better than none), those that were cut and are as good as the best whole one, and groups in which a cut
    one is better than that: another would be learnt as the best. A response that is given to one query several times
    stands in its group once, with the mean of its ratings.

    Args:
        interactions: In canonical order.
        protocol: By which they were held.
        section: Which kinds, from which score a revision is one to learn from, and which flags do not matter.

    Returns:
        The groups, by kind and then by first appearance, and counts of what was left out.
    """
    gathered: dict[tuple[Kind, str], tuple[dict[str, _Response], list[tuple[int, int, int]], str]] = {}
    left_out = Counter(dict.fromkeys(("unrated", "empty", "duplicate", "flagged", "cut", "cut_best_groups"), 0))
    for interaction in interactions:
        for row in _rows(interaction, protocol, section, left_out):
            if row.kind not in section.kinds:
                continue
            there, origins, _ = gathered.setdefault((row.kind, row.query), ({}, [], interaction.topic))
            origins.append(interaction.key)
            for turn, score in row.responses:
                text = turn.text.strip()
                if score is None or not text:
                    left_out["unrated" if score is None else "empty"] += 1
                    continue
                left_out["duplicate"] += text in there
                given = there.setdefault(text, _Response())
                given.scores.append(score)
                given.whole |= "cut" not in turn.flags or "cut" in section.keep_flagged
    groups = []
    for (kind, query), (there, origins, question) in gathered.items():
        if not there:
            continue
        scores = _without_cut_best(there)
        left_out["cut"] += len(there) - len(scores)
        left_out["cut_best_groups"] += not scores
        if scores:
            provenance = {"question": question, "interactions": origins}
            groups.append(AlignmentGroup(query, tuple(scores), tuple(scores.values()), kind, provenance))
    return sorted(groups, key=lambda group: KINDS.index(_kind(group))), dict(left_out)


def _without_cut_best(responses: dict[str, _Response]) -> dict[str, float]:
    """Scores by text, without texts that were cut and are as good as the best; none where no whole one is the best."""
    scores = {text: mean_score(given.scores) for text, given in responses.items()}
    best = max(scores.values())
    if not any(score == best and responses[text].whole for text, score in scores.items()):
        return {}
    return {text: score for text, score in scores.items() if responses[text].whole or score < best}


def _kind(group: AlignmentGroup) -> Kind:
    assert group.kind is not None
    assert group.kind != "demonstration"
    return group.kind


def sample_ratio(groups: list[AlignmentGroup], ratio: Ratio | None, seed: int) -> list[AlignmentGroup]:
    """The most groups that keep the kinds in the given ratio; a kind with share 0 is left out, None keeps all."""
    if ratio is None:
        return groups
    there = Counter(_kind(group) for group in groups)
    shares = {kind: getattr(ratio, kind) for kind in there}
    unit = min((there[kind] / share for kind, share in shares.items() if share > 0), default=0.0)
    kept = []
    for kind in there:
        of_kind = [group for group in groups if group.kind == kind]
        chosen = rng(seed, "ratio", kind).sample(
            range(len(of_kind)), min(len(of_kind), int(unit * shares[kind] + 1e-9))
        )
        kept += [of_kind[position] for position in sorted(chosen)]
    return kept


def _histogram(values: Iterable[float]) -> dict[str, int]:
    """Counts by the nearest whole score, 1..7."""
    counts = Counter(round(value) for value in values)
    return {str(score): counts[score] for score in range(1, 8)}


def make_card(groups: list[AlignmentGroup], left_out: dict[str, int], num_interactions: int) -> dict[str, Any]:
    """What the data is made of: counts by kind, histograms of scores, what was left out."""
    kinds = {}
    for kind in KINDS:
        of_kind = [group for group in groups if group.kind == kind]
        kinds[kind] = {
            "num_groups": len(of_kind),
            "num_responses": sum(len(group.responses) for group in of_kind),
            "num_single": sum(len(group.responses) == 1 for group in of_kind),
            "scores": _histogram(score for group in of_kind for score in group.scores),
        }
    return {
        "num_interactions": num_interactions,
        "num_groups": len(groups),
        "num_responses": sum(len(group.responses) for group in groups),
        "kinds": kinds,
        "left_out": left_out,
    }


def evaluation_prompts(config: Config) -> list[str]:
    """Every prompt that the run is evaluated on, and those of the files that `dataset.leak_check` names."""
    prompts = sources.questions(config.evaluate.questions)
    files = [path for path in config.evaluate.files if path != config.evaluate.suffixes]
    for path in (*files, *config.dataset.leak_check):
        prompts += prompts_of(path)
    return prompts


def _training_texts(config: Config, groups: Iterable[AlignmentGroup]) -> Iterator[Text]:
    """All that is asked, remembered or trained on."""
    if config.has_society:
        for number, question in enumerate(sources.questions(config.society.questions), start=1):
            yield Text(question, "society.questions", number, "question")
        yield from _texts_of_exemplars("society.prior", sources.load(config.society.prior))
    yield from _texts_of_groups("dataset/groups.jsonl", groups)
    for part in dict.fromkeys(part for stage in config.train.stages for part in stage.parts):
        if part.kind == "answers":
            yield from _texts_of_exemplars("the training answers", sources.load(part.source))
        elif part.kind != "run":
            left_out: Counter[str] = Counter()
            yield from _texts_of_groups(str(part.path), read_groups(part, left_out))
            if left_out["bad_rows"]:
                logger.warning(
                    "%d malformed rows of the training data %s are left out (skip_bad)", left_out["bad_rows"], part.path
                )


def _texts_of_exemplars(source: str, exemplars: Iterable[sources.Exemplar]) -> Iterator[Text]:
    for number, exemplar in enumerate(exemplars, start=1):
        yield Text(exemplar.question, source, number, "question")
        if exemplar.answer is not None:
            yield Text(exemplar.answer, source, number, "answer")


def _texts_of_groups(source: str, groups: Iterable[AlignmentGroup]) -> Iterator[Text]:
    for number, group in enumerate(groups, start=1):
        yield Text(group.query, source, number, "query")
        for message in group.context:
            yield Text(message.content, source, number, "context")
        question = group.provenance.get("question")
        if question is not None and question != group.query:
            yield Text(question, source, number, "question")
        for response in group.responses:
            yield Text(response, source, number, "response")


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
    leaks = find_leaks(_training_texts(config, groups), [*evaluation_prompts(config), *prompts])
    if leaks.exact:
        raise StageError(
            f"{len(leaks.exact)} of {leaks.num_prompts} evaluation prompts are in {_COMPARED}, the first: "
            f"{_named(leaks.exact)}. A result on them would mean nothing: remove those rows there, or evaluate on "
            "others."
        )
    if leaks.near:
        logger.warning(
            "%d of %d evaluation prompts have a near-copy in %s; look at the first, and judge: %s",
            len(leaks.near),
            leaks.num_prompts,
            _COMPARED,
            _named(leaks.near),
        )
    return leaks.facts()


def _named(matches: Sequence[Match]) -> str:
    return "; ".join(f"{match.prompt[:_MAX_SHOWN]!r} ({match.place})" for match in matches[:3])


def collect(run: RunDir, config: Config) -> None:
    """Reads every shard, writes `dataset/groups.jsonl` and `card.json`; `done.json` last.

    Raises:
        StageError: A shard is not complete, an evaluation prompt leaks, or no group comes out.
    """
    folder = run.dataset
    with lock(folder / ".lock", f"the dataset of {run.path}"), recording_failure(folder):
        inputs: dict[str, str] = {}
        interactions: list[Interaction] = []
        recall: dict[str, Any] = {}
        missing = _missing_shards(run, config)
        for shard in set(range(config.society.num_shards)) - set(missing):
            remedy = f"Run `python jobs/simulate.py {run.path} --shard {shard}`, or launch again."
            done = require_done(run.shard(shard), f"shard {shard}", remedy)
            inputs[f"simulate/{shard}"], recall = done.digest, done.facts["recall"]
            interactions += read_interactions(run.shard(shard) / "interactions.jsonl")
        interactions.sort(key=lambda interaction: interaction.key)
        protocol = protocol_of(config.society)
        groups, left_out = build_groups(interactions, protocol, config.dataset)
        groups = sample_ratio(groups, config.dataset.ratio, config.run.seed)
        if not groups:
            raise StageError(
                f"{len(interactions)} interactions gave not one group of alignment data. Look at the interactions in "
                f"{run.path / 'simulate'}, and at dataset.kinds and dataset.ratio."
            )
        leaks = check_leaks(config, groups)
        card = make_card(groups, left_out, len(interactions))
        card["missing_shards"] = missing
        flags = Counter(flag for item in interactions for turn in item.turns for flag in turn.flags)
        card["flags"] = {flag: flags[flag] for flag in FLAGS}
        card["leak_check"] = leaks
        # From which distance on agents recall is the same for all shards; what they recalled is counted over all.
        card["recall"] = {**recall, **recalls_of(interactions, protocol.reminded).figures()}
        write_atomic(folder / "groups.jsonl", "".join(map(to_line, groups)))
        write_atomic(folder / "card.json", json.dumps(card, indent=2) + "\n")
        _mirror(run, config, interactions, card, protocol)
        mark_done(folder, ["groups.jsonl", "card.json"], inputs, {"num_groups": len(groups)})


def _missing_shards(run: RunDir, config: Config) -> list[int]:
    """Shards that are not complete, where `cluster.min_shards` allows that some are not; else none."""
    fewest = config.cluster.min_shards
    if fewest is None:
        return []
    missing = [shard for shard in range(config.society.num_shards) if read_done(run.shard(shard)) is None]
    there = config.society.num_shards - len(missing)
    if there < fewest:
        raise StageError(
            f"{there} shards are complete, and cluster.min_shards is {fewest}; {', '.join(map(str, missing))} are not. "
            f"`python jobs/status.py {run.path}` says why; launch again."
        )
    if missing:
        names = ", ".join(map(str, missing))
        logger.warning("the data is made from %d of %d shards; missing: %s", there, there + len(missing), names)
    return missing


def _spent(config: Config, interactions: Iterable[Interaction]) -> dict[int, dict[str, float]]:
    """Calls, tokens and, where the config has a price, cost of each round and those before it."""
    rounds: dict[int, Counter[str]] = {}
    for item in interactions:
        rounds.setdefault(item.round, Counter()).update(
            calls=item.num_calls, prompt=item.prompt_tokens, completion=item.completion_tokens
        )
    spent: dict[int, dict[str, float]] = {}
    price, total = config.tracking.price_per_1000_tokens, Counter[str]()
    for round_ in sorted(rounds):
        total.update(rounds[round_])
        spent[round_] = {"sim/calls": total["calls"], "sim/tokens": total["prompt"] + total["completion"]}
        if price is not None:
            spent[round_]["sim/cost"] = price.of(total["prompt"], total["completion"])
    return spent


def _alignment(turn: Turn | None) -> float | None:
    return None if turn is None else turn.observed_rating("alignment")


def _mirror(
    run: RunDir, config: Config, interactions: list[Interaction], card: dict[str, Any], protocol: Protocol[Any]
) -> None:
    """The society's W&B run: shards open none, so the collector shows their curves, samples and data."""
    rounds: dict[int, list[dict[str, Any]]] = {}
    missing = card["missing_shards"]
    for shard in sorted(set(range(config.society.num_shards)) - set(missing)):
        for row in read_metrics(run.shard(shard) / "metrics.jsonl"):
            if "sim/round" in row:
                rounds.setdefault(row["sim/round"], []).append(row)
    spent = _spent(config, interactions)
    with open_mirror(run, config, "simulate") as mirror:
        for round_, rows in sorted(rounds.items()):
            names = [name for name in rows[0] if name.endswith(("_mean", "_share", "_median", "sim/parse_rate"))]
            means = {name: mean(row[name] for row in rows) for name in names}
            failed = sum(row["sim/failed"] for row in rows)
            mirror.log({"sim/round": round_, **means, "sim/failed": failed, **spent.get(round_, {})})
        num_done = config.society.num_shards - len(missing)
        mirror.summarize({"sim/shards_done": num_done, "sim/shards_failed": len(missing)})
        mirror.summarize({"sim/interactions": len(interactions), "data/groups": card["num_groups"]})
        mirror.summarize({f"data/{kind}": card["kinds"][kind]["num_groups"] for kind in KINDS})
        first = read_done(run.shard(0))
        observer = None if first is None else first.facts.get("observer")
        if observer is not None:
            mirror.summarize({f"observer/{name}": observer[name] for name in ("agreement", "length_correlation")})
        roles = protocol.observed
        columns = ["world", "round", "agent", "question", *roles, *(f"{role} alignment" for role in roles)]
        shown = interactions[: config.tracking.num_table_rows]
        rated = [
            [*item.key, item.topic, *(turn and turn.text for turn in turns), *(_alignment(turn) for turn in turns)]
            for item in shown
            for turns in [[item.turn(role) for role in roles]]
        ]
        mirror.table("sim/samples", columns, rated)
        mirror.artifact(f"{config.run.name}-data", "dataset", [run.dataset / "groups.jsonl", run.dataset / "card.json"])
