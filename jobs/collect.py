"""The interactions of all shards -> alignment data.

python jobs/collect.py RUN
"""

import argparse
from pathlib import Path

from salign import stages
from salign.errors import run_main


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the run's folder")
    args = parser.parse_args()
    stages.begin()
    stages.collect(args.run)


if __name__ == "__main__":
    run_main(main)
