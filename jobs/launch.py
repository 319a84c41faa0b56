"""`salign launch`, as a file that srun, torchrun or mpiexec starts: salign/commands/launch.py."""

from salign.commands.launch import main
from salign.errors import run_main

if __name__ == "__main__":
    run_main(main)
