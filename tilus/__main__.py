"""`python -m tilus` is the command `tilus`."""

import sys

from tilus.cli import main

if __name__ == "__main__":
    sys.exit(main())
