"""Objects in Pascal VOC's XML: a file per image, as labelImg, CVAT and Roboflow write it.

`train` and `val` are folders with the XML files, or lists of names as in ImageSets/Main. Boxes are
taken as written: xmin, ymin, xmax, ymax are edges in pixels.
"""

import pathlib
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from typing import Any

from unit_jax.data.sources import base
from unit_jax.data.sources.formats import files
from unit_jax.data.sources.formats.parts import Box, Example, Part, all_numbers, said_size

_MOST_BYTES = 50_000_000  # of one XML file


def read(options: Mapping[str, Any], split: str, problems: base.Problems) -> Part:
    """Reads the folder or list `options[split]`.

    Raises:
      ValueError: it is not there, or has no XML file.
    """
    path = pathlib.Path(options[split])
    annotations = list(_annotation_files(path, problems))
    if not annotations:
        raise ValueError(f"{path}: no XML file of Pascal VOC is there")
    parsed = [(file, _parse(file, problems)) for file in annotations]
    entries = [(file, root) for file, root in parsed if root is not None]
    finder = files.Finder(
        _image_folders(options, path, [file for file, _ in parsed]),
        [name for file, root in entries for name in _names(file, root)],
    )
    examples, listed_objects, seen = [], 0, set()
    names: set[str] = set()
    for file, root in entries:
        image = _find(file, root, finder, problems)
        objects = root.findall("object")
        listed_objects += len(objects)
        boxes = []
        for position, element in enumerate(objects):
            place = f"{file}: object {position + 1}"
            box = _box(element, place, problems)
            if box is not None:
                names.add(box.category)
                boxes.append(box)
        if image is None:
            continue
        if image in seen:
            problems.add("duplicate image", str(file), f"{image.name} has two XML files")
            continue
        seen.add(image)
        size = root.find("size")
        told = (None, None) if size is None else (size.findtext("width"), size.findtext("height"))
        examples.append(
            Example(
                id=file.stem,
                place=str(file),
                image=image,
                size=said_size(*told),
                boxes=boxes,
            )
        )
    classes = options.get("classes") or sorted(names)
    return Part(
        examples,
        listed=len(annotations),
        listed_objects=listed_objects,
        classes={name: name for name in classes},
        files=annotations,
        folders=[(path, (".xml",))] if path.is_dir() else [],
    )


def _annotation_files(path: pathlib.Path, problems: base.Problems) -> Iterator[pathlib.Path]:
    if path.is_dir():
        yield from files.listing(path, (".xml",))
        return
    if not path.is_file():
        raise ValueError(f"{path}: there is no such folder, nor a list of names")
    root = path.parent  # VOC has ImageSets/Main/train.txt beside Annotations/
    while not (root / "Annotations").is_dir():
        if root == root.parent:
            raise ValueError(f"{path}: no folder Annotations beside or above this list of names")
        root = root.parent
    for position, line in enumerate(files.read_text(path, problems).splitlines(), start=1):
        if not line.strip():
            continue
        name = line.strip().removesuffix(".xml")
        file = root / "Annotations" / f"{name}.xml"
        if files.escapes(name) or not file.is_file():
            short = root / "Annotations" / f"{name.split()[0]}.xml"  # lists of a class: "name 1"
            if files.escapes(name) or not short.is_file():
                problems.add("missing annotation", f"{path}:{position}", f"{name!r:.200}")
                continue
            file = short
        yield file


def _parse(file: pathlib.Path, problems: base.Problems) -> ElementTree.Element | None:
    try:
        content = file.read_bytes()
        if len(content) > _MOST_BYTES:
            raise ValueError(f"{len(content):,} bytes")
        if b"<!ENTITY" in content or "<!ENTITY".encode("utf-16-le") in content:
            raise ValueError("it defines entities, which are not read")
        root = ElementTree.fromstring(content)
    except (OSError, ValueError, LookupError, ElementTree.ParseError) as error:
        problems.add("bad entry", str(file), f"no XML: {error}")
        return None
    if root.tag != "annotation":
        problems.add("bad entry", str(file), f"<{root.tag:.40}> where <annotation> was expected")
        return None
    return root


def _names(file: pathlib.Path, root: ElementTree.Element) -> list[str]:
    """Names that an XML file's image may have: what it says, and its own with each ending."""
    told = (root.findtext("filename") or "").strip()
    endings = [pathlib.PurePosixPath(told.replace("\\", "/")).suffix, *files.SUFFIXES, ".JPG"]
    own = [file.stem + ending for ending in endings if ending]
    return list(dict.fromkeys([*filter(None, [told]), *own]))


def _find(file, root, finder, problems) -> pathlib.Path | None:
    silent = base.Problems("", 1 << 62)
    names = _names(file, root)
    for name in names:
        path = finder.find(name, str(file), silent)
        if path is not None:
            return finder.find(name, str(file), problems)
    return finder.find(names[0], str(file), problems)


def _image_folders(
    options: Mapping[str, Any], path: pathlib.Path, annotations: list[pathlib.Path]
) -> Iterator[pathlib.Path]:
    if options.get("images"):
        given = pathlib.Path(options["images"])
        yield from (given / path.stem, given)
        return
    folder = path if path.is_dir() else annotations[0].parent
    yield folder
    for place in (folder, folder.parent, folder.parent.parent):
        for images in ("JPEGImages", "images", "Images"):
            yield from (place / images / folder.name, place / images)
    yield folder.parent


def _box(element: ElementTree.Element, place: str, problems: base.Problems) -> Box | None:
    name = (element.findtext("name") or "").strip()
    if not name:
        problems.add("unknown category", place, "no name")
        return None
    edges = element.find("bndbox")
    told = [
        None if edges is None else edges.findtext(key) for key in ("xmin", "ymin", "xmax", "ymax")
    ]
    numbers = all_numbers(told)
    if numbers is None:
        problems.add("bad box", place, f"xmin, ymin, xmax, ymax are {told}"[:100])
        return None
    left, top, right, bottom = numbers
    if right <= left or bottom <= top:
        kind = "empty box" if right == left or bottom == top else "bad box"
        problems.add(kind, place, f"xmin, ymin, xmax, ymax are {told}"[:100])
        return None
    return Box((left, top, right - left, bottom - top), name)
