"""`python -m pipeline.cli` is the command `faculty`, also where only the sources are."""

import sys

from pipeline.cli import main

sys.exit(main())
