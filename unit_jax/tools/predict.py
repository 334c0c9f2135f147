"""Asks a model about pictures and texts: JSON lines, COCO results and annotated pictures out.

unit-jax predict --model demo --task coco --images photos/ --output found.jsonl --draw drawn/
unit-jax predict --model demo --task vqa2 --image cat.jpg --text "what is it?" --output said.jsonl

--images takes a folder, a pattern ("photos/*.jpg"), or a .jsonl file whose lines hold `image`,
`text` and `text_b`. A line of the output holds what was given as `image`, `text` and `text_b`, and,
for objects, `detections` (a list of `label`, `score`, `box_xyxy`), else `answers` (a list of
`label`, `score`, best first), or `error`. With --output FILE.json detections are written as a COCO
results file, in which image_id is a number in the file's name, else the position.

Broken pictures are counted and gone past. Exit status: 0 all answered, 1 nothing could be done,
3 some inputs failed.
"""

import argparse
import collections
import contextlib
import itertools
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

SOME_FAILED = 3
FIELDS = ("image", "text", "text_b")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    options = parse(arguments)
    try:
        asked, count = examples(options)
        return run(options, asked, count)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", default="demo", help='"demo", a working folder, a step\'s folder, a file')
    add("--task", required=True, help="one of the model's tasks, such as coco or vqa2")
    pictures = parser.add_mutually_exclusive_group()
    pictures.add_argument("--image", help="one picture")
    pictures.add_argument("--images", help="a folder, a pattern, or a .jsonl file of questions")
    add("--text", help="question, hypothesis or text")
    add("--text_b", help="the second of two texts")
    add("--threshold", type=float, default=0.5, help="least score of a detection; default 0.5")
    add("--top", type=int, help="at most so many detections (default 100) or answers (all)")
    add("--output", required=True, help="FILE.jsonl, or FILE.json for COCO results")
    add("--draw", help="folder for annotated pictures")
    add("--batch_size", type=int, default=8, help="examples that go through the model at once")
    add("--data_dir", default="", help="prepared data with the names that old weights lack")
    add("--config", default="", help=argparse.SUPPRESS)
    add("--no_exif", action="store_true", help="take pictures as stored, not turned by their EXIF")
    return parser.parse_args(arguments)


def examples(options: argparse.Namespace) -> tuple[Iterable[dict[str, Any]], int]:
    """What is asked, one dict per example, and how many there are.

    Raises:
      ValueError: no such picture, folder or file.
    """
    shared = {name: getattr(options, name) for name in FIELDS if getattr(options, name) is not None}
    if options.images and options.images.endswith(".jsonl"):
        lines = _read_lines(options.images, shared)
        return lines, len(lines)
    if options.images:
        from unit_jax.api import images

        paths = images.listed(options.images)
        return [{**shared, "image": path} for path in paths], len(paths)
    return [shared], 1


def _read_lines(path: str, shared: dict[str, str]) -> list[dict[str, Any]]:
    asked = []
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from None
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
            given = {name: values[name] for name in FIELDS if values.get(name) is not None}
            if not all(isinstance(value, str) for value in given.values()):
                raise ValueError("image, text and text_b must be strings")
        except (ValueError, AttributeError, TypeError) as error:
            asked.append({"error": f"{path}, line {number}: {error}"})
            continue
        asked.append({**shared, **given})
    if not asked:
        raise ValueError(f"{path}: no lines in it")
    return asked


