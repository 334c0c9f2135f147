"""The map in CONTRIBUTING.md is drawn from the real folders, and imports only go down it."""

import ast
import re

import pytest

from tests import ROOT

PACKAGE = ROOT / "unit_jax"


def layers() -> list[list[str]]:
    """The rooms of each line of the map, from top to bottom."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    block = text.split("## Map of the house")[1].split("```")[1].strip()
    return [re.split(r"\s{2,}", line)[0].split(", ") for line in block.splitlines()]


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imported(path) -> set[str]:
    """Rooms that a file imports from, also inside functions."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "unit_jax":
            if node.module == "unit_jax":
                rooms |= {alias.name for alias in node.names}
            else:
                rooms.add(room_of(node.module))
        elif isinstance(node, ast.Import):
            rooms |= {room_of(a.name) for a in node.names if a.name.startswith("unit_jax.")}
    return rooms


def uphill(depth: dict[str, int]) -> list[str]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        for room in imported(path) - {own, "__version__"}:
            if depth[room] <= depth[own]:
                found.append(f"{path.relative_to(ROOT)} imports {room}")
    return found


@pytest.fixture(scope="module")
def depth() -> dict[str, int]:
    return {room: number for number, rooms in enumerate(layers()) for room in rooms}


def test_the_map_names_every_room_and_no_other(depth):
    there = {
        path.name.removesuffix(".py")
        for path in PACKAGE.iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert set(depth) == there - {"__init__", "__pycache__"}


def test_imports_only_go_down_the_map(depth):
    assert uphill(depth) == []


def test_an_import_that_goes_up_is_found(depth):
    turned = {room: -number for room, number in depth.items()}
    assert any("unit_jax/models/unit.py imports settings" in line for line in uphill(turned))


def test_nothing_asks_which_kind_of_answer_it_is():
    asks = re.compile(r"\bkind (==|!=)")
    places = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if asks.search(line) and path != PACKAGE / "tasks.py"
    ]
    assert places == []


def test_a_file_is_one_idea_and_the_training_loop_fits_on_a_screen():
    lines = {path: path.read_text().count("\n") for path in PACKAGE.rglob("*.py")}
    assert {path: count for path, count in lines.items() if count > 450} == {}
    tree = ast.parse((PACKAGE / "training" / "loop.py").read_text())
    (loop,) = (node for node in ast.walk(tree) if getattr(node, "name", "") == "go")
    assert loop.end_lineno - loop.lineno < 45
