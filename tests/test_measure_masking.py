"""The tool that measures what masking costs."""

import dataclasses
import pathlib
import sys

from configs import unit
from tests.test_models_unit import tiny_settings
from unit_jax import settings as settings_lib

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tools"))

import measure_masking  # noqa: E402


def test_both_models_run_in_turns():
    settings = settings_lib.from_config(unit.values("coco"))
    settings = dataclasses.replace(settings, model=tiny_settings())
    seconds = measure_masking.measure(settings, (48, 64), batch=1, repeats=2)
    assert list(seconds) == ["masked", "not masked"]
    assert all(len(times) == 2 and min(times) > 0 for times in seconds.values())
