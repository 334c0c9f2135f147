r"""Compiles a run's programs for a TPU slice, on a machine without a TPU; no data needed.

unit-jax compile-for-tpu --config configs/unit.py --topology v5e:2x4
unit-jax compile-for-tpu --topology v5p:2x2x2 --tasks coco,vqa2,qnli --images_per_chip 2 \
    --set model.dtype=bfloat16 --json report.json

It needs XLA's TPU compiler: pip install 'unit-jax[tpu]'. A line per program: of a task's gradients
("gradients"; where matching is solved on the host "forward" and "backward"), its update, its
prediction; at the largest shape of the task, or those that --bucket names. All figures are one
chip's share:

- GB of arguments, outputs (less what takes an argument's place), temporaries and code, and the
  peak: these with everything else that the run keeps there (parameters, statistics, moments);
- GB moved to and from main memory, and FLOPs; a loop's body counts as often as it runs. "by XLA" is
  the compiler's own figure, which counts loops once and what lies in fast memory as if it did not;
- roofline: the longer of FLOPs / peak and bytes / bandwidth, by the makers' figures;
- cycles: the compiler's estimates of all instructions, added up; without communication;
- collectives: kind x how many, with the bytes of their results.

With --estimate nothing is compiled, and no compiler is needed: parameters, the optimiser's share,
gradients and kept activations by their shapes. Scratch space and code come on top, so this says
what cannot fit (a run refuses it at start), and what may.

Then the mean step of the mixture (by sampling ratios), and how many images a chip can hold: by
proportion, from what grows with the batch; --search compiles to make sure.
"""

import argparse
import dataclasses
import json
import math
import multiprocessing
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

from unit_jax import config_files
from unit_jax.settings import MeshSettings, Settings
from unit_jax.tools.speed.steps import only_tasks
from unit_jax.tools.tpu.chips import GIB, Chip, chip_of

AXES = ("data", "fsdp", "tensor")
CRASHED = "the compiler ended with a signal, or for want of memory"
STEP = ("forward", "backward", "gradients", "update")


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config", default="configs/unit.py", help="FILE.py[:variants] (%(default)s)")
    add("--topology", default="v5e:2x4", help="CHIP:SHAPE (%(default)s)")
    add("--chips", type=int, help="only so many chips of the slice (1: one chip by itself)")
    add("--mesh", default="", help="such as data=8 or fsdp=4,tensor=2; default: the config's")
    add("--tasks", default="", help="names, joined by commas; default: all of the config")
    add("--images_per_chip", type=int, help="examples; default: what the config's batch gives")
    add("--bucket", default="", help="such as 800x1072, or 64 (tokens); joined by commas")
    add("--programs", default="", help="only these kinds, such as forward,backward")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting, any number")
    add("--estimate", action="store_true", help="memory by shapes alone; also for h100:8")
    add("--search", action="store_true", help="find the largest images_per_chip by compiling")
    add("--json", default="", help="also write everything to this file")
    options = parser.parse_args(argv)
    try:
        report = make_report(options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(report, indent=1))
    return 0


def make_report(options: argparse.Namespace) -> dict[str, Any]:
    """Compiles and prints; returns what --json writes.

    Raises:
      ValueError: an option or the config is wrong, or there is no TPU compiler.
    """
    chip = chip_of(options.topology)
    devices = slice_size(options)
    settings = read_settings(options, devices)
    print(head := f"{options.topology}, {devices} chips, {_mesh_text(settings)}", flush=True)
    if options.estimate:
        return dict(programs=estimate(settings, chip))
    rows = compile_all(options, settings, show=True)
    report: dict[str, Any] = dict(
        topology=options.topology,
        chips=devices,
        chip=dataclasses.asdict(chip),
        settings=dataclasses.asdict(settings),
        programs=rows,
        mixture=mixture(rows, settings),
    )
    print_mixture(report["mixture"])
    report["code_bytes"] = code_of_run(rows, settings)
    report["fits"] = all(
        row["fits"]
        and row["peak_bytes"] - row["code_bytes"] + report["code_bytes"] <= chip.hbm_bytes
        for row in rows
    )
    print(
        f"code of all programs of these tasks, at all shapes, by proportion: "
        f"{report['code_bytes'] / 1e9:.2f} GB a chip; with it the run "
        f"{'fits' if report['fits'] else 'does not fit'}"
    )
    report["images_per_chip"] = limits(rows)
    if options.search:
        report["images_per_chip"] = search(options, report["images_per_chip"])
    print_limits(report["images_per_chip"], head)
    return report


