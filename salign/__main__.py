"""`python -m salign COMMAND`: what `salign COMMAND` does."""

from salign.commands.main import main

if __name__ == "__main__":
    main()
