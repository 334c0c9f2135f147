"""Prepares data sets: official files -> checked ArrayRecord files, an index and a manifest.

What is finished already is not prepared again.
"""

import dataclasses
import importlib
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from unit_jax import paths
from unit_jax.data import integrity
from unit_jax.data.sources import base, images
from unit_jax.data.sources.coco import Coco
from unit_jax.data.sources.glue import Mnli, Qnli, Qqp, Sst2
from unit_jax.data.sources.snli_ve import SnliVe
from unit_jax.data.sources.visual_genome import VisualGenome
from unit_jax.data.sources.vqa2 import Vqa2
from unit_jax.data.writer import Settings, Writer
from unit_jax.demo import world

SOURCES: Mapping[str, type[base.RecordSource]] = {
    source.name: source for source in (Coco, VisualGenome, Vqa2, SnliVe, Qnli, Mnli, Qqp, Sst2)
}


@dataclasses.dataclass(frozen=True)
class Summary:
    """One line of the closing table.

    Attributes:
      name: data set or image store.
      fresh: prepared by this run (False: was finished before).
      counts: examples by split.
      labels, attributes: sizes of its inventories; 0 = none.
      images: name of the image store it points into, or "".
      size: bytes on disk.
      problems: faults by kind.
      partial: in which numbers the files differ from the published ones.
      notes: what the source chose by the files at hand.
    """

    name: str
    fresh: bool
    counts: Mapping[str, int]
    labels: int
    attributes: int
    images: str
    size: int
    problems: Mapping[str, int]
    partial: Sequence[str]
    notes: Sequence[str]


def prepare(
    source: str | os.PathLike,
    data_dir: str | os.PathLike,
    datasets: Iterable[str | type[base.RecordSource]] = tuple(SOURCES),
    settings: Settings | None = None,
) -> list[Summary]:
    """Prepares data sets under `data_dir`; `unit_jax.data.prepared` says what lies there then.

    Args:
      source: folder with the official files, one folder per data set.
      data_dir: folder for the prepared data.
      datasets: names of SOURCES, "module:Class" of a source of one's own, or such classes.
      settings: choices; None = the defaults.

    Returns:
      A line for every data set asked for and every image store that one of them uses.

    Raises:
      ValueError: files are missing (all are listed), too many are faulty, nothing is usable,
        they list another number than was published, the folder holds another vocabulary, or a
        folder is no folder of this machine.
    """
    settings = settings or Settings()
    paths.check_local("--source", source)
    paths.check_local("--data_dir", data_dir)
    source, data_dir = pathlib.Path(source), pathlib.Path(data_dir)
    chosen = [_source_class(name)(source, settings.options) for name in datasets]
    manifest = integrity.read_manifest(data_dir)
    todo = [
        task for task in chosen if settings.overwrite or not _is_finished(data_dir, manifest, task)
    ]
    used = dict.fromkeys(images.family_of(task) for task in todo if task.image_family)
    families = [
        family
        for family in used
        if settings.overwrite or not _is_finished(data_dir, manifest, family)
    ]
    _check_files(source, todo, families)
    writer = Writer(data_dir, settings, compare_counts=not (source / world.DONE).exists())
    if any(task.has_text for task in chosen):
        writer.store_vocabulary(source)
    for family in families:
        writer.write_images(family, source)
    for task in todo:
        writer.write_task(task)
    names = [*dict.fromkeys(images.family_of(task).name for task in chosen if task.image_family)]
    fresh = {written.name for written in [*todo, *families]}
    return [
        _summary(data_dir, writer.manifest, name, name in fresh)
        for name in [*names, *(task.name for task in chosen)]
    ]


def _source_class(name: str | type[base.RecordSource]) -> type[base.RecordSource]:
    if not isinstance(name, str):
        return name
    if name in SOURCES:
        return SOURCES[name]
    module, colon, cls = name.partition(":")
    if colon:
        try:
            return getattr(importlib.import_module(module), cls)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"the record source {name} cannot be imported ({error})") from None
    raise ValueError(
        f"unknown data set {name!r}; known: {', '.join(SOURCES)}, or module:Class of your own"
    )


def _is_finished(data_dir: pathlib.Path, manifest: dict, dataset: Any) -> bool:
    entry = manifest["datasets"].get(dataset.name)
    return (
        entry is not None
        and entry["version"] == dataset.version
        and not integrity.dataset_faults(data_dir, manifest, dataset.name)
    )


def _check_files(
    source: pathlib.Path, tasks: Sequence[base.RecordSource], families: Sequence[images.Family]
):
    missing = []
    for task in tasks:
        absent = [path for path in task.required_files() if not path.exists()]
        missing += [f"{task.name}: {path} (from {task.origin})" for path in absent]
    for family in families:
        if not family.present_folders(source):
            users = ", ".join(
                task.name for task in tasks if task.image_family in (family, family.name)
            )
            folders = " or ".join(str(source / folder) for folder in family.folders)
            missing.append(f"{users}: a folder with images, {folders}")
    if missing:
        raise ValueError(
            "files are missing; put them there, choose other data sets with --datasets, or "
            "another --source:\n  " + "\n  ".join(missing)
        )


def _summary(data_dir: pathlib.Path, manifest: dict, name: str, fresh: bool) -> Summary:
    entry = manifest["datasets"][name]
    return Summary(
        name=name,
        fresh=fresh,
        counts={split: facts["count"] for split, facts in entry["splits"].items()},
        labels=entry.get("num_labels", 0),
        attributes=entry.get("num_attributes", 0),
        images=entry.get("images", ""),
        size=sum(path.stat().st_size for path in (data_dir / name / entry["version"]).iterdir()),
        problems=entry["problems"],
        partial=entry.get("partial", []),
        notes=entry.get("notes", []),
    )
