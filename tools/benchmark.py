"""Runs unit_jax.tools.benchmark; options: `python tools/benchmark.py --help`."""

import sys

from unit_jax.tools.benchmark import main

if __name__ == "__main__":
    sys.exit(main())