def run(options: argparse.Namespace, asked: Iterable[dict[str, Any]], count: int) -> int:
    """Answers and writes; returns the exit status."""
    import unit_jax

    output = Path(options.output)
    as_coco = output.suffix == ".json"
    if not as_coco and output.suffix != ".jsonl":
        raise ValueError(f"--output {output}: the name should end in .jsonl, or .json (COCO)")
    keep_programs()
    model = unit_jax.load(
        options.model,
        data_dir=options.data_dir,
        batch_size=options.batch_size,
        exif=not options.no_exif,
    )
    spec = model.spec(options.task)
    if as_coco and spec.output != "objects":
        raise ValueError(f"--output {output}: {spec.name} finds no objects; use .jsonl")
    problem = missing(spec, options)
    if problem:
        raise ValueError(problem)
    output.parent.mkdir(parents=True, exist_ok=True)
    if options.draw:
        Path(options.draw).mkdir(parents=True, exist_ok=True)
    done = failed = 0
    first_error, entries = "", []
    drawn: collections.Counter[str] = collections.Counter()
    results = answers(model, options, asked)
    if count > 1:
        results = tqdm(results, total=count, desc=options.task, unit="")
    with contextlib.ExitStack() as stack:
        # Written as it comes: a run that is stopped has said what it knows.
        lines = None if as_coco else stack.enter_context(open(output, "w", encoding="utf-8"))
        for position, (example, result) in enumerate(results):
            if isinstance(result, ValueError):
                failed += 1
                first_error = first_error or str(result)
                line = {name: example[name] for name in FIELDS if name in example}
                line["error"] = str(result)
            else:
                done += 1
                given = {name: example[name] for name in FIELDS if example.get(name)}
                line = {**given, **result.to_dict()}
                if as_coco:
                    entries += result.to_coco(image_id(example["image"], position))
                if options.draw:
                    name = Path(example.get("image") or f"{options.task}-{position:05d}").stem
                    drawn[name] += 1
                    again = f"-{drawn[name]}" if drawn[name] > 1 else ""
                    result.draw().save(Path(options.draw) / f"{name}{again}.png")
            if lines:
                lines.write(json.dumps(line, ensure_ascii=False) + "\n")
                lines.flush()
    if as_coco:
        output.write_text(json.dumps(entries))
    if count == 1 and done and not failed:
        print(repr(result))
    told = f"{options.task}: {done} answered" + f", {failed} failed" * bool(failed)
    print(f"{told}; {output}" + f"; pictures in {options.draw}" * bool(options.draw))
    if failed:
        print(f"error: {failed} of {count} failed, the first: {first_error}", file=sys.stderr)
        return SOME_FAILED if done else 1
    return 0


def keep_programs() -> None:
    """Compiled programs are kept in the user's cache, so that the next call starts at once."""
    from etils import epath

    from unit_jax.training import compilation

    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    compilation.keep_programs(epath.Path(cache) / "unit_jax" / "programs")


def missing(spec, options: argparse.Namespace) -> str | None:
    """What the task needs and the command line does not give; lines of a file may give it."""
    if options.images and options.images.endswith(".jsonl"):
        return None
    if spec.has_image and not (options.image or options.images):
        return f"--task {spec.name} needs --image or --images"
    if not spec.has_image and (options.image or options.images):
        return f"--task {spec.name} takes no pictures, only --text"
    if spec.has_text and not options.text:
        return f"--task {spec.name} needs --text"
    if not spec.has_text and (options.text or options.text_b):
        return f"--task {spec.name} takes no text"
    return None


def answers(
    model, options: argparse.Namespace, asked: Iterable[dict[str, Any]]
) -> Iterator[tuple[dict[str, Any], Any]]:
    """(what was asked, the result or a ValueError), in order; not all are kept at once."""
    spec = model.spec(options.task)
    many = options.batch_size if not isinstance(asked, list) or len(asked) > 1 else 1
    asked = iter(asked)
    while chunk := list(itertools.islice(asked, 4 * many)):
        problems = {i: found for i, one in enumerate(chunk) if (found := _problem(spec, one))}
        good = [one for i, one in enumerate(chunk) if i not in problems]
        given = {
            "image": [one["image"] for one in good] if spec.has_image else None,
            "text": [one["text"] for one in good] if spec.has_text else None,
            "text_b": [one.get("text_b", "") for one in good] if spec.has_text else None,
        }
        results = iter(
            model.predict(
                options.task,
                **given,
                threshold=options.threshold,
                top=options.top,
                batch_size=many,
                progress=False,
                errors="return",
            )
            if good
            else ()
        )
        for i, one in enumerate(chunk):
            yield one, ValueError(problems[i]) if i in problems else next(results)


def _problem(spec, one: dict[str, Any]) -> str | None:
    if "error" in one:
        return one["error"]
    for name, wanted in (("image", spec.has_image), ("text", spec.has_text)):
        if wanted and not one.get(name):
            return f"{spec.name} needs {name}"
        if not wanted and one.get(name):
            return f"{spec.name} takes no {name}"
    return None


def image_id(path: str, position: int) -> int:
    """The number that a data set's file name ends in (000000000139.jpg), else the position."""
    digits = re.search(r"(\d+)$", os.path.splitext(os.path.basename(path))[0])
    return int(digits.group(1)) if digits else position


if __name__ == "__main__":
    sys.exit(main())
