"""Compares this library with numbers that the reference, MMF's PyTorch UniT, computed.

unit-jax check-parity FILE.npz [FILE.npz ...]

A file describes a model, its inputs and what came out. The model is built here, filled by the
recipe that made the reference's weights, run through the functions that training and evaluation
call, and compared: outputs, losses, matches, gradients, detections (model files), eight optimiser
updates (`*_train`), or image, text and metric processing (`processing`). A file recorded in float64
is checked in float64. Beside a float32 file its `_f64` sibling, if there, is the truth.

Prints a table per data set. The exit status is 1 if anything differs by more than the tolerances
(parity/report.py) or if a file cannot be read.
"""

import argparse
import pathlib
import sys
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from unit_jax.tools.parity.model_files import check_model, precision
from unit_jax.tools.parity.processing import check_processing
from unit_jax.tools.parity.report import Table
from unit_jax.tools.parity.training import check_training


def check(path: pathlib.Path) -> Iterator[Table]:
    """All tables of one file.

    Raises:
      ValueError: the file is not there, damaged, or not one of reference numbers.
    """
    data = read(path)
    if "state_dict" in data:
        with jax.enable_x64(precision(data) == "float64"):
            yield from check_model(path, data)
    elif "param_groups" in data:
        yield from check_training(path, data)
    elif "sizes/detection" in data:
        yield check_processing(path, data)
    else:
        raise ValueError("not a file of reference numbers that this tool knows")


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz file."""
    try:
        with np.load(path) as file:
            return dict(file)
    except FileNotFoundError:
        raise ValueError("no such file") from None
    except Exception as error:  # zip, zlib and NumPy each have their own
        raise ValueError(f"damaged or not an .npz file ({error})") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the tables of the files given; returns 1 if anything is off, else 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=pathlib.Path, metavar="FILE.npz")
    tables, unread = [], []
    for path in parser.parse_args(arguments).files:
        try:
            with jax.default_matmul_precision("highest"):  # accelerators round products otherwise
                for table in check(path):
                    table.print()
                    tables.append(table)
        except ValueError as error:
            unread.append(f"error: {path}: {error}")
            print(unread[-1], file=sys.stderr, flush=True)
    rows = [(table, row) for table in tables for row in table.rows.values()]
    failed = [(table, row) for table, row in rows if not row.ok]
    if rows:
        table, worst = max(rows, key=lambda item: item[1].ratio)
        print(
            f"\n{len(rows) - len(failed)} of {len(rows)} quantities agree; worst error / tolerance "
            f"{worst.ratio:.3f} ({table.title}, {worst.quantity})"
        )
    for table, row in failed:
        print(f"FAIL {table.title} ({table.dtype}): {row.quantity} {row.problem}".rstrip())
    return 1 if failed or unread else 0


if __name__ == "__main__":
    sys.exit(main())
