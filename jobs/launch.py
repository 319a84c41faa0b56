"""The whole pipeline: society, alignment data, training, evaluation. Launch again to go on from what is complete.

python jobs/launch.py [CONFIG.yaml] [key.sub=value ...] [--dry-run] [--prepare] [--skip-bad]
"""

import argparse
from pathlib import Path

from rich.console import Console

from salign import compose
from salign.errors import ConfigError, run_main
from salign.launch import launch
from salign.stages import set_up_logging

DEFAULT = Path(__file__).parent.parent / "configs" / "quickstart.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="CONFIG.yaml | key.sub=value")
    parser.add_argument(
        "--dry-run", action="store_true", help="check the config and its files, show the plan, run nothing"
    )
    parser.add_argument(
        "--prepare", action="store_true", help="only make the run's folder, to run its stages one by one"
    )
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave malformed rows of training data out, and count them"
    )
    args = parser.parse_intermixed_args()
    files = [word for word in args.words if "=" not in word]
    if len(files) > 1:
        raise ConfigError(
            f"one config file at most, not {len(files)} ({', '.join(files)}); an override is key.sub=value"
        )
    overrides = [word for word in args.words if "=" in word]
    set_up_logging()
    config = compose.load(Path(files[0]) if files else DEFAULT, overrides)
    if args.skip_bad:
        config = compose.skipping_bad(config)
    launch(config, Console(), dry_run=args.dry_run, prepare=args.prepare)


if __name__ == "__main__":
    run_main(main)
