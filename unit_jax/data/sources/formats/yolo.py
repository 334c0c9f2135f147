"""Objects in YOLO's texts: a folder of images, a line per object in a text of the same name, and
a data.yaml with the names of the classes.

`train` and `val` are folders of images (`signs/images/train`, `signs/train/images`, `signs/train`)
or lists of images; the texts lie in `labels` in place of `images`, beside it, or with the images.
"""

import operator
import pathlib
from collections.abc import Mapping
from typing import Any

import yaml

from unit_jax.data.sources import base
from unit_jax.data.sources.formats import files
from unit_jax.data.sources.formats.parts import Box, Example, Part, all_numbers, polygon_box

_NAME_FILES = ("classes.txt", "obj.names", "names.txt")
_MOST_BYTES = 1_000_000  # of a data.yaml


def read(options: Mapping[str, Any], split: str, problems: base.Problems) -> Part:
    """Reads the folder `options[split]`.

    Raises:
      ValueError: it is not there, has no images, or no names of classes are to be found.
    """
    path = pathlib.Path(options[split])
    if not path.exists():
        raise ValueError(f"{path}: there is no such folder of images")
    images, root = _images(path, problems)
    if not images:
        raise ValueError(f"{path}: no image is there")
    names_file, content = _data_yaml(options, path)
    classes = _names(options, names_file, content)
    keypoints = content.get("kpt_shape") is not None
    examples, texts, listed_objects, unlabelled = [], [], 0, 0
    shapes: set[str] = set()
    for image in images:
        place = str(image)
        if not files.is_inside(image, root):
            problems.add("path outside", place, f"a link out of {root}: not followed")
            continue
        text = _label_file(image, root)
        boxes: list[Box] = []
        if text is None:
            unlabelled += 1
        else:
            texts.append(text)
            lines = files.read_text(text, problems).splitlines()
            for position, line in enumerate(lines, start=1):
                if line.strip():
                    listed_objects += 1
                    box = _box(line, classes, keypoints, f"{text}:{position}", shapes, problems)
                    if box is not None and box not in boxes:
                        boxes.append(box)
                    elif box is not None:
                        problems.add("duplicate object", f"{text}:{position}", "as one before")
        identity = image.relative_to(root).with_suffix("").as_posix()
        examples.append(Example(identity, place, image, None, boxes))
    if not texts and split != "test":
        raise ValueError(
            f"{path}: no image has a text of labels ({_candidates(images[0], root)[0]} was looked "
            "for first); put them into a folder labels in place of images"
        )
    notes = []
    if unlabelled and texts:
        notes.append(f"{split}: {unlabelled} images without a text: taken as images of no object")
    if shapes:
        notes.append(f"{split}: boxes around {' and '.join(sorted(shapes))}")
    found = [names_file] if names_file else []
    return Part(
        examples,
        listed=len(images),
        listed_objects=listed_objects,
        classes=classes,
        files=[*found, *texts, *([path] if path.is_file() else [])],
        folders=[(path, files.SUFFIXES)] if path.is_dir() else [],
        notes=notes,
        labelled=bool(texts),
    )


