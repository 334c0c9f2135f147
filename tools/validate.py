"""Runs unit_jax.tools.validate; options: `python tools/validate.py --help`."""

import sys

from unit_jax.tools.validate import main

if __name__ == "__main__":
    sys.exit(main())
