"""Runs unit_jax.tools.make_demo_data; options: `python tools/make_demo_data.py --help`."""

import sys

from unit_jax.tools.make_demo_data import main

if __name__ == "__main__":
    sys.exit(main())
