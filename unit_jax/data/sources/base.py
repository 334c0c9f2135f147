"""What every source shares: a TFDS builder over official files, faults met on the way, images.

A source is one `RecordSource`: it names the files it needs, reads them into plain records per
split, and says what belongs in the manifest. To add a data set of your own:

1. Subclass `RecordSource` (`sources/snli_ve.py` is the shortest with images, `sources/glue.py`
   without): `name`, `features` (named as in `data/records.py`), `image_family` (see
   `sources/images.py`; "" without images) and the two methods `required_files` and `read`.
2. Prepare it: `unit-jax prepare --datasets my_module:MySource ...` (or hand the class
   to `unit_jax.data.prepare.prepare`).
3. Give the task an entry in the config: `tasks.<name>` with the fields of `TaskSpec`.
"""

import abc
import contextlib
import dataclasses
import io
import json
import pathlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int
from tqdm import tqdm

from unit_jax.data import records

Record = dict[str, Any]

MAX_TEXT = 10_000  # characters; longer texts are cut (no model here reads more than 512 tokens)


# ---- Faults -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Problem:
    """One fault in the files of a data set.

    Attributes:
      dataset, kind, place, detail: whose, which kind (few and fixed: they are counted), where,
        and what was found.
      action: "skipped" (left out), "repaired" (by the rule that `detail` states), or "kept" (the
        reference keeps it too; counted for information).
    """

    dataset: str
    kind: str
    place: str
    detail: str
    action: str = "skipped"


class Problems:
    """Collects faults; too many are an error, as then the files are not what they should be.

    Args:
      dataset: whose faults.
      limit: faults (other than kept ones) above which `add` raises.
    """

    def __init__(self, dataset: str, limit: int):
        self.dataset = dataset
        self.limit = limit
        self.found: list[Problem] = []
        self._counted = 0

    def add(self, kind: str, place: str, detail: str, action: str = "skipped"):
        """Notes one fault.

        Raises:
          ValueError: there are more than `limit`; the message counts them by kind.
        """
        self.found.append(Problem(self.dataset, kind, place, detail, action))
        self._counted += action != "kept"
        if self._counted > self.limit:
            first = [problem for problem in self.found if problem.action != "kept"][:5]
            raise ValueError(
                f"{self.dataset}: more than {self.limit} faults in the source files "
                f"({', '.join(f'{n} x {kind}' for kind, n in self.counts().items())}); e.g. "
                + "; ".join(f"{p.place}: {p.detail}" for p in first)
                + ". Check the download, or raise --max_problems"
            )

    def of(self, name: str) -> list[Problem]:
        """The faults of one kind."""
        return [problem for problem in self.found if name == problem.kind]

    def counts(self) -> dict[str, int]:
        """Number of faults by kind."""
        return dict(Counter(problem.kind for problem in self.found))


# ---- Images as records see them -----------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ImageIndex:
    """Where a family's images lie in its store, and their sizes in pixels.

    Attributes:
      rows: row in the store by image key (COCO and Visual Genome: number; Flickr30k: file stem).
      width, height: by row, as stored in the image file.
    """

    rows: Mapping[Any, int]
    width: Int[np.ndarray, "images"]
    height: Int[np.ndarray, "images"]

    def locate(self, key: Any) -> Record | None:
        """{image_row, width, height} of an image, None where the store does not have it."""
        row = self.rows.get(key)
        if row is None:
            return None
        return {
            "image_row": row,
            "width": int(self.width[row]),
            "height": int(self.height[row]),
        }


# ---- Sources ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Options:
    """Choices of preparing that a source may heed."""

    min_answer_count: int = 9  # questions an answer must be the answer of, to be in a built list
    max_answers: int = 3129  # most answers in a built list, unknown included


@dataclasses.dataclass(frozen=True)
class Content:
    """What a source read.

    Attributes:
      splits: records per split, in the order in which they are stored.
      listed: what the files list, faulty entries included, under the names of `published`.
      facts: entries for the manifest: num_labels, label_names, num_attributes, ...
      index: per split further row-aligned arrays for planning batches (e.g. num_objects).
      files: files to store beside the manifest, by name.
      unlabelled: splits without labels (for predictions that are handed in).
      notes: sentences for the log and the manifest: choices that depended on the files at hand.
    """

    splits: Mapping[str, list[Record]]
    facts: Mapping[str, Any]
    listed: Mapping[str, int] = dataclasses.field(default_factory=dict)
    index: Mapping[str, Mapping[str, np.ndarray]] = dataclasses.field(default_factory=dict)
    files: Mapping[str, bytes] = dataclasses.field(default_factory=dict)
    unlabelled: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


