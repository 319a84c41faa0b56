"""Interactions of all worlds -> alignment data of three kinds (method: section 2)."""

import itertools
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from salign.config import KINDS, Config, DatasetSection, Kind, Ratio
from salign.dataset import templates
from salign.dataset.groups import read_groups
from salign.dataset.leaks import find_leaks, prompts_of
from salign.dataset.rated import mean_score
from salign.errors import StageError
from salign.records import AlignmentGroup, Interaction, Turn, read_interactions, to_line
from salign.run import RunDir, lock, mark_done, read_done, recording_failure, require_done, write_atomic
from salign.seeds import rng
from salign.society import sources
from salign.society.recalls import recalls_of
from salign.society.rounds import mean
from salign.tracking.metrics import read_metrics
from salign.tracking.mirror import open_mirror

logger = logging.getLogger(__name__)

Rated = tuple[str, float | None]

# Training texts that are compared at a time.
_LEAK_BATCH = 10_000


def _rows(interaction: Interaction, section: DatasetSection) -> Iterator[tuple[Kind, str, list[Rated]]]:
    """Queries of an interaction with rated responses, by kind."""
    draft, revision = interaction.turn("draft"), interaction.turn("revision")
    if draft is None:
        return
    question, feedback = interaction.topic, interaction.turns_of("feedback")
    answers = [turn for turn in (draft, revision) if turn is not None]
    yield "imitation", question, [(turn.text, turn.observed_rating("alignment")) for turn in answers]
    yield "self_critic", templates.self_critic(question, draft.text), [(turn.text, turn.rating) for turn in feedback]
    if revision is None:
        return
    before, after = (turn.observed_rating("alignment") for turn in (draft, revision))
    if before is not None and after is not None and after > max(before, section.min_realignment_score):
        reasons = [turn.text for turn in feedback if turn.rating is not None and turn.text.strip()]
        if reasons:  # without words there is nothing to learn to follow
            yield "realignment", templates.realignment(question, draft.text, reasons), [(revision.text, after)]


def build_groups(
    interactions: Iterable[Interaction], section: DatasetSection
) -> tuple[list[AlignmentGroup], dict[str, int]]:
    """Rows with the same query become one group; empty responses and those without a rating are left out.

    A response that is given to one query several times stands in its group once, with the mean of its ratings.

    Args:
        interactions: In canonical order.
        section: Which kinds, and from which score a revision is one to learn from.

    Returns:
        The groups, by kind and then by first appearance, and counts of what was left out.
    """
    gathered: dict[tuple[Kind, str], tuple[dict[str, list[float]], list[tuple[int, int, int]], str]] = {}
    left_out = {"unrated": 0, "empty": 0, "duplicate": 0}
    for interaction in interactions:
        for kind, query, rated in _rows(interaction, section):
            if kind not in section.kinds:
                continue
            scores, origins, _ = gathered.setdefault((kind, query), ({}, [], interaction.topic))
            origins.append(interaction.key)
            for response, score in rated:
                text = response.strip()
                if score is None or not text:
                    left_out["unrated" if score is None else "empty"] += 1
                    continue
                left_out["duplicate"] += text in scores
                scores.setdefault(text, []).append(score)
    groups = [
        AlignmentGroup(
            query,
            tuple(scores),
            tuple(map(mean_score, scores.values())),
            kind,
            {"question": question, "interactions": origins},
        )
        for (kind, query), (scores, origins, question) in gathered.items()
        if scores
    ]
    return sorted(groups, key=lambda group: KINDS.index(_kind(group))), left_out


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


