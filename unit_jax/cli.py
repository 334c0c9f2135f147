"""The installed command: `unit-jax WORD ...`, a word per thing that can be done.

`unit-jax --config=... --workdir=...` is `python -m unit_jax.main`, as are the words train and eval.
All other words are modules of `unit_jax/tools/`; a module added there is a word at once.
"""

import importlib
import os
import pkgutil
import sys
from collections.abc import Sequence

# Words whose module is called otherwise.
ALIASES = {
    "prepare": "prepare_data",
    "convert": "convert_checkpoint",
    "demo-data": "make_demo_data",
    "demo-weights": "make_demo_weights",
}
MODES = {
    "train": "train a model: --config=FILE.py[:variants] --workdir=DIR",
    "eval": "evaluate a checkpoint on a prepared split: --config, --workdir, --checkpoint, --split",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a word; returns its exit status."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's notes are not for the terminal
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    word, *rest = arguments
    if word.startswith("-"):
        return _main(arguments)
    if word in MODES:
        return _main([f"--mode={word}", *rest])
    if word == "predict" and any(a.split("=")[0].lstrip("-") == "config" for a in rest):
        return _main(["--mode=predict", *rest])  # files for benchmarks, of a prepared split
    tools = words()
    if word not in tools:
        print(f"error: unit-jax has no word {word!r}{_near(word, tools)}", file=sys.stderr)
        print("`unit-jax --help` lists them", file=sys.stderr)
        return 2
    sys.argv = [f"unit-jax {word}", *rest]  # what argparse puts into its help
    return importlib.import_module(f"unit_jax.tools.{tools[word]}").main() or 0


def words() -> dict[str, str]:
    """The words that are tools, and the module of each."""
    folder = os.path.join(os.path.dirname(__file__), "tools")
    modules = [module.name for module in pkgutil.iter_modules([folder]) if not module.ispkg]
    called = {module: word for word, module in ALIASES.items()}
    return {called.get(module, module.replace("_", "-")): module for module in sorted(modules)}


def usage() -> str:
    """All words, each with the first sentence of its module."""
    lines = {**MODES, **{word: _summary(module) for word, module in words().items()}}
    width = max(map(len, lines)) + 2
    order = ["predict", "train", "eval", "prepare", "convert", "export"]
    listed = sorted(lines, key=lambda w: (order.index(w) if w in order else len(order), w))
    return "\n".join(
        [
            "usage: unit-jax WORD ...   (unit-jax WORD --help tells its options)",
            "",
            *(f"  {word:<{width}}{lines[word]}" for word in listed),
            "",
            "without a word: unit-jax --config=FILE.py --workdir=DIR [--mode=train|eval|predict]",
        ]
    )


def _summary(module: str) -> str:
    """The first sentence of a tool's docstring, without importing the tool."""
    import ast

    path = os.path.join(os.path.dirname(__file__), "tools", f"{module}.py")
    with open(path, encoding="utf-8") as file:
        text = ast.get_docstring(ast.parse(file.read())) or ""
    return " ".join(text.split("\n\n")[0].split()).split(". ")[0].rstrip(".")


def _near(word: str, known: dict[str, str]) -> str:
    import difflib

    near = difflib.get_close_matches(word, [*known, *MODES], 1)
    return f"; did you mean {near[0]}?" if near else ""


def _main(arguments: list[str]) -> int:
    from unit_jax import main as trainer

    sys.argv = ["unit-jax", *arguments]
    trainer.run()  # exits by itself
    return 0


def run() -> None:
    """The console command `unit-jax`."""
    sys.exit(main())


if __name__ == "__main__":
    run()
