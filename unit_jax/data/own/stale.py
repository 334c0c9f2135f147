"""Is a prepared data set still what its files say?"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from unit_jax.data import integrity
from unit_jax.data.own.declared import Declared
from unit_jax.data.own.images import Images, file_state
from unit_jax.data.sources.formats import files

VERSION = "1.0.0"  # of the records of own data sets
SOURCES = "sources.json"


def reason(
    folder: pathlib.Path, manifest: Mapping[str, Any], name: str, options: Mapping[str, Any]
) -> str | None:
    """Why a data set must be prepared (again); None = it is ready and its files are as then."""
    entry = manifest["datasets"].get(name)
    if entry is None:
        return "new"
    if "own" not in entry:
        raise ValueError(
            f"config.data.own.{name}: {folder} has a data set of this name that was not declared; "
            "choose another name or another data.data_dir"
        )
    if entry["version"] != VERSION or entry["own"] != plain(options):
        return "it is declared otherwise than before"
    if integrity.dataset_faults(folder, manifest, name):
        return "its prepared files are not whole"
    told = json.loads((folder / name / VERSION / SOURCES).read_text())
    present = [path for path in told["files"] if pathlib.Path(path).exists()]
    if not present:
        return None  # the source files were taken away; what was prepared of them stays
    for path, state in told["files"].items():
        changed = _change(pathlib.Path(path), state)
        if changed:
            return changed
    for place in told["folders"]:
        now = files.listing(pathlib.Path(place["folder"]), place["suffixes"])
        if sorted(map(str, now)) != place["files"]:
            return f"{place['folder']} holds other files"
    return None


def _change(path: pathlib.Path, state: Sequence[Any]) -> str | None:
    """What happened to a file since; a new time alone is nothing."""
    size, time, digest = state
    try:
        now = path.stat()
        if (now.st_size, now.st_mtime_ns) == (size, time):
            return None
        same = now.st_size == size and file_state(path)[2] == digest
    except OSError:
        return f"{path} is gone"
    return None if same else f"{path} changed"


def sources(declared: Declared, images: Images | None) -> dict[str, Any]:
    """Files that a data set was prepared of, with their state, and listings that decided."""
    state = dict(images.state) if images else {}
    for part in declared.parts.values():
        for path in part.files:
            state[str(path)] = file_state(path)
    folders = [
        {
            "folder": str(folder),
            "suffixes": list(suffixes),
            "files": sorted(map(str, files.listing(folder, suffixes))),
        }
        for part in declared.parts.values()
        for folder, suffixes in part.folders
    ]
    return {"files": state, "folders": folders}


def plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as the manifest holds them."""
    return json.loads(json.dumps(dict(options), default=str))
