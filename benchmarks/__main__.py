"""python -m benchmarks. What is measured is elsewhere, since new processes cannot import a package's __main__."""

import sys

from benchmarks.bench import main

sys.exit(main())
