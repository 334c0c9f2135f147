"""Objects in COCO's JSON, in whatever layout: what annotation services and tools export.

Roboflow (`train/_annotations.coco.json` beside its images), CVAT (`annotations/` and `images/`),
Label Studio (`result.json`, names with folders, percent signs or backslashes), VIA (ids as texts),
LabelMe's converters; the last three's own JSON as well. An image is what its `file_name` says.
"""

import json
import math
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pycocotools.mask

from unit_jax.data.sources import base
from unit_jax.data.sources.formats import annotators, files
from unit_jax.data.sources.formats.parts import (
    Box,
    Example,
    Part,
    all_numbers,
    id_key,
    id_order,
    number,
    polygon_box,
    said_size,
)

_OTHER_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
_MOST_SIDE = 100_000  # of a mask


def read(options: Mapping[str, Any], split: str, problems: base.Problems) -> Part:
    """Reads the file `options[split]`.

    Raises:
      ValueError: it is not there, or no COCO file.
    """
    path = pathlib.Path(options[split])
    sources: list[pathlib.Path] = []
    folders: list[tuple[pathlib.Path, Sequence[str]]] = []
    if path.is_dir() and (found := _labelme_files(path, problems)):
        sources = list(found)
        folders.append((path, (".json",)))
        content = annotators.labelme_as_coco(found.values())
        path = path / f"{path.name}.json"  # of this name, if it were one file
    else:
        path = annotation_file(path)
        sources, content = [path], read_coco(path, problems)
    images = _by_id(base.objects(content["images"], f"{path}: images", problems), path, problems)
    classes = _categories(content["categories"], path)
    annotations = content.get("annotations")
    labelled = annotations is not None
    entries = base.objects(annotations or [], f"{path}: annotations", problems)
    boxes: dict[str, list[Box]] = {key: [] for key in images}
    seen: dict[str, set] = {key: set() for key in images}
    for position, entry in enumerate(entries):
        place = f"{path}: annotation {_shown(entry.get('id', f'number {position}'))}"
        key = id_key(entry.get("image_id"))
        if key not in boxes:
            problems.add("unknown image", place, f"image_id {_shown(entry.get('image_id'))}")
            continue
        category = id_key(entry.get("category_id"))
        if category not in classes:
            detail = f"category_id {_shown(entry.get('category_id'))} is not in categories"
            problems.add("unknown category", place, detail)
            continue
        box = _box(entry, category, place, problems)
        if box is None:
            continue
        if (category, box.xywh) in seen[key]:
            problems.add("duplicate object", place, "the same class and box on the same image")
            continue
        seen[key].add((category, box.xywh))
        boxes[key].append(box)
    names = [str(image.get("file_name") or image.get("path") or "") for image in images.values()]
    finder = files.Finder(image_folders(options, path, split), names)
    examples = []
    for (key, image), name in zip(images.items(), names, strict=True):
        place = f"{path}: image {key} ({name:.200})"
        file = finder.find(name, place, problems)
        if file is not None:
            examples.append(
                Example(
                    id=key,
                    place=place,
                    image=file,
                    size=said_size(image.get("width"), image.get("height")),
                    boxes=boxes[key],
                    split=str(image.get(options.get("split") or "", "")),
                )
            )
    return Part(
        examples,
        listed=len(content["images"]),
        listed_objects=len(annotations or ()),
        classes=classes,
        files=sources,
        folders=folders,
        labelled=labelled,
    )


def _labelme_files(
    folder: pathlib.Path, problems: base.Problems
) -> dict[pathlib.Path, dict[str, Any]]:
    """The files of a folder in LabelMe's own form, one for each image; {} if they are not."""
    contents = {}
    for path in files.listing(folder, (".json",)):
        try:
            content = json.loads(files.read_text(path, problems))
        except (json.JSONDecodeError, RecursionError) as error:
            problems.add("bad entry", str(path), f"no JSON: {error}")
            continue
        if not annotators.is_labelme(content):
            return {}
        name = str(content["imagePath"]).replace("\\", "/")
        beside = path.parent.relative_to(folder) / name
        if (folder / beside).is_file() and not files.escapes(name):
            content["imagePath"] = beside.as_posix()
        contents[path] = content
    return contents


