"""Exports a model as programs that run with JAX alone, and measures them.

unit-jax export --model demo --output exported/ [--tasks coco,vqa2] [--platforms cpu,cuda,tpu]

The folder gets serialised StableHLO per task, the weights, the names and the vocabulary;
`unit_jax.load_exported("exported")` runs it. Resizing, normalising and boxes in pixels are inside.
"""

import argparse
import sys
import time

import numpy as np


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", default="demo", help='"demo", a working folder, a step\'s folder, a file')
    add("--output", required=True, help="a new folder, or one that was exported to before")
    add("--tasks", default="", help="which, with commas; default: all")
    add("--platforms", default="cpu,cuda,tpu", help="what the programs are for, with commas")
    add("--weights", choices=["beside", "inside"], default="beside",
        help="once in weights.npz, or in every program")  # fmt: skip
    add("--data_dir", default="", help="prepared data with the names that old weights lack")
    options = parser.parse_args(arguments)
    try:
        import unit_jax
        from unit_jax.api import export

        model = unit_jax.load(options.model, data_dir=options.data_dir)
        made = export.export(
            model,
            options.output,
            [task for task in options.tasks.split(",") if task] or None,
            platforms=[name for name in options.platforms.split(",") if name],
            weights_inside=options.weights == "inside",
        )
        print(table(made, options.output))
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def table(made, folder: str) -> str:
    """Sizes of the files and, of each task, the milliseconds that one example and eight take."""
    from unit_jax import exported

    model = exported.load_exported(folder)
    lines = [f"{'program':<28}{'kB':>8}{'1 example':>12}{'8 examples':>12}"]
    timed = set()
    for one in made:
        times = ["", ""]
        if one.task in model.tasks and one.task not in timed:
            timed.add(one.task)
            times = [f"{milliseconds(model, one.task, count):.1f} ms" for count in (1, 8)]
        lines.append(f"{one.file:<28}{one.size / 1000:>8.0f}{times[0]:>12}{times[1]:>12}")
    lines.append(f"in {folder}; weights {model.manifest['weights']}")
    return "\n".join(lines)


def milliseconds(model, task: str, count: int, repeats: int = 5) -> float:
    """The median time of an answer to `count` examples, compiled before."""
    entry = model.manifest["tasks"][task]
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3)).astype(np.uint8)
    given = {}
    if "image" in entry["inputs"]:
        given["image"] = [pixels] * count
    if "text" in entry["inputs"]:
        given["text"] = ["what is it?"] * count
    model.predict(task, **given)
    spent = []
    for _ in range(repeats):
        start = time.perf_counter()
        model.predict(task, **given)
        spent.append(time.perf_counter() - start)
    return 1000 * float(np.median(spent))


if __name__ == "__main__":
    sys.exit(main())