class RecordSource(abc.ABC):
    """One data set in its official files.

    Attributes:
      name: of the task, of the TFDS dataset, and of its folder.
      image_family: image store that the records point into: a `sources.images.Family` of one's
        own, or the name of one in `sources.images.FAMILIES`; "" = no images.
      origin: where the files are published.
      published: how many of what a complete release lists; names as in `Content.listed`. What
        a source does not have (test files) is not compared.
      features: TFDS features of a record under the names of `data.records`, without image_row,
        width and height; a missing `id` is the row.
      version: of the record layout; raise it when `features` or their meaning change.
    """

    name: ClassVar[str]
    image_family: ClassVar[Any] = ""
    origin: ClassVar[str] = ""
    published: ClassVar[Mapping[str, int]] = {}
    features: ClassVar[Mapping[str, Any]]
    version: ClassVar[str] = "1.0.0"

    def __init__(self, source: pathlib.Path, options: Options | None = None):
        self.source = pathlib.Path(source)
        self.options = options or Options()

    @abc.abstractmethod
    def required_files(self) -> list[pathlib.Path]:
        """Files and folders without which the data set cannot be prepared."""

    @abc.abstractmethod
    def read(self, store: ImageIndex | None, problems: Problems) -> Content:
        """Reads all splits; faulty examples are noted in `problems` and left out or repaired."""

    @staticmethod
    def images_of(store: ImageIndex | None) -> ImageIndex:
        """The store that `read` of a source with images is given."""
        if store is None:
            raise ValueError("this data set needs its image store")
        return store

    @property
    def has_text(self) -> bool:
        """Whether its records hold texts."""
        return "text" in records.renamed(self.features)

    def all_features(self) -> dict[str, Any]:
        """Features of a stored record.

        Raises:
          ValueError: they are not in the schema of `data.records`.
        """
        features = {**records.renamed(self.features), "id": tfds.features.Text()}
        records.check_features(self.name, features)
        if self.image_family:
            features |= {"image_row": np.int64, "width": np.int32, "height": np.int32}
        return features


class RecordBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):
    """TFDS builder that writes records in the order given, shard by shard.

    TFDS's GeneratorBasedBuilder would sort all records of a split in memory at the end, images
    included; shards with fixed content stream. Examples are encoded bytes, text and numbers only,
    which TFDS writes without TensorFlow.

    Args:
      data_dir: where `<name>/<version>/` comes to be.
      features: TFDS features by name.
      splits: per split the items in order, and how to turn an item into a record (None = leave
        it out).
      shard_size: items of one file.
    """

    VERSION = tfds.core.Version("1.0.0")
    code_path = None  # where TFDS would look for a package with checksums of downloads

    def __init__(
        self,
        name: str,
        version: str,
        data_dir: pathlib.Path,
        features: Mapping[str, Any],
        splits: Mapping[str, "Items"],
        shard_size: int = 8192,
    ):
        self.name = name
        self.VERSION = tfds.core.Version(version)
        self._record_features = features
        self._splits = splits
        self._shard_size = shard_size
        self._downloads = data_dir / "downloads"  # TFDS creates it, it stays empty
        super().__init__(data_dir=data_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        # Built directly: TFDS's own helper looks for a package folder with metadata files.
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(self._record_features),
            disable_shuffling=True,
        )

    def _shard_iterators_per_split(self, dl_manager) -> dict[str, list[Callable]]:
        del dl_manager  # nothing is downloaded
        return {
            split: [
                lambda items=items, start=start: items.records(start, start + self._shard_size)
                for start in range(0, max(len(items), 1), self._shard_size)
            ]
            for split, items in self._splits.items()
        }

    def write(self):
        """Writes all splits into a temporary folder, then renames it."""
        tfds.disable_progress_bar()  # ours knows the totals
        with contextlib.redirect_stdout(io.StringIO()):  # it prints about downloads
            self.download_and_prepare(
                file_format="array_record",
                download_config=tfds.download.DownloadConfig(try_download_gcs=False),
                download_dir=self._downloads,
            )


