"""Fits the weights of a checkpoint into a model of other tasks, classes or words.

What both have goes over whole. Of what belongs to a task, by name: its queries as far as the
numbers allow, its head, and of the last layer those classes (answers, labels) that have equal
names; without names on both sides only a head of the same task and size. A task of the user's own
that the checkpoint does not know starts from the checkpoint's most similar one. Everything else
stays fresh, and all of it is told.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence

import numpy as np

from unit_jax.interop.sources import Arrays, Source, TaskFacts
from unit_jax.models.flat import task_of
from unit_jax.tasks import PUBLISHED

# Last layers of heads, by the axis of the classes; those of objects have "no object" last.
_CLASSES = re.compile(
    r"heads\.[^.]+\.(?:(labels|classes)\.(?:kernel|bias)|(attributes)\.class_embedding)"
)
_TASK_TABLE = ("image_encoder.task_embedding", "text_encoder.task_embedding")
_WORDS = "text_encoder.word_embedding"
_POSITIONS = "text_encoder.position_embedding"


@dataclasses.dataclass(frozen=True)
class Fitted:
    """What of a checkpoint goes into a model.

    Attributes:
      arrays: by the model's paths, in its shapes; parts that the checkpoint lacks are as before.
      partly: paths of those that it fills in part.
      left: its own paths that are not used.
      lines: what a user should know, a line each.
    """

    arrays: Arrays
    partly: tuple[str, ...]
    left: tuple[str, ...]
    lines: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Model:
    """What is to be filled.

    Attributes:
      tasks: by name.
      vocabulary: SHA-256 of its vocab.txt; "" = not known.
      tokens: that file's lines; () = not known.
      starts: for some tasks the checkpoint's task to start from, "" = fresh; see `donor`.
    """

    tasks: Mapping[str, TaskFacts]
    vocabulary: str = ""
    tokens: tuple[str, ...] = ()
    starts: Mapping[str, str] = dataclasses.field(default_factory=dict)


def fit(source: Source, fresh: Mapping[str, np.ndarray], model: Model) -> Fitted:
    """Fits a checkpoint into a model's initial arrays.

    Args:
      fresh: the model's parameters and statistics by path.

    Raises:
      ValueError: the checkpoint is a UniT's of other widths; lists every array that shows it. Or
        a task is to start from one that it does not have.
    """
    layers = _layers(fresh)
    donors = {
        name: donor(name, facts, layers.get(name, ""), source)
        for name, facts in model.tasks.items()
        if name not in model.starts
    } | _asked(model, source)
    origins = _origins(source.arrays, fresh, donors)
    arrays: Arrays = {}
    partly: list[str] = []
    misfits: dict[str, str] = {}
    lines: list[str] = []
    shown: dict[str, list[str]] = {}
    for path, origin in origins.items():
        old, new = source.arrays[origin], fresh[path]
        told = shown.setdefault(task_of(path), [])
        pairs = _pairs(path, old, new, donors, source, model, told, lines)
        if pairs is None:
            if old.shape == new.shape:
                arrays[path] = old
            else:
                misfits[path] = f"{path}: shape {old.shape}, the model has {new.shape}"
            continue
        axis, to, of = pairs
        if old.ndim != new.ndim or _without(old.shape, axis) != _without(new.shape, axis):
            misfits[path] = f"{path}: shape {old.shape}, the model has {new.shape}"
        elif len(to):
            mixed = np.array(new)
            mixed[(slice(None),) * axis + (to,)] = np.asarray(old).take(of, axis)
            arrays[path] = mixed
            partly.append(path)
    if misfits and source.whole:
        raise ValueError(
            "it does not fit the model of this config:\n  "
            + "\n  ".join(misfits.values())
            + "\nuse the sizes of the model that it was made with"
        )
    parts = {_component(path) for path in misfits}
    for part in sorted(parts):
        lines.append(f"{part} does not fit and stays fresh: {_first(misfits, part)}")
    arrays = {path: array for path, array in arrays.items() if _component(path) not in parts}
    partly = [path for path in partly if path in arrays]
    used = {origins[path] for path in arrays}
    tasks = [
        f"{name} starts from {donors[name]}" + (": " if what else "") + "; ".join(what)
        for name, what in ((name, list(dict.fromkeys(shown.get(name, [])))) for name in donors)
        if donors[name] and (what or donors[name] != name)
        if any(task_of(path) == name for path in arrays)
    ]
    left = tuple(path for path in source.arrays if path not in used)
    return Fitted(arrays, tuple(partly), left, (*tasks, *dict.fromkeys(lines)))


def _asked(model: Model, source: Source) -> dict[str, str]:
    """For each task that the config gives a start: the checkpoint's task that it starts from."""
    known = _layers(source.arrays)
    for name, start in model.starts.items():
        where = f"config.init_from.tasks.{name}"
        if name not in model.tasks:
            raise ValueError(f"{where}: no task of this config; it has {', '.join(model.tasks)}")
        if start and start not in known:
            raise ValueError(f"{where}: {start!r} is no task there; it has {', '.join(known)}")
    return dict(model.starts)


