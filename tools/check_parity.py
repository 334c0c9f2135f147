"""Runs unit_jax.tools.check_parity; options: `python tools/check_parity.py --help`."""

import sys

from unit_jax.tools.check_parity import main

if __name__ == "__main__":
    sys.exit(main())
