"""`salign report`, as a file that srun, torchrun or mpiexec starts: salign/commands/report.py."""

from salign.commands.report import main
from salign.errors import run_main

if __name__ == "__main__":
    run_main(main)
