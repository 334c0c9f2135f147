"""Runs a notebook's cells in this process, without Jupyter, for the docs site and the tests."""

import ast
import contextlib
import dataclasses
import io
import json
import pathlib
from typing import Any

from PIL import Image


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell after it was run.

    Attributes:
      kind: "markdown" or "code".
      source: as it stands in the notebook.
      told: what it printed, and the value of its last line where that is no picture.
      picture: the value of its last line where that is one.
    """

    kind: str
    source: str
    told: str = ""
    picture: Image.Image | None = None


def run(path: pathlib.Path) -> list[Cell]:
    """Runs all cells from top to bottom, in one namespace, as a fresh kernel would.

    Raises:
      Whatever a cell raises.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    cells = []
    for number, cell in enumerate(json.loads(path.read_text())["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            cells.append(_executed(source, f"{path.name}, cell {number}", names))
        else:
            cells.append(Cell(cell["cell_type"], source))
    return cells


def _executed(source: str, place: str, names: dict[str, Any]) -> Cell:
    tree, value, printed = ast.parse(source), None, io.StringIO()
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, place, "exec"), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), place, "eval"), names)
    if isinstance(value, Image.Image):
        return Cell("code", source, printed.getvalue(), value)
    shown = "" if value is None else f"{value!r}\n"
    return Cell("code", source, printed.getvalue() + shown)


def as_markdown(cells: list[Cell], stem: str) -> tuple[str, dict[str, bytes]]:
    """A page of executed cells, and its pictures (PNG) by file name."""
    parts, pictures = [], {}
    for number, cell in enumerate(cells):
        if cell.kind == "markdown":
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        if cell.told.strip():
            parts.append(f'```text title="Output"\n{cell.told.rstrip()}\n```')
        if cell.picture:
            name, stored = f"{stem}-{number}.png", io.BytesIO()
            cell.picture.save(stored, "PNG", optimize=True)
            pictures[name] = stored.getvalue()
            parts.append(f"![What the cell shows]({name})")
    return "\n\n".join(parts) + "\n", pictures
