"""A data set of one's own as declared, with what its files tell, divided into splits.

Nothing is lost in silence: what cannot be used is a fault with its place, and a split that loses
more than half of its examples or objects is an error.
"""

import dataclasses
import pathlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from unit_jax import own_data
from unit_jax.data.sources import base, formats
from unit_jax.data.sources.formats import yolo
from unit_jax.data.sources.formats.parts import Example, Part

_MOST_LOST = 0.5  # of a split's examples or objects
_WORDS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
NO_LIMIT = 1 << 62


@dataclasses.dataclass
class Declared:
    """A data set as declared, and what its files tell.

    Attributes:
      splits: examples by split.
      listed, listed_objects: what the files list, by split, faulty entries included.
      classes: per split, name by the key that boxes carry.
      problems: faults by split.
      whole: splits whose losses are counted together, as they come from one file.
      notes: sentences on what was chosen or found.
      parts: what was read, by the split whose file it was.
    """

    name: str
    options: Mapping[str, Any]
    splits: dict[str, list[Example]]
    listed: dict[str, int]
    listed_objects: dict[str, int]
    classes: dict[str, Mapping[Any, str]]
    problems: dict[str, base.Problems]
    notes: list[str]
    parts: dict[str, Part]
    from_one_file: bool = False

    @property
    def detection(self) -> bool:
        return self.options["format"] in own_data.DETECTION

    @property
    def unlabelled(self) -> frozenset[str]:
        return frozenset(name for name, part in self.parts.items() if not part.labelled)

    def faults(self) -> str:
        """The faults by kind, for messages."""
        counts: Counter[str] = Counter()
        for problems in self.problems.values():
            counts.update(problems.counts())
        return ", ".join(f"{n} x {kind}" for kind, n in counts.items()) or "none"


def read(name: str, options: Mapping[str, Any]) -> Declared:
    """Reads the files of a data set and divides them into splits; images are found, not opened.

    Raises:
      ValueError: files are missing or are not what the format says, columns are missing, or a
        split is empty.
    """
    options = {key: value for key, value in options.items() if value not in (None, "")}
    options["name"] = name
    if options["format"] == "yolo":
        options = yolo.resolve(options)
    reader = formats.READERS[options["format"]]
    parts, problems = {}, {}
    for split in own_data.SPLITS:
        if options.get(split):
            problems[split] = base.Problems(name, NO_LIMIT)
            parts[split] = reader(options, split, problems[split])
    declared = Declared(
        name,
        options,
        splits={split: part.examples for split, part in parts.items()},
        listed={split: part.listed for split, part in parts.items()},
        listed_objects={split: part.listed_objects for split, part in parts.items()},
        classes={split: part.classes for split, part in parts.items()},
        problems=problems,
        notes=[note for part in parts.values() for note in part.notes],
        parts=parts,
    )
    _check_losses(declared)  # before a share is drawn of the little that is left
    if options.get("split"):
        _divide(declared, _by_column(declared))
    elif "val" not in parts:
        _divide(declared, _by_share(declared))
    for split in declared.splits:
        declared.problems.setdefault(split, base.Problems(name, NO_LIMIT))
    for split, examples in declared.splits.items():
        if not examples:
            raise ValueError(
                f"{name}: no usable example in {split} of {source_of(declared, split)}; "
                f"faults: {declared.faults()}"
            )
    return declared


def source_of(declared: Declared, split: str) -> str:
    """The path that a split comes from: its own, else that of train."""
    return str(declared.options.get(split) or declared.options["train"])


def _check_losses(declared: Declared) -> None:
    for split, examples in declared.splits.items():
        check_loss(declared, split, "examples", len(examples), declared.listed[split])


