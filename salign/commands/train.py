"""Trains one stage: one rank of it, alone or under torchrun, deepspeed, srun or mpiexec.

python jobs/train.py RUN --stage stable
torchrun --nproc-per-node 2 jobs/train.py RUN --stage stable
deepspeed --num_gpus 2 jobs/train.py RUN --stage stable
srun --ntasks-per-node 2 python jobs/train.py RUN --stage stable        # within a job; also under mpiexec
"""

from pathlib import Path

from salign import work
from salign.command_line import Parser
from salign.launch import open_or_prepare


def make_parser() -> Parser:
    """Makes the parser of the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN|CONFIG.yaml", help="the run's folder, or its config")
    parser.add_argument("--stage", required=True, help="the name of a stage in train.stages")
    parser.add_argument("--local_rank", type=int, help="set by the deepspeed launcher; the same as LOCAL_RANK")
    return parser


def main() -> None:
    args = make_parser().parse_args()
    work.begin()
    run = open_or_prepare(args.run)
    work.do_named(run, run.config(), "train", args.stage)
