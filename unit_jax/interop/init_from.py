"""The weights a fresh run starts from (`config.init_from`).

In the reference's order: the ResNet of a detector, a BERT as text encoder, and over both a
whole model, say a COCO single-task one, of which what fits is taken (`transfer`).
"""

import dataclasses
import functools
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from etils import epath

from unit_jax.interop import bert, detr, sources, torch_files, transfer
from unit_jax.interop.sources import Arrays, naming
from unit_jax.runtime import checkpoint_folder
from unit_jax.settings import Settings


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
      partly: our parameter paths that it filled in part.
    """

    part: str
    source: str
    loaded: tuple[str, ...]
    fresh: tuple[str, ...]
    ignored: tuple[str, ...]
    note: str = ""
    partly: tuple[str, ...] = ()

    def __str__(self) -> str:
        first = f"{self.part} from {self.source}: {len(self.loaded)} arrays loaded"
        lists = {
            "in part": self.partly,
            "stayed fresh": self.fresh,
            "left aside in it": self.ignored,
        }
        first += "".join(f", {len(names)} {what}" for what, names in lists.items() if names)
        notes = [f"  {self.note}"] if self.note else []
        return "\n".join(
            [first, *notes, *(f"  {what}: {_grouped(x)}" for what, x in lists.items() if x)]
        )


def start_from(
    fresh: Mapping[str, np.ndarray], settings: Settings, model: transfer.Model | None = None
) -> tuple[Arrays, list[Report]]:
    """Puts the weights that `settings.init_from` names over fresh ones.

    Args:
      fresh: initial parameters and statistics by path.
      model: names of labels and tokens; None = not known.

    Returns:
      The same paths, shapes and dtypes with the loaded values, and a report per source.

    Raises:
      ValueError: a file is missing, damaged, or does not fit; lists every entry that does not.
    """
    arrays, reports = dict(fresh), []
    bn_eps = settings.model.backbone.bn_eps
    backbone = functools.partial(backbone_from_detector, bn_eps=bn_eps)
    model = model or transfer.Model(task_facts(settings), starts=settings.init_from.tasks)
    text_encoder = functools.partial(text_encoder_from, model=model)
    whole = functools.partial(model_from_checkpoint, model=model, bn_eps=bn_eps)
    for source, fill in (
        (settings.init_from.backbone, backbone),
        (settings.init_from.text_encoder, text_encoder),
        (settings.init_from.model, whole),
    ):
        if source:
            arrays, report = fill(arrays, source)
            reports.append(report)
    return arrays, reports


def task_facts(
    settings: Settings, labels: Mapping[str, Sequence[str]] | None = None
) -> dict[str, sources.TaskFacts]:
    """What fitting weights needs to know of a config's tasks.

    Args:
      labels: names of the labels by task.
    """
    names = labels or {}
    return {
        name: sources.TaskFacts(
            spec.index, spec.has_image, spec.has_text, tuple(names.get(name, ()))
        )
        for name, spec in settings.tasks.items()
    }


def backbone_from_detector(
    fresh: Mapping[str, np.ndarray], path: str | os.PathLike, bn_eps: float | None = None
) -> tuple[Arrays, Report]:
    """The backbone of a DETR checkpoint, or of one of ours; see `start_from`.

    Args:
      bn_eps: as in `model_from_checkpoint`.
    """
    if sources.is_ours(path):
        source = sources.read(path)
        _check_epsilon(source, bn_eps, path)
        state = source.arrays
        arrays = {name: array for name, array in state.items() if name.startswith("backbone.")}
        ignored = [name for name in state if name not in arrays]
    else:
        state = torch_files.load_state_dict(path)
        with naming(path):
            arrays, ignored = detr.import_weights(state)
    wanted = [name for name in fresh if name.startswith("backbone.")]
    return _fill(
        fresh, arrays, wanted, wanted, Report("backbone", str(path), (), (), tuple(ignored))
    )


def text_encoder_from(
    fresh: Mapping[str, np.ndarray], source: str | os.PathLike, model: transfer.Model
) -> tuple[Arrays, Report]:
    """A BERT, or one of our checkpoints, as text encoder; see `start_from`.

    Of ours, words go over by token where the vocabularies differ.
    """
    if not sources.is_ours(source) or _is_no_checkpoint(source):
        return text_encoder_from_bert(fresh, source)
    whole = sources.read(source)
    part = {name: a for name, a in whole.arrays.items() if name.startswith("text_encoder.")}
    if not part:
        raise ValueError(f"{source}: it has no text encoder")
    others = tuple(name for name in whole.arrays if name not in part)
    restricted = dataclasses.replace(whole, arrays=part, unknown=(*whole.unknown, *others))
    arrays, report = _fitted(
        fresh, restricted, source, dataclasses.replace(model, starts={}), "text encoder"
    )
    left = tuple(name for name in report.fresh if name.startswith("text_encoder."))
    return arrays, dataclasses.replace(report, fresh=left)


def _is_no_checkpoint(folder: str | os.PathLike) -> bool:
    try:
        checkpoint_folder.locate(folder)
    except ValueError:
        return epath.Path(folder).is_dir()
    return False


def text_encoder_from_bert(
    fresh: Mapping[str, np.ndarray], source: str | os.PathLike
) -> tuple[Arrays, Report]:
    """A BERT file, folder or hub model as text encoder; see `start_from`.

    The pooler may be missing, as models with a masked-language head have none and UniT does not
    use it.
    """
    state = bert.load(source)
    with naming(source):
        arrays, ignored = bert.import_weights(state)
    wanted, _ = bert.import_weights(bert.export_weights(fresh))
    required = [name for name in wanted if ".pooler." not in name]
    report = Report("text encoder", str(source), (), (), tuple(ignored))
    return _fill(fresh, arrays, wanted, required, report)


def model_from_checkpoint(
    fresh: Mapping[str, np.ndarray],
    path: str | os.PathLike,
    model: transfer.Model,
    bn_eps: float | None = None,
) -> tuple[Arrays, Report]:
    """Whatever fits of any checkpoint, of other tasks perhaps; see `transfer.fit`.

    Args:
      path: what `sources.read` takes.
      model: the tasks and the vocabulary of the model to fill.
      bn_eps: epsilon of its frozen batch norms. A checkpoint of ours must have been made with the
        same; an MMF file does not tell, so the report does. None = not compared.
    """
    source = sources.read(path)
    notes = list(source.notes)
    if bn_eps is not None and source.bn_eps is None:
        notes.append(
            f"its frozen batch norms get this config's epsilon, {bn_eps:g}; the files of MMF's "
            "model zoo want --config.model.backbone.bn_eps=0"
        )
    _check_epsilon(source, bn_eps, path)
    return _fitted(fresh, source, path, model, "model", notes)


def _fitted(
    fresh: Mapping[str, np.ndarray],
    source: sources.Source,
    path: str | os.PathLike,
    model: transfer.Model,
    part: str,
    notes: Iterable[str] = (),
) -> tuple[Arrays, Report]:
    """`fresh` with what fits of a checkpoint, and the report."""
    with sources.naming(path):
        fitted = transfer.fit(source, fresh, model)
    if not fitted.arrays:
        raise ValueError(f"{path}: not a UniT of this shape: no parameter of it fits by name")
    arrays = dict(fresh)
    for name, array in fitted.arrays.items():
        arrays[name] = np.array(array, fresh[name].dtype, order="C")  # no view of the file's
    return arrays, Report(
        part,
        f"{path} ({source.what})",
        tuple(name for name in fitted.arrays if name not in fitted.partly),
        tuple(name for name in fresh if name not in fitted.arrays),
        (*source.unknown, *fitted.left),
        "\n  ".join([*fitted.lines, *notes]),
        fitted.partly,
    )


def _check_epsilon(source: sources.Source, bn_eps: float | None, path: str | os.PathLike) -> None:
    if None not in (source.bn_eps, bn_eps) and source.bn_eps != bn_eps:
        raise ValueError(
            f"{path}: its batch norms have epsilon {source.bn_eps:g}, this config's {bn_eps:g}; "
            f"set --config.model.backbone.bn_eps={source.bn_eps:g}"
        )


def _fill(
    fresh: Mapping[str, np.ndarray],
    loaded: Mapping[str, np.ndarray],
    wanted: Iterable[str],
    required: Iterable[str],
    report: Report,
) -> tuple[Arrays, Report]:
    """`fresh` with `loaded` in it.

    Args:
      wanted: paths that belong to the part; those not loaded stay fresh.
      required: those of them that must be loaded.
    """
    problems = [f"missing: {name}" for name in required if name not in loaded]
    problems += [f"unexpected: {name}" for name in loaded if name not in fresh]
    problems += [
        f"{name}: shape {array.shape}, the model has {fresh[name].shape}"
        for name, array in loaded.items()
        if name in fresh and array.shape != fresh[name].shape
    ]
    if problems:
        raise ValueError(
            f"{report.source} does not fit the {report.part} of this config:\n  "
            + "\n  ".join(problems)
        )
    arrays = dict(fresh)
    for name, array in loaded.items():
        arrays[name] = np.array(array, fresh[name].dtype, order="C")  # no view of the file's
    left = tuple(name for name in wanted if name not in loaded)
    return arrays, dataclasses.replace(report, loaded=tuple(loaded), fresh=left)


def _grouped(names: Iterable[str], most: int = 12) -> str:
    """Names in short: counts by their first two parts."""
    counts = Counter(".".join(name.split(".")[:2]) for name in names)
    shown = [f"{name}.* ({n})" if n > 1 else name for name, n in sorted(counts.items())]
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" * (len(shown) > most))
