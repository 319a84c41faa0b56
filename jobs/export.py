"""`salign export`, as a file that srun, torchrun or mpiexec starts: salign/commands/export.py."""

from salign.commands.export import main
from salign.errors import run_main

if __name__ == "__main__":
    run_main(main)
