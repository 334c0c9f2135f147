"""Runs unit_jax.tools.convert_checkpoint; options: `python tools/convert_checkpoint.py --help`."""

import sys

from unit_jax.tools.convert_checkpoint import main

if __name__ == "__main__":
    sys.exit(main())
