"""README and docs: commands can be run, Python blocks do, links lead somewhere."""

import ast
import importlib
import os
import pathlib
import re
import shutil

import pytest

from tests import ROOT
from tests.documents import (
    PICTURE,
    Found,
    Parsed,
    anchors,
    documents,
    only_parsed,
    pieces,
    unknown_names,
    words_of,
)
from unit_jax import cli, config_files

PIECES = [piece for path in documents() for piece in pieces(path)]
COMMANDS = [piece for piece in PIECES if piece.kind in ("command", "mention")]
TARGETS = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
# What the shipped weights answer in seconds, with files that commands and blocks before made.
SHORT = re.compile(
    r"unit-jax (predict .*--model demo|card .*--model demo|--help|show-settings"
    r"|reproduce --list|reproduce .*--dry_run)|python tools/reproduce.py --list"
)
LONGER = re.compile(r"unit-jax (export .*--model demo|convert .*--input demo)")


def test_pieces_are_found():
    """The extraction sees what is there: fences, indented blocks, lines and bare words."""
    assert len(COMMANDS) > 50 and len({piece.place.split(":")[0] for piece in PIECES}) > 10
    texts = {piece.text: piece.kind for piece in COMMANDS}
    assert "python tools/reproduce.py --list" in texts and texts["make lint"] == "mention"
    joined = [text for text in texts if "compile_for_tpu" in text and "--bucket" in text]
    assert joined and not any("\\" in text for text in joined)
    assert unknown_names("import os\nx = [y for y in z]\nprint(os, x)", {"z"}) == set()
    assert unknown_names("config['a'] = load(1)", set()) == {"config", "load"}


@pytest.fixture
def known(monkeypatch):
    """Says whether a program would take a command; nothing is run."""
    monkeypatch.chdir(ROOT)

    def check(command: str, needed: bool = True) -> None:
        only_parsed(monkeypatch, needed)
        program, *words = words_of(command)
        if program == "make":
            assert all(word in TARGETS for word in words if "=" not in word), command
        elif program == "pip":
            return _pip(words)
        elif program == "python" and words[0] == "-m" and words[1] == "unit_jax.main":
            return _flags(words[2:])
        elif program == "python" and words[0] == "-m":
            assert words[1] in ("build", "pytest", "venv", "pip"), command
        elif program == "python":
            assert (ROOT / words[0]).is_file(), f"{command}: no {words[0]}"
            if words[0].startswith("tools/"):
                _tool(pathlib.Path(words[0]).stem, words[1:], monkeypatch)
        elif words[0] in cli.MODES or words[0].startswith("--config"):
            return _flags(words if words[0].startswith("-") else words[1:])
        elif words[0] == "predict" and any(word.startswith("--config") for word in words):
            return _flags(words[1:])
        elif words[0] not in ("WORD", "--help"):
            tools = cli.words()
            assert words[0] in tools, f"{command}: unit-jax has no word {words[0]}"
            _tool(tools[words[0]], words[1:], monkeypatch)
        return None

    return check


def _pip(words: list[str]) -> None:
    """Extras and requirement files that are named are there."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = re.findall(r"(?:unit[-_]jax|\.)\[([\w,-]+)\]", " ".join(words))
    assert {name for names in named for name in names.split(",")} <= set(
        project["optional-dependencies"]
    )
    assert all((ROOT / word).exists() for word in words if word.endswith((".txt", ".lock")))


def _tool(module: str, words: list[str], monkeypatch) -> None:
    """The tool's parser takes the words; a mere name, without options, needs no more than that."""
    if not words:
        return
    words = [word if not word.isupper() else "1" for word in words]
    monkeypatch.setattr("sys.argv", [module, *words])
    with pytest.raises(Parsed):
        importlib.import_module(f"unit_jax.tools.{module}").main()


def _flags(words: list[str]) -> None:
    """Flags of training are known; a config that ships is read with all that is changed."""
    from absl import flags

    from unit_jax import main

    words, changes = config_files.split_flags(words)
    ours = [flag.name for flag in vars(main).values() if isinstance(flag, flags.FlagHolder)]
    named = {word.lstrip("-").split("=")[0]: word.partition("=")[2] for word in words}
    for name in named:
        assert name in ours or name in ("flagfile", "help"), f"no flag --{name}"
    assert named.get("mode", "train") in flags.FLAGS["mode"].parser.enum_values
    config = named.get("config", "")
    if config.startswith(("configs/", "examples/")):
        config_files.read(config, changes)
    elif changes:
        config_files.read("configs/fine_tune.py", changes)


@pytest.mark.parametrize("piece", COMMANDS, ids=lambda piece: piece.place)
def test_a_command_names_what_there_is(piece, known):
    known(piece.text, needed=piece.kind == "command")


@pytest.mark.parametrize(
    "wrong",
    [
        "unit-jax predikt --model demo",
        "unit-jax predict --model demo --task coco --output a.jsonl --colour red",
        "python tools/reproduce.py --rows coco",
        "python tools/nothing.py",
        "python -m unit_jax.main --config=configs/unit.py:no_such_variant --workdir=w",
        "python -m unit_jax.main --config=configs/unit.py --work_dir=w",
        "python -m unit_jax.main --config=configs/unit.py --workdir=w --config.train.step=1",
        "unit-jax train --config=configs/unit.py --workdir=w --mode=test",
        "make cake",
        "pip install unit-jax[pizza]",
    ],
)
def test_a_wrong_command_would_be_seen(wrong, known):
    with pytest.raises((AssertionError, ValueError, SystemExit, pytest.fail.Exception)):
        known(wrong)


