"""`python -m dskd` is the command `dskd`."""

from dskd.cli import main

if __name__ == "__main__":
    main()
