"""Runs unit_jax.tools.show_settings; options: `python tools/show_settings.py --help`."""

import sys

from unit_jax.tools.show_settings import main

if __name__ == "__main__":
    sys.exit(main())
