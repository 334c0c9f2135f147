"""Wheel and sdist: what is in them, and that what is installed works from any folder."""

import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

import unit_jax
from tests import ROOT

# What a user writes: the demo, smaller still.
OWN_CONFIG = """
from unit_jax.configs import demo

def get_config(steps="2"):
    config = demo.get_config("sst2")
    config.data.data_dir = "prepared"
    config.model.decoder.layers = config.model.text_encoder.layers = 1
    config.train.update(steps=int(steps), batch_size=8, eval_batch_size=16, eval_every=2)
    config.report.blind_check = False
    return config
"""


def run(*command: str | os.PathLike, folder: pathlib.Path, status: int = 0, **environment) -> str:
    """What a command prints, without our tree on its path."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> dict[str, pathlib.Path]:
    """Wheel and sdist, built from a copy of the tree, as a build leaves files in its folder."""
    tree, output = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("built")
    shutil.copytree(
        ROOT / "unit_jax", tree / "unit_jax", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("pyproject.toml", "README.md", "LICENSE", "requirements.txt"):
        shutil.copy(ROOT / name, tree)
    script = (
        "import sys; from setuptools import build_meta as build; folder = sys.argv[1]\n"
        "build.build_wheel(folder); build.build_sdist(folder)"  # they change sys.argv
    )
    run(sys.executable, "-c", script, output, folder=tree)
    (wheel,), (sdist,) = output.glob("*.whl"), output.glob("*.tar.gz")
    return {"wheel": wheel, "sdist": sdist}


def test_the_wheel_holds_the_whole_package_and_nothing_else(built, tmp_path):
    wheel = zipfile.ZipFile(built["wheel"])
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    ours = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "unit_jax").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert held == ours
    assert {"unit_jax/configs/unit.py", "unit_jax/configs/demo.py"} < held
    assert "unit_jax/tools/coco_sizes.txt" in held
    metadata = wheel.read(f"unit_jax-{unit_jax.__version__}.dist-info/METADATA").decode()
    assert f"\nVersion: {unit_jax.__version__}\n" in metadata
    assert "\nRequires-Dist: jax>=" in metadata
    wheel.extractall(tmp_path / "site")
    script = "from unit_jax import config_files as c; print(c.read('configs/unit.py:coco').tasks)"
    # Only the unpacked wheel: `-S` leaves out this environment's packages, our tree among them.
    told = run(sys.executable, "-S", "-c", script, folder=tmp_path, PYTHONPATH=f"{tmp_path}/site")
    assert "TaskSpec(name='coco'" in told


@pytest.mark.slow
def test_installed_into_an_empty_environment(built, tmp_path):
    """Needs a package index. A user's config trains, from a folder that is not ours."""
    run(sys.executable, "-m", "venv", tmp_path / "venv", folder=tmp_path)
    python, home = tmp_path / "venv/bin/python", tmp_path / "home"
    home.mkdir()
    pip = (python, "-m", "pip", "install", "-q", "--disable-pip-version-check")
    run(*pip, built["wheel"], "-c", ROOT / "requirements.lock", folder=home)
    where = run(python, "-c", "import unit_jax; print(unit_jax.__file__)", folder=home)
    assert where.startswith(str(tmp_path / "venv"))
    installed = run(python, "-m", "pip", "show", "unit-jax", folder=home)
    assert f"Version: {unit_jax.__version__}" in installed

    (home / "mine.py").write_text(OWN_CONFIG)
    command = (tmp_path / "venv/bin/unit-jax", "--config=mine.py", "--workdir=run")
    told = run(*command, folder=home, status=1)
    assert "sst2: not prepared" in told and "Traceback" not in told and "tools/" not in told
    tool = (python, "-m")
    run(*tool, "unit_jax.tools.make_demo_data", "--output=source", "--scale=0.02", folder=home)
    run(*tool, "unit_jax.tools.prepare_data", "--source=source", "--data_dir=prepared", folder=home)
    told = run(*command, folder=home)
    assert "sst2" in told and (home / "run/report.json").exists()
    told = run(*command[:1], "--config=configs/demo.py:sst2,no_task_embeding", "--workdir=x",
               folder=home, status=1)  # fmt: skip
    assert "did you mean no_task_embedding?" in told and "Traceback" not in told

    run(*pip, "--no-deps", "--force-reinstall", built["sdist"], folder=home)
    told = run(*command[:1], "--config=configs/demo.py", "--workdir=x", folder=home, status=1)
    assert "runs/demo/data" in told and "Traceback" not in told
