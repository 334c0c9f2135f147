"""Whether a data folder is whole: its manifest, its files, its vocabulary."""

import hashlib
import json
import os
import pathlib
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping
from typing import Any

MANIFEST = "manifest.json"
FORMAT = 1  # of the manifest


def digest(path: pathlib.Path) -> str:
    """SHA-256 of a file in hex; "" of one that cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def problems(data_dir: str | os.PathLike, tasks: Iterable[str], vocabulary: str = "") -> list[str]:
    """What keeps a run from using the folder, one line each with the remedy; empty = all fits.

    Reads the manifest and file sizes only, no records.
    """
    data_dir, tasks = pathlib.Path(data_dir), tuple(tasks)

    def command(task: str, *more: str) -> str:
        words = ["unit-jax prepare --source DIR --data_dir", str(data_dir)]
        return " ".join([*words, "--datasets", task, *more])

    try:
        manifest = read_manifest(data_dir)
    except ValueError as error:
        return [str(error)]
    lines = []
    datasets = manifest["datasets"]
    for task in tasks:
        if task not in datasets:
            lines.append(f"{task}: not prepared; run: {command(task)}")
        elif faults := dataset_faults(data_dir, manifest, task):
            lines.append(f"{task}: {'; '.join(faults)}; run: {command(task, '--overwrite')}")
    if any(has_text(datasets[task]) for task in tasks if task in datasets):
        lines += _vocabulary_problems(data_dir, manifest, vocabulary)
    return lines


def has_text(entry: Mapping[str, Any]) -> bool:
    """Whether the records of a manifest's entry hold texts."""
    return entry.get("has_text", entry.get("kind") in ("vision_language", "language"))


def dataset_faults(data_dir: pathlib.Path, manifest: Mapping[str, Any], name: str) -> list[str]:
    """What is wrong with the files of a data set (or image store) that the manifest lists."""
    datasets = manifest["datasets"]
    entry = datasets[name]
    faults = _broken_files(data_dir, name, entry)
    if family := entry.get("images"):
        store = datasets.get(family)
        if store is None or store["sha256"] != entry["images_sha256"]:
            faults.append(f"its images ({family}) were prepared anew from other files")
        else:
            faults += _broken_files(data_dir, family, store)
    if lengths := entry.get("lengths_vocabulary"):
        if lengths != manifest.get("vocabulary", {}).get("sha256"):
            faults.append("its lengths were counted with another vocabulary")
    if answers := entry.get("answers"):
        path = data_dir / answers["file"]
        if not path.is_file() or fingerprint(path.read_bytes()) != answers["sha256"]:
            faults.append(f"{path} is not the answer list that it was prepared with")
    return faults


def _broken_files(data_dir: pathlib.Path, name: str, entry: dict) -> list[str]:
    directory = data_dir / name / entry["version"]
    broken = []
    for file, size in entry["files"].items():
        path = directory / file
        if not path.is_file():
            broken.append(f"{path} is missing")
        elif path.stat().st_size != size:
            broken.append(f"{path} has {path.stat().st_size} bytes, prepared were {size}")
    return broken


def _vocabulary_problems(data_dir: pathlib.Path, manifest: dict, asked: str) -> list[str]:
    path = data_dir / "vocab.txt"
    known = manifest.get("vocabulary")
    if known is None or not path.is_file():
        return [
            f"vocabulary: {path} is missing; run `unit-jax prepare` again for a task with "
            "text, with --vocabulary NAME_OR_PATH"
        ]
    if fingerprint(path.read_bytes()) != known["sha256"]:
        return [f"vocabulary: {path} is not the file that was stored when preparing"]
    # A hub name need not be looked up again; a path is compared by its content.
    names = known["name"], known.get("instead_of")
    if not asked or (asked in names and not os.path.exists(asked)):
        return []
    try:
        same = fingerprint(read_vocabulary(asked)) == known["sha256"]
    except ValueError as error:
        return [f"vocabulary: {error}"]
    if same:
        return []
    return [
        f"vocabulary: {data_dir} was prepared with {known['name']}, the config's data.vocabulary "
        f"is {asked}, which differs; set data.vocabulary to '' or prepare another data_dir"
    ]


def read_manifest(data_dir: pathlib.Path) -> dict[str, Any]:
    """manifest.json of a data folder, or an empty one.

    Raises:
      ValueError: the file cannot be read or has another format.
    """
    path = data_dir / MANIFEST
    if not path.exists():
        return {"format": FORMAT, "datasets": {}}
    try:
        manifest = json.loads(path.read_text())
        known = manifest["format"] == FORMAT
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} cannot be read; prepare the data again") from None
    if not known:
        raise ValueError(
            f"{path} has format {manifest['format']}, this version reads {FORMAT}; "
            "prepare the data again"
        )
    return manifest


def read_vocabulary(name: str) -> bytes:
    """A WordPiece vocabulary, one token a line, from a file, a folder or a hub name.

    Raises:
      ValueError: it is not there or lacks one of BERT's special tokens.
    """
    path = pathlib.Path(name)
    if path.is_dir():
        path = path / "vocab.txt"
    if path.is_file():
        content = path.read_bytes()
    elif path.name == "vocab.txt" or path.is_absolute():
        raise ValueError(f"there is no vocabulary file {path}")
    else:
        content = _download_vocabulary(name)
    tokens = set(content.decode(errors="replace").split())
    lacking = [token for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]") if token not in tokens]
    if lacking:
        raise ValueError(f"the vocabulary {name} lacks {', '.join(lacking)}")
    return content


def _download_vocabulary(name: str) -> bytes:
    import huggingface_hub  # a file or folder needs no hub

    try:
        host = urllib.parse.urlparse(huggingface_hub.constants.ENDPOINT).hostname
        if not urllib.request.getproxies():
            socket.getaddrinfo(host, 443)  # without a network it tries for half a minute
        return pathlib.Path(huggingface_hub.hf_hub_download(name, "vocab.txt")).read_bytes()
    except Exception as error:  # network, hub and cache raise many kinds
        raise ValueError(
            f"the vocabulary {name} is neither a file nor a folder with a vocab.txt, and it "
            f"cannot be had from the Hugging Face hub ({type(error).__name__}); "
            "give the path of a vocab.txt"
        ) from None


def read_lines(path: pathlib.Path) -> list[str]:
    """Lines of a UTF-8 file, without line ends; a line end at the file's end adds none."""
    lines = path.read_bytes().decode().replace("\r\n", "\n").split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def fingerprint(content: bytes) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(content).hexdigest()