def test_links_lead_somewhere():
    missing = []
    for piece in PIECES:
        if piece.kind != "link" or re.match(r"\w+:", piece.text):
            continue
        path, _, anchor = piece.text.partition("#")
        document = ROOT / piece.place
        target = document.parent / path if path else document
        if not target.exists():
            missing.append(f"{piece.place}: {piece.text}")
        elif anchor and anchor not in anchors(target):
            missing.append(f"{piece.place}: {piece.text} (no such heading)")
    assert not missing


def test_files_that_are_named_exist():
    """Paths of this repository in `code`, where they are no patterns."""
    missing = []
    for path in documents():
        for named in re.findall(r"`([^`\s]+)`", path.read_text()):
            file = named.partition(":")[0]
            ours = re.match(r"(unit_jax|configs|docs|examples|tests|tools)/[\w./-]+$", file)
            if ours and not (ROOT / file).exists() and not (ROOT / "unit_jax" / file).exists():
                missing.append(f"{path.relative_to(ROOT)}: {named}")
    assert not missing


def test_the_site_has_every_page_and_every_name():
    """`make docs` builds it strictly, but a page that no menu names is no fault to MkDocs."""
    import yaml

    pages = {p.relative_to(ROOT / "docs").as_posix() for p in ROOT.glob("docs/**/*.md")}
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    menu = set(re.findall(r"[\w/]+\.md", str(nav)))
    made = {"index.md", "tour.md", "contributing.md", "changelog.md"}
    assert menu == pages | made
    shown = [
        line.split()[1]
        for path in ROOT.glob("docs/reference/*.md")
        for line in path.read_text().splitlines()
        if line.startswith("::: ")
    ]
    assert len(shown) > 20
    for name in shown:
        module, _, attribute = name.rpartition(".")
        assert getattr(importlib.import_module(module), attribute).__doc__, name


@pytest.fixture(scope="module")
def loaded():
    """`unit_jax.load` that remembers: documents load the same model again and again."""
    import inspect

    from unit_jax.api import load

    original, kept = load.load, {}

    def remembering(*arguments, **options):
        bound = inspect.signature(original).bind(*arguments, **options)
        bound.apply_defaults()
        key = tuple(map(str, bound.arguments.values()))
        if key not in kept:
            kept[key] = original(*arguments, **options)
        return kept[key]

    load.load = remembering
    yield
    load.load = original


def run(path: pathlib.Path, folder: pathlib.Path, commands: re.Pattern) -> int:
    """Runs a document's short commands and its Python blocks in order; returns how many."""
    count, names = 0, {"__name__": "__main__"}
    for piece in pieces(path):
        if piece.kind == "command" and commands.match(piece.text):
            give_pictures(piece.text, folder)
            program, *words = words_of(piece.text)
            words = words if program == "unit-jax" else [pathlib.Path(words[0]).stem, *words[1:]]
            status = cli.main(words)
            assert status == 0, f"{piece.place}: {piece.text}: exit status {status}"
            count += 1
        elif piece.kind == "python" and can_run(piece, names):
            give_pictures(piece.text, folder)
            block = "\n" * int(piece.place.split(":")[1]) + piece.text
            exec(compile(block, str(path), "exec"), names)
            count += 1
    return count


def can_run(piece: Found, names: dict) -> bool:
    """Whether all that a block uses is there; it is Python in any case."""
    ast.parse(piece.text)
    if unknown_names(piece.text, set(names)):
        return False
    opened = re.findall(r"load(?:_exported)?\(\s*\"([^\"]+)\"", piece.text)
    imported = re.findall(r"^(?:import|from) (\w+)", piece.text, re.M)
    found = all(importlib.util.find_spec(name) for name in imported)
    return found and all(name == "demo" or os.path.exists(name) for name in opened)


def give_pictures(text: str, folder: pathlib.Path) -> None:
    """Where a document names a photograph of the reader's, it is one of ours."""
    for name in re.findall(rf"(?<![\w/.-]){PICTURE}", text):
        if not (folder / name).exists():
            shutil.copy(ROOT / "unit_jax/demo/pictures/scene-5.png", folder / name)


@pytest.fixture
def folder(tmp_path, monkeypatch, loaded):
    for name in ("unit_jax", "configs", "docs", "examples", "tools"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def those_with(commands: re.Pattern) -> list[pathlib.Path]:
    """The documents that hold such a command, or Python."""
    return [
        path
        for path in documents()
        if any(p.kind == "python" or commands.match(p.text) for p in pieces(path))
    ]


@pytest.mark.parametrize("path", those_with(SHORT), ids=lambda path: path.name)
def test_short_commands_and_blocks_run(path, folder, capsys):
    count = run(path, folder, SHORT)
    assert count >= 5 or path.name != "using.md"  # that one is all examples


@pytest.mark.slow
def test_longer_commands_and_blocks_run(folder, capsys):
    """Exports, and the blocks that use what was exported."""
    both = re.compile(f"{SHORT.pattern}|{LONGER.pattern}")
    (path,) = [path for path in those_with(LONGER) if path.name == "using.md"]
    count = run(path, folder, SHORT)
    assert run(path, folder, both) > count + 1
