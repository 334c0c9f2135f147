"""Prints all settings as tables: name, default, values, what it does.

unit-jax show-settings > docs/configuration.md

They come from the dataclasses (`unit_jax/settings/groups.py`, `unit_jax/tasks.py`), where a setting
is added by one field; a test keeps the page equal to what this prints.
"""

import argparse
import dataclasses
import sys
import typing
from collections.abc import Iterator
from typing import Any, Literal

from unit_jax import fields
from unit_jax.settings import Settings
from unit_jax.tasks import KINDS, PUBLISHED, TaskSpec

HEAD = """\
# Settings

`unit-jax show-settings > docs/configuration.md` writes this page; the text stands in
`unit_jax/settings/groups.py` and `unit_jax/tasks.py`.

A config is a Python file with a function `get_config` that returns nested settings, as a dict or an
`ml_collections.ConfigDict`. What it leaves out takes the default, which is the paper's value. The
shipped ones are `configs/unit.py` (the paper's run) and `configs/demo.py`; a config of your own
changes what differs, and works from any folder:

```python
from unit_jax.configs import unit


def get_config(arg=None):
    config = unit.get_config(arg)
    config.train.batch_size = 32
    config.optimizer.frozen = ("backbone",)
    return config
```

`--config=mine.py:coco,vqa2` gives `get_config` the argument `"coco,vqa2"`. The arguments of the
shipped configs, and which of them are the reference's configurations, are written at the top of
[configs/unit.py](../unit_jax/configs/unit.py). Any setting is a flag: `--config.train.steps=1000`,
`--config.tasks.qnli.cls_only=False`, `--config.data.train_short_sides="(480, 512)"`.

All values are checked at start, before any long work; one message names everything that is wrong.
A checkpoint keeps the settings that it was made with; settings that came later take their defaults
when it is read. Settings of the model belong to its checkpoints; where "may change later" is said
below, a run may go on from a checkpoint that was made with another value, or evaluate it.
"""

TASKS = f"""\
## config.tasks.NAME

A task. One of the published ({", ".join(PUBLISHED)}) says only what differs; a task of your own
says `kind`, or `inputs` and `output`, and gets a free `index` if it gives none. Beside the table:

- `ratio`: how often a training step takes the task, relative to the others (default 1);
  "size" = by its number of training examples;
- `kind`, short for inputs, output, transforms and lengths: {", ".join(KINDS)};
- `soft_targets=True`, short for `output="scores"`; `f1=True`, for `metrics=("accuracy", "f1")`.
"""


def page() -> str:
    """The whole page, Markdown."""
    parts = [HEAD]
    top = [field for field in dataclasses.fields(Settings) if not _group(Settings, field)]
    plain = [field for field in top if field.name not in ("tasks", "ratios")]
    parts.append("## Top level\n\n" + _table(Settings, plain, "config"))
    table = _table(TaskSpec, dataclasses.fields(TaskSpec)[1:], "config.tasks.NAME")
    parts.append(f"{TASKS}\n{table}")
    for where, text, cls in _groups(Settings, "config"):
        table = _table(cls, fields.fields_of(cls), where)
        parts.append(f"## {where}\n\n{text[0].upper()}{text[1:]}.\n\n{table}")
    return "\n".join(parts)


def _groups(cls: type, where: str) -> Iterator[tuple[str, str, type]]:
    """(place, what it is, class) of all groups below a class."""
    for field in fields.fields_of(cls):
        inner = _group(cls, field)
        if inner:
            place = f"{where}.{field.name}"
            yield place, fields.about(field).text, inner
            yield from _groups(inner, place)


def _group(cls: type, field: dataclasses.Field) -> type | None:
    """The class of a field that holds further fields."""
    hint = typing.get_type_hints(cls)[field.name]
    return hint if dataclasses.is_dataclass(hint) else None


def _table(cls: type, chosen, where: str) -> str:
    hints = typing.get_type_hints(cls)
    rows = ["| setting | default | values | what it does |", "|---|---|---|---|"]
    for field in chosen:
        about = fields.about(field)
        if _group(cls, field):
            link = f"{where}.{field.name}".replace(".", "")
            rows.append(f"| `{field.name}` | | [a group](#{link}) | {about.text} |")
            continue
        values = ", ".join(filter(None, [_values(hints[field.name]), about.range]))
        notes = "; may change later" * about.free + "; may differ between processes" * about.local
        rows.append(f"| `{field.name}` | {_default(field)} | {values} | {about.text}{notes} |")
    return "\n".join(row.replace("\n", " ") for row in rows) + "\n"


def _values(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return " \\| ".join(f'"{word}"' for word in typing.get_args(hint))
    return fields.words(hint)


def _default(field: dataclasses.Field) -> str:
    if field.default is not dataclasses.MISSING:
        return f"`{field.default!r}`".replace("'", '"')
    if field.default_factory is not dataclasses.MISSING:
        return f"`{field.default_factory()!r}`"
    return "–"


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args(arguments)
    sys.stdout.write(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
