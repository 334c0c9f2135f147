"""The tool that measures what masking costs."""

import dataclasses

from configs import unit
from tests.models.test_unit import tiny_settings
from unit_jax import settings as settings_lib
from unit_jax.tools import measure_masking


def test_both_models_run_in_turns():
    settings = settings_lib.from_config(unit.values("coco"))
    settings = dataclasses.replace(settings, model=tiny_settings())
    seconds = measure_masking.measure(settings, (48, 64), batch=1, repeats=2)
    assert list(seconds) == ["masked", "not masked"]
    assert all(len(times) == 2 and min(times) > 0 for times in seconds.values())
