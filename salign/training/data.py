"""The groups that a stage trains on, and the order in which it sees them."""

import functools
import hashlib
import itertools
import logging
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from transformers import AutoConfig, PreTrainedTokenizerBase

from salign import architecture, models
from salign.config import KINDS, AnswersData, DataPart, GroupsData, Kind, RunData, TrainStage
from salign.dataset.gathering import drawn
from salign.dataset.groups import demonstrations, digest_of, read_groups
from salign.documents import read_json
from salign.errors import DataError
from salign.markers import damaged, read_done, require_done
from salign.records import AlignmentGroup, ReplayedGroup
from salign.run import RunDir
from salign.seeds import rng
from salign.training.hindsight import HINDSIGHT_VERSION, chain_of_hindsight
from salign.training.noise import with_noise
from salign.training.packing import Lengths, sample_responses
from salign.training.tokens import TokenGroup, TokenStore, store_key

logger = logging.getLogger(__name__)


def stage_groups(
    run: RunDir, stage: TrainStage, seed: int, left_out: Counter[str]
) -> tuple[Iterable[AlignmentGroup], str, dict[str, str]]:
    """Reads the stage's groups while they are iterated.

    Args:
        run: The run's folder.
        stage: Whose data.
        seed: The run's, by which what is replayed is drawn.
        left_out: See `read_groups`.

    Returns:
        The groups, a digest of what they are, and the digests of the stages that they come from.

    Raises:
        StageError: The dataset of this run, or of a generation that is replayed, is not complete.
        DataError: A file is missing or malformed (raised, for its rows, while they are iterated).
    """
    found = [_groups_of(run, part, left_out) for part in stage.parts]
    found += [
        _replayed(earlier, age, share, part.kinds, (seed, stage.name, "replay", number, age))
        for number, part in enumerate(stage.parts)
        if isinstance(part, RunData)
        for age, share, earlier in run.replayed(part.replay)
    ]
    groups, digests = [groups for groups, _, _ in found], [digest for _, digest, _ in found]
    inputs = {name: digest for _, _, inputs in found for name, digest in inputs.items()}
    digest = digests[0] if len(digests) == 1 else hashlib.sha256(repr(digests).encode()).hexdigest()
    return itertools.chain.from_iterable(groups), digest, inputs


def _groups_of(
    run: RunDir, data: DataPart, left_out: Counter[str]
) -> tuple[Iterable[AlignmentGroup], str, dict[str, str]]:
    if isinstance(data, AnswersData):
        return demonstrations(data), digest_of(data), {}
    if not isinstance(data, RunData):
        return read_groups(data, left_out), digest_of(data), {}
    done = require_done(run.dataset, "the dataset", f"Run `python jobs/collect.py {run.path}`, or launch again.")
    own = GroupsData(kind="groups", path=run.dataset / "groups.jsonl")
    digest = done.digest if set(data.kinds) == set(KINDS) else f"{done.digest} {sorted(data.kinds)}"
    return _of_kinds(read_groups(own, left_out), data), digest, {"dataset": done.digest}


def _replayed(
    run: RunDir, age: int, share: float, kinds: Sequence[Kind], place: tuple[int | str, ...]
) -> tuple[Iterable[AlignmentGroup], str, dict[str, str]]:
    """A share of an earlier generation's groups, each with the same chance, in their order."""
    done = require_done(run.dataset, f"the dataset of generation {run.number}", f"Launch {run.first.path} again.")
    card = read_json(run.dataset / "card.json", str(run.dataset / "card.json"), dict[str, Any])
    num = sum(card["kinds"][kind]["num_groups"] for kind in set(kinds))

    def groups() -> Iterator[AlignmentGroup]:
        own = GroupsData(kind="groups", path=run.dataset / "groups.jsonl")
        of_kinds = (group for group in read_groups(own, Counter()) if group.kind in kinds)
        for group in itertools.compress(of_kinds, drawn(num, round(share * num), rng(*place))):
            yield ReplayedGroup(**{name: getattr(group, name) for name in group.__struct_fields__}, age=age)

    digest = hashlib.sha256(repr((done.digest, share, sorted(kinds), place)).encode()).hexdigest()
    return groups(), digest, {run.dataset_key: done.digest}


def _of_kinds(groups: Iterable[AlignmentGroup], data: RunData) -> Iterator[AlignmentGroup]:
    empty = True
    for group in groups:
        if group.kind in data.kinds:
            empty = False
            yield group
    if empty:
        raise DataError(f"the run's alignment data has no group of the kinds {', '.join(data.kinds)}")


def context_length(model: str) -> int | None:
    """Returns the longest text in tokens that a model can learn here; None if its config does not say.

    That is what it is made for. Under LongRoPE, it is what has the positions of short texts: in a row with a longer one
    a text would get others than alone.
    """
    config = AutoConfig.from_pretrained(models.resolve(model), trust_remote_code=False).get_text_config()
    limits = (architecture.max_positions(config), architecture.longrope_switch(config))
    return min((limit for limit in limits if limit is not None), default=None)


def longest(store: TokenStore, stage: TrainStage) -> Lengths:
    """Returns the lengths of the longest text and the longest row that a stage makes of its data."""
    whole_groups = stage.held_out_share > 0 or stage.objective.needs_reference
    text, group = store.longest(None if whole_groups else stage.num_responses)
    return Lengths(text, max(group, min(stage.row_tokens or 0, group * stage.groups_per_step)))


