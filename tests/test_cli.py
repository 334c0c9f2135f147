"""The installed command: every tool is a word, and the old form still works."""

import subprocess
import sys

import pytest

from tests import ROOT
from unit_jax import cli


def unit_jax(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "unit_jax.cli", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_every_tool_is_a_word_with_a_sentence(capsys):
    words = cli.words()
    tools = {p.stem for p in (ROOT / "unit_jax" / "tools").glob("*.py")} - {"__init__"}
    assert set(words.values()) == tools
    assert words["prepare"] == "prepare_data" and words["convert"] == "convert_checkpoint"
    assert cli.main(["--help"]) == 0
    told = capsys.readouterr().out
    for word in (*words, "train", "eval"):
        line = next(line for line in told.splitlines() if line.startswith(f"  {word} "))
        assert len(line.split()) > 3, line
    assert cli.main([]) == 0


def test_an_unknown_word_is_named(capsys):
    assert cli.main(["prepair"]) == 2
    assert "no word 'prepair'; did you mean prepare?" in capsys.readouterr().err


@pytest.mark.parametrize("form", [["train"], []])
def test_training_by_word_and_by_flags(form, tmp_path):
    run = unit_jax(*form, "--config=configs/demo.py", f"--config.data.data_dir={tmp_path}/none",
                   f"--workdir={tmp_path}/run")  # fmt: skip
    assert run.returncode == 1 and "coco: not prepared" in run.stderr, run


def test_a_words_help_names_the_word():
    run = unit_jax("prepare", "--help")
    assert run.returncode == 0 and "unit-jax prepare" in run.stdout, run
