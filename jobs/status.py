"""What of a run is done, running or failed, and where its logs are.

python jobs/status.py RUN [--digest]
"""

import argparse
from pathlib import Path

from rich.console import Console

from salign.cluster.status import digest, print_status
from salign.errors import run_main
from salign.run import open_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the run's folder")
    parser.add_argument("--digest", action="store_true", help="print only the sha256 of all interactions, in order")
    args = parser.parse_args()
    run = open_run(args.run)
    if args.digest:
        print(digest(run, run.config()))
    else:
        print_status(run, run.config(), Console())


if __name__ == "__main__":
    run_main(main)
