"""Questions about images with one answer or several: JSON lines, JSON, CSV, TSV or Parquet."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from unit_jax.data.sources import base
from unit_jax.data.sources.formats import files, rows
from unit_jax.data.sources.formats.parts import Example, Part
from unit_jax.data.sources.formats.table import identity, image_folders

_USUAL = {"image": "image", "question": "question"}


def read(options: Mapping[str, Any], split: str, problems: base.Problems) -> Part:
    """Reads the file `options[split]`; columns that the config does not name are called image,
    question, and answer or answers.

    Raises:
      ValueError: it cannot be read, or lacks a column; nearest names are given.
    """
    path = pathlib.Path(options[split])
    options = {**_USUAL, **{key: value for key, value in options.items() if value}}
    known = [options.get(key, key) for key in ("image", "question", "answer", "answers")]
    table = rows.read(path, known, problems)
    answer_key = next((key for key in ("answer", "answers") if options.get(key)), None)
    if answer_key is None:
        answer_key = "answers" if "answers" in table.columns else "answer"
        options[answer_key] = answer_key
    labelled = split != "test" or options[answer_key] in table.columns
    keys = ["image", "question", "id", "split", *([answer_key] if labelled else [])]
    wrong = rows.column_problems(options, table, keys, f"config.data.own.{options['name']}")
    if wrong:
        raise ValueError("; ".join(wrong))
    names = [rows.as_text(row.get(options["image"])) for _, row in table.rows if row]
    finder = files.Finder(image_folders(options, path), names)
    examples = []
    seen: set[str] = set()
    for position, (place, row) in enumerate(table.rows, start=1):
        if row is None:
            continue
        question = base.clean_text(rows.as_text(row.get(options["question"])), place, problems)
        if question is None:
            continue
        answers = []
        if labelled:
            answers = _answers(row.get(options[answer_key]), answer_key == "answers")
            answers = [base.encodable(a[: base.MAX_TEXT], place, problems) for a in answers]
            if not answers and split != "test":
                problems.add("no answers", place, f"column {options[answer_key]!r} is empty")
                continue
        image = finder.find(rows.as_text(row.get(options["image"])), place, problems)
        if image is None:
            continue
        examples.append(
            Example(
                id=identity(options, row, position, seen),
                place=place,
                image=image,
                text=question,
                answers=answers,
                split=rows.as_text(row.get(options.get("split") or "")).strip(),
            )
        )
    return Part(
        examples,
        listed=len(table.rows),
        files=[path],
        labelled=any(example.answers for example in examples),
    )


def _answers(value: Any, several: bool) -> list[str]:
    """The answers of a cell: a text, a list, VQA's list of {"answer": ...}, or a list in a text
    (as JSON, or with | or ; between)."""
    if several and isinstance(value, str):
        text = value.strip()
        if text.startswith("["):
            try:
                value = json.loads(text)
            except json.JSONDecodeError:
                value = [part.strip(" '\"") for part in text.strip("[]").split(",")]
        else:
            value = text.split("|" if "|" in text else ";")
    values = value if isinstance(value, list | tuple) else [value]
    texts = [rows.as_text(v.get("answer") if isinstance(v, dict) else v) for v in values]
    return [" ".join(text.split()) for text in texts if text.strip()]
