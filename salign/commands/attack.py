"""Attacks a run's models with known kinds of jailbreaks, and says how far each makes an inconsiderate answer likelier.

python jobs/attack.py RUN                               # base and the run's last stage, all attacks, 180 pairs
python jobs/attack.py RUN --models base,sft --num 40 --shots 0,4,16

Likelihoods of given answers: nothing is generated, no judge is asked. What is measured is kept in RUN/attack, and a
command that was stopped goes on from there. The same as a stage of a run: evaluate.benchmarks: [attack_none, ...].
How often the models refuse under attack stands beside it where the run has evaluated that (evaluate.benchmarks: [hh,
hh_a]).
"""

import argparse
from pathlib import Path

from salign import work
from salign.command_line import Parser
from salign.errors import ConfigError
from salign.launch import open_or_prepare
from salign.shown import say


def _shots(text: str) -> tuple[int, ...]:
    try:
        given = sorted({int(part) for part in text.split(",")})
    except ValueError:
        given = [-1]
    if given[0] < 0:
        raise argparse.ArgumentTypeError(f"{text!r} must be numbers from 0, separated by commas, such as 0,4,16")
    return tuple(dict.fromkeys([0, *given]))  # by which the others are compared


def make_parser() -> Parser:
    """Makes the parser of the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN|CONFIG.yaml", help="the run's folder, or its config")
    parser.add_argument("--models", help="`base` or stages, separated by commas; default: evaluate.models")
    parser.add_argument("--num", type=int, default=180, metavar="N", help="how many of the 180 pairs (180)")
    parser.add_argument(
        "--shots", type=_shots, default="0,1,4,16,64", metavar="K,K", help="numbers of examples (0,1,4,16,64)"
    )
    return parser


def main() -> None:
    args = make_parser().parse_args()
    if args.num < 1:
        raise ConfigError(f"--num {args.num} must be at least 1")
    work.begin()
    run = open_or_prepare(args.run)
    # What takes seconds to import is not needed for a run that is none.
    from salign.evaluation.resistance import changes, copies_of, folder_of, measure, refusals, write_changes
    from salign.evaluation.tasks import check_known, local_rows
    from salign.evaluation.under_attack import names

    config = run.config()
    models = args.models.split(",") if args.models else list(config.compared_models)
    copies = {model.strip(): copies_of(config, model.strip()) for model in models}
    benchmarks = names(args.shots)
    for benchmark in benchmarks:
        check_known(benchmark)
        local_rows(benchmark, config.evaluate)
    for name in measure(run, config, list(copies), benchmarks, args.num):
        say(f"attacking {name}")
    found = changes({model: [folder_of(run, copy) for copy in mine] for model, mine in copies.items()}, config)
    say(write_changes(run, found, refusals(run, config, list(copies))))
    say(f"written to {run.path / 'attack'}/changes.md and .json")
