"""The compile report counts the programs of a run; its second pass reads them from the cache."""

import dataclasses
import pathlib
import re
import sys

import pytest

from unit_jax import compilation
from unit_jax import settings as settings_lib

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tools"))

import compile_report  # noqa: E402

CONFIG = """
import runpy
def get_config(arg=None):
    config = runpy.run_path({demo!r})["get_config"](arg)
    config.model.text_encoder.update(vocab_size=50, layers=1)
    config.model.decoder.layers = 1
    config.data.text_buckets = (8,)
    return config
"""


@pytest.fixture
def config(tmp_path) -> str:
    path = tmp_path / "tiny.py"
    path.write_text(CONFIG.format(demo=str(pathlib.Path(__file__).parents[1] / "configs/demo.py")))
    return str(path)


def test_cold_and_warm(config, capfd):
    assert compile_report.main([f"--config={config}:sst2"]) == 0
    lines = [line for line in capfd.readouterr().out.splitlines() if "programs" in line]
    # Texts of 8 or 24 tokens, and the update.
    expected = "3 programs for 2 combinations of task and shape"
    assert [line.split(":")[0] for line in lines] == ["cold", "warm"]
    assert all(expected in line for line in lines)
    cold, warm = (int(re.search(r"\((\d+) s in XLA", line)[1]) for line in lines)
    assert warm < cold


def test_a_task_that_is_not_sampled_has_no_programs(config):
    settings = settings_lib.read(f"{config}:sst2,qnli")
    settings = dataclasses.replace(settings, ratios={**settings.ratios, "qnli": 0.0})
    left = compilation.combinations(settings)
    assert [(spec.name, bucket) for spec, bucket in left] == [
        ("sst2", (8,)),
        ("sst2", (24,)),
    ]
