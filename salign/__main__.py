"""`python -m salign COMMAND` is the same as `salign COMMAND`."""

from salign.commands.main import main

if __name__ == "__main__":
    main()