def slice_size(options: argparse.Namespace) -> int:
    """Chips that are used.

    Raises:
      ValueError: no TPU compiler, no such slice, or it has fewer than --chips.
    """
    chip = chip_of(options.topology)
    if options.estimate:
        chips = math.prod(map(int, options.topology.partition(":")[2].split("x")))
    elif math.isnan(chip.clock):
        raise ValueError(f"--topology {options.topology}: no TPU, so give --estimate")
    else:
        from unit_jax.tools.tpu.programs import slice_devices

        chips = len(slice_devices(options.topology, chip))
    if options.chips is not None and not 1 <= options.chips <= chips:
        raise ValueError(f"--chips {options.chips}: {options.topology} has {chips}")
    return options.chips or chips


def read_settings(options: argparse.Namespace, devices: int) -> Settings:
    """The config with the command line's changes, its batch filled for the slice.

    Raises:
      ValueError: a change or the mesh does not fit.
    """
    from unit_jax.runtime import partitioning

    changes: dict[str, Any] = dict(change.partition("=")[::2] for change in options.set)
    settings = config_files.read(options.config, changes)
    if not settings.model.text_encoder.vocab_size:  # that of data, and there are none
        changes["model.text_encoder.vocab_size"] = 1000
        settings = config_files.read(options.config, changes)
    settings = only_tasks(settings, [name for name in options.tasks.split(",") if name])
    sizes = dataclasses.asdict(settings.mesh)
    if options.mesh:
        sizes = dict.fromkeys(AXES, 1)
        for part in options.mesh.split(","):
            axis, _, size = part.partition("=")
            if axis not in sizes or not size.lstrip("-").isdigit():
                raise ValueError(f"--mesh: {part!r}; write it like data=2,fsdp=4,tensor=1")
            sizes[axis] = int(size)
    mesh = partitioning.abstract_mesh(MeshSettings(**sizes), devices)
    train = settings.train
    if options.images_per_chip:
        size = options.images_per_chip * mesh.shape["data"] * mesh.shape["fsdp"]
        parts = train.accumulate_steps
        train = dataclasses.replace(train, batch_size=size * parts, eval_batch_size=size)
    settings = dataclasses.replace(settings, mesh=MeshSettings(**mesh.shape), train=train)
    parts = settings.train.accumulate_steps
    for name, size in (
        ("train.batch_size / train.accumulate_steps", settings.train.batch_size // parts),
        ("train.eval_batch_size", settings.train.eval_batch_size),
    ):
        partitioning.check_batch_size(name, size, mesh)
    return settings


def compile_all(
    options: argparse.Namespace, settings: Settings, show: bool = False
) -> list[dict[str, Any]]:
    """The rows of all programs. Each task is compiled by a process of its own: the compiler has
    ended some with a signal, and a table must outlive that."""
    rows: list[dict[str, Any]] = []
    wanted = [name for name in options.programs.split(",") if name]
    arguments = (settings, options.topology, options.chips)
    for task, bucket in _work(options, settings):
        for row in _in_a_process(_measure, *arguments, task, bucket, wanted):
            if row.get("error") == CRASHED:
                row.update(task=task, program="(next)", bucket=list(bucket), fits=False)
            rows.append(row)
            if show:
                print_row(row, header=len(rows) == 1)
    return rows


def _measure(settings, topology, chips, task, bucket, wanted) -> Iterator[dict[str, Any]]:
    from unit_jax.tools.tpu import programs

    chip = chip_of(topology)
    devices = programs.slice_devices(topology, chip)[:chips]
    yield from programs.measure(settings, devices, chip, task, bucket, wanted)


def _in_a_process(function, *arguments) -> Iterator[dict[str, Any]]:
    """What a generator yields, run in a process of its own; a last row with an error if that ends
    before its time."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(there, function, *arguments))
    process.start()
    there.close()
    try:
        while (row := here.recv()) is not None:
            if isinstance(row, Exception):
                raise row
            yield row
    except EOFError:
        yield dict(error=CRASHED)
    finally:
        here.close()
        process.join()


def _send(pipe, function, *arguments) -> None:
    """Sends the rows, then None, or the exception that ended them: it is no crash."""
    try:
        for row in function(*arguments):
            pipe.send(row)
        pipe.send(None)
    except Exception as error:
        pipe.send(error)


def _work(options: argparse.Namespace, settings: Settings) -> list[tuple[str, tuple[int, ...]]]:
    from unit_jax.tools.tpu.programs import largest_bucket

    given = [tuple(map(int, text.split("x"))) for text in options.bucket.split(",") if text]
    work = []
    for name, spec in settings.tasks.items():
        own = [bucket for bucket in given if len(bucket) == 1 + spec.has_image]
        work += [(name, bucket) for bucket in own or [largest_bucket(spec, settings)]]
    return work


def mixture(rows: list[dict[str, Any]], settings: Settings) -> dict[str, float] | None:
    """The mean step: sums over a step's programs, tasks weighted by their sampling ratios. None
    where a program of a step does not compile."""
    sums: dict[str, dict[str, float]] = {}
    keys = ("bytes_accessed", "bytes_accessed_xla", "flops", "roofline_ms", "cycles_ms")
    first = {}
    for row in rows:
        if row["program"] in STEP:
            if "error" in row:
                return None
            if first.setdefault(row["task"], row["bucket"]) == row["bucket"]:
                total = sums.setdefault(row["task"], dict.fromkeys(keys, 0.0))
                for key in keys:
                    total[key] += row[key]
    weights = {task: settings.ratios[task] for task in sums}
    if not sum(weights.values()):
        return None
    return {
        key: sum(weights[task] * sums[task][key] for task in sums) / sum(weights.values())
        for key in keys
    }


def code_of_run(rows: list[dict[str, Any]], settings: Settings) -> float:
    """Bytes of all programs of a run, which stay on the chip together: each task's at each of its
    shapes as large as at the one compiled, an update for each kind of inputs."""
    total, updates = 0.0, set()
    first = {}
    for row in rows:
        spec = settings.tasks[row["task"]]
        if "error" in row or first.setdefault(spec.name, row["bucket"]) != row["bucket"]:
            continue
        shapes = len(settings.data.buckets)
        if not spec.has_image:
            shorter = {size for size in settings.data.text_buckets if size < spec.max_tokens}
            shapes = len(shorter) + 1
        if row["program"] == "update":
            shapes = 1 - (spec.inputs in updates)
            updates.add(spec.inputs)
        total += shapes * row["code_bytes"]
    return total


def estimate(settings: Settings, chip: Chip) -> list[dict[str, Any]]:
    """Prints and returns what each kind of task needs of a chip, by shapes."""
    from unit_jax.runtime import partitioning
    from unit_jax.training import fit
    from unit_jax.training.state import abstract_run

    mesh = partitioning.abstract_mesh(settings.mesh, math.prod(dataclasses.astuple(settings.mesh)))
    graph, state = abstract_run(settings, mesh)
    print("| task | shape | state | gradients | activations | GB in all | of | at most |")
    print("| --- | --- |" + " ---: |" * 6)
    rows = []
    for spec, bucket in fit.largest(settings):
        need = fit.estimate(graph, settings, mesh, state, spec, bucket)
        left = chip.hbm_bytes - need.state - need.gradients
        most = int(left // (need.activations / need.examples))
        sizes = (need.state, need.gradients, need.activations, need.total, chip.hbm_bytes)
        cells = [spec.name, "x".join(map(str, (need.examples, *bucket)))]
        print("|", " | ".join([*cells, *(f"{size / 1e9:.2f}" for size in sizes), str(most)]), "|")
        rows.append(dataclasses.asdict(need) | dict(hbm_bytes=chip.hbm_bytes, at_most=most))
    return rows


def limits(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By task: the most examples a chip can hold, and the program that holds the next one.

    By proportion: what a program needs beside the run's state and its own code grows with the
    examples.
    """
    limit_of: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["program"] == "update" or not row.get("peak_bytes"):
            continue
        fixed = row.get("fixed_bytes", 0)
        each = (row["peak_bytes"] - fixed) / row["examples_per_chip"]
        most = int((row["hbm_bytes"] - fixed) // each) if each > 0 else 0
        task = limit_of.setdefault(row["task"], dict(most=most, holds=row["program"], each=each))
        if most < task["most"]:
            limit_of[row["task"]] = dict(most=most, holds=row["program"], each=each)
    return limit_of


def search(options: argparse.Namespace, limit: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The same by compiling: from the estimate up or down until one fits and the next does not."""
    for task, own in limit.items():
        trial = argparse.Namespace(**{**vars(options), "tasks": task, "programs": ""})
        fitting: dict[int, bool] = {}
        number = max(1, own["most"])
        while number >= 1 and not (fitting.get(number) and fitting.get(number + 1) is False):
            if number not in fitting:
                trial.images_per_chip = number
                rows = compile_all(trial, read_settings(trial, slice_size(trial)))
                steps = [row for row in rows if row["program"] != "predict"]
                fitting[number] = all(row["fits"] for row in steps)
                if not fitting[number]:
                    own["holds"] = next(row["program"] for row in steps if not row["fits"])
            if not fitting[number]:
                number -= 1
            elif fitting.get(number + 1) is None:
                number += 1
        own.update(most=number, compiled=True)
    return limit


HEADER = (
    "| task | shape | program | s | arguments | outputs | temporary | code | peak | of | fits | "
    "GFLOP | GB moved | by XLA | roofline ms | cycles ms | collectives |"
)


def print_row(row: dict[str, Any], header: bool) -> None:
    """A row of the table of programs, after the header if it is the first."""
    if header:
        print(HEADER + "\n|" + " --- |" * 3 + " ---: |" * 13 + " --- |")
    shape = "x".join(map(str, (row.get("examples_per_chip", "?"), *row["bucket"])))
    cells = [row["task"], shape, row["program"]]
    if "error" in row:
        peak = row.get("peak_bytes")
        told = f"needs {peak / GIB:.2f} GiB" if peak else row["error"]
        cells += [""] * 5 + [told, "", "no"] + [""] * 6
    else:
        over = row["peak_bytes"] - row["hbm_bytes"]
        cells += [f"{row['seconds']:.0f}"]
        keys = ("argument_bytes", "output_bytes", "temporary_bytes", "code_bytes", "peak_bytes")
        cells += [f"{row[key] / 1e9:.2f}" for key in (*keys, "hbm_bytes")]
        cells += ["yes" if row["fits"] else f"no: {over / 1e9:.2f} GB too much"]
        cells += [f"{row['flops'] / 1e9:.0f}"]
        cells += [f"{row[key] / 1e9:.2f}" for key in ("bytes_accessed", "bytes_accessed_xla")]
        star = "*" if row["unknown_loops"] else ""
        cells += [f"{row['roofline_ms']:.1f}", f"{row['cycles_ms']:.1f}{star}"]
        cells += [
            ", ".join(
                f"{kind} x{value['count']} {value['bytes'] / 1e9:.2f} GB"
                for kind, value in row["collectives"].items()
            )
            or "-"
        ]
    print("|", " | ".join(cells), "|", flush=True)


def print_mixture(mean: dict[str, float] | None) -> None:
    """The mean step; None = a program did not compile."""
    if mean is None:
        print("\nmixture: no mean, for a program did not compile")
        return
    print(
        f"\nmixture, mean step: {mean['flops'] / 1e9:.0f} GFLOP, "
        f"{mean['bytes_accessed'] / 1e9:.1f} GB moved, roofline {mean['roofline_ms']:.1f} ms, "
        f"cycles {mean['cycles_ms']:.1f} ms (* = with loops of unknown length, counted once)"
    )


def print_limits(limit: dict[str, dict[str, Any]], head: str) -> None:
    """How many examples of each task a chip can hold, and what holds the next."""
    print(f"\nexamples a chip can hold ({head}):")
    for task, own in limit.items():
        how = "compiled" if own.get("compiled") else "by proportion"
        print(
            f"- {task}: {own['most']} ({how}); the next is held by {own['holds']}, "
            f"{own['each'] / 1e9:.2f} GB an example"
        )


def _mesh_text(settings: Settings) -> str:
    sizes = ", ".join(f"{axis} {size}" for axis, size in dataclasses.asdict(settings.mesh).items())
    return f"mesh {sizes}; batch {settings.train.batch_size}; {settings.model.dtype}"


if __name__ == "__main__":
    sys.exit(main())