class Items:
    """The records of one split, with a progress bar over them."""

    def __init__(self, items: list, bar: tqdm, convert: Callable[[list], Iterable[Record]] = iter):
        self._items = items
        self._bar = bar
        self._convert = convert

    def __len__(self) -> int:
        return len(self._items)

    def records(self, start: int, stop: int) -> Iterator[tuple[int, Record]]:
        """(key, record) of the items `start` up to `stop`."""
        for offset, record in enumerate(self._convert(self._items[start:stop])):
            self._bar.update()
            yield start + offset, record


# ---- Reading files ------------------------------------------------------------------------------


def read_text(path: pathlib.Path, problems: Problems) -> str:
    """A UTF-8 file; bytes that are no UTF-8 become U+FFFD and are counted once a file."""
    content = path.read_bytes()
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        problems.add(
            "not UTF-8", str(path), f"{error.reason} at byte {error.start}: replaced", "repaired"
        )
        return content.decode(errors="replace")


def read_json(path: pathlib.Path, problems: Problems) -> dict[str, Any]:
    """A JSON file that holds one object.

    Raises:
      ValueError: it does not (e.g. an incomplete download).
    """
    content = _parse(path, problems)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not an object with lists")
    return content


def read_json_list(path: pathlib.Path, problems: Problems) -> list[dict[str, Any]]:
    """The objects of a JSON file that holds one list; other values in it are skipped.

    Raises:
      ValueError: it holds no list (e.g. an incomplete download).
    """
    content = _parse(path, problems)
    if not isinstance(content, list):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a list")
    return objects(content, str(path), problems)


def entries(
    content: Mapping[str, Any], key: str, path: pathlib.Path, problems: Problems
) -> list[dict[str, Any]]:
    """The objects of the list `key` of a JSON file; other values in it are skipped.

    Raises:
      ValueError: there is no such list.
    """
    values = content.get(key)
    if not isinstance(values, list):
        raise ValueError(f"{path} has no list {key!r} (it has {', '.join(content)[:200]})")
    return objects(values, f"{path}: {key}", problems)


def _parse(path: pathlib.Path, problems: Problems) -> Any:
    try:
        return json.loads(read_text(path, problems))
    except (ValueError, RecursionError) as error:  # also numbers, or nesting, without end
        raise ValueError(f"{path} is no complete JSON file ({error}); download it again") from None


def objects(values: Any, place: str, problems: Problems) -> list[dict[str, Any]]:
    """The objects of a list; what else is in it is skipped, and so is what is no list."""
    if not isinstance(values, list):
        problems.add("bad entry", place, f"no list: {values!r:.60}")
        return []
    for number, value in enumerate(values):
        if not isinstance(value, dict):
            problems.add("bad entry", f"{place}[{number}]", f"no object: {value!r:.60}")
    return [value for value in values if isinstance(value, dict)]


def read_json_lines(path: pathlib.Path, problems: Problems) -> Iterator[tuple[str, dict | None]]:
    """(place, object) of each line of a JSON-lines file that is not blank; None = a faulty one."""
    for number, line in enumerate(read_text(path, problems).split("\n"), start=1):
        if line.strip():
            place = f"{path}:{number}"
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                problems.add("bad entry", place, f"no JSON: {error}")
                yield place, None
                continue
            if not isinstance(value, dict):
                problems.add("bad entry", place, f"no object: {value!r:.60}")
                value = None
            yield place, value


def clean_text(value: Any, place: str, problems: Problems, keep_empty: bool = False) -> str | None:
    """The text of an example; None where it has none and should have one."""
    if not isinstance(value, str) or not value.strip():
        action = "kept" if keep_empty else "skipped"
        problems.add("empty text", place, f"expected a text, got {str(value)[:40]!r}", action)
        return "" if keep_empty else None
    if len(value) > MAX_TEXT:
        problems.add("long text", place, f"{len(value)} characters: cut to {MAX_TEXT}", "repaired")
        value = value[:MAX_TEXT]
    return encodable(value, place, problems)


def encodable(text: str, place: str, problems: Problems) -> str:
    """The text; halves of surrogate pairs, which JSON can spell but UTF-8 cannot, become "?"."""
    encoded = text.encode(errors="replace").decode()
    if encoded != text:
        problems.add("not UTF-8", place, "half a surrogate pair: replaced", "repaired")
    return encoded


def id_number(value: Any) -> int | None:
    """An id as a whole number, None where it is none."""
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return None
