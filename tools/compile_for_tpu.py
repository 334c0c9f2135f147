"""Runs unit_jax.tools.compile_for_tpu; options: `python tools/compile_for_tpu.py --help`."""

import sys

from unit_jax.tools.compile_for_tpu import main

if __name__ == "__main__":
    sys.exit(main())
