"""Config files: Python files with `get_config(argument)`, found, run and changed by flags.

A file is named FILE.py[:ARGUMENT]. The files that ship with the package (`unit_jax/configs/`) are
found as configs/NAME.py from any folder that has no such file itself.
"""

import os
import pathlib
import re
import runpy
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from unit_jax import fields, own_data, tasks
from unit_jax.settings import Settings, from_config

SHIPPED = pathlib.Path(__file__).with_name("configs")


def read(name: str, changes: Mapping[str, Any] | None = None) -> Settings:
    """The settings of a config file, named as on the command line.

    Args:
      name: FILE.py[:ARGUMENT].
      changes: values by dotted key, such as {"model.dropout": 0.0}, put in place of the file's.
        Text is read as the setting's type, as flags give it.

    Raises:
      ValueError: there is no such file, it fails, or it or a change has problems.
    """
    config = load(name)
    if not hasattr(config, "unlocked"):  # no ConfigDict
        config = fields.plain(config)
        problems = change(config, changes or {})
    else:
        with config.unlocked(), config.ignore_type():
            problems = change(config, changes or {})
        config = fields.plain(config)
    data = config.get("data")
    if isinstance(data, dict) and "own" in data:
        folder = find(name.partition(":")[0]).parent
        data["own"] = own_data.with_absolute_paths(data["own"], folder)
    return from_config(config, problems)


def load(name: str) -> Any:
    """What a config file returns: a nested dict, or an ml_collections.ConfigDict.

    Raises:
      ValueError: there is no such file, or it fails; one line says where.
    """
    path, colon, argument = name.partition(":")
    file = find(path)
    for folder in (os.getcwd(), str(file.parent)):  # a config may import its neighbours
        if folder not in sys.path:
            sys.path.append(folder)
    try:
        module = runpy.run_path(str(file))
        make, values = module.get("get_config"), module.get("values")
        if make is None:
            raise ValueError("it has no function get_config")
        try:
            config = make(argument) if colon else make()
        except ModuleNotFoundError as error:
            if error.name != "ml_collections" or values is None:
                raise
            config = values(argument)  # the same as a plain dict
        if not hasattr(config, "items"):
            raise ValueError("get_config should return a nested dict or a ConfigDict")
        return config
    except Exception as error:  # a config is anybody's code
        raise ValueError(f"--config={name}: {_told(error, file)}") from error


def find(path: str) -> pathlib.Path:
    """The file itself, or the one that ships as configs/NAME.py.

    Raises:
      ValueError: there is neither.
    """
    file = pathlib.Path(path)
    if file.is_file():
        return file.absolute()
    shipped = SHIPPED / file.name
    if str(file.parent) in (".", SHIPPED.name) and shipped in _shipped():
        return shipped
    names = [f"{SHIPPED.name}/{found.name}" for found in _shipped()]
    raise ValueError(
        f"--config={path}: no such file{fields.did_you_mean(path, names)} "
        f"(shipped with unit_jax: {', '.join(names)})"
    )


def _shipped() -> list[pathlib.Path]:
    return sorted(SHIPPED.glob("[!_]*.py"))


def change(config: Any, changes: Mapping[str, Any]) -> list[str]:
    """Sets values in a nested config by dotted key, in place; returns a line for each that cannot.

    Keys that the config leaves out are added; `from_config` says which of them mean nothing.
    """
    hints = {name: hint for name, (hint, _) in fields.leaves(Settings).items()}
    of_task = {name: hint for name, (hint, _) in fields.leaves(tasks.TaskSpec).items()}
    problems = []
    for key, value in changes.items():
        *groups, last = key.split(".")
        hint = hints.get(key)
        if groups[:1] == ["tasks"]:
            hint = {**of_task, **tasks.SHORTHANDS, "ratio": float}.get(last)
            selected = config.get("tasks", {})
            if len(groups) != 2 or groups[1] not in selected:
                problems.append(
                    f"config.{key}: write tasks.NAME.KEY with a task of this config: "
                    f"{', '.join(selected)}{fields.did_you_mean('.'.join(groups[1:]), selected)}"
                )
                continue
        node = config
        for group in groups:
            if group not in node:
                node[group] = {}
            node = node[group]
            if not hasattr(node, "items"):
                problems.append(f"config.{key}: config.{group} is a value, no group of settings")
                break
        else:
            node[last] = fields.from_text(hint, value) if isinstance(value, str) else value
    return problems


def split_flags(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Takes the words `--config.KEY=VALUE` out of a command line.

    `--config.KEY VALUE`, `--config.KEY` (True) and `--noconfig.KEY` (False) are read as well.

    Returns:
      The other words, and values by key.
    """
    rest, changes = [], {}
    words = list(argv)
    while words:
        word = words.pop(0)
        name = word.lstrip("-")
        if word == name or not name.startswith(("config.", "noconfig.")):
            rest.append(word)
            continue
        flag, equals, value = name.partition("=")
        key = flag.partition(".")[2]
        if name.startswith("no"):
            value = "False"
        elif not equals:
            value = words.pop(0) if words and not re.match("-+[a-z]", words[0]) else "True"
        changes[key] = value
    return rest, changes


def _told(error: Exception, file: pathlib.Path) -> str:
    """An error of a config file in one line."""
    if isinstance(error, ValueError) and not isinstance(error, UnicodeError):
        return " ".join(str(error).split())
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == str(file)
    ]
    line = getattr(error, "lineno", None) or (lines[-1] if lines else None)
    where = f"{file.name}, line {line}" if line else file.name
    text = " ".join(str(getattr(error, "msg", error)).split())
    told = f"{where}: {type(error).__name__}: {text}"
    if isinstance(error, ModuleNotFoundError) and error.name == "configs":
        told += "; write `from unit_jax.configs import ...`"
    return told
