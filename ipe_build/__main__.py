"""`python -m ipe_build` is the `ipe-build` command."""

import sys

from ipe_build.cli import main

if __name__ == "__main__":
    sys.exit(main())
