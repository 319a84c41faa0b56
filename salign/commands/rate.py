"""Rates the responses of a file of groups or answers: by observers, rankings, rules and models that score.

python jobs/rate.py FILE OUT.jsonl --observer alignment --engine '{kind: transformers, model: smollm2-135m}'
python jobs/rate.py FILE OUT.jsonl --observer '{name: short, rule: {kind: length, max_words: 40}}'
python jobs/rate.py FILE OUT.jsonl --observer '{name: better, scorer: {kind: reward_model, model: FOLDER}}'

FILE is anything that `data: {kind: groups, path: FILE}` reads, and may lack scores. First it is printed how far each
criterion agrees with labelled pairs. A response that cannot be rated by one of them is counted and left out.
"""

import asyncio
import itertools
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from salign import compose
from salign.command_line import Parser
from salign.commands.export import add_reading, reading_of
from salign.config import Config
from salign.dataset.groups import read_groups
from salign.dataset.rating import Rated, rate_groups, unscored
from salign.documents import parse_yaml
from salign.engines.kinds import kind_of
from salign.engines.scorers import check_scorer
from salign.errors import ConfigError
from salign.shown import say
from salign.society.functions import check_functions
from salign.society.observer import in_words, share_interval
from salign.storage import check_target


def make_parser() -> Parser:
    """Makes the parser of the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("source", type=Path, metavar="FILE", help="a file of groups or answers")
    parser.add_argument("out", type=Path, metavar="OUT.jsonl", help="the file to write; an existing one is replaced")
    parser.add_argument(
        "--observer",
        action="append",
        required=True,
        metavar="CRITERION",
        help="an item of society.criteria, such as alignment, or YAML such as {name: short, rule: ...}; repeatable",
    )
    parser.add_argument(
        "--weight",
        action="append",
        default=[],
        metavar="NAME=NUMBER",
        help="weight of a criterion in the mean that becomes the score (1); repeatable",
    )
    parser.add_argument(
        "--engine", default="{kind: transformers}", metavar="ENGINE", help="what observers speak through, as YAML"
    )
    parser.add_argument(
        "--rating", choices=("logprob", "parse"), default="logprob", help="how observers' ratings are read"
    )
    parser.add_argument(
        "--check",
        default="{}",
        metavar="CHECK",
        help="labelled pairs on which each criterion is tried first, as YAML of society.observer_check; null: none",
    )
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn")
    add_reading(parser)
    return parser


def _config(observers: Sequence[str], engine: str, check: str, rating: str, seed: int) -> Config:
    criteria = [parse_yaml(text, f"--observer {text!r}") for text in observers]
    society: dict[str, Any] = {
        "criteria": [{"name": one} if isinstance(one, str) else one for one in criteria],
        # Answers to one question, none of which is anybody's revision of another.
        "protocol": {"kind": "sample"},
        "rating": rating,
        "observer_check": parse_yaml(check, f"--check {check!r}"),
    }
    tree = {"run": {"seed": seed}, "engine": parse_yaml(engine, f"--engine {engine!r}"), "society": society}
    config = compose.parse(tree, "the command line (--observer, --engine and --check)")
    if any(criterion.wording for criterion in config.society.observed_criteria):
        return config
    return compose.parse({**tree, "engine": {"kind": "scripted"}}, "the command line")  # which nobody asks


def _weights(given: Sequence[str], config: Config) -> dict[str, float]:
    names = [criterion.name for criterion in config.society.observed_criteria]
    weights = {}
    for text in given:
        name, _, number = text.partition("=")
        try:
            weights[name] = float(number)
        except ValueError:
            weights[name] = 0.0
        if name not in names or not 0 < weights[name] < float("inf"):
            raise ConfigError(
                f"--weight {text!r} must have the form NAME=NUMBER with one of {', '.join(names)} and a number above 0"
            )
    return weights


def _told(agreement: dict[str, dict[str, Any]]) -> None:
    for name, found in agreement.items():
        say(f"{name} {in_words(found)}")


def _say(rated: Rated, out: Path, left_out: Counter[str]) -> None:
    missing = ", ".join(f"{num} by {name}" for name, num in rated.num_missing.items())
    say(
        f"{out}: {rated.num_responses} responses of {rated.num_groups} groups; left out without a rating: "
        f"{rated.num_left_out} (missing: {missing}); malformed rows: {left_out['bad_rows']}"
    )
    num, alike = rated.pairs
    if num:
        low, high = share_interval(alike, num)
        say(
            f"the new scores agree with the file's own in {alike / num:.0%} of {num} pairs of responses "
            f"(95 % interval {low:.0%} to {high:.0%})"
        )


def main() -> None:
    args = make_parser().parse_args()
    if os.path.realpath(args.out) == os.path.realpath(args.source):
        raise ConfigError(f"{args.out} is the file that is read; name another to write")
    check_target(args.out)
    config = _config(args.observer, args.engine, args.check, args.rating, args.seed)
    weights, data = _weights(args.weight, config), reading_of(args, args.source)
    kind_of(config.engine).check(config.engine, config.model, fetch=True, here=True)
    for place, scorer in config.scorers().items():
        check_scorer(place, scorer)
    check_functions(config.society.observed_criteria)
    left_out: Counter[str] = Counter()
    groups = read_groups(data, left_out, unscored)
    groups = itertools.chain([next(groups)], groups)  # a file that cannot be read costs no call
    check = config.society.observer_check
    rated = asyncio.run(rate_groups(config, groups, args.out, weights=weights, check=check, told=_told))
    _say(rated, args.out, left_out)
