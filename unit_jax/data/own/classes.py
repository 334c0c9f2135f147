"""Labels of a data set of one's own: dense, in the order of the training file's ids."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from unit_jax import own_data
from unit_jax.data.own.declared import Declared, source_of


@dataclasses.dataclass(frozen=True)
class Classes:
    """Labels of a data set.

    Attributes:
      names: by label.
      keys: the ids that the training file has for them, by label.
      labels: per split, label by the key that an example or box carries.
    """

    names: list[str]
    keys: list[str]
    labels: dict[str, dict[Any, int]]


def classes(declared: Declared) -> Classes:
    """Dense labels in the order of the training file's ids; other splits by the classes' names.

    Raises:
      ValueError: val or test uses a class that train does not know.
    """
    named: dict[str, list[Any]] = {}
    for key, name in declared.classes["train"].items():
        named.setdefault(name, []).append(key)
    for name, keys in named.items():
        if len(keys) > 1:
            ids = ", ".join(map(str, keys))
            declared.notes.append(f"classes {ids} are all called {name!r}: taken as one class")
    numbers = {name: label for label, name in enumerate(named)}
    if not numbers:
        raise ValueError(f"{declared.name}: {declared.options['train']} has no classes")
    labels: dict[str, dict[Any, int]] = {}
    for split, examples in declared.splits.items():
        known = declared.classes[split]
        labels[split] = {key: numbers[name] for key, name in known.items() if name in numbers}
        missing = [name for name in dict.fromkeys(known.values()) if name not in numbers]
        used: Counter[str] = Counter()
        places: dict[str, str] = {}
        for example in examples:
            keys = [box.category for box in example.boxes or ()]
            keys += [] if example.label is None else [example.label]
            for key in keys:
                if key not in labels[split]:
                    used[known.get(key, key)] += 1
                    places.setdefault(known.get(key, key), example.place)
        if used:
            raise ValueError(_unknown_class(declared, split, used, places, list(numbers)))
        if missing:
            told = ", ".join(map(repr, missing))
            declared.notes.append(f"{split} lists classes that train does not ({told}): not used")
    return Classes(list(named), [str(keys[0]) for keys in named.values()], labels)


def _unknown_class(declared, split, used, places, known) -> str:
    name = next(iter(used))
    others = f" (and {len(used) - 1} more such labels)" if len(used) > 1 else ""
    what = "class" if declared.detection else "label"
    key = "classes" if declared.detection else "labels"
    remedy = f"correct it, or add it to {source_of(declared, 'train')}"
    if declared.options.get(key):
        told = f"config.data.own.{declared.name}.{key}"
        remedy = f"correct it, or add it to {told}"
    elif split == "train":
        told = "the classes"
    else:
        told = "train's"
    return (
        f"{declared.name} ({split}): {places[name]}: {what} {name!r} is not among {told}, "
        f"{used[name]} x{others}; {own_data.nearest(name, known)}; {remedy}"
    )


def class_notes(declared: Declared, names: Sequence[str], counts: Mapping[str, Counter]) -> None:
    """Notes classes that no training example has.

    Args:
      counts: objects or examples by label, per split.
    """
    what = "object" if declared.detection else "example"
    absent = [label for label in range(len(names)) if not counts["train"][label]]
    if absent:
        told = ", ".join(repr(names[label]) for label in absent[:10])
        told += f" and {len(absent) - 10} more" if len(absent) > 10 else ""
        declared.notes.append(
            f"train has no {what} of {told}: kept as a class, which nothing teaches"
        )
    for split in counts:
        only = [label for label in absent if counts[split][label]]
        if only and split != "train":
            told = ", ".join(f"{names[label]!r} ({counts[split][label]} x)" for label in only[:10])
            declared.notes.append(f"{split} has {what}s of {told}, train none: counted as missed")
