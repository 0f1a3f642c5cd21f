"""`python -m constitutional` is the command `constitutional`."""

import sys

from constitutional.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
