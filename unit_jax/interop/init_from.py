"""The weights a fresh run starts from (`config.init_from`).

In the reference's order: the ResNet of a DETR checkpoint, a BERT as text encoder, and over both a
whole UniT, say a COCO single-task one, whose tensors are taken where the names agree and left
where the other model has none ("strict=False").
"""

import contextlib
import dataclasses
import functools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import nnx

from unit_jax import settings as settings_lib
from unit_jax.interop import bert, detr, mmf, torch_files
from unit_jax.models import flat
from unit_jax.models.unit import Unit
from unit_jax.runtime import checkpoints
from unit_jax.settings import ModelSettings, Settings
from unit_jax.tasks import TaskSpec

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Report:
    """What became of one source.

    Attributes:
      part: what it was asked for.
      source: the file, folder or hub name.
      loaded: our parameter paths that it filled.
      fresh: our parameter paths of that part that it did not fill.
      ignored: its own names that have no place in the model.
      note: what else a user should know.
    """

    part: str
    source: str
    loaded: tuple[str, ...]
    fresh: tuple[str, ...]
    ignored: tuple[str, ...]
    note: str = ""

    def __str__(self) -> str:
        lines = [f"{self.part} from {self.source}: {len(self.loaded)} arrays loaded"]
        for what, names in (("stayed fresh", self.fresh), ("ignored in it", self.ignored)):
            if names:
                lines.append(f"  {what}: {_grouped(names)}")
        if self.note:
            lines.append(f"  {self.note}")
        return "\n".join(lines)


def start_from(fresh: Mapping[str, np.ndarray], settings: Settings) -> tuple[Arrays, list[Report]]:
    """Puts the weights that `settings.init_from` names over fresh ones.

    Args:
      fresh: initial parameters and statistics by path.
    Returns:
      The same paths, shapes and dtypes with the loaded values, and a report per source.
    Raises:
      ValueError: a file is missing, damaged, or does not fit; lists every entry that does not.
    """
    arrays, reports = dict(fresh), []
    whole = functools.partial(model_from_unit, bn_eps=settings.model.backbone.bn_eps)
    for source, fill in (
        (settings.init_from.backbone, backbone_from_detr),
        (settings.init_from.text_encoder, text_encoder_from_bert),
        (settings.init_from.model, whole),
    ):
        if source:
            arrays, report = fill(arrays, source)
            reports.append(report)
    return arrays, reports


def backbone_from_detr(
    fresh: Mapping[str, np.ndarray], path: str | os.PathLike
) -> tuple[Arrays, Report]:
    """The backbone of a DETR checkpoint; see `start_from`."""
    state = torch_files.load_state_dict(path)
    with naming(path):
        found, ignored = detr.import_weights(state)
    wanted = [name for name in fresh if name.startswith("backbone.")]
    return _fill(
        fresh, found, wanted, wanted, Report("backbone", str(path), (), (), tuple(ignored))
    )


def text_encoder_from_bert(
    fresh: Mapping[str, np.ndarray], source: str | os.PathLike
) -> tuple[Arrays, Report]:
    """A BERT file, folder or hub model as text encoder; see `start_from`.

    The pooler may be missing, as models with a masked-language head have none and UniT does not
    use it.
    """
    state = bert.load(source)
    with naming(source):
        found, ignored = bert.import_weights(state)
    wanted, _ = bert.import_weights(bert.export_weights(fresh))
    required = [name for name in wanted if ".pooler." not in name]
    report = Report("text encoder", str(source), (), (), tuple(ignored))
    return _fill(fresh, found, wanted, required, report)


def model_from_unit(
    fresh: Mapping[str, np.ndarray], path: str | os.PathLike, bn_eps: float | None = None
) -> tuple[Arrays, Report]:
    """A whole UniT, of other tasks perhaps: an MMF file or a checkpoint folder of ours.

    What the two have in common is loaded, see `_fit_decoders` for shared and own decoders.

    Args:
      bn_eps: epsilon of the model's frozen batch norms. A checkpoint of ours must have been made
        with the same; an MMF file does not tell, so the report does. None = not compared.
    """
    note = ""
    if epath.Path(path).is_dir():
        found, metadata = read_checkpoint(path)
        ignored = []
        saved = metadata["settings"]["model"]["backbone"]["bn_eps"]
        if bn_eps is not None and saved != bn_eps:
            raise ValueError(
                f"{path}: its batch norms have epsilon {saved:g}, this config's {bn_eps:g}; set "
                f"--config.model.backbone.bn_eps={saved:g}"
            )
    else:
        state = torch_files.load_state_dict(path)
        with naming(path):
            found, ignored = mmf.to_ours_partly(state)
        if bn_eps is not None:
            note = (
                f"its frozen batch norms get this config's epsilon, {bn_eps:g}; the files of MMF's "
                "model zoo want --config.model.backbone.bn_eps=0"
            )
    found = _fit_decoders(found, fresh)
    ignored += [name for name in found if name not in fresh]
    found = {name: array for name, array in found.items() if name in fresh}
    if not found:
        raise ValueError(f"{path}: not a UniT of this shape: no parameter of it fits by name")
    report = Report("model", str(path), (), (), tuple(ignored), note)
    return _fill(fresh, found, fresh, (), report)


