"""Prepares what `config.data.own` declares: read, check, store, report; again where files changed.

    rows = own.prepare(settings.data.own, settings.data.data_dir, settings.data.vocabulary)

A data set is written beside its place and moved there when it is whole, as `prepare` does it.
"""

import contextlib
import dataclasses
import fcntl
import json
import pathlib
import sys
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import numpy as np

from unit_jax import own_data, paths
from unit_jax.data import integrity, prepared
from unit_jax.data import writer as writer_lib
from unit_jax.data.own import classes as classes_lib
from unit_jax.data.own import declared as declared_lib
from unit_jax.data.own import notes, records, report, stale
from unit_jax.data.own import vocabulary as vocabulary_lib
from unit_jax.data.own.declared import Declared
from unit_jax.data.own.images import Images, Store
from unit_jax.data.own.records import Built
from unit_jax.data.sources import base
from unit_jax.outputs.labels.answers import normalise_answer
from unit_jax.outputs.objects.targets import trained_objects

UNKNOWN = "<unk>"


@dataclasses.dataclass(frozen=True)
class Summary:
    """What lies in the data folder of a data set.

    Attributes:
      fresh: prepared by this call (False: was ready before).
      splits: per split "examples", "objects", "images" (numbers) and "faults" (number by kind).
      notes: what was chosen and found, a sentence each.
    """

    name: str
    fresh: bool
    splits: Mapping[str, Mapping[str, Any]]
    notes: Sequence[str]
    labels: int


def prepare(
    own: Mapping[str, Mapping[str, Any]],
    data_dir: str,
    vocabulary: str = "",
    also_vocabularies: Sequence[str] = (),
    overwrite: bool = False,
    progress: bool = True,
    pictures: bool = True,
) -> list[Summary]:
    """Prepares the declared data sets that are not prepared, or whose files or settings changed.

    Args:
      own: `config.data.own` with absolute paths.
      vocabulary: file, folder or hub name; where it cannot be had, and the folder has none, one is
        made of the training texts.
      also_vocabularies: files or folders that are taken before one is made.
      overwrite: prepare again what is ready.
      progress: show progress bars.
      pictures: draw those of the report.

    Returns:
      A summary of every declared data set.

    Raises:
      ValueError: one message of a line for each data set that cannot be prepared.
    """
    wrong = own_data.problems(own)
    if wrong:
        raise ValueError("\n".join(wrong))
    if not own:
        return []
    paths.check_local("config.data.data_dir", data_dir)
    folder = pathlib.Path(data_dir)
    with _alone(folder):
        manifest = integrity.read_manifest(folder)
        reasons = {
            name: "overwrite" if overwrite else stale.reason(folder, manifest, name, options)
            for name, options in own.items()
        }
        todo = {name: options for name, options in own.items() if reasons[name] is not None}
        read, problems = {}, []
        for name, options in todo.items():
            try:
                read[name] = declared_lib.read(name, options)
            except ValueError as error:
                problems.append(str(error))
        if problems:
            raise ValueError("\n".join(problems))
        writer = writer_lib.Writer(
            folder, writer_lib.Settings(progress=progress), compare_counts=False
        )
        texts = [declared for declared in read.values() if own_data.is_text(declared.options)]
        if texts:
            note = vocabulary_lib.ensure(writer, vocabulary, also_vocabularies, texts)
            texts[0].notes += [note] if note else []
        for declared in read.values():
            _write(writer, declared, own[declared.name], pictures)
        summaries = [_summary(integrity.read_manifest(folder), name, name in read) for name in own]
        if read:
            report.join(folder, list(own))
    for name, reason in reasons.items():
        if reason and reason not in ("overwrite", "new"):
            summaries = [
                dataclasses.replace(s, notes=[f"prepared again: {reason}", *s.notes])
                if s.name == name
                else s
                for s in summaries
            ]
    return summaries


