"""The compile report counts the programs of a run; its second pass reads them from the cache."""

import dataclasses
import re

import pytest

from tests import ROOT
from unit_jax import config_files
from unit_jax.tools import compile_report
from unit_jax.training import compilation

CONFIG = """
import runpy
def get_config(arg=None):
    config = runpy.run_path({demo!r})["get_config"](arg)
    config.model.text_encoder.update(vocab_size=50, layers=1)
    config.model.decoder.layers = 1
    config.data.text_buckets = (8,)
    config.train.eval_batch_size = {eval_batch_size}
    return config
"""


def write_config(path, eval_batch_size: int = 48) -> str:
    demo = str(ROOT / "configs/demo.py")
    path.write_text(CONFIG.format(demo=demo, eval_batch_size=eval_batch_size))
    return str(path)


@pytest.fixture
def config(tmp_path) -> str:
    return write_config(tmp_path / "tiny.py")


def test_cold_and_warm(config, capfd):
    assert compile_report.main([f"--config={config}:sst2"]) == 0
    lines = [line for line in capfd.readouterr().out.splitlines() if "programs" in line]
    # Texts of 8 or 24 tokens, and in training the update.
    counts = {"training": 3, "evaluation": 2}
    passes = [(name, part) for name in ("cold", "warm") for part in counts]
    assert [line.split(":")[0] for line in lines] == [f"{name}, {part}" for name, part in passes]
    for line, (_, part) in zip(lines, passes, strict=True):
        assert f"{counts[part]} programs for 2 combinations of task and shape" in line
    cold, _, warm, _ = (int(re.search(r"spent (\d+) s in", line)[1]) for line in lines)
    assert warm < cold


def test_a_task_that_is_not_sampled_has_no_programs(config):
    settings = config_files.read(f"{config}:sst2,qnli")
    settings = dataclasses.replace(settings, ratios={**settings.ratios, "qnli": 0.0})
    left = compilation.all_shapes(settings)
    assert [(spec.name, bucket) for spec, bucket in left] == [
        ("sst2", (8,)),
        ("sst2", (24,)),
    ]


def test_batches_that_the_devices_do_not_divide(tmp_path, capsys):
    config = write_config(tmp_path / "tiny.py", eval_batch_size=50)
    assert compile_report.main(["--once=training", f"--config={config}:sst2"]) == 2
    assert "train.eval_batch_size = 50 cannot be split over 8" in capsys.readouterr().err
