"""Writes a model card from a checkpoint: data, config, figures, parameters, sources of weights.

unit-jax card --model runs/demo [--output CARD.md]
"""

import argparse
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="demo", help='"demo", a working folder, a file')
    parser.add_argument("--output", help="file to write; default: the terminal")
    parser.add_argument("--name", default="", help="the title; default: the model's")
    parser.add_argument("--data_dir", default="", help="prepared data, for names old weights lack")
    options = parser.parse_args(arguments)
    try:
        from unit_jax.api import card, load

        weights = load.read(options.model, options.data_dir)
        text = card.write(weights, options.name or f"UniT: {Path(options.model).name}")
        if options.output:
            Path(options.output).write_text(text, encoding="utf-8")
        else:
            print(text, end="")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
