"""Runs unit_jax.tools.measure_matching; options: `python tools/measure_matching.py --help`."""

import sys

from unit_jax.tools.measure_matching import main

if __name__ == "__main__":
    sys.exit(main())
