"""`python -m mdrt`."""

import sys

from mdrt.cli import main

sys.exit(main())
