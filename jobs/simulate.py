"""`salign simulate`, as a file that srun, torchrun or mpiexec starts: salign/commands/simulate.py."""

from salign.commands.simulate import main
from salign.errors import run_main

if __name__ == "__main__":
    run_main(main)