def resolve(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with train, val and test of the data.yaml where they are not given."""
    options = dict(options)
    if options.get("data") and not options.get("train"):
        file, content = _data_yaml(options, pathlib.Path(options["data"]))
        assert file is not None  # given, so it was there
        root = file.parent
        base_folder = content.get("path")
        if isinstance(base_folder, str) and (root / base_folder).is_dir():
            root = root / base_folder
        for split, keys in (("train", ("train",)), ("val", ("val", "valid")), ("test", ("test",))):
            for key in keys:
                told = content.get(key)
                if isinstance(told, str) and not options.get(split):
                    # Roboflow writes ../train/images for a folder beside the file.
                    for candidate in (root / told, root / told.removeprefix("../")):
                        if candidate.exists() and files.is_inside(candidate, file.parent.parent):
                            options[split] = str(candidate)
                            break
        if not options.get("train"):
            raise ValueError(f"{file}: train names no folder that is there; give train=FOLDER")
    return options


def _images(path: pathlib.Path, problems: base.Problems) -> tuple[list[pathlib.Path], pathlib.Path]:
    """The images, and the folder that none of them may leave."""
    if path.is_dir():
        return files.listing(path, files.SUFFIXES), path
    lines = [line.strip() for line in files.read_text(path, problems).splitlines()]
    finder = files.Finder([path.parent, path.parent.parent], list(filter(None, lines)))
    found = [
        finder.find(name, f"{path}:{position}", problems)
        for position, name in enumerate(lines, start=1)
        if name
    ]
    return [image for image in found if image is not None], finder.folder or path.parent


def _candidates(image: pathlib.Path, root: pathlib.Path) -> list[pathlib.Path]:
    """Where an image's text may lie, by YOLO's rule first: the last `images` becomes `labels`."""
    parts = list(image.with_suffix(".txt").parts)
    paths = []
    for position in range(len(parts) - 2, 0, -1):
        if parts[position] == "images":
            paths.append(pathlib.Path(*parts[:position], "labels", *parts[position + 1 :]))
            break
    inner = image.relative_to(root).with_suffix(".txt")
    paths += [
        root / "labels" / inner,
        root.parent / "labels" / root.name / inner,
        root.parent / "labels" / inner,
        image.with_suffix(".txt"),
    ]
    return paths


def _label_file(image: pathlib.Path, root: pathlib.Path) -> pathlib.Path | None:
    return next((path for path in _candidates(image, root) if path.is_file()), None)


def _data_yaml(
    options: Mapping[str, Any], path: pathlib.Path
) -> tuple[pathlib.Path | None, dict[str, Any]]:
    """The data.yaml that is given, or lies above the images; (None, {}) where there is none."""
    given = options.get("data")
    places = [pathlib.Path(given)] if given else []
    if given and places[0].is_dir():
        places = [places[0] / "data.yaml", places[0] / "data.yml"]
    if not given:
        for folder in [path, *list(path.parents)[:3]]:
            places += [folder / "data.yaml", folder / "data.yml", folder / "dataset.yaml"]
    for file in places:
        if file.is_file():
            if file.stat().st_size > _MOST_BYTES:
                raise ValueError(f"{file}: more than {_MOST_BYTES:,} bytes are no data.yaml")
            try:
                content = yaml.safe_load(file.read_bytes())
            except (yaml.YAMLError, UnicodeError, RecursionError, ValueError) as error:
                reason = " ".join(str(error).split())[:160]
                raise ValueError(f"{file} is no YAML file ({reason})") from None
            if not isinstance(content, dict):
                raise ValueError(f"{file}: expected keys such as names, train and val")
            return file, content
    if given:
        raise ValueError(f"{places[0]}: there is no such file")
    return None, {}


def _names(
    options: Mapping[str, Any], file: pathlib.Path | None, content: Mapping[str, Any]
) -> dict[int, str]:
    """Class name by number.

    Raises:
      ValueError: there are none, or they are no list of names.
    """
    names: Any = options.get("classes") or content.get("names")
    if names is None:
        path = pathlib.Path(options["train"])
        for folder in [path, *list(path.parents)[:3]]:
            for candidate in (folder / name for name in _NAME_FILES):
                if candidate.is_file():
                    text = files.read_text(candidate, base.Problems("", 1 << 62))
                    names = [line.strip() for line in text.splitlines() if line.strip()]
                    break
            if names is not None:
                break
    if isinstance(names, dict):
        numbers = all_numbers(names)
        if numbers is None or any(key != int(key) or key < 0 for key in numbers):
            raise ValueError(
                f"{file}: names: expected whole numbers as keys, got {list(names)[:5]}"
            )
        numbered = zip(map(int, numbers), names.values(), strict=True)
        names = dict(sorted(numbered, key=operator.itemgetter(0)))
    elif isinstance(names, list | tuple):
        names = dict(enumerate(names))
    else:
        where = file or "data.yaml (none above the images)"
        raise ValueError(f"{where}: no names of classes; add names: [first, second, ...]")
    if any(isinstance(name, list | dict) for name in names.values()):
        raise ValueError(f"{file}: names: expected a text for each class")
    count = content.get("nc")
    if isinstance(count, int) and not options.get("classes") and count != len(names):
        raise ValueError(f"{file}: nc is {count}, names has {len(names)}; make them agree")
    return {key: str(name) for key, name in names.items()}


def _box(
    line: str,
    classes: Mapping[int, str],
    keypoints: bool,
    place: str,
    shapes: set[str],
    problems: base.Problems,
) -> Box | None:
    """The object of a line: class x y width height (centre), or class and a polygon; shares."""
    words = line.replace(",", " ").split()
    values = all_numbers(words)
    if values is None or len(values) < 5:
        problems.add("bad entry", place, f"expected class x y width height, got {line!r:.60}")
        return None
    label, rest = values[0], values[1:]
    if label != int(label) or int(label) not in classes:
        detail = f"class {words[0]:.20}; the names have {len(classes)} classes, from 0"
        problems.add("unknown category", place, detail)
        return None
    polygon = None if keypoints else polygon_box(rest)
    if polygon is not None:
        shapes.add("polygons")
        left, top, width, height = polygon
    else:
        x, y, width, height = rest[:4]
        left, top = x - width / 2, y - height / 2
        if len(rest) > 4:
            shapes.add("key points" if keypoints else "lines with a confidence at their end")
    if width <= 0 or height <= 0:
        problems.add("empty box" if width >= 0 and height >= 0 else "bad box", place, line[:60])
        return None
    if max(map(abs, (left, top, width, height))) > 2:
        detail = f"{line[:60]!r}: expected shares of the image's size, between 0 and 1"
        problems.add("bad box", place, detail)
        return None
    return Box((left, top, width, height), int(label), relative=True)
