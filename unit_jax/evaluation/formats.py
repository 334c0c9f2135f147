"""Files of predictions in the forms that the benchmarks' servers take, and what is wrong with one.

A server tells a wrong file late, or scores it as zero; `problems` tells it before.
"""

import abc
import collections
import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from unit_jax.data.prepared import PreparedData, Split
from unit_jax.outputs.base import Names
from unit_jax.outputs.labels import vqa_server

SHOWN = 3  # examples of one fault
# Files that a server knows by name; the others are TASK-SPLIT.json.
NAMES: Mapping[tuple[str, str], str] = {
    ("coco", "test"): "detections_test-dev2017_unit_results.json",
    ("qnli", "test"): "QNLI.tsv",
    ("mnli", "test"): "MNLI-mm.tsv",
    ("mnli", "test_matched"): "MNLI-m.tsv",
    ("qqp", "test"): "QQP.tsv",
    ("sst2", "test"): "SST-2.tsv",
}


@dataclasses.dataclass(frozen=True)
class Expected:
    """What a file must be about.

    Attributes:
      ids: of the split's examples, in its order.
      labels: what may be said, by number; "" = a number that is not used.
      attributes: number of attributes; 0 = none.
    """

    ids: tuple[str, ...]
    labels: tuple[str, ...]
    attributes: int = 0


