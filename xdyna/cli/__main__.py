"""`python -m xdyna.cli`: the command where a module's name is wanted, as by `accelerate launch -m`."""

import sys

from xdyna.cli import main

if __name__ == "__main__":
    sys.exit(main())