def donor(name: str, facts: TaskFacts, layer: str, source: Source) -> str:
    """The task of a checkpoint that a task of the model starts from; "" = none.

    One of the same name; for a task of the user's own else one with the same kind of head: the
    one with the same inputs, then with the most classes of equal names, then the first.

    Args:
      layer: the last one of its head, see `_layers`.
    """
    heads = _layers(source.arrays)
    if name in heads or f"queries.{name}" in source.arrays:
        return name
    if name in PUBLISHED:
        return ""
    inputs = (facts.has_image, facts.has_text)
    similar = []
    for place, (other, theirs) in enumerate(source.tasks.items()):
        same = (theirs.has_image, theirs.has_text) == inputs
        shares = (theirs.has_image and facts.has_image) or (theirs.has_text and facts.has_text)
        if layer and heads.get(other) == layer and shares:
            equal = len(_equal_names(theirs.labels, facts.labels))
            similar.append((-same, -equal, place, other))
    return min(similar)[3] if similar else ""


def _layers(arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    """The last layer of each task's head: "classes" of objects, "labels" of the rest."""
    return {
        path.split(".")[1]: path.split(".")[2]
        for path in arrays
        if re.fullmatch(r"heads\.[^.]+\.(labels|classes)\.kernel", path)
    }


def _origins(
    old: Mapping[str, np.ndarray], fresh: Mapping[str, np.ndarray], donors: Mapping[str, str]
) -> dict[str, str]:
    """For each path of the model the checkpoint's path that it is filled from, where there is one.

    A shared decoder becomes that of every task that starts from one of its tasks; a decoder of one
    task becomes the shared one if it is the only one, or the only one that is started from.
    """
    of_tasks = {path.split(".")[1] for path in old if path.startswith("decoders.")}
    wanted = {task for task in donors.values() if task} & of_tasks
    single = next(iter(of_tasks if len(of_tasks) == 1 else wanted), "")
    if len(of_tasks) > 1 and len(wanted) != 1:
        single = ""
    origins = {}
    for path in fresh:
        part, _, rest = path.partition(".")
        task, _, inner = rest.partition(".")
        options = [path]
        if part in ("heads", "queries", "decoders"):
            start = donors.get(task, "")
            options = [f"{part}.{start}.{inner}".rstrip(".")] if start else []
            if part == "decoders" and start:
                options.append(f"decoder.{inner}")
        elif part == "decoder" and single:
            options.append(f"decoders.{single}.{rest}")
        origin = next((option for option in options if option in old), None)
        if origin:
            origins[path] = origin
    return origins


def _pairs(path, old, new, donors, source: Source, model: Model, told: list, lines: list):
    """(axis, places in the model, places in the checkpoint) of what goes over in part; None where
    an array goes over whole or not at all."""
    if _CLASSES.fullmatch(path):
        return _class_pairs(path, old, new, donors, source, model, told)
    if path.startswith("queries.") and len(old) != len(new):
        count = min(len(old), len(new))
        told.append(f"{count} of its {len(old)} queries" + f" for {len(new)}" * (count < len(new)))
        return 0, np.arange(count), np.arange(count)
    if path in _TASK_TABLE:
        return _task_rows(old, new, donors, source, model)
    if path == _POSITIONS and len(old) != len(new):
        count = min(len(old), len(new))
        return 0, np.arange(count), np.arange(count)
    if path == _WORDS:
        return _word_rows(old, new, source, model, lines)
    if ".attributes.linear2." in path and old.shape != new.shape:
        return new.ndim - 1, np.arange(0), np.arange(0)
    return None


def _class_pairs(path: str, old, new, donors, source: Source, model: Model, told: list):
    parts = _CLASSES.fullmatch(path)
    assert parts is not None  # as it did before
    layer = next(filter(None, parts.groups()))
    axis = 0 if layer == "attributes" else new.ndim - 1
    objects = layer != "labels"
    task = task_of(path)
    theirs, ours = source.tasks.get(donors[task]), model.tasks[task]
    old_count, new_count = (array.shape[axis] - objects for array in (old, new))
    named = theirs and len(theirs.labels) == old_count and len(ours.labels) == new_count
    if named and tuple(theirs.labels) != tuple(ours.labels):
        equal = _equal_names(theirs.labels, ours.labels)
        names = [ours.labels[number] for number in equal]
        shown = ", ".join(names[:6]) + ", ..." * (len(names) > 6)
        total = sum(map(bool, ours.labels))
        told.append(f"{len(equal)} of {total} classes by name" + (f" ({shown})" if names else ""))
        to, of = list(equal), list(equal.values())
    elif named or (donors[task] == task and old_count == new_count):
        return None
    else:
        told.append("no class, as their names are not known on both sides")
        to, of = [], []
    if objects:
        to, of = [*to, new_count], [*of, old_count]
    return axis, np.asarray(to, int), np.asarray(of, int)


def _equal_names(theirs: Sequence[str], ours: Sequence[str]) -> dict[int, int]:
    """Our number to theirs of every class that has a name of both."""
    numbers = {_plain(name): number for number, name in reversed([*enumerate(theirs)]) if name}
    return {
        number: numbers[_plain(name)]
        for number, name in enumerate(ours)
        if name and _plain(name) in numbers
    }


def _plain(name: str) -> str:
    return " ".join(re.split(r"[\s_-]+", name.casefold().strip()))


def _task_rows(old, new, donors, source: Source, model: Model):
    """Rows of a task-embedding table: those of equal number, then those of the model's tasks."""
    rows = {row: row for row in range(min(len(old), len(new)))}
    for name, facts in model.tasks.items():
        start = source.tasks.get(donors[name])
        if start and facts.index < len(new) and start.index < len(old):
            rows[facts.index] = start.index
    if old.shape == new.shape and all(to == of for to, of in rows.items()):
        return None
    return 0, np.asarray(list(rows)), np.asarray(list(rows.values()))


def _word_rows(old, new, source: Source, model: Model, lines: list):
    """Rows of the word embedding: all, where the vocabulary is the same, else those of equal
    tokens."""
    known = source.vocabulary and model.vocabulary
    if source.vocabulary == model.vocabulary if known else old.shape == new.shape:
        return None
    if len(source.tokens) == len(old) and len(model.tokens) == len(new):
        numbers = {token: number for number, token in enumerate(source.tokens)}
        equal = {n: numbers[token] for n, token in enumerate(model.tokens) if token in numbers}
        lines.append(
            f"the vocabularies differ: word embeddings of {len(equal)} of {len(new)} tokens"
        )
        return 0, np.asarray(list(equal), int), np.asarray(list(equal.values()), int)
    if any(facts.has_text for facts in model.tasks.values()):
        lines.append("the vocabularies differ: word embeddings start fresh")
    return 0, np.arange(0), np.arange(0)


def _component(path: str) -> str:
    """What goes over as a whole or not at all where it does not fit."""
    task = task_of(path)
    return ".".join(path.split(".")[:2]) if task else path.split(".")[0]


def _first(misfits: Mapping[str, str], part: str) -> str:
    return next(line for path, line in misfits.items() if _component(path) == part)


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return shape[:axis] + shape[axis + 1 :]
