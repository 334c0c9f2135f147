"""Runs unit_jax.tools.measure_masking; options: `python tools/measure_masking.py --help`."""

import sys

from unit_jax.tools.measure_masking import main

if __name__ == "__main__":
    sys.exit(main())
