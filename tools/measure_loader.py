"""Runs unit_jax.tools.measure_loader; options: `python tools/measure_loader.py --help`."""

import sys

from unit_jax.tools.measure_loader import main

if __name__ == "__main__":
    sys.exit(main())
