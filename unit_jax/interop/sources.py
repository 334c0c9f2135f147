"""Where a model's weights can come from: what is in a checkpoint, whoever wrote it.

`read` takes a checkpoint of ours (a working folder, a step folder, a .safetensors file or the name
of one that comes with the package), a file of MMF's UniT or a file of DETR's, and tells its arrays
by our parameter paths and the tasks that it answers.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Generator, Mapping, Sequence
from importlib import resources
from typing import Any

import jax
import numpy as np
import safetensors
from etils import epath

from unit_jax.interop import coco_classes, detr, mmf, torch_files
from unit_jax.runtime import checkpoint_folder, checkpoints
from unit_jax.tasks import KINDS, PUBLISHED

Arrays = dict[str, np.ndarray]
DEMO = "demo"  # name of the trained model that comes with the package
# And of what the demo starts from: a ResNet, and a text encoder.
DEMO_PARTS = {"backbone": "demo-backbone", "text_encoder": "demo-text-encoder"}


@dataclasses.dataclass(frozen=True)
class TaskFacts:
    """What fitting weights needs to know of a task, of a checkpoint or of a model.

    Attributes:
      index: its row of the task-embedding tables.
      has_image, has_text: what it reads.
      labels: name of each label by number, "" where a number is not used; () = not told.
    """

    index: int
    has_image: bool
    has_text: bool
    labels: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Source:
    """A checkpoint's content.

    Attributes:
      what: who wrote it, for people.
      arrays: parameters and statistics by our paths.
      tasks: those it answers, in its own order.
      unknown: its names that no UniT has.
      notes: what a user should know.
      bn_eps: epsilon of its frozen batch norms; None = it does not tell.
      vocabulary: SHA-256 of the vocab.txt that its token ids mean; "" = it does not tell.
      tokens: that vocabulary's tokens; () where they are not at hand.
      whole: the file of a UniT, whose parts must fit the model's; else parts that do not fit are
        left aside.
    """

    what: str
    arrays: Arrays
    tasks: dict[str, TaskFacts]
    unknown: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    bn_eps: float | None = None
    vocabulary: str = ""
    tokens: tuple[str, ...] = ()
    whole: bool = True


def read(path: str | os.PathLike) -> Source:
    """The content of a checkpoint folder of ours, an MMF UniT file or a DETR file.

    Raises:
      ValueError: there is none, it is damaged, or holds something else.
    """
    path = packaged(path) or path
    if epath.Path(path).is_dir():
        return _ours(*read_checkpoint(path))
    content = torch_files.open_state_dict(path)
    header = _header(path)
    if header or any(name.startswith("queries.") for name in content.arrays):  # our paths
        return _ours(content.arrays, header)
    with naming(path):
        if detr.is_whole(content.arrays):
            arrays, unknown = detr.import_whole(content.arrays)
            tasks = {"coco": _published("coco")}
            return Source(
                "a DETR file", arrays, tasks, tuple(unknown), content.notes, 1e-5, whole=False
            )
        arrays, unknown = mmf.to_ours_partly(content.arrays)
    tasks = {
        name: _published(name) for name in mmf.DATASETS if any(path in arrays for path in _of(name))
    }
    return Source("an MMF file", arrays, tasks, tuple(unknown), content.notes)


def is_ours(path: str | os.PathLike) -> bool:
    """Whether it is a checkpoint folder, or a .safetensors file that we wrote."""
    path = packaged(path) or path
    return epath.Path(path).is_dir() or bool(_header(path))


def read_checkpoint(path: str | os.PathLike) -> tuple[Arrays, dict[str, Any]]:
    """The parameters and statistics of one of our checkpoints by path, and its metadata.

    Args:
      path: a working folder (its newest step) or a step's folder.

    Raises:
      ValueError: there is none, or it is unreadable.
    """
    folder, step = checkpoint_folder.locate(path)
    with contextlib.closing(checkpoints.Checkpoints(folder, read_only=True)) as saved:
        metadata = saved.metadata(step)
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        target = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
            saved.shapes(step),
        )
        restored, _ = saved.restore(step, target)
    arrays = {**restored["params"], **restored["statistics"]}
    return {name: np.asarray(array) for name, array in arrays.items()}, metadata


def saved_tasks(metadata: Mapping[str, Any]) -> dict[str, TaskFacts]:
    """The tasks that the metadata of a checkpoint of ours tell, of any version."""
    named = metadata.get("names", {}).get("tasks", {})
    labels = {task: names.get("labels", ()) for task, names in named.items()}
    labels |= metadata.get("labels", {})
    tasks = {}
    for name, values in metadata.get("settings", {}).get("tasks", {}).items():
        # Tasks had a kind before they had inputs.
        inputs = values.get("inputs") or KINDS.get(values.get("kind"), {}).get("inputs", ())
        names = tuple(labels.get(name, ()))
        index = int(values.get("index", 0))
        tasks[name] = TaskFacts(index, "image" in inputs, "text" in inputs, names)
    return tasks


@contextlib.contextmanager
def naming(source: str | os.PathLike) -> Generator[None]:
    """Puts the source's name before the message of a ValueError."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def demo_file(name: str = DEMO) -> pathlib.Path:
    """Where the weights of this name lie in the package, if they are there."""
    folder = resources.files("unit_jax") / "demo" / "weights"
    return pathlib.Path(str(folder), f"{name}.safetensors")


def packaged(path: str | os.PathLike) -> pathlib.Path | None:
    """The file of the package that `path` names, where no file of the user's has that name."""
    name = os.fspath(path)
    known = name in (DEMO, *DEMO_PARTS.values())
    return demo_file(name) if known and not os.path.exists(name) else None


def _header(path: str | os.PathLike) -> dict[str, Any]:
    """What a .safetensors file of ours tells beside its arrays: the metadata of a checkpoint."""
    with contextlib.suppress(Exception):  # another kind of file, which `torch_files` has read
        with safetensors.safe_open(os.fspath(path), "numpy") as file:
            return json.loads((file.metadata() or {}).get("unit_jax", "{}"))
    return {}


def _ours(arrays: Arrays, metadata: Mapping[str, Any]) -> Source:
    settings = metadata.get("settings", {})
    vocabulary = metadata.get("data", {}).get("vocabulary", "")
    told = tuple(metadata.get("names", {}).get("vocabulary", ()))
    return Source(
        "a checkpoint of ours",
        arrays,
        saved_tasks(metadata),
        bn_eps=settings.get("model", {}).get("backbone", {}).get("bn_eps"),
        vocabulary=vocabulary,
        tokens=told or _tokens(settings.get("data", {}).get("data_dir", ""), vocabulary),
    )


def _tokens(data_dir: str, vocabulary: str) -> tuple[str, ...]:
    """The tokens of a checkpoint's vocabulary, where its training data are still at hand."""
    path = pathlib.Path(data_dir, "vocab.txt")
    if not data_dir or not vocabulary or not path.is_file():
        return ()
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != vocabulary:
        return ()
    return tuple(content.decode().splitlines())


def _published(name: str) -> TaskFacts:
    spec = PUBLISHED[name]
    labels = coco_classes.NAMES if name == "coco" else ()
    return TaskFacts(spec.index, spec.has_image, spec.has_text, labels)


def _of(task: str) -> Sequence[str]:
    """Paths of which a model that answers the task has one."""
    return f"queries.{task}", f"heads.{task}.labels.kernel", f"heads.{task}.classes.kernel"