def annotation_file(path: pathlib.Path) -> pathlib.Path:
    """The file itself, or the one JSON file of a folder.

    Raises:
      ValueError: there is none, or a folder has several.
    """
    if path.is_dir():
        inside = sorted(path.glob("*.json"))
        if len(inside) != 1:
            raise ValueError(f"{path} is a folder; give the JSON file with the annotations")
        return inside[0]
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    return path


def read_coco(path: pathlib.Path, problems: base.Problems) -> dict[str, Any]:
    """The JSON of a file, with the lists images and categories (annotations may be missing).

    Raises:
      ValueError: it is no JSON, or no COCO; the message says what it looks like.
    """
    try:
        content = json.loads(files.read_text(path, problems))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is no complete JSON file ({error}); export it again") from None
    content = annotators.as_coco(content)
    lists = ("images", "categories")
    if isinstance(content, dict) and all(isinstance(content.get(key), list) for key in lists):
        if isinstance(content.get("annotations"), list | None):
            return content
    raise ValueError(
        f"{path} is no COCO file: it needs the lists images, annotations and categories, and has "
        f"{_looks_like(content)}; export it as COCO"
    )


def _looks_like(content: Any) -> str:
    if isinstance(content, list):
        return f"a list of {len(content)} entries"
    if not isinstance(content, dict):
        return f"a {type(content).__name__}"
    if not content:
        return "nothing in it"
    return "only " + ", ".join(str(key)[:40] for key in list(content)[:8])


def image_folders(
    options: Mapping[str, Any], path: pathlib.Path, split: str
) -> Iterator[pathlib.Path]:
    """Where the images of an annotation file may lie, the likeliest first.

    `images`, if given; else beside the file, in a folder named like it or like the split, in
    `images`, and the same one folder up.
    """
    stem = re.sub(r"^(_?annotations\.coco|instances?_|person_keypoints_)", "", path.stem)
    hints = [hint for hint in (path.stem, stem, *_OTHER_NAMES[split]) if hint]
    if options.get("images"):
        given = pathlib.Path(options["images"])
        yield from (given / hint for hint in hints)
        yield given
        return
    yield path.parent
    for folder in (path.parent, path.parent.parent):
        yield from (folder / hint for hint in hints)
        for images in ("images", "JPEGImages", "data"):
            yield from (folder / images / hint for hint in hints)
            yield folder / images
    yield path.parent.parent


def _by_id(
    entries: list[dict[str, Any]], path: pathlib.Path, problems: base.Problems
) -> dict[str, dict[str, Any]]:
    unique: dict[str, dict[str, Any]] = {}
    for position, entry in enumerate(entries):
        key = id_key(entry.get("id"))
        if key is None:
            problems.add("bad id", f"{path}: images[{position}]", f"id {_shown(entry.get('id'))}")
        elif key in unique:
            problems.add("duplicate id", f"{path}: image {key:.60}", "the first one is kept")
        else:
            unique[key] = entry
    return unique


def _categories(entries: list[Any], path: pathlib.Path) -> dict[str, str]:
    """Class name by id, in the order of the ids."""
    names: dict[str, str] = {}
    for position, entry in enumerate(entries):
        key = id_key(entry.get("id")) if isinstance(entry, dict) else None
        name = entry.get("name") if isinstance(entry, dict) else None
        if key is None or name is None:
            raise ValueError(f"{path}: categories[{position}] has no id or no name: {entry!r:.80}")
        if names.get(key, str(name)) != str(name):
            raise ValueError(
                f"{path}: category id {key} is both {names[key]!r} and {name!r}; give each class "
                "an id of its own"
            )
        names[key] = base.encodable(str(name), str(path), base.Problems("", 1 << 62)).strip()
    return {key: names[key] for key in id_order(list(names))}


def _box(
    entry: Mapping[str, Any], category: str, place: str, problems: base.Problems
) -> Box | None:
    """The object of an annotation; None, and a fault, where it has no usable box."""
    told = entry.get("bbox")
    box = _four_numbers(told)
    segmentation = entry.get("segmentation")
    if box is None or min(box[2:]) <= 0:
        outline = _outline_box(segmentation)
        if outline is None or min(outline[2:]) <= 0:
            kind = "empty box" if box is not None and min(box[2:]) == 0 else "bad box"
            detail = f"bbox {_shown(told)} and no polygon or mask to take one from"
            problems.add(kind, place, detail)
            return None
        if told not in (None, [], ""):
            detail = f"bbox {_shown(told)}: taken from the segmentation"
            problems.add("bad box", place, detail, "repaired")
        box = outline
    area = number(entry.get("area"))
    if area is None or area < 0:
        area = _outline_area(segmentation)
    crowd = bool(number(entry.get("iscrowd", 0)) or entry.get("iscrowd") is True)
    return Box(box, category, area, crowd)


