"""Files of strangers: texts in any encoding, and images by the names that annotations give them.

No name leads out of its folder: not by `..`, not from the root, not through a link.
"""

import codecs
import os
import pathlib
import re
import unicodedata
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from unit_jax.data.sources import base

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_MOST_LISTED = 2_000_000  # files of a folder that is searched


def read_text(path: pathlib.Path, problems: base.Problems) -> str:
    """A text file: UTF-8, with or without byte order mark, or UTF-16 or UTF-32 with one.

    Raises:
      ValueError: it cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error})") from None
    for mark, encoding in _BYTE_ORDER_MARKS:
        if content.startswith(mark):
            try:
                return content.decode(encoding)
            except UnicodeDecodeError as error:
                problems.add("not UTF-8", str(path), f"no {encoding}: {error.reason}", "repaired")
                return content.decode(encoding, errors="replace")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        problems.add(
            "not UTF-8",
            str(path),
            f"{error.reason} at byte {error.start}: replaced; save the file as UTF-8",
            "repaired",
        )
        return content.decode(errors="replace")


def is_image(path: pathlib.Path) -> bool:
    """Whether the name is that of an image (and no shadow file of macOS)."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith("._")


def listing(folder: pathlib.Path, suffixes: Sequence[str]) -> list[pathlib.Path]:
    """Files below a folder with one of the suffixes, in the order of their names; hidden folders
    and links out of the folder are left out."""
    paths = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths += [
            pathlib.Path(place, name)
            for name in names
            if name.lower().endswith(tuple(suffixes)) and not name.startswith("._")
        ]
        if len(paths) > _MOST_LISTED:
            raise ValueError(f"{folder}: more than {_MOST_LISTED:,} files; name a folder below it")
    return sorted(paths, key=lambda path: path.relative_to(folder).parts)


def is_inside(path: pathlib.Path, folder: pathlib.Path) -> bool:
    """Whether a file lies below a folder, links followed."""
    return path.resolve().is_relative_to(folder.resolve())


def spellings(name: str) -> list[str]:
    """How a name in an annotation may be spelt on the disk, the literal one first."""
    variants = [name]
    if "?d=" in name:  # Label Studio's local files: /data/local-files/?d=folder/file.jpg
        variants.append(name.split("?d=", 1)[1])
    variants += [variant.replace("\\", "/") for variant in variants]
    variants += [urllib.parse.unquote(variant) for variant in variants]
    variants += [
        unicodedata.normalize(form, variant) for variant in variants for form in ("NFC", "NFD")
    ]
    return list(dict.fromkeys(variant for variant in variants if variant and "\0" not in variant))


def escapes(name: str) -> bool:
    """Whether a name, as spelt, points out of the folder that it is looked up in."""
    plain = urllib.parse.unquote(name).replace("\\", "/")
    absolute = plain.startswith("/") or re.match(r"[A-Za-z]:/|[A-Za-z]+://", plain) is not None
    return absolute or ".." in plain.split("/")


class Finder:
    """Finds the images of one annotation file.

    All names are looked up in one folder: the candidate that has the most of them (on a tie the
    first), so that a name never gets another split's picture. A name that leads nowhere there
    is found by its end (`a/b.jpg`, then `b.jpg`), if no other name of the file claims the same
    image.

    Args:
      folders: candidates in order.
      names: file names as the annotations give them.
    """

    def __init__(self, folders: Iterable[pathlib.Path], names: Sequence[str]):
        candidates = {}
        for folder in folders:
            if folder.is_dir():
                candidates.setdefault(folder.resolve(), folder)
        self.tried = list(candidates.values())
        names = list(dict.fromkeys(names))
        self.folder, count = _best(self.tried, names, _plain)
        if not count:
            self.folder, _ = _best(self.tried, names, _by_end)
        self._root = self.folder.resolve() if self.folder is not None else None
        self._found: dict[str, pathlib.Path] = {}
        self._by_end: set[str] = set()
        if self.folder is not None:
            self._look_up(self.folder, names)
        claims = Counter(self._found.values())
        for name in self._by_end:
            if claims[self._found[name]] > 1:  # whose picture it is cannot be told
                del self._found[name]

    def _look_up(self, folder: pathlib.Path, names: Iterable[str]) -> None:
        for name in names:
            path = _plain(folder, name)
            if path is None and (path := _by_end(folder, name)) is not None:
                self._by_end.add(name)
            if path is not None:
                self._found[name] = path

    def find(self, name: str, place: str, problems: base.Problems) -> pathlib.Path | None:
        """The image of a name; None, and a fault, where there is none in the folder."""
        path = self._found.get(name)
        shown = f"{name!r:.200}"
        if path is None or self.folder is None or self._root is None:
            if escapes(name):
                detail = f"{shown} leads out of the folder of the images: not followed"
                problems.add("path outside", place, detail)
            else:
                problems.add("missing image", place, f"{shown} is not in {self.folder}")
            return None
        if not path.resolve().is_relative_to(self._root):
            detail = f"{shown} is a link out of {self.folder}: not followed; give images=FOLDER"
            problems.add("path outside", place, detail)
            return None
        if name in self._by_end:
            detail = f"{shown} was found as {path.relative_to(self.folder)}"
            problems.add("image path", place, detail, "repaired")
        return path


def _best(
    folders: Sequence[pathlib.Path],
    names: Sequence[str],
    look: Callable[[pathlib.Path, str], pathlib.Path | None],
) -> tuple[pathlib.Path | None, int]:
    """The folder that has the most of the names, the first of equals, and how many it has."""
    best, most = None, -1
    for folder in folders:
        count = sum(look(folder, name) is not None for name in names)
        if count > most:
            best, most = folder, count
        if count == len(names):
            break
    return best, most


def _plain(folder: pathlib.Path, name: str) -> pathlib.Path | None:
    if escapes(name):
        return None
    return _first(folder, spellings(name))


def _by_end(folder: pathlib.Path, name: str) -> pathlib.Path | None:
    for variant in reversed(spellings(name)):
        parts = [part for part in variant.replace("\\", "/").split("/") if part not in ("", ".")]
        parts = parts[len(parts) - parts[::-1].index("..") :] if ".." in parts else parts
        ends = ["/".join(parts[start:]) for start in range(len(parts))]
        path = _first(folder, [end for end in ends if not escapes(end)])
        if path is not None:
            return path
    return None


def _first(folder: pathlib.Path, names: Iterable[str]) -> pathlib.Path | None:
    for name in names:
        try:
            path = folder / name
            if path.is_file():
                return path
        except (OSError, ValueError):  # a name too long, or none that this system knows
            continue
    return None
