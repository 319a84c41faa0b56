"""`salign train`, as a file that srun, torchrun or mpiexec starts: salign/commands/train.py."""

from salign.commands.train import main
from salign.errors import run_main

if __name__ == "__main__":
    run_main(main)