def build_tokens(
    run: RunDir, stage: TrainStage, seed: int, tokenizer: PreTrainedTokenizerBase, context: int | None
) -> tuple[Path, dict[str, str]]:
    """Tokenises the stage's data unless that is done; one rank calls it, under the stage's lock.

    Args:
        run: The run's folder.
        stage: Whose data.
        seed: The run's.
        tokenizer: With its chat template.
        context: The longest text for the model; what is longer is left out, as by the stage's `max_tokens`.

    Returns:
        The folder for `TokenStore`, and the digests of the stages that the data comes from.

    Raises:
        StageError: As `stage_groups`.
        DataError: A file is missing or malformed, or nothing in it fits into `max_tokens`.
    """
    max_tokens = stage.max_tokens if context is None else min(stage.max_tokens, context)
    left_out: Counter[str] = Counter()
    groups, digest, inputs = stage_groups(run, stage, seed, left_out)
    if stage.score_noise:
        deviation = stage.score_noise
        groups = (with_noise(group, deviation, seed, stage.name, number) for number, group in enumerate(groups))
        digest = f"{digest}-noise-{deviation}-{seed}"
    if stage.objective.in_one_text:
        groups = (chain_of_hindsight(group, seed, stage.name, number) for number, group in enumerate(groups))
        digest = f"{digest}-{HINDSIGHT_VERSION}-{seed}"
    folder = run.stage(stage.name) / f"tokens-{store_key(tokenizer, max_tokens, digest)}"
    kept = read_done(folder)
    if kept is not None and (name := next(damaged(folder, kept), None)) is not None:
        logger.warning("%s is damaged: the data is tokenised again", folder / name)
        kept = None
    if kept is None:
        logger.info("train stage %s: tokenising the data, once", stage.name)
        TokenStore.build(folder, groups, tokenizer, max_tokens, left_out)
    for other in folder.parent.glob("tokens-*"):  # of other data or another limit
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)
    return folder, inputs


class Groups(Protocol):
    """Groups by their number: a list, or a store."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> TokenGroup: ...


def split(groups: Groups, stage: TrainStage, seed: int) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Splits groups, by number, into those to train on and those held out: a function of seed and stage.

    A group without two responses of different scores is in neither where the objective compares responses.

    Raises:
        DataError: Nothing is left to train on.
    """
    numbers = shuffled(len(groups), seed, stage.name, "held_out")
    if stage.objective.compares:
        pairs = (groups[int(number)].scores for number in numbers)
        numbers = numbers[np.fromiter((max(scores) > min(scores) for scores in pairs), dtype=bool)]
    num_held_out = round(stage.held_out_share * len(numbers))
    if len(numbers) == num_held_out:
        raise DataError(
            f"train stage {stage.name}: none of its {len(groups)} groups can be trained on. The objective "
            f"{stage.objective.kind} needs groups with "
            + ("responses of different scores" if stage.objective.compares else "a response")
            + f", and held_out_share is {stage.held_out_share:g}."
        )
    return np.sort(numbers[num_held_out:]), np.sort(numbers[:num_held_out])


class Order:
    """Which groups each step takes: a function of seed, stage and step, the same for any number of ranks.

    Args:
        groups: All of the stage's.
        stage: Its budget.
        seed: The run's.
        numbers: Of the groups that are trained on; None: all.
    """

    def __init__(self, groups: Groups, stage: TrainStage, seed: int, numbers: NDArray[np.uint32] | None = None) -> None:
        self._groups = groups
        self._stage = stage
        self._seed = seed
        self._numbers = np.arange(len(groups), dtype=np.uint32) if numbers is None else numbers
        self._shuffled: dict[int, NDArray[np.uint32]] = {}

    @functools.cached_property
    def num_steps(self) -> int:
        """The number of optimizer steps of the stage."""
        stage, steps = self._stage, itertools.count(1)
        if stage.num_tokens is None:
            num_steps = max(1, round(stage.num_epochs * len(self._numbers) / stage.groups_per_step))
        else:
            num_tokens = itertools.accumulate(
                sum(group.num_tokens for _, group in self.groups(step - 1)) for step in itertools.count(1)
            )
            num_steps = next(step for step, seen in zip(steps, num_tokens, strict=False) if seen >= stage.num_tokens)
        return num_steps if stage.max_steps is None else min(num_steps, stage.max_steps)

    def _group(self, position: int) -> tuple[int, TokenGroup]:
        epoch, place = divmod(position, len(self._numbers))
        if epoch not in self._shuffled:
            # A step may span two epochs.
            self._shuffled = {key: value for key, value in self._shuffled.items() if key == epoch - 1}
            self._shuffled[epoch] = shuffled(len(self._numbers), self._seed, self._stage.name, "order", epoch)
        number = int(self._numbers[self._shuffled[epoch][place]])
        place_of_draw = (self._seed, self._stage.name, epoch, number)
        return number, sample_responses(self._groups[number], self._stage.num_responses, *place_of_draw)

    def groups(self, step: int) -> list[tuple[int, TokenGroup]]:
        """Returns the groups of a step (counted from 0) for all ranks, each with its number in the data."""
        first = step * self._stage.groups_per_step
        return [self._group(position) for position in range(first, first + self._stage.groups_per_step)]

    def epoch(self, step: int) -> float:
        """Returns the epochs seen after this many steps."""
        return step * self._stage.groups_per_step / len(self._numbers)


def shuffled(count: int, *place: int | str) -> NDArray[np.uint32]:
    """Shuffles the numbers below `count` by random keys: the same order for a place in any version of numpy."""
    keys = np.frombuffer(rng(*place).randbytes(8 * count), dtype="<u8")
    return keys.argsort(kind="stable").astype(np.uint32)
