"""What MkDocs cannot do by itself: pages made of README, CHANGELOG, CONTRIBUTING and the notebook,
and links from the docs to files of the repository, which are then part of the site."""

import os
import pathlib
import re
import sys
from collections.abc import Callable

from mkdocs.structure.files import File, Files

ROOT = pathlib.Path(__file__).parents[2]
DOCS = ROOT / "docs"
TOUR = ROOT / "examples" / "tour.ipynb"
# Pages that lie elsewhere in the repository.
ELSEWHERE = {
    "index.md": ROOT / "README.md",
    "contributing.md": ROOT / "CONTRIBUTING.md",
    "changelog.md": ROOT / "CHANGELOG.md",
    "tour.md": TOUR,
}
MARKDOWN = re.compile(r"(\]\()([^)\s#]+)")
HTML = re.compile(r"""(\b(?:src|href)=")([^"#]+)""")


def on_files(files: Files, config) -> Files:
    """Adds the pages of ELSEWHERE; the notebook's is what it shows when it is run."""
    for uri, path in ELSEWHERE.items():
        if path == TOUR:
            text, pictures = _tour()
            for name, data in pictures.items():
                files.append(File.generated(config, name, content=data))
        else:
            text = path.read_text()
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(markdown: str, page, config, files: Files) -> str:
    """Points links to where things are in the site."""
    uri = page.file.src_uri
    origin = ELSEWHERE.get(uri, DOCS / uri)

    def moved(match: re.Match) -> str:
        return match[1] + _target(match[2], origin, uri, lambda file: _add(file, files, config))

    return _outside_of_code(markdown, lambda text: HTML.sub(moved, MARKDOWN.sub(moved, text)))


def _target(link: str, origin: pathlib.Path, uri: str, add: Callable[[pathlib.Path], str]) -> str:
    """A link of the repository's file `origin` as one of the page `uri`."""
    path = pathlib.Path(os.path.normpath(origin.parent / link))
    if re.match(r"\w+:", link) or not path.exists():
        return link  # what is broken, `--strict` tells
    pages = {file: name for name, file in ELSEWHERE.items()}
    if path in pages:
        found = pages[path]
    elif path.is_relative_to(DOCS):
        found = path.relative_to(DOCS).as_posix()
    else:
        found = add(path)
    return os.path.relpath(found, os.path.dirname(uri) or ".")


def _add(path: pathlib.Path, files: Files, config) -> str:
    """Takes a file of the repository into the site; of a folder, a list of what is in it."""
    name = f"files/{path.relative_to(ROOT).as_posix()}"
    if path.is_dir():
        name = f"{name}/contents.txt"
        listed = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())
        content: str | bytes = "\n".join(listed) + "\n"
    else:
        name = f"{name}.txt" if path.suffix in (".py", "") else name  # shown, not downloaded
        content = path.read_bytes()
    if files.get_file_from_path(name) is None:
        files.append(File.generated(config, name, content=content))
    return name


def _outside_of_code(markdown: str, change: Callable[[str], str]) -> str:
    parts = re.split(r"(^ *```.*?^ *```[^\n]*$)", markdown, flags=re.M | re.S)
    return "".join(part if n % 2 else change(part) for n, part in enumerate(parts))


def _tour() -> tuple[str, dict[str, bytes]]:
    sys.path.insert(0, str(ROOT))
    from docs.site import notebook

    here = os.getcwd()
    try:
        return notebook.as_markdown(notebook.run(TOUR), "tour")
    finally:
        os.chdir(here)