def check_loss(declared: Declared, split: str, what: str, kept: int, listed: int) -> None:
    """Raises ValueError where more than half of what a file lists cannot be used."""
    lost = listed - kept
    if listed and lost <= _MOST_LOST * listed:
        return
    splits = declared.problems if declared.from_one_file else [split]
    found = [problem for name in splits for problem in declared.problems[name].found]
    found = [problem for problem in found if problem.action == "skipped"]
    kinds = Counter(problem.kind for problem in found)
    where = f"{declared.name}: {source_of(declared, split)}"
    if not listed:
        raise ValueError(f"{where} lists no {what}; there is nothing to learn from")
    if not kinds:
        raise ValueError(f"{where}: {lost} of {listed} {what} cannot be used")
    most, count = kinds.most_common(1)[0]
    first = [problem for problem in found if most == problem.kind][:3]
    if most == "missing image":
        names = ", ".join(problem.detail.split(" is not in ")[0] for problem in first)
        folder = first[0].detail.split(" is not in ")[-1]
        raise ValueError(
            f"{where}: {count} images are missing ({names}{', ...' if count > 3 else ''}), so that "
            f"{lost} of {listed} {what} are lost; they were looked for in {folder}: put them "
            f"there, or give config.data.own.{declared.name}.images=FOLDER"
        )
    shown = "; ".join(f"{_entry(problem.place)}: {problem.detail}" for problem in first)
    counts = ", ".join(f"{n} x {kind}" for kind, n in kinds.most_common())
    raise ValueError(
        f"{where}: {lost} of {listed} {what} cannot be used ({counts}), e.g. {shown}; mend the "
        "file: data that are mostly lost are not prepared"
    )


def _entry(place: str) -> str:
    """A place without its folder."""
    folder, slash, rest = place.partition(": ")
    return f"{pathlib.PurePath(folder).name}{slash}{rest}"


def _divide(declared: Declared, of_example: Sequence[str]) -> None:
    """Divides the examples of the training file by a split for each."""
    examples = declared.splits.pop("train")
    test = declared.splits.pop("test", None)
    for split in own_data.SPLITS:
        chosen = [e for e, name in zip(examples, of_example, strict=True) if name == split]
        if chosen or split != "test":
            declared.splits[split] = chosen
            declared.classes.setdefault(split, declared.classes["train"])
    if test is not None:
        declared.splits["test"] = test
    declared.from_one_file = True


def _by_column(declared: Declared) -> list[str]:
    column, name = declared.options["split"], declared.name
    if "test" in declared.parts:
        raise ValueError(f"config.data.own.{name}: split says what is test; take test= away")
    splits = {word: split for split, words in _WORDS.items() for word in words}
    told = Counter(example.split for example in declared.splits["train"])
    unknown = [value for value in told if value.strip().lower() not in splits]
    where = f"{declared.options['train']}: column {column!r} (config.data.own.{name}.split)"
    if unknown:
        raise ValueError(
            f"{where} holds {', '.join(map(repr, unknown[:3]))} in {told[unknown[0]]} entries; it "
            "may hold train, val (or valid, validation, dev) and test"
        )
    chosen = [splits[example.split.strip().lower()] for example in declared.splits["train"]]
    for split in ("train", "val"):
        if split not in chosen:
            raise ValueError(f"{where}: no entry is of {split}")
    return chosen


def _by_share(declared: Declared) -> list[str]:
    """A share of the training examples, drawn from a seed. Examples of one image or text stay
    together, and no class's last training example is taken."""
    share = declared.options.get("val_share", own_data.VAL_SHARE)
    seed = int(declared.options.get("seed", 0))
    examples = declared.splits["train"]
    groups: dict[Any, list[int]] = {}
    for row, example in enumerate(examples):
        groups.setdefault(example.image or (example.text, example.text_b), []).append(row)
    members = list(groups.values())
    left = Counter(label for rows in members for label in _labels(examples, rows))
    wanted = max(round(share * len(members)), 1)
    chosen: set[int] = set()
    count = 0
    for group in np.random.default_rng(seed).permutation(len(members)):
        labels = _labels(examples, members[group])
        if count < wanted and all(left[label] > 1 for label in labels):
            left.subtract(labels)
            chosen.update(members[group])
            count += 1
    if not chosen:  # every class has one example
        raise ValueError(
            f"{declared.name}: {declared.options['train']} has too few examples to draw a "
            "validation split of; give val=PATH"
        )
    given = "val_share" in declared.options
    declared.notes.append(
        f"val is {len(chosen)} of {len(examples)} examples of train, drawn with seed {seed}"
        + ("" if given else f" ({share:.0%}, as neither val nor val_share is given)")
    )
    return ["val" if row in chosen else "train" for row in range(len(examples))]


def _labels(examples: Sequence[Example], rows: Iterable[int]) -> set[Any]:
    labels: set[Any] = set()
    for row in rows:
        labels |= {box.category for box in examples[row].boxes or ()}
        labels |= {examples[row].label} - {None}
    return labels
