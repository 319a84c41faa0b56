"""`salign collect`, as a file that srun, torchrun or mpiexec starts: salign/commands/collect.py."""

from salign.commands.collect import main
from salign.errors import run_main

if __name__ == "__main__":
    run_main(main)