def read_checkpoint(path: str | os.PathLike) -> tuple[Arrays, dict[str, Any]]:
    """The parameters and statistics of one of our checkpoints by path, and its metadata.

    Args:
      path: a working folder (its newest step) or a step's folder.
    Raises:
      ValueError: there is none, or it is unreadable.
    """
    folder, step = checkpoints.locate(path)
    with contextlib.closing(checkpoints.Checkpoints(folder)) as saved:
        metadata = saved.metadata(step)
        model, tasks = saved_settings(metadata, f"{folder / str(step)}")
        _, params, statistics = flat.abstract(lambda: Unit(model, tasks, rngs=nnx.Rngs(0)))
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        target = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
            {"params": params, "statistics": statistics},
        )
        restored, _ = saved.restore(step, target)
    arrays = {**restored["params"], **restored["statistics"]}
    return {name: np.asarray(array) for name, array in arrays.items()}, metadata


def saved_settings(
    metadata: Mapping[str, Any], where: str
) -> tuple[ModelSettings, dict[str, TaskSpec]]:
    """The model settings and the tasks that a checkpoint's metadata tells.

    Raises:
      ValueError: they are not there, or of another version.
    """
    try:
        saved = metadata["settings"]
        tasks = {name: TaskSpec(**values) for name, values in saved["tasks"].items()}
        return settings_lib.build(ModelSettings, saved["model"], "model"), tasks
    except (KeyError, TypeError) as error:
        raise ValueError(f"{where}: its metadata lack the settings of a model ({error})") from error


@contextlib.contextmanager
def naming(source: str | os.PathLike) -> Iterator[None]:
    """Puts the source's name before the message of a ValueError."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def _fit_decoders(found: Mapping[str, np.ndarray], fresh: Mapping[str, np.ndarray]) -> Arrays:
    """Found arrays with the decoder where the model has it: shared, or one per task.

    A single own decoder becomes the shared one; a shared decoder becomes that of every task that
    it served. The reference gets the same from names: it saves a shared decoder under its tasks'
    names too.
    """
    rest = {name: array for name, array in found.items() if not name.startswith("decoder")}
    shared = {name: array for name, array in found.items() if name.startswith("decoder.")}
    own = {name: array for name, array in found.items() if name.startswith("decoders.")}
    tasks = {name.split(".")[1] for name in own}
    if any(name.startswith("decoder.") for name in fresh):
        if len(tasks) == 1 and not shared:
            shared, own = {f"decoder.{name.split('.', 2)[2]}": own[name] for name in own}, {}
    elif shared:
        served = [name.removeprefix("queries.") for name in found if name.startswith("queries.")]
        own = {
            f"decoders.{task}.{name.removeprefix('decoder.')}": array
            for task in served
            for name, array in shared.items()
        }
        shared = {}
    return {**rest, **shared, **own}


def _fill(
    fresh: Mapping[str, np.ndarray],
    found: Mapping[str, np.ndarray],
    wanted: Iterable[str],
    required: Iterable[str],
    report: Report,
) -> tuple[Arrays, Report]:
    """`fresh` with `found` in it.

    Args:
      wanted: paths that belong to the part; those not found stay fresh.
      required: those of them that must be found.
    """
    problems = [f"missing: {name}" for name in required if name not in found]
    problems += [f"unexpected: {name}" for name in found if name not in fresh]
    problems += [
        f"{name}: shape {array.shape}, the model has {fresh[name].shape}"
        for name, array in found.items()
        if name in fresh and array.shape != fresh[name].shape
    ]
    if problems:
        raise ValueError(
            f"{report.source} does not fit the {report.part} of this config:\n  "
            + "\n  ".join(problems)
        )
    arrays = dict(fresh)
    for name, array in found.items():
        arrays[name] = np.array(array, fresh[name].dtype, order="C")  # no view of the file's
    left = tuple(name for name in wanted if name not in found)
    return arrays, dataclasses.replace(report, loaded=tuple(found), fresh=left)


def _grouped(names: Iterable[str]) -> str:
    """Names in short: counts by their first two parts."""
    counts = Counter(".".join(name.split(".")[:2]) for name in names)
    return ", ".join(f"{name}.* ({n})" if n > 1 else name for name, n in sorted(counts.items()))
