"""`salign dashboard`, as a file that srun, torchrun or mpiexec starts: salign/commands/dashboard.py."""

from salign.commands.dashboard import main
from salign.errors import run_main

if __name__ == "__main__":
    run_main(main)
