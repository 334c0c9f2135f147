"""Rows of CSV, TSV, JSON lines, JSON and Parquet files, with their columns by name."""

import csv
import dataclasses
import io
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from unit_jax import own_data
from unit_jax.data.sources import base
from unit_jax.data.sources.formats import files

_DELIMITERS = {".csv": ",;\t|", ".tsv": "\t,;|", ".tab": "\t,;|", ".txt": "\t,;|"}
_MOST_CHARACTERS = 10_000_000  # of one cell


@dataclasses.dataclass(frozen=True)
class Rows:
    """A file's rows.

    Attributes:
      columns: names in the order of the file.
      rows: (place, value by column); None = a faulty row, noted.
    """

    path: pathlib.Path
    columns: list[str]
    rows: list[tuple[str, dict[str, Any] | None]]


def read(path: pathlib.Path, needed: Sequence[str], problems: base.Problems) -> Rows:
    """Reads a file by its ending.

    Args:
      needed: columns that the config names; they help to tell the delimiter of a CSV file.

    Raises:
      ValueError: it is not there or cannot be read.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the file")
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    ending = path.suffix.lower()
    if ending in (".parquet", ".pq"):
        return _parquet(path)
    if ending in (".jsonl", ".ndjson", ".json"):
        return _json(path, problems)
    if ending in _DELIMITERS:
        return _delimited(path, _DELIMITERS[ending], needed, problems)
    raise ValueError(f"{path}: the ending tells the kind of file: .csv, .tsv, .jsonl or .parquet")


def column_problems(
    options: Mapping[str, Any], rows: Rows, keys: Sequence[str], where: str
) -> list[str]:
    """A line for each column that the config names and the file lacks or has twice."""
    lines = []
    for key in keys:
        name = options.get(key)
        if not name:
            continue
        if name not in rows.columns:
            nearest = own_data.nearest(name, rows.columns)
            lines.append(f"{rows.path}: no column {name!r} ({where}.{key}); {nearest}")
        elif rows.columns.count(name) > 1:
            lines.append(f"{rows.path}: two columns {name!r} ({where}.{key}); rename one")
    return lines


def _delimited(
    path: pathlib.Path, delimiters: str, needed: Sequence[str], problems: base.Problems
) -> Rows:
    text = files.read_text(path, problems)
    if text.startswith("sep=") and "\n" in text:  # Excel's own first line
        delimiters, text = text[4], text.split("\n", 1)[1]
    if not text.strip():
        raise ValueError(f"{path}: the file is empty")
    text = text.replace("\0", "")
    limit = csv.field_size_limit(_MOST_CHARACTERS)
    try:
        headers = {
            d: next(csv.reader(io.StringIO(text, newline=""), delimiter=d)) for d in delimiters
        }
        # The delimiter under which most of the columns that are needed are there.
        delimiter = max(
            delimiters,
            key=lambda d: (sum(n in _stripped(headers[d]) for n in needed), d == delimiters[0]),
        )
        # Quotes mean nothing in most TSV files: a row is a line there, if all lines then agree.
        quoting = csv.QUOTE_MINIMAL
        if delimiter == "\t" and '"' in text:
            lines = [line for line in text.splitlines() if line]
            if all(line.count("\t") == lines[0].count("\t") for line in lines):
                quoting = csv.QUOTE_NONE
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting)
        columns = _stripped(next(reader))
        if quoting == csv.QUOTE_NONE:
            columns = [name.strip('"') for name in columns]
        rows = list(_cells(path, reader, columns, quoting, problems))
    except (csv.Error, StopIteration) as error:
        raise ValueError(f"{path}: no table of columns ({error})") from None
    finally:
        csv.field_size_limit(limit)
    return Rows(path, columns, rows)


def _stripped(header: list[str]) -> list[str]:
    return [name.strip() for name in header]


def _cells(path, reader, columns, quoting, problems) -> Iterator[tuple[str, dict | None]]:
    while True:
        start = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        if not any(cell.strip() for cell in cells):
            continue
        place = f"{path}:{start}"
        while len(cells) > len(columns) and not cells[-1].strip():
            cells.pop()  # delimiters at the end of a line
        if len(cells) != len(columns):
            detail = f"{len(cells)} cells, the header has {len(columns)}"
            problems.add("bad row", place, detail)
            yield place, None
            continue
        if quoting == csv.QUOTE_NONE:
            cells = [_unquoted(cell) for cell in cells]
        yield place, dict(zip(columns, cells, strict=True))


def _unquoted(cell: str) -> str:
    """A cell that is quoted as a whole, without its quotes."""
    if len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in cell[1:-1].replace('""', ""):
        return cell[1:-1].replace('""', '"')
    return cell


def _json(path: pathlib.Path, problems: base.Problems) -> Rows:
    text = files.read_text(path, problems)
    rows: list[tuple[str, dict | None]] = []
    if text.lstrip()[:1] == "[":
        try:
            content = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{path} is no complete JSON file ({error})") from None
        for position, value in enumerate(content):
            rows.append(_object(f"{path}: entry {position + 1}", value, problems))
    else:
        for position, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                place = f"{path}:{position}"
                try:
                    value = json.loads(line)
                except (json.JSONDecodeError, RecursionError) as error:
                    problems.add("bad row", place, f"no JSON: {error}")
                    rows.append((place, None))
                    continue
                rows.append(_object(place, value, problems))
    columns = dict.fromkeys(key for _, row in rows for key in row or ())
    if not columns:
        raise ValueError(f"{path}: expected JSON lines, an object with the columns on each")
    return Rows(path, list(columns), rows)


def _object(place: str, value: Any, problems: base.Problems) -> tuple[str, dict | None]:
    if isinstance(value, dict):
        return place, value
    problems.add("bad row", place, f"no object: {value!r:.60}")
    return place, None


def _parquet(path: pathlib.Path) -> Rows:
    import pyarrow  # the other kinds of files do without
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} is no whole Parquet file ({error})") from None
    columns = list(table.column_names)
    rows = []
    for position, row in enumerate(table.to_pylist() if columns else (), start=1):
        rows.append((f"{path}: row {position}", row))
    return Rows(path, columns, rows)


def as_text(value: Any) -> str:
    """A cell as a text: whole numbers without a fraction, None as nothing."""
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return str(value)