@contextlib.contextmanager
def _alone(folder: pathlib.Path) -> Generator[None]:
    """One process at a time prepares a data folder; the others wait, and find it done."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".preparing.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# ---- Writing -------------------------------------------------------------------------------------


def _write(
    writer: writer_lib.Writer, declared: Declared, options: Mapping[str, Any], pictures: bool
) -> None:
    """Stores images and records of a data set, its manifest entry and its report."""
    name = declared.name
    labelled = declared.options["format"] != "questions"
    classes = classes_lib.classes(declared) if labelled else None
    images = _write_images(writer, declared) if own_data.has_image(declared.options) else None
    stored = images.stored if images else {}
    built: dict[str, Built] = {}
    for split in declared.splits:
        labels = classes.labels[split] if classes else {}
        built[split] = records.build(declared, split, labels, stored)
    records.check_divided(declared, built)
    facts, answers = _facts(declared, classes, built)
    notes.warn(declared, built)
    with writer.bar(name) as bar:
        writer_lib.restart(bar, name, sum(len(rows.records) for rows in built.values()))
        items = {split: base.Items(rows.records, bar) for split, rows in built.items()}
        folder = writer.write_records(
            writer_lib.Named(name, stale.VERSION),
            records.features(declared.options),
            items,
            writer_lib.RECORDS_PER_SHARD,
        )
    (folder / stale.SOURCES).write_text(json.dumps(stale.sources(declared, images)))
    if answers is not None:
        writer_lib.replace(writer.data_dir / facts["answers"]["file"], answers)
    splits, arrays = {}, {}
    for split, rows in built.items():
        arrays[split] = _index(writer, declared, rows)
        splits[split] = {
            "count": len(rows.records),
            "labelled": split not in declared.unlabelled,
        }
        if "num_objects" in arrays[split]:
            splits[split]["max_objects"] = int(arrays[split]["num_objects"].max(initial=0))
    problems = Counter()
    for of_split in declared.problems.values():
        problems.update(of_split.counts())
    merged = base.Problems(name, declared_lib.NO_LIMIT)
    for of_split in declared.problems.values():
        merged.found += of_split.found
    writer.save_problems(merged)
    facts |= {
        "own": stale.plain(options),
        "has_text": own_data.is_text(declared.options),
        "problems": dict(problems),
        "notes": declared.notes,
        "summary": {split: _numbers(declared, split, rows) for split, rows in built.items()},
    }
    if images:
        facts |= {"images": f"images_{name}", "images_sha256": images.sha256}
    if own_data.is_text(declared.options) and not images:
        facts["lengths_vocabulary"] = writer.manifest["vocabulary"]["sha256"]
    report.write(writer.data_dir, declared, built, facts, pictures)
    writer.finish(writer_lib.Named(name, stale.VERSION), folder, splits, arrays, facts)


def _write_images(writer: writer_lib.Writer, declared: Declared) -> Images:
    """Stores the images that examples name."""
    told, problems = {}, {}
    for split, examples in declared.splits.items():
        for example in examples:
            told.setdefault(example.image, example.size)
            problems.setdefault(example.image, declared.problems[split])
    images = Images(told, problems)
    store = Store(f"images_{declared.name}")
    with writer.bar(store.name) as bar:
        writer_lib.restart(bar, store.name, len(told))
        items = {prepared.IMAGE_SPLIT: base.Items(list(told), bar, images)}
        folder = writer.write_records(store, store.features(), items, writer_lib.IMAGES_PER_SHARD)
    splits = {prepared.IMAGE_SPLIT: {"count": len(images.sizes)}}
    arrays = {prepared.IMAGE_SPLIT: images.index_arrays()}
    facts = {"kind": "images", "sha256": images.sha256, "problems": {}}
    if not images.sizes:
        raise ValueError(
            f"{declared.name}: none of its {len(told)} images can be decoded; e.g. "
            + "; ".join(f"{p.place}: {p.detail}" for p in _broken(declared)[:3])
        )
    writer.finish(store, folder, splits, arrays, facts)
    return images


def _broken(declared: Declared) -> list[base.Problem]:
    return [one for problems in declared.problems.values() for one in problems.of("broken image")]


def _facts(
    declared: Declared, classes: classes_lib.Classes | None, built: Mapping[str, Built]
) -> tuple[dict[str, Any], bytes | None]:
    """Label names and counts for the manifest, and the file of answers if there is one."""
    if classes is not None:
        counts = {split: rows.counts for split, rows in built.items()}
        classes_lib.class_notes(declared, classes.names, counts)
        facts = {
            "num_labels": len(classes.names),
            "label_names": classes.names,
        }
        ids = [key for key in classes.keys if key.isdecimal() and len(key) < 6]
        if declared.detection and len(ids) == len(classes.keys):
            facts["submitted_labels"] = classes.keys  # predictions speak of categories by these
        return facts, None
    names = _answer_list(declared, built["train"])
    content = "".join(f"{name}\n" for name in names).encode()
    known = set(names)
    for split, rows in built.items():
        unknown = sum(
            not known & set(map(normalise_answer, record["answers"]))
            for record in rows.records
            if record["answers"]
        )
        if unknown:
            declared.notes.append(
                f"{split}: {unknown} of {len(rows.records)} questions have no answer of the answer "
                "list: they cannot be answered rightly"
            )
    file = {"file": f"answers_{declared.name}.txt", "sha256": integrity.fingerprint(content)}
    return {"num_labels": len(names), "answers": file}, content


def _answer_list(declared: Declared, train: Built) -> list[str]:
    """<unk>, then the normalised answers of training, the most frequent first."""
    least = int(declared.options.get("min_answer_count", 1))
    most = int(declared.options.get("max_answers", 3129))
    counts: Counter[str] = Counter()
    for record in train.records:
        counts.update(set(map(normalise_answer, record["answers"])) - {"", UNKNOWN})
    frequent = [answer for answer, count in counts.items() if count >= least]
    frequent.sort(key=lambda answer: (-counts[answer], answer))
    if not frequent:
        raise ValueError(
            f"{declared.name}: no answer occurs {least} times in train; lower "
            f"config.data.own.{declared.name}.min_answer_count"
        )
    if len(frequent) > most - 1:
        declared.notes.append(
            f"the answer list has the {most - 1} most frequent of {len(frequent)} answers"
        )
    return [UNKNOWN, *frequent[: most - 1]]


def _index(writer: writer_lib.Writer, declared: Declared, rows: Built) -> dict[str, np.ndarray]:
    """Row-aligned arrays for planning batches."""
    arrays = {}
    if own_data.has_image(declared.options):
        for key in ("image_row", "width", "height"):
            arrays[key] = np.array([record[key] for record in rows.records], np.int32)
    elif own_data.is_text(declared.options):
        arrays["num_tokens"] = writer.count_tokens(rows.records)
    if declared.detection:
        kept = [
            np.count_nonzero(
                trained_objects(
                    record["boxes_xywh"], record["iscrowd"], record["height"], record["width"]
                )[1]
            )
            for record in rows.records
        ]
        arrays["num_objects"] = np.array(kept, np.int32)
    return arrays


def _numbers(declared: Declared, split: str, rows: Built) -> dict[str, Any]:
    images = {example.image for example in rows.examples} - {None}
    return {
        "examples": len(rows.records),
        "objects": sum(rows.counts.values()) if declared.detection else 0,
        "images": len(images),
        "faults": declared.problems[split].counts(),
    }


def _summary(manifest: Mapping[str, Any], name: str, fresh: bool) -> Summary:
    entry = manifest["datasets"][name]
    return Summary(name, fresh, entry["summary"], entry["notes"], entry["num_labels"])


def show(summaries: Sequence[Summary]) -> None:
    """Prints a line for each split that was prepared now, and what was noted."""
    for summary in summaries:
        if not summary.fresh:
            continue
        for split, numbers in summary.splits.items():
            parts = [f"{numbers['examples']:,} examples"]
            parts += [f"{numbers[key]:,} {key}" for key in ("objects", "images") if numbers[key]]
            faults = ", ".join(f"{n} x {kind}" for kind, n in numbers["faults"].items())
            print(f"{summary.name} ({split}): {', '.join(parts)}; faults: {faults or 'none'}")
        print(f"{summary.name}: {summary.labels} classes")
        for note in summary.notes:
            print(f"{summary.name}: {note}")
    sys.stdout.flush()
