"""Labels of texts, pairs of texts, images, or images with a text, from a table with columns."""

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from unit_jax.data.sources import base
from unit_jax.data.sources.formats import files, rows
from unit_jax.data.sources.formats.parts import Example, Part


def read(options: Mapping[str, Any], split: str, problems: base.Problems) -> Part:
    """Reads the file `options[split]`.

    Raises:
      ValueError: it cannot be read, or lacks a column; nearest names are given.
    """
    path = pathlib.Path(options[split])
    keys = ["text", "text_b", "image", "label", "id", "split"]
    table = rows.read(path, [options[key] for key in keys if options.get(key)], problems)
    label_column = options["label"]
    labelled = split != "test" or label_column in table.columns
    if not labelled:
        keys.remove("label")
    wrong = rows.column_problems(options, table, keys, f"config.data.own.{options['name']}")
    if wrong:
        raise ValueError("; ".join(wrong))
    if labelled and split == "test":
        labelled = any(row and rows.as_text(row.get(label_column)).strip() for _, row in table.rows)
    told = [rows.as_text(row.get(label_column)).strip() for _, row in table.rows if row]
    numbers = all(_whole(label) is not None for label in told if label)
    finder = None
    if options.get("image"):
        names = [rows.as_text(row.get(options["image"])) for _, row in table.rows if row]
        finder = files.Finder(image_folders(options, path), names)
    examples = []
    seen: set[str] = set()
    for position, (place, row) in enumerate(table.rows, start=1):
        if row is None:
            continue
        example = Example(id=identity(options, row, position, seen), place=place)
        for key in ("text", "text_b"):
            if options.get(key):
                value = rows.as_text(row.get(options[key]))
                # The second text may be empty: a pair of one.
                clean = base.clean_text(value, place, problems, keep_empty=key == "text_b")
                setattr(example, key, clean)
        if example.text is None:
            continue
        if finder is not None:
            name = rows.as_text(row.get(options["image"]))
            example.image = finder.find(name, place, problems)
            if example.image is None:
                continue
        if labelled:
            label = rows.as_text(row.get(label_column)).strip()
            if not label:
                problems.add("no label", place, f"column {label_column!r} is empty")
                continue
            label = base.encodable(label[: base.MAX_TEXT], place, problems)
            example.label = _named(label, options.get("labels"), numbers)
        if options.get("split"):
            example.split = rows.as_text(row.get(options["split"])).strip()
        examples.append(example)
    names = {example.label for example in examples if example.label is not None}
    classes = options.get("labels") or sorted(names, key=int if numbers else str)
    return Part(
        examples,
        listed=len(table.rows),
        classes={name: name for name in classes},
        files=[path],
        labelled=labelled,
    )


def image_folders(options: Mapping[str, Any], path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Where the images of a table may lie: the folder given, else beside it, or in `images`."""
    if options.get("images"):
        yield pathlib.Path(options["images"])
        return
    yield path.parent
    yield path.parent / "images"
    yield path.parent.parent / "images"
    yield path.parent.parent


def identity(options: Mapping[str, Any], row: Mapping, position: int, seen: set[str]) -> str:
    """The id of a row: its column's, else its number; repeated ones get the number as well."""
    told = rows.as_text(row.get(options["id"])).strip()[:200] if options.get("id") else ""
    key = told or str(position)
    if key in seen:
        key = f"{key} ({position})"
    seen.add(key)
    return key


def _named(label: str, names: Sequence[str] | None, numbers: bool) -> str:
    """A label's name: as written, a number without its fraction, or, of given names, the one of
    that number."""
    number = _whole(label)
    if names and label not in names and number is not None and 0 <= number < len(names):
        return names[number]
    return str(number) if numbers and not names else label


def _whole(label: str) -> int | None:
    """A label that is a whole number (3, 3.0), else None."""
    try:
        value = float(label)
    except ValueError:
        return None
    return int(value) if value.is_integer() and abs(value) < 2**53 else None
