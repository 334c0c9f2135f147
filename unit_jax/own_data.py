"""What `config.data.own` may say: data sets of one's own by the format of their files.

    config.data.own = {
        "signs": {"format": "coco", "train": "signs/train.json", "val": "signs/val.json"},
        "reviews": {"format": "table", "train": "reviews.csv", "text": "review", "label": "stars"},
    }

Here are the keys, their checks, paths, and the task that a data set is by default. Files are read
in `data/sources/formats/` and prepared in `data/own/`; the page for users is docs/own_data.md.
"""

import difflib
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

SPLITS = ("train", "val", "test")
VAL_SHARE = 0.2  # of train, where no validation split is given in any way

_ANY = {
    **dict.fromkeys(SPLITS, "a path"),
    "val_share": "a number between 0 and 1",
    "split": "a name",
    "seed": "a whole number",
}
# Keys of each format, and what they hold.
KEYS: Mapping[str, Mapping[str, str]] = {
    "coco": {**_ANY, "images": "a path"},
    "voc": {**_ANY, "images": "a path", "classes": "names"},
    "yolo": {**_ANY, "data": "a path", "classes": "names"},
    "table": {
        **_ANY,
        **dict.fromkeys(("text", "text_b", "image", "label", "id"), "a name"),
        "images": "a path",
        "labels": "names",
    },
    "questions": {
        **_ANY,
        **dict.fromkeys(("image", "question", "answer", "answers", "id"), "a name"),
        "images": "a path",
        "min_answer_count": "a whole number",
        "max_answers": "a whole number",
    },
}
DETECTION = ("coco", "voc", "yolo")
_PATHS = (*SPLITS, "images", "data")


def nearest(name: Any, known: Iterable[str]) -> str:
    """ ", nearest: 'a', 'b'" of the known names that look like one, or all of a few."""
    known = [str(other) for other in known]
    folded = {other.casefold().strip(): other for other in reversed(known)}
    close = difflib.get_close_matches(str(name).casefold().strip(), folded, n=3, cutoff=0.5)
    if close:
        return "nearest: " + ", ".join(repr(folded[other]) for other in close)
    shown = ", ".join(map(repr, known[:12])) + (", ..." if len(known) > 12 else "")
    return f"known: {shown}"


def problems(own: Any) -> list[str]:
    """What is wrong with `config.data.own`, a line each with place and remedy; files are not
    looked at."""
    if not isinstance(own, Mapping):
        return [f"config.data.own: expected {{name: {{'format': ..., 'train': ...}}}}, got {own!r}"]
    lines = []
    for name, options in own.items():
        where = f"config.data.own.{name}"
        if not isinstance(name, str) or not name.isidentifier():
            lines.append(f"{where}: a name is a word of letters, digits and _ (it names a folder)")
        elif not isinstance(options, Mapping):
            lines.append(f"{where}: expected {{'format': ..., 'train': PATH}}, got {options!r}")
        elif options.get("format") not in KEYS:
            told = options.get("format")
            lines.append(f"{where}.format: {told!r} is no format; {nearest(told, KEYS)}")
        else:
            lines += _option_problems(where, options)
    return lines


def _option_problems(where: str, options: Mapping[str, Any]) -> list[str]:
    keys = KEYS[options["format"]]
    lines = []
    for key, value in options.items():
        if key == "format" or value is None or value == "":
            continue
        if key not in keys:
            lines.append(f"{where}.{key}: unknown key; {nearest(key, keys)}")
        elif not _fits(keys[key], value):
            lines.append(f"{where}.{key}: expected {keys[key]}, got {value!r}")

    def given(key: str) -> bool:
        return options.get(key) not in (None, "")

    if not given("train") and not (options["format"] == "yolo" and given("data")):
        lines.append(f"{where}.train: missing; the path of the training data")
    if options["format"] == "table":
        if not given("label"):
            lines.append(f"{where}.label: missing; the name of the column with the labels")
        if not given("text") and not given("image"):
            lines.append(f"{where}: give text, image or both, names of columns")
        if given("text_b") and not given("text"):
            lines.append(f"{where}.text_b: a second text needs text, the first one")
    if given("answer") and given("answers"):
        lines.append(f"{where}: give answer (one) or answers (several), not both")
    ways = [key for key in ("val", "split", "val_share") if given(key)]
    if len(ways) > 1:
        lines.append(f"{where}: {' and '.join(ways)} both say what is validation; keep one")
    return lines


def _fits(expected: str, value: Any) -> bool:
    if expected == "a path":
        return isinstance(value, str | os.PathLike)
    if expected == "a name":
        return isinstance(value, str)
    if expected == "names":
        return isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if expected == "a whole number":
        return number and value == int(value) and value >= 0
    return number and 0 < value < 1


def with_absolute_paths(own: Any, folder: str | os.PathLike) -> Any:
    """`config.data.own` with paths that were relative to the config file's folder made absolute;
    anything else is returned unchanged (`problems` says what is wrong with it)."""
    if not hasattr(own, "items"):
        return own
    return {
        name: {
            key: os.path.join(os.path.abspath(folder), os.path.expanduser(value))
            if key in _PATHS and isinstance(value, str | os.PathLike) and str(value)
            else value
            for key, value in options.items()
        }
        if hasattr(options, "items")
        else options
        for name, options in own.items()
    }


def task(
    options: Mapping[str, Any], max_positions: int, given: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Fields of the TaskSpec that a data set is by default; all but its index.

    Args:
      max_positions: longest text that the model has positions for.
      given: fields that the config gives; a kind, inputs or output of these stand alone.
    """
    if options["format"] in DETECTION:
        fields = {"kind": "detection", "num_queries": 100}
        if options["format"] == "coco":
            fields["submission"] = "coco"
    elif options["format"] == "questions":
        fields = {
            "kind": "vision_language",
            "num_queries": 25,
            "max_tokens": min(40, max_positions),
            "cls_only": False,
            "soft_targets": True,
        }
    elif not options.get("text"):
        fields = {"kind": "image", "num_queries": 25}
    elif options.get("image"):
        fields = {
            "kind": "vision_language",
            "num_queries": 25,
            "max_tokens": min(64, max_positions),
        }
    else:
        fields = {"kind": "language", "num_queries": 25, "max_tokens": min(128, max_positions)}
    if given and {"kind", "inputs", "output"} & set(given):
        for key in ("kind", "soft_targets"):
            fields.pop(key, None)
    return fields


def is_text(options: Mapping[str, Any]) -> bool:
    """Whether examples have a text, so that a vocabulary is needed."""
    return options["format"] == "questions" or bool(options.get("text"))


def has_image(options: Mapping[str, Any]) -> bool:
    """Whether the examples have images: all formats but a table without a column for them."""
    return options["format"] != "table" or bool(options.get("image"))


def path_of(options: Mapping[str, Any], key: str) -> pathlib.Path | None:
    """The path that a key gives, None where it gives none."""
    value = options.get(key)
    return pathlib.Path(value) if value not in (None, "") else None