def _four_numbers(value: Any) -> tuple[float, float, float, float] | None:
    """xywh from a list of numbers or texts, or from a text such as "[1, 2, 3, 4]"."""
    if isinstance(value, str):
        value = value.strip().strip("[]()").replace(",", " ").split()
    if not isinstance(value, list | tuple) or len(value) != 4:
        return None
    x, y, width, height = (number(item) for item in value)
    if x is None or y is None or width is None or height is None:
        return None
    return x, y, width, height


def _polygons(segmentation: Any) -> list[list[float]] | None:
    """Lists of x1, y1, x2, y2, ...; None where the segmentation is not made of such."""
    if not isinstance(segmentation, list) or not segmentation:
        return None
    if not any(isinstance(item, list) for item in segmentation):
        segmentation = [segmentation]  # one polygon without its list
    polygons = []
    for polygon in segmentation:
        if not isinstance(polygon, list):
            return None
        flat = []
        for item in polygon:  # pairs are seen as well
            flat += item if isinstance(item, list) else [item]
        numbers = all_numbers(flat)
        if numbers is None or polygon_box(numbers) is None:
            return None
        polygons.append(numbers)
    return polygons


def _outline_box(segmentation: Any) -> tuple[float, float, float, float] | None:
    polygons = _polygons(segmentation)
    if polygons is not None:
        boxes = [box for box in map(polygon_box, polygons) if box is not None]
        left, top = min(box[0] for box in boxes), min(box[1] for box in boxes)
        right = max(box[0] + box[2] for box in boxes)
        bottom = max(box[1] + box[3] for box in boxes)
        return left, top, right - left, bottom - top
    mask = _mask(segmentation)
    return None if mask is None else _four_numbers(pycocotools.mask.toBbox(mask).tolist())


def _polygon_area(points: list[float]) -> float:
    x, y = points[0::2], points[1::2]
    return abs(math.fsum(x[i - 1] * y[i] - x[i] * y[i - 1] for i in range(len(x)))) / 2


def _outline_area(segmentation: Any) -> float | None:
    polygons = _polygons(segmentation)
    if polygons is not None:
        return math.fsum(map(_polygon_area, polygons)) or None
    mask = _mask(segmentation)
    return None if mask is None else float(pycocotools.mask.area(mask)) or None


def _mask(segmentation: Any) -> dict[str, Any] | None:
    """A compressed mask for pycocotools, whose C code checks nothing; None = no whole mask."""
    if not isinstance(segmentation, dict):
        return None
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if not isinstance(size, list) or len(size) != 2:
        return None
    height, width = (number(side) or 0 for side in size)
    if not (1 <= height <= _MOST_SIDE and 1 <= width <= _MOST_SIDE):
        return None
    height, width = int(height), int(width)
    if isinstance(counts, list):
        runs = all_numbers(counts)
        if runs is None or any(run < 0 or run != int(run) for run in runs):
            return None
        if math.fsum(runs) != height * width:
            return None
        uncompressed = {"size": [height, width], "counts": [int(run) for run in runs]}
        return pycocotools.mask.frPyObjects(uncompressed, height, width)
    if isinstance(counts, str) and _runs_sum(counts) == height * width:
        return {"size": [height, width], "counts": counts.encode("ascii")}
    return None


def _runs_sum(counts: str) -> int | None:
    """Pixels of a compressed run-length text (COCO's six bits a character, differences from the
    run before last after the second); None where it is none."""
    runs: list[int] = []
    value, shift = 0, 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        if len(runs) > 2:
            value += runs[-2]
        if value < 0:
            return None
        runs.append(value)
        value, shift = 0, 0
    return sum(runs) if runs and not shift else None


def _shown(value: Any) -> str:
    text = str(value) if not isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
