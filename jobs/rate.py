"""`salign rate`, as a file that srun, torchrun or mpiexec starts: salign/commands/rate.py."""

from salign.commands.rate import main
from salign.errors import run_main

if __name__ == "__main__":
    run_main(main)
