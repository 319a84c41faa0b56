"""`salign evaluate`, as a file that srun, torchrun or mpiexec starts: salign/commands/evaluate.py."""

from salign.commands.evaluate import main
from salign.errors import run_main

if __name__ == "__main__":
    run_main(main)
