"""A look at prepared data of one's own: data_report.md, histograms, and the most suspicious
examples."""

import io
import os
import pathlib
import textwrap
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import matplotlib.figure
import matplotlib.patches
import numpy as np
import PIL.Image
import PIL.ImageOps

from unit_jax.data.own.declared import Declared
from unit_jax.data.own.records import Built
from unit_jax.data.sources.formats.parts import Example

FILE = "data_report.md"
FOLDER = "data_report"
NEAR_EMPTY = 5  # training examples or objects below which a class is named
_SHOWN = 8  # suspicious examples in the picture
_BARS = 30


def write(
    data_dir: pathlib.Path,
    declared: Declared,
    built: Mapping[str, Built],
    facts: Mapping[str, Any],
    pictures: bool = True,
) -> None:
    """Writes data_report/NAME.md and, if wanted, its pictures."""
    # Names of classes and files are no formulas, and may have letters that the font lacks.
    with warnings.catch_warnings(), matplotlib.rc_context({"text.parse_math": False}):
        warnings.simplefilter("ignore")
        _write(data_dir / FOLDER, declared, built, facts, pictures)


def _write(folder: pathlib.Path, declared, built, facts, pictures: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    name = declared.name
    suspects = suspicious(declared, built)
    lines = [f"## {name}", "", f"Format {declared.options['format']}."]
    lines += ["", "| split | examples | objects | images | faults |", "|---|---:|---:|---:|---|"]
    for split, numbers in facts["summary"].items():
        faults = ", ".join(f"{n} x {kind}" for kind, n in numbers["faults"].items()) or "none"
        cells = [split, *(str(numbers[key]) for key in ("examples", "objects", "images")), faults]
        lines.append("| " + " | ".join(cells) + " |")
    lines.append("")
    if pictures:
        _save(_histograms(declared, built, facts), folder / f"{name}.png")
        lines += [f"![sizes and counts of {name}]({FOLDER}/{name}.png)", ""]
    lines += _class_lines(built, facts)
    if facts["notes"]:
        lines += ["Noted:", "", *(f"- {note}" for note in facts["notes"]), ""]
    if suspects:
        lines += ["Worth a look:", ""]
        lines += [f"- {reason}: {_told(example)}" for reason, example in suspects]
        if pictures and any(example.image is not None for _, example in suspects):
            _save(_gallery(suspects), folder / f"{name}_suspicious.png")
            lines += ["", f"![suspicious examples of {name}]({FOLDER}/{name}_suspicious.png)"]
        lines.append("")
    faults = [problem for p in declared.problems.values() for problem in p.found]
    if faults:
        lines += ["First faults (all are in problems.jsonl):", ""]
        lines += [f"- {p.kind}, {p.action}: {p.place}: {p.detail}" for p in faults[:20]]
        lines.append("")
    (folder / f"{name}.md").write_bytes(("\n".join(lines) + "\n").encode(errors="replace"))


def join(data_dir: pathlib.Path, names: Sequence[str]) -> None:
    """Writes data_report.md from the parts of the data sets."""
    parts = [data_dir / FOLDER / f"{name}.md" for name in names]
    text = "\n".join(path.read_bytes().decode() for path in parts if path.is_file())
    (data_dir / FILE).write_bytes(f"# Data report\n\n{text}".encode())


def _class_lines(built: Mapping[str, Built], facts: Mapping[str, Any]) -> list[str]:
    names = facts.get("label_names")
    if not names:
        return []
    lines = ["| label | class | " + " | ".join(built) + " |", "|---:|---|" + "---:|" * len(built)]
    for label, name in list(enumerate(names))[:200]:
        counts = [str(rows.counts[label]) for rows in built.values()]
        lines.append(f"| {label} | {_cell(name)} | " + " | ".join(counts) + " |")
    if len(names) > 200:
        lines.append(f"| | and {len(names) - 200} more | " + " | ".join("" for _ in built) + " |")
    return [*lines, ""]


def suspicious(declared: Declared, built: Mapping[str, Built]) -> list[tuple[str, Example]]:
    """(reason, example) of what is worth a look, at most a few of each reason."""
    suspects: list[tuple[str, Example]] = []
    train = built["train"]
    of_train = dict(zip(train.digests, train.examples, strict=True))
    for split, rows in built.items():
        if split != "train":
            twice = [
                (f"also in train ({_short(of_train[digest])})", example)
                for digest, example in zip(rows.digests, rows.examples, strict=True)
                if digest in of_train
            ]
            suspects += twice[:4]
        count = Counter(rows.digests)
        seen: set[str] = set()
        again = []
        for digest, example in zip(rows.digests, rows.examples, strict=True):
            if count[digest] > 1 and digest not in seen and declared.detection:
                again.append((f"{count[digest]} times in {split}", example))
            seen.add(digest)
        suspects += again[:4]
        places = {p.place for p in _problems(declared, split) if p.kind.startswith("box")}
        outside = [
            ("boxes outside the image", example)
            for example in rows.examples
            if example.place in places
        ]
        suspects += outside[:4]
        if declared.detection and split not in declared.unlabelled:
            empty = [
                ("no object", example)
                for example, record in zip(rows.examples, rows.records, strict=True)
                if not len(record["boxes_xywh"])
            ]
            suspects += empty[:2]
    rare = {label for label, count in train.counts.items() if count < NEAR_EMPTY}
    for example, record in zip(train.examples, train.records, strict=True):
        labels = record["category_ids"].tolist() if declared.detection else [record.get("label")]
        for label in rare & set(labels):
            rare.discard(label)
            suspects.append((f"one of {train.counts[label]} examples of its class", example))
    return suspects[: 4 * _SHOWN]


def _problems(declared: Declared, split: str):
    return declared.problems[split].found if split in declared.problems else []


def _short(example: Example) -> str:
    return example.image.name if example.image is not None else example.place.rsplit(":", 1)[-1]


def _told(example: Example) -> str:
    what = example.image if example.image is not None else textwrap.shorten(example.text, 80)
    return f"{what} ({example.place})" if str(what) != example.place else str(what)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


# ---- Pictures -----------------------------------------------------------------------------------


def _histograms(declared, built, facts) -> matplotlib.figure.Figure:
    """Classes, box sizes, image sizes, text lengths: those that the data set has."""
    panels = []
    if facts.get("label_names"):
        panels.append(_classes)
    if declared.detection:
        panels += [_objects, _box_sizes]
    if "image_row" in built["train"].records[0]:
        panels.append(_image_sizes)
    if any("text" in record for record in built["train"].records[:1]):
        panels.append(_text_lengths)
    figure = matplotlib.figure.Figure(figsize=(4.2 * len(panels), 3.4), layout="constrained")
    for axes, draw in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        draw(axes, built, facts)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _classes(axes, built, facts) -> None:
    names, train = facts["label_names"], built["train"].counts
    order = sorted(range(len(names)), key=lambda label: -train[label])[:_BARS]
    places = np.arange(len(order))
    width = 0.8 / len(built)
    for number, (split, rows) in enumerate(built.items()):
        axes.barh(places + number * width, [rows.counts[i] for i in order], width, label=split)
    axes.set_yticks(places, [textwrap.shorten(names[i], 18, placeholder="…") for i in order])
    axes.invert_yaxis()
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(loc="lower right")
    axes.set_title("classes" if len(names) <= _BARS else f"the {_BARS} largest classes")


def _per_split(axes, built, values, title, unit, whole=True) -> None:
    everything = np.concatenate([np.asarray(values(rows), float) for rows in built.values()])
    if not len(everything):
        return
    low, high = everything.min(), everything.max()
    if whole and high - low < _BARS:
        edges = np.arange(low, high + 2) - 0.5
        axes.xaxis.get_major_locator().set_params(integer=True)
    else:
        edges = np.linspace(low, max(high, low + 1), _BARS)
    for split, rows in built.items():
        axes.hist(values(rows), edges, histtype="stepfilled", alpha=0.5, label=split)
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel(unit)
    axes.set_title(title)
    axes.legend(frameon=False)


def _objects(axes, built, facts) -> None:
    def counts(rows):
        return [len(record["boxes_xywh"]) for record in rows.records]

    _per_split(axes, built, counts, "objects of an image", "objects")


def _box_sizes(axes, built, facts) -> None:
    def sizes(rows):
        areas = [r["boxes_xywh"][:, 2] * r["boxes_xywh"][:, 3] for r in rows.records]
        return np.sqrt(np.concatenate(areas)) if areas else []

    _per_split(axes, built, sizes, "box sizes", "root of the area in pixels", whole=False)


def _image_sizes(axes, built, facts) -> None:
    for split, rows in built.items():
        sizes = [(record["width"], record["height"]) for record in rows.records]
        axes.scatter(*zip(*sizes, strict=True), s=8, alpha=0.5, label=split)
    axes.set_xlabel("width in pixels")
    axes.set_ylabel("height in pixels")
    axes.set_title("image sizes")
    axes.legend(frameon=False)


def _text_lengths(axes, built, facts) -> None:
    def words(rows):
        return [len(f"{r['text']} {r.get('text_b', '')}".split()) for r in rows.records]

    _per_split(axes, built, words, "text lengths", "words")


def _gallery(suspects: Sequence[tuple[str, Example]]) -> matplotlib.figure.Figure:
    """The suspicious examples that have an image, with their boxes."""
    shown = [(reason, e, e.image) for reason, e in suspects if e.image is not None][:_SHOWN]
    columns = min(len(shown), 4)
    rows = -(-len(shown) // columns)
    figure = matplotlib.figure.Figure(figsize=(3.4 * columns, 3.4 * rows), layout="constrained")
    places = figure.subplots(rows, columns, squeeze=False).flat
    for axes in places:
        axes.set_axis_off()
    for axes, (reason, example, path) in zip(figure.axes, shown, strict=False):
        try:
            with PIL.Image.open(path) as file:
                image = PIL.ImageOps.exif_transpose(file)
                size = image.size
                image.thumbnail((400, 400))
                axes.imshow(np.asarray(image.convert("RGB")))
        except Exception:  # it was decoded before; a picture is not worth an end
            continue
        scale = image.size[0] / size[0]
        for box in example.boxes or ():
            x, y, w, h = box.xywh
            if box.relative:
                x, y, w, h = x * size[0], y * size[1], w * size[0], h * size[1]
            patch = matplotlib.patches.Rectangle(
                (x * scale, y * scale), w * scale, h * scale, fill=False, color="tab:red"
            )
            axes.add_patch(patch)
        axes.set_title(textwrap.fill(f"{reason}: {path.name}", 36), fontsize=8)
    return figure


def _save(figure: matplotlib.figure.Figure, path: pathlib.Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=90)
    temporary = path.with_name(path.name + ".new")
    temporary.write_bytes(buffer.getvalue())
    os.replace(temporary, path)
