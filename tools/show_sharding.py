"""Runs unit_jax.tools.show_sharding; options: `python tools/show_sharding.py --help`."""

import sys

from unit_jax.tools.show_sharding import main

if __name__ == "__main__":
    sys.exit(main())
