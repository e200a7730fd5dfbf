"""`python -m benchmarks SCENARIO… --peer NAME…`."""

import sys

from .command import main

sys.exit(main(sys.argv[1:]))
