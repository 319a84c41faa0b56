"""`salign bench`, as a file that srun, torchrun or mpiexec starts: salign/commands/bench.py."""

from salign.commands.bench import main
from salign.errors import run_main

if __name__ == "__main__":
    run_main(main)
