"""A config to begin with, with what people change first, and why.

salign init FOLDER
"""

import argparse
from pathlib import Path

from salign.errors import ConfigError
from salign.storage import write_atomic

_STARTER = """\
# A run of salign. What is not said here is as in the shipped quickstart.yaml. `salign launch {path} --dry-run`
# checks all of it and shows what will be done. Every name: docs/config.md.
bases: [quickstart.yaml]

run:
  name: {name}          # its folder: runs/{name}
  seed: 0

model: smollm2-135m     # embedded; or a folder, or a hub id

engine:
  kind: transformers    # in the process. A server: {{kind: openai, base_url: "http://127.0.0.1:8000/v1"}}
  # device: cuda        # auto takes what is there

society:
  num_worlds: 2         # independent societies, which take the populations in turn
  num_shards: 2         # processes or tasks of a Slurm array that share them
  topology: {{kind: grid, size: 3, radius: 2.0}}
  max_rounds: 2
  populations: [mixed_half_half, all_bad]
  # questions: {{kind: text, path: questions.txt}}      # your own, a line each
  # prior: {{kind: json, path: prior.jsonl}}            # question, answer, label: what agents begin with
  # protocol: {{kind: sample}}                          # without a society: the control

# One stage's setting is changed by its name: `train.stages.stable.max_steps=100` on the command line, or here the list.

evaluate:
  models: [base, stable]
  num_questions: 24

cluster:
  kind: local           # slurm: partition and account below, and `salign launch` submits the chain
  # partition: gpu

tracking:
  wandb: true           # offline, unless WANDB_API_KEY is there
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="made if it is not there")
    args = parser.parse_args()
    path = args.folder / "config.yaml"
    if path.exists():
        raise ConfigError(f"{path} is there already; name another folder, or edit it")
    name = "".join(letter for letter in args.folder.resolve().name if letter.isalnum() or letter in "-_.")
    write_atomic(path, _STARTER.format(path=path, name=name.lstrip("-_.") or "run"))
    print(f"{path} is written. Next: salign launch {path} --dry-run")
