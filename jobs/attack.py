"""`salign attack`, as a file that srun, torchrun or mpiexec starts: salign/commands/attack.py."""

from salign.commands.attack import main
from salign.errors import run_main

if __name__ == "__main__":
    run_main(main)