class Format(abc.ABC):
    """One form of file."""

    suffix = "json"

    def file_name(self, task: str, split: str) -> str:
        return NAMES.get((task, split), f"{task}-{split}.{self.suffix}")

    @abc.abstractmethod
    def entries(self, entries: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """One example's entries as the server takes them, from those of the task's room."""

    def write(self, path: epath.Path, examples: Iterable[Sequence[Mapping[str, Any]]]) -> int:
        """Writes what rooms give of the examples, an example a line.

        Returns:
          the number of entries.
        """
        count = 0
        with path.open("w") as file:
            file.write("[")
            for found in examples:
                lines = [json.dumps(entry) for entry in self.entries(found)]
                if lines:
                    file.write(("\n" if count == 0 else ",\n") + ", ".join(lines))
                count += len(lines)
            file.write("\n]\n")
        return count

    def problems(self, path: epath.Path, expected: Expected | None) -> list[str]:
        """What is wrong with a file, a sentence each; empty = it can be handed in.

        Args:
          expected: None checks the form alone.
        """
        faults = _Faults()
        try:
            content = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            return [f"it cannot be read as JSON ({error})"]
        if not isinstance(content, list):
            return [f"it holds one {type(content).__name__}, not one JSON array"]
        objects = [entry for entry in content if isinstance(entry, dict)]
        if len(objects) < len(content):
            return [f"{len(content) - len(objects)} entries are no JSON objects"]
        self.check(objects, expected, faults)
        return faults.told()

    @abc.abstractmethod
    def check(self, content: list[dict], expected: Expected | None, faults: "_Faults") -> None:
        """Notes what is wrong with the entries of a JSON array."""


class Coco(Format):
    """COCO results: image_id, category_id, bbox (x, y, width, height in pixels), score; with
    attributes also attr_score and attr_label, as the reference writes them."""

    MOST = 100  # entries of an image

    def entries(self, entries):
        best = sorted(entries, key=lambda entry: -entry["score"])[: self.MOST]
        return [{**entry, "image_id": _number(entry["image_id"])} for entry in best]

    def check(self, content, expected, faults):
        needed = {"image_id", "category_id", "bbox", "score"}
        optional = {"attr_score", "attr_label"}
        known = set(expected.ids) if expected else None
        # Ids of a benchmark are numbers; of data of one's own they may be texts.
        numeric = known is None or all(_is_number(name) for name in known)
        per_image: collections.Counter = collections.Counter()
        for entry in content:
            image = entry.get("image_id")
            where = f"image {image!r:.40}"
            if not needed <= entry.keys() <= needed | optional:
                faults.add("an entry's keys are not " + ", ".join(sorted(needed)), where)
                continue
            if numeric and not _is_int(image):
                faults.add("image_id is no whole number", where)
                continue
            per_image[image] += 1
            if known is not None and str(image) not in known:
                faults.add("the split has no such image", where)
            category = entry["category_id"]
            if not _is_int(category):
                faults.add("category_id is no whole number", where)
            elif expected and not (
                0 <= category < len(expected.labels) and expected.labels[category]
            ):
                faults.add("the data set has no such category", f"{where}: {category}")
            box = entry["bbox"]
            if not (isinstance(box, list) and len(box) == 4 and all(map(_is_finite, box))):
                faults.add("bbox is not four finite numbers", where)
            elif min(box[2:]) < 0:
                faults.add("a box's width or height is negative", where)
            if not _is_finite(entry["score"]):
                faults.add("score is no finite number", where)
            if optional & entry.keys() and not (
                _is_finite(entry.get("attr_score")) and _is_int(entry.get("attr_label"))
            ):
                faults.add("attr_score and attr_label are not a number and a whole number", where)
            elif (
                expected
                and "attr_label" in entry
                and not (0 <= entry["attr_label"] < expected.attributes)
            ):
                faults.add("the data set has no such attribute", f"{where}: {entry['attr_label']}")
        for image, count in per_image.items():
            if count > self.MOST:
                faults.add(f"more than {self.MOST} entries of an image", f"image {image}: {count}")


class _OneEach(Format):
    """An entry per example: its id under `id_key`, an answer under `answer_key`."""

    id_key: str
    answer_key: str
    id_type: type = str

    def check(self, content, expected, faults):
        seen: collections.Counter = collections.Counter()
        known = set(expected.ids) if expected else None
        for number, entry in enumerate(content):
            if entry.keys() != {self.id_key, self.answer_key}:
                faults.add(
                    f"an entry's keys are not {self.id_key}, {self.answer_key}", f"entry {number}"
                )
                continue
            name = entry[self.id_key]
            where = f"{self.id_key} {name!r:.40}"
            if type(name) is not self.id_type and (known is None or self.id_type is str):
                faults.add(f"{self.id_key} is no {self.id_type.__name__}", where)
                continue
            if self.id_type is int and type(name) is not int and all(map(_is_number, known or ())):
                faults.add(f"{self.id_key} is no int", where)
                continue
            seen[str(name)] += 1
            if known is not None and str(name) not in known:
                faults.add(f"the split has no such {self.id_key}", where)
            self.check_answer(entry[self.answer_key], expected, where, faults)
        _check_once(seen, expected, faults)

    def check_answer(self, answer, expected, where, faults):
        if not isinstance(answer, str) or not answer.strip():
            faults.add(f"{self.answer_key} is no text", f"{where}: {answer!r:.40}")
        elif expected and answer not in expected.labels:
            faults.add(f"no such {self.answer_key}", f"{where}: {answer!r:.40}")


class Vqa(_OneEach):
    """VQA results for EvalAI: ONE array with all of the split's questions, question_id a number.

    <unk>, which the model never answers, would be a wasted line.
    """

    id_key, answer_key, id_type = "question_id", "answer", int

    def entries(self, entries):
        return [
            dict(question_id=_number(e["id"]), answer=vqa_server.as_written(e["label"]))
            for e in entries
        ]

    def check_answer(self, answer, expected, where, faults):
        if not isinstance(answer, str) or not answer.strip():
            faults.add("answer is no text", f"{where}: {answer!r:.40}")
        elif answer == "<unk>":
            faults.add("<unk> is no answer", where)


class SnliVe(_OneEach):
    """SNLI-VE, which has no server: pairID and label, as the reference writes them."""

    id_key, answer_key = "pairID", "label"

    def entries(self, entries):
        return [dict(pairID=entry["id"], label=entry["label"]) for entry in entries]


class Glue(Format):
    """A GLUE task: tab-separated, header `index` and `prediction`, rows in the order of the test
    file."""

    suffix = "tsv"
    header = "index\tprediction"

    def entries(self, entries):
        return [dict(index=entry["id"], prediction=entry["label"]) for entry in entries]

    def write(self, path, examples):
        lines = [
            f"{entry['index']}\t{entry['prediction']}"
            for found in examples
            for entry in self.entries(found)
        ]
        path.write_text("\n".join([self.header, *lines]) + "\n")
        return len(lines)

    def problems(self, path, expected):
        try:
            lines = path.read_text().split("\n")
        except (OSError, ValueError) as error:
            return [f"it cannot be read as text ({error})"]
        if lines[0] != self.header:
            return [f"its first line is {lines[0]!r:.60}, not {self.header!r}"]
        if lines[-1]:
            return ["its last line has no line end"]
        faults = _Faults()
        self.check([line.split("\t") for line in lines[1:-1]], expected, faults)
        return faults.told()

    def check(self, content, expected, faults):
        seen: collections.Counter = collections.Counter()
        for number, cells in enumerate(content, start=2):
            if len(cells) != 2:
                faults.add("a line has not two columns", f"line {number}")
                continue
            seen[cells[0]] += 1
            if expected and cells[1] not in expected.labels:
                faults.add("no such prediction", f"line {number}: {cells[1]!r:.40}")
        _check_once(seen, expected, faults)
        if expected and not faults and [cells[0] for cells in content] != list(expected.ids):
            faults.add("the rows are not in the order of the test file", content[0][0])


class Plain(Format):
    """What a room gives, as it is: one JSON array."""

    def entries(self, entries):
        return list(entries)

    def check(self, content, expected, faults):
        if expected is None:
            return
        known = set(expected.ids)
        for number, entry in enumerate(content):
            name = entry.get("id", entry.get("image_id"))
            if str(name) not in known:
                faults.add("the split has no such id", f"entry {number}: {name!r:.40}")


FORMATS: Mapping[str, Format] = {
    "coco": Coco(),
    "vqa": Vqa(),
    "snli_ve": SnliVe(),
    "glue": Glue(),
    "": Plain(),
}


def expected_of(data: PreparedData, task: str, split: str) -> Expected:
    """What a file of predictions for a split of prepared data must be about.

    Raises:
      ValueError: the task or the split is not prepared.
    """
    examples, names = data.split(task, split), data.names(task)
    ids = tuple(str(examples[row]["id"]) for row in range(len(examples)))
    return Expected(ids, labels_said(examples, names), len(names.attributes))


def labels_said(examples: Split, names: Names) -> tuple[str, ...]:
    """What predictions of a split may say, by the number that they say it with."""
    if examples.num_objects is None or not names.submitted:
        return names.submitted or names.labels
    # Category ids of one's own files.
    named = dict(zip(map(int, names.submitted), names.labels, strict=True))
    return tuple(named.get(number, "") for number in range(max(named) + 1))


class _Faults:
    """Faults by kind, with a few examples of each."""

    def __init__(self):
        self._places: dict[str, list[str]] = {}
        self._counts: collections.Counter[str] = collections.Counter()

    def __bool__(self) -> bool:
        return bool(self._counts)

    def add(self, kind: str, place: str) -> None:
        self._counts[kind] += 1
        if self._counts[kind] <= SHOWN:
            self._places.setdefault(kind, []).append(place)

    def told(self) -> list[str]:
        return list(self._lines())

    def _lines(self) -> Iterator[str]:
        for kind, count in self._counts.items():
            more = ", ..." if count > SHOWN else ""
            yield f"{kind} ({count} times: {'; '.join(self._places[kind])}{more})"


def _check_once(seen: collections.Counter, expected: Expected | None, faults: "_Faults") -> None:
    """Every example of the split is there, and once."""
    for name, count in seen.items():
        if count > 1:
            faults.add("an example is there more than once", f"{name}: {count}")
    for name in expected.ids if expected else ():
        if name not in seen:
            faults.add("an example of the split is missing", name)


def _number(name: str) -> int | str:
    """An id as the number that the official file has; texts stay."""
    return int(name) if _is_number(name) else name


def _is_number(name: str) -> bool:
    return name.isascii() and name.removeprefix("-").isdigit()


def _is_int(value: Any) -> bool:
    return type(value) is int


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
