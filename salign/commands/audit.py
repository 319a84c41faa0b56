"""Audits a file of rated groups: repetitions, what scores follow, who is named, leaks, how far raters agree.

python jobs/audit.py RUN
python jobs/audit.py FILE --against eval.jsonl --second other_rater.jsonl --lexicon words.txt --json audit.json

FILE is anything that `data: {kind: groups, path: FILE}` reads.
"""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from salign.command_line import Parser
from salign.config import GroupsData
from salign.dataset.groups import read_groups
from salign.dataset.leaks import prompts_of
from salign.errors import ConfigError, DataError
from salign.evaluation.statistics import Estimate
from salign.files import read_text
from salign.markers import require_done
from salign.records import AlignmentGroup
from salign.report.audit import audit
from salign.run import open_run
from salign.shown import say
from salign.storage import write_atomic


def make_parser() -> Parser:
    """Makes the parser of the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("source", type=Path, metavar="RUN|FILE", help="a run's folder, or a file of groups")
    parser.add_argument(
        "--against", type=Path, nargs="+", default=[], metavar="FILE", help="evaluation files that should not be in it"
    )
    parser.add_argument("--second", type=Path, metavar="FILE", help="the same responses with another rater's scores")
    parser.add_argument("--lexicon", type=Path, metavar="FILE", help="words to be counted in it, one a line")
    parser.add_argument("--skip-bad", action="store_true", help="skip malformed rows")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    return parser


def _groups(path: Path, *, skip_bad: bool = False) -> list[AlignmentGroup]:
    left_out: Counter[str] = Counter()
    return list(read_groups(GroupsData(kind="groups", path=path, skip_bad=skip_bad), left_out))


def _lines(path: Path) -> list[str]:
    lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if not lines:
        raise DataError(f"{path} contains no word; write one a line")
    return lines


def main() -> None:
    args = make_parser().parse_args()
    path = args.source
    if path.is_dir():
        run = open_run(path)
        require_done(run.dataset, "the dataset", f"Run `python jobs/collect.py {run.path}`, or launch again.")
        path = run.dataset / "groups.jsonl"
    found = audit(
        _groups(path, skip_bad=args.skip_bad),
        prompts=[prompt for file in args.against for prompt in prompts_of(file)],
        second=_groups(args.second) if args.second else (),
        lexicon=_lines(args.lexicon) if args.lexicon else (),
    )
    say(f"{path}\n" + "\n".join(in_words(found)))
    if args.json:
        try:
            write_atomic(args.json, json.dumps(found, indent=2, ensure_ascii=False, default=Estimate.to_json) + "\n")
        except OSError as error:
            raise ConfigError(
                f"--json {args.json} cannot be written ({error.strerror}); name a file elsewhere"
            ) from None


def in_words(found: dict[str, Any]) -> Iterator[str]:
    """Writes an audit as lines of text, by part."""
    size, repeated, scores = found["size"], found["duplicates"], found["scores"]
    yield f"groups: {size['num_groups']}; responses: {size['num_responses']}; median of words: {size['median_words']:g}"
    yield f"groups in which all scores are the same: {size['num_groups_with_one_score']}"
    yield f"prompts that repeat one: {repeated['num_exact_prompts']} exactly, {repeated['num_near_prompts']} nearly"
    yield from (f"  nearly ({share}): {one!r} and {other!r}" for one, other, share in repeated["near"])
    yield f"responses under several prompts: {repeated['num_repeated_responses']}"
    yield from (f"  {text[:100]!r}" for text in repeated["repeated"])
    yield f"score and length inside a group: rank correlation {_said(scores['length'])}"
    if (longest := scores["longest_is_best"]) is not None:
        yield f"the longest response is the best: {_said(longest['share'])}; by chance {longest['chance']:.3f}"
    yield f"responses that refuse: {scores['num_refusing']}; their score minus the others': " + _said(
        scores["refusing_minus_others"]
    )
    yield from _people_in_words(found["people"])
    if (lexicon := found["lexicon"]) is not None:
        yield f"words of the lexicon: in {lexicon['num_prompts']} prompts and {lexicon['num_responses']} responses"
        yield f"  score of such responses minus the others': {_said(lexicon['with_minus_without'])}"
        yield "  most: " + (", ".join(f"{word} {count}" for word, count in lexicon["most"]) or "none")
    if (leaks := found["leaks"]) is not None:
        found_in_it = f"{leaks['num_leaked']} word for word, {leaks['num_near']} nearly"
        yield f"evaluation prompts in it, of {leaks['num_evaluation_prompts']}: {found_in_it}"
        yield from (f"  nearly ({row['share']}): {row['prompt']!r} ({row['place']})" for row in leaks["near"][:3])
    if (noise := found["noise"]) is not None:
        yield f"two raters of {noise['num_responses']} responses agree on {_said(noise['pairs'])} of pairs; rank " + (
            f"correlation inside a prompt {_said(noise['correlation'])}"
        )
    else:
        yield "how far the scores can be trusted: not known without a second rater's (--second)"


def _people_in_words(people: dict[str, Any]) -> Iterator[str]:
    for label, row in people["named"].items():
        yield f"prompts that name {label}: {row['num_prompts']}; score {_said(row['score'])}; " + (
            f"{row['refusing']:.0%} of responses refuse; {row['median_words']:g} words"
        )
    swapped = people["swapped"]
    yield f"prompts that differ in the people named alone: {swapped['num_pairs']} pairs; gap of scores " + _said(
        swapped["gap"]
    )
    yield from (f"  {one!r} and {other!r}" for one, other in swapped["first"])


def _said(estimate: Estimate | None) -> str:
    return "nothing to measure" if estimate is None else str(estimate)
