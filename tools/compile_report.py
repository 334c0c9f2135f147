"""Runs unit_jax.tools.compile_report; options: `python tools/compile_report.py --help`."""

import sys

from unit_jax.tools.compile_report import main

if __name__ == "__main__":
    sys.exit(main())
