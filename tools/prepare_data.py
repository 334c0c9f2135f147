"""Runs unit_jax.tools.prepare_data; options: `python tools/prepare_data.py --help`."""

import sys

from unit_jax.tools.prepare_data import main

if __name__ == "__main__":
    sys.exit(main())