def _training_texts(config: Config, groups: Iterable[AlignmentGroup]) -> Iterator[str]:
    """All that is trained on, or that agents remember."""
    yield from (exemplar.question for exemplar in sources.load(config.society.prior))
    yield from (text for group in groups for text in (group.provenance["question"], group.query))
    for part in dict.fromkeys(part for stage in config.train.stages for part in stage.parts):
        if part.kind == "answers":
            yield from sources.questions(part.source)
        elif part.kind != "run":
            left_out: Counter[str] = Counter()
            yield from (group.query for group in read_groups(part, left_out))
            if left_out["bad_rows"]:
                logger.warning(
                    "%d malformed rows of the training data %s are left out (skip_bad)", left_out["bad_rows"], part.path
                )


def check_leaks(config: Config, groups: Iterable[AlignmentGroup], prompts: Iterable[str] = ()) -> int:
    """Compares all that is trained on, or that agents remember, with the evaluation prompts.

    Args:
        config: Names what is trained on, and what the evaluation reads.
        groups: The society's.
        prompts: Of benchmarks that are no files.

    Returns:
        How many distinct evaluation prompts were compared.

    Raises:
        StageError: Some are in it, with their number and the first of them.
        DataError: A stage's data is missing or malformed; all of its rows are read here.
    """
    evaluation = sorted({*evaluation_prompts(config), *prompts})
    texts, found = _training_texts(config, groups), set()
    while batch := list(itertools.islice(texts, _LEAK_BATCH)):
        found.update(find_leaks(batch, evaluation))
    leaked = sorted(found)
    if leaked:
        raise StageError(
            f"{len(leaked)} of {len(evaluation)} evaluation prompts are in the training data or in the agents' initial "
            f"memory, the first: {leaked[0]!r}. A result on them would mean nothing: remove them from the questions, "
            "the prior or the training data, or evaluate on others."
        )
    return len(evaluation)


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
        groups, left_out = build_groups(interactions, config.dataset)
        groups = sample_ratio(groups, config.dataset.ratio, config.run.seed)
        if not groups:
            raise StageError(
                f"{len(interactions)} interactions gave not one group of alignment data. Look at the interactions in "
                f"{run.path / 'simulate'}, and at dataset.kinds and dataset.ratio."
            )
        num_compared = check_leaks(config, groups)
        card = make_card(groups, left_out, len(interactions))
        card["missing_shards"] = missing
        # From which distance on agents recall is the same for all shards; what they recalled is counted over all.
        card["recall"] = {**recall, **recalls_of(interactions).figures()}
        card["leak_check"] = {"num_evaluation_prompts": num_compared, "num_leaked": 0}
        write_atomic(folder / "groups.jsonl", "".join(map(to_line, groups)))
        write_atomic(folder / "card.json", json.dumps(card, indent=2) + "\n")
        _mirror(run, config, interactions, card)
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


def _mirror(run: RunDir, config: Config, interactions: list[Interaction], card: dict[str, Any]) -> None:
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
            names = [name for name in rows[0] if name.endswith(("_mean", "_share", "sim/parse_rate"))]
            means = {name: mean(row[name] for row in rows) for name in names}
            failed = sum(row["sim/failed"] for row in rows)
            mirror.log({"sim/round": round_, **means, "sim/failed": failed, **spent.get(round_, {})})
        num_done = config.society.num_shards - len(missing)
        mirror.summarize({"sim/shards_done": num_done, "sim/shards_failed": len(missing)})
        mirror.summarize({"sim/interactions": len(interactions), "data/groups": card["num_groups"]})
        mirror.summarize({f"data/{kind}": card["kinds"][kind]["num_groups"] for kind in KINDS})
        columns = ["world", "round", "agent", "question", "draft", "revision", "draft alignment", "revision alignment"]
        shown = interactions[: config.tracking.num_table_rows]
        rated = [
            [*item.key, item.topic, *(turn and turn.text for turn in turns), *(_alignment(turn) for turn in turns)]
            for item in shown
            for turns in [(item.turn("draft"), item.turn("revision"))]
        ]
        mirror.table("sim/samples", columns, rated)
        mirror.artifact(f"{config.run.name}-data", "dataset", [run.dataset / "groups.jsonl", run.dataset / "card.json"])
