"""Runs unit_jax.tools.choose_buckets; options: `python tools/choose_buckets.py --help`."""

import sys

from unit_jax.tools.choose_buckets import main

if __name__ == "__main__":
    sys.exit(main())
