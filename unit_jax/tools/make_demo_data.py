"""Draws the demo world and writes its eight data sets in the official file layouts.

unit-jax demo-data --output DIR [--seed 0] [--scale 1]
"""

import argparse
import sys
from pathlib import Path

from unit_jax.demo import world


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--seed", type=int, default=0, help="equal seeds give equal bytes")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on all counts; 1 = demo")
    arguments = parser.parse_args()
    settings = world.DemoSettings(seed=arguments.seed, scale=arguments.scale)
    try:
        written = world.generate(arguments.output, settings)
    except ValueError as error:
        sys.exit(f"make_demo_data: {error}")
    print(f"The demo's data sets are in {arguments.output}" + ("" if written else " (as before)"))


if __name__ == "__main__":
    main()
