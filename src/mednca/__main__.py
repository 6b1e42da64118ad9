"""`python -m mednca`: the command line."""

from mednca.cli import main

if __name__ == "__main__":
    main()
