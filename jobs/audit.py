"""`salign audit`, as a file that srun, torchrun or mpiexec starts: salign/commands/audit.py."""

from salign.commands.audit import main
from salign.errors import run_main

if __name__ == "__main__":
    run_main(main)
