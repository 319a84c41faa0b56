"""Writes a config to start from, with the settings that people change first.

salign init FOLDER
"""

import os
from pathlib import Path

from salign.command_line import Parser
from salign.errors import ConfigError
from salign.shown import say
from salign.storage import write_atomic

STARTER = """\
# A salign run. Settings that are not here come from the shipped quickstart.yaml. `salign launch {path} --dry-run`
# checks everything and shows the plan. All settings: docs/config.md, or `salign config`.
bases: [quickstart.yaml]

run:
  name: {name}          # its folder: runs/{name}
  seed: 0

model: smollm2-135m     # embedded; or a folder, or a hub id

engine:
  kind: transformers    # in this process. A server: {{kind: openai, base_url: "http://127.0.0.1:8000/v1"}}
  # device: cuda        # the default, auto, uses a GPU if there is one

society:
  num_worlds: 2         # independent societies, which take the populations in turn
  num_shards: 2         # processes, or tasks of a Slurm array, that share the worlds
  topology: {{kind: grid, size: 2, radius: 2.0}}
  max_rounds: 2
  populations: [mixed_half_half, all_bad]
  # questions: {{kind: text, path: questions.txt}}      # your own, one per line
  # prior: {{kind: json, path: prior.jsonl}}            # question, answer, label: what agents start with
  # protocol: {{kind: sample}}                          # the control without a society

# Change one stage's setting by its name on the command line: train.stages.stable.max_steps=100.

evaluate:
  models: [base, stable]
  benchmarks: [questions, pairs]
  num_questions: 6      # the benchmark questions, rated by a judge; pairs needs none

cluster:
  kind: local           # slurm: `salign launch` submits a chain of jobs; set partition and account below
  # partition: gpu

tracking:
  wandb: true           # offline, unless WANDB_API_KEY is set
"""


def make_parser() -> Parser:
    """Makes the parser of the command line."""
    parser = Parser(description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="created if missing")
    return parser


def main() -> None:
    args = make_parser().parse_args()
    path = args.folder / "config.yaml"
    if path.exists():
        raise ConfigError(f"{path} already exists; name another folder, or edit it")
    letters = Path(os.path.abspath(args.folder)).name
    name = "".join(letter for letter in letters if letter.isalnum() or letter in "-_.")
    write_atomic(path, STARTER.format(path=path, name=name.lstrip("-_.") or "run"))
    say(f"wrote {path}. Next: salign launch {path} --dry-run")
