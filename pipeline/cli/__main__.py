"""`python -m pipeline.cli` is the command `faculty`, also where only the sources are."""

import sys

from pipeline.cli import main

if __name__ == "__main__":
    sys.exit(main())
