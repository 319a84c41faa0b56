"""`salign value`, as a file that srun, torchrun or mpiexec starts: salign/commands/value.py."""

from salign.commands.value import main
from salign.errors import run_main

if __name__ == "__main__":
    run_main(main)
