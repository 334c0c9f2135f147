"""The tool that measures what masking costs."""

import dataclasses

import numpy as np

from configs import unit
from tests.models.test_unit import tiny_settings
from unit_jax import settings as settings_lib
from unit_jax.tools import measure_masking

SETTINGS = settings_lib.from_config(unit.values("coco"))
SETTINGS = dataclasses.replace(SETTINGS, model=tiny_settings())


def test_both_models_run_in_turns(monkeypatch):
    called = []
    fake = {name: lambda name=name: called.append(name) for name in ("masked", "not masked")}
    monkeypatch.setattr(measure_masking, "made", lambda *_: fake)
    seconds = measure_masking.measure(SETTINGS, (48, 64), batch=1, repeats=2)
    assert called == ["masked", "not masked"] * 2
    assert [len(times) for times in seconds.values()] == [2, 2]


def test_one_model_masks_and_the_other_does_not():
    programs = measure_masking.made(SETTINGS, (48, 64), batch=1)
    masked, leaky = (programs[name]() for name in ("masked", "not masked"))
    path = "backbone.layer4.0.conv2.kernel"
    assert not np.allclose(masked[path], leaky[path], rtol=1e-3, atol=0)
