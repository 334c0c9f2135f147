"""The command line: what is wrong is told in one message, within seconds."""

import subprocess
import sys

import pytest

from tests import ROOT
from unit_jax.tasks import PUBLISHED


def errors_of(*flags: str) -> str:
    command = [sys.executable, "-m", "unit_jax.main", *flags]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 1 and "Traceback" not in run.stderr, run.stderr
    return run.stderr


def test_without_data_and_weights_the_paper_config_lists_all_that_is_missing(tmp_path):
    told = errors_of("--config=configs/unit.py", f"--workdir={tmp_path / 'run'}",
                     f"--config.data.data_dir={tmp_path}")  # fmt: skip
    for task in PUBLISHED:
        assert f"{task}: not prepared; run: unit-jax prepare" in told
    for weights in ("backbone", "text_encoder"):
        assert f"config.init_from.{weights} = " in told
    assert "make demo" in told
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "flags, told",
    [
        (["--mode=eval", "--tasks=coco,vqa"], "'vqa' is none of this config's tasks; did you mean"),
        (["--tasks=coco"], "training uses the config's tasks; choose them there"),
    ],
)
def test_tasks_that_cannot_be_chosen_are_named(flags, told, tmp_path):
    error = errors_of("--config=configs/demo.py", f"--workdir={tmp_path}", *flags)
    assert told in error and len(error.splitlines()) == 1


@pytest.mark.parametrize("flag", ["--config.train.stepz=3", "--config.nothing=3"])
def test_an_unknown_key_is_named(flag, tmp_path):
    told = errors_of("--config=configs/demo.py", flag, f"--workdir={tmp_path}")
    assert flag in told and "unknown key" in told and len(told.splitlines()) == 1


def test_mistakes_are_told_before_anything_heavy_is_imported(tmp_path):
    script = """
import sys
sys.modules.update(dict.fromkeys(["jax", "flax", "grain", "tensorflow_datasets", "numpy"]))
from unit_jax import main
main.run()
"""
    flags = [
        "--config=configs/demo.py", f"--workdir={tmp_path / 'run'}", "--config.model.dtype=bf16",
        "--config.data.flip_probability=5", "--config.train.best_metric=vqa/accuracy",
        "--config.tasks.qqp.kind=vison", "--config.tasks.sst2.index", "ten",
        "--config.tasks.vqa2.num_queries=5.5", "--config.report.blind_chek",
        "--config.tasks.coco.index=1",
    ]  # fmt: skip
    run = subprocess.run(
        [sys.executable, "-c", script, *flags], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 1 and "Traceback" not in run.stderr and "\\" not in run.stderr
    for place in ("model.dtype", "data.flip_probability", "train.best_metric", "tasks.qqp.kind",
                  "tasks.sst2.index", "tasks.vqa2.num_queries", "report.blind_chek",
                  "tasks.visual_genome.index"):  # fmt: skip
        assert f"\n  config.{place}: " in run.stderr, run.stderr
