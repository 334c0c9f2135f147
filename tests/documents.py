"""Commands, Python blocks and links of the README and docs, and what checks them."""

import argparse
import ast
import builtins
import dataclasses
import pathlib
import re
import shlex
import textwrap
from collections.abc import Iterator

from tests import ROOT

PROGRAMS = ("unit-jax", "python", "make", "pip")
PARSE = argparse.ArgumentParser.parse_known_args
PICTURE = r"[\w-]+\.(?:jpg|jpeg|png)"


@dataclasses.dataclass(frozen=True)
class Found:
    """A piece of a document.

    Attributes:
      kind: "command" (one line for the shell), "mention" (a command within a sentence, which may
        leave out what it needs), "python" (a block) or "link" (its target).
      place: file and line, for messages.
    """

    kind: str
    text: str
    place: str


def documents() -> list[pathlib.Path]:
    """What users read."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]


def pieces(path: pathlib.Path) -> Iterator[Found]:
    """All commands, Python blocks and links of a document, from top to bottom."""
    name = path.relative_to(ROOT)
    prose = []  # lines outside of blocks; empty in their place
    lines = path.read_text().splitlines()
    number = 0
    while number < len(lines):
        end, language, block = _block(lines, number)
        if block is None:
            prose.append(lines[number])
            number += 1
            continue
        yield from _of_block(block, language, f"{name}:{number + 1}")
        prose += [""] * (end - number)
        number = end
    text = "\n".join(prose)
    for match in re.finditer(r"`([^`]+)`", text):
        code, line = " ".join(match[1].split()), text.count("\n", 0, match.start()) + 1
        if code.split()[0] in PROGRAMS and code != code.split()[0]:
            yield Found("mention", code, f"{name}:{line}")
    for match in re.finditer(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", text)):
        yield Found("link", match[1], str(name))


def _block(lines: list[str], start: int) -> tuple[int, str, str | None]:
    """(line after it, language, text) of the block of code that starts there; text None if none."""
    fence = re.match(r"\s*```(\w*)", lines[start])
    if fence:
        end = next(n for n in range(start + 1, len(lines)) if lines[n].strip() == "```")
        return end + 1, fence[1], textwrap.dedent("\n".join(lines[start + 1 : end]))
    indented = lines[start].startswith("    ") and (start == 0 or not lines[start - 1].strip())
    if not indented:
        return start, "", None
    end = start
    while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
        end += 1
    return end, "", textwrap.dedent("\n".join(lines[start:end]))


def _of_block(block: str, language: str, place: str) -> Iterator[Found]:
    joined = block.replace("\\\n", " ")
    commands = [line.removeprefix("$ ").strip() for line in joined.splitlines()]
    commands = [line for line in commands if line.split(" ")[0] in PROGRAMS]
    if language in ("python", "py"):
        yield Found("python", block, place)
    elif commands:
        yield from (Found("command", command, place) for command in commands)
    elif not language and re.search(r"^(import|from) \w", block, re.M):
        yield Found("python", block, place)


def anchors(path: pathlib.Path) -> set[str]:
    """What `#...` may say of a document, as GitHub makes it from headings."""
    heads = re.findall(r"^#+ (.*)$", path.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


def words_of(command: str) -> list[str]:
    """A command's words; of usage lines, what is in brackets counts and of A|B the first."""
    command = re.sub(r"\[(-[^\]]*)\]", r"\1", command)
    command = re.sub(r"\s\|\s*--?\w+ \w+|\|[\w-]+", "", command)
    words = shlex.split(re.sub(r"\$\w+", "1", command), comments=True)
    for sign in (">", "|", "&&", "&", ";"):
        words = words[: words.index(sign)] if sign in words else words
    return words


class Parsed(Exception):
    """A tool's parser took a command; nothing was run."""


def only_parsed(monkeypatch, needed: bool = True) -> None:
    """From here on, tools end with `Parsed` when they have read their command line.

    Args:
      needed: whether a command must hold all that its tool needs.
    """

    def parse_known_args(self, *arguments, **options):
        for one in [] if needed else [*self._actions, *self._mutually_exclusive_groups]:
            one.required = False
        _, others = PARSE(self, *arguments, **options)
        others = [word for word in others if not word.startswith("--config.")]
        if others:
            self.error(f"unrecognized arguments: {' '.join(others)}")
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse_known_args)


def unknown_names(block: str, known: set[str]) -> set[str]:
    """Names that a block of Python uses and neither makes nor finds among `known`."""
    nodes = list(ast.walk(ast.parse(block)))
    named = [node for node in nodes if isinstance(node, ast.Name)]
    made = {node.id for node in named if isinstance(node.ctx, ast.Store)}
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            made |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            made.add(node.name)
        elif isinstance(node, ast.arg):
            made.add(node.arg)
    used = {node.id for node in named if isinstance(node.ctx, ast.Load)}
    return used - made - known - set(dir(builtins))
