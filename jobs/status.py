"""`salign status`, as a file that srun, torchrun or mpiexec starts: salign/commands/status.py."""

from salign.commands.status import main
from salign.errors import run_main

if __name__ == "__main__":
    run_main(main)
