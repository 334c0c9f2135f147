"""Runs unit_jax.tools.reproduce; options: `python tools/reproduce.py --help`."""

import sys

from unit_jax.tools.reproduce import main

if __name__ == "__main__":
    sys.exit(main())
