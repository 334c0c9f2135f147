"""Tests mirror the folders of unit_jax; small files of reference numbers are in tests/reference."""

import pathlib

ROOT = pathlib.Path(__file__).parents[1]
REFERENCE_FILES = ROOT / "tests" / "reference"
