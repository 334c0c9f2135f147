"""Measures training steps on made-up batches: speed, where the time goes, FLOPs, memory.

unit-jax benchmark --image 320x320 --batch 2 --tasks coco,vqa2,qnli
unit-jax benchmark --reference torch --json benchmark.json

Per task, and for the mixture (steps weighted by the config's sampling ratios):

- examples a second, and milliseconds a step: of these input (host to device, measured alone),
  matching (the device waits for the host) and device (the rest). Batches are made up once and stay
  in host memory, so reading and decoding are not in it (tools/measure_loader.py measures these);
- FLOPs of a step, by formula (what the model must compute) and by XLA's cost analysis (what its
  programs compute before they are optimised, the update and elementwise work included);
- MFU: the formula's FLOPs over the device's peak, where that is known;
- memory: arguments, results and scratch of the step's largest program, as XLA plans it; all in one
  device's share.

--reference torch measures the same architecture in PyTorch (pip install unit-jax[benchmark]) in the
same run: blocks of steps take turns, the medians are compared, and both sides start from the same
weights and must agree on the number of parameters and on the loss without dropout. It computes in
`model.dtype` (bfloat16: autocast), on the GPU where there is one, there also with torch.compile.
"""

import argparse
import dataclasses
import gc
import json
import math
import os
import pathlib
import platform
import statistics
import sys
import time
from typing import Any

# JAX would keep most of a GPU's memory from PyTorch.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import numpy as np

from unit_jax import outputs as rooms
from unit_jax.batch import Batch
from unit_jax.settings import Settings
from unit_jax.tools.speed import steps
from unit_jax.tools.speed.flops import model_flops, utilisation
from unit_jax.tools.speed.ours import Ours

SAME_LOSS = dict(float32=2e-4, bfloat16=3e-2)  # relative difference to PyTorch's
PARTS = ("ms", "ms_input", "ms_matching", "ms_device")


def main(argv: list[str] | None = None) -> None:
    """Measures the sides that the options ask for, and prints a table."""
    options = parse(argv)
    settings = steps.load_settings(options)
    if settings.model.dtype == "float32":
        jax.config.update("jax_default_matmul_precision", "highest")
    ours = Ours(settings)
    sides = {"ours": ours, **references(options, settings, ours)}
    batches = {
        task: steps.made_up_batch(spec, settings, options) for task, spec in settings.tasks.items()
    }
    if len(sides) > 1:
        for batch in batches.values():
            check_losses(sides, batch, SAME_LOSS[settings.model.dtype])
    # Every task takes a step before the first is measured: from then on the optimiser updates all
    # parameters in every step, as in training.
    compiled = {task: ours.compile(batch) for task, batch in batches.items()}
    for batch in batches.values():
        for side in sides.values():
            run_block(side, batch, 1)
    rows = []
    for batch in batches.values():
        times = measure(sides, batch, options.blocks, options.steps)
        rows.append(describe(settings, batch, times) | compiled[batch.task])
        rows[-1]["ms_programs"] = ours.programs_ms(batch)
        if rooms.room(settings.tasks[batch.task]).matches:
            rows[-1]["ms_matching_on_device"] = ours.device_matching_ms(batch)
        told = {name: f"{side['ms']:.1f} ms" for name, side in rows[-1]["sides"].items()}
        print(f"{batch.task}: {told}", file=sys.stderr)
    rows.append(mixture(rows, settings))
    result = dict(
        command=" ".join(["python", *sys.argv] if argv is None else argv),
        date=time.strftime("%Y-%m-%d"),
        machine=describe_machine(),
        parameters=ours.parameters,
        settings=dataclasses.asdict(settings),
        rows=rows,
    )
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(result, indent=1))
    show(result, list(sides))


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    steps.add_options(parser)
    add = parser.add_argument
    add("--blocks", type=int, default=3, help="measurements of each side (%(default)s)")
    add("--steps", type=int, default=2, help="steps of a measurement (%(default)s)")
    add("--json", default="", help="also write everything to this file")
    add("--reference", choices=["none", "torch"], default="none", help="measure PyTorch too")
    return parser.parse_args(argv)


def references(options: argparse.Namespace, settings: Settings, ours: Ours) -> dict[str, Any]:
    """PyTorch's sides by name: one, and on a GPU another with torch.compile."""
    if options.reference == "none":
        return {}
    try:
        from unit_jax.tools.speed import torch_step
    except ImportError as error:
        raise SystemExit(
            f'error: --reference torch: {error}; install it: pip install "unit-jax[benchmark]"'
        ) from None
    sides = {"torch": torch_step.build(settings, ours.mmf_weights())}
    if sides["torch"].device.type == "cuda":
        sides["torch.compile"] = torch_step.build(settings, ours.mmf_weights())
        sides["torch.compile"].compile()
    if sides["torch"].parameters != ours.parameters:
        raise SystemExit(
            f"error: torch has {sides['torch'].parameters:,} parameters, ours {ours.parameters:,}"
        )
    return sides


def check_losses(sides: dict[str, Any], batch: Batch, tolerance: float) -> None:
    """Ends the run unless all sides give the same loss without dropout (before any update)."""
    losses = {name: side.evaluation_loss(side.put(batch)) for name, side in sides.items()}
    told = f"{batch.task}: loss without dropout: {losses}"
    print(told, file=sys.stderr)
    if not all(math.isclose(loss, losses["ours"], rel_tol=tolerance) for loss in losses.values()):
        raise SystemExit(f"error: {told}; these differ by more than {tolerance:g}")


def measure(
    sides: dict[str, Any], batch: Batch, blocks: int, steps: int
) -> dict[str, dict[str, float]]:
    """Milliseconds of a step and of its parts (PARTS), by side: medians over blocks of steps.

    The sides take turns, and who begins changes from block to block.
    """
    found: dict[str, list[tuple[float, ...]]] = {name: [] for name in sides}
    for block in range(blocks):
        for name in list(sides)[:: 1 if block % 2 == 0 else -1]:
            gc.collect()
            found[name].append(run_block(sides[name], batch, steps))
    return {
        name: dict(zip(PARTS, map(statistics.median, zip(*times, strict=True)), strict=True))
        for name, times in found.items()
    }


def run_block(side: Any, batch: Batch, steps: int) -> tuple[float, ...]:
    """Milliseconds of a step in a row of steps, as PARTS; input is measured after them, alone."""
    matching_ms = 0.0
    side.synchronise()
    start = time.perf_counter()
    for _ in range(steps):
        side.step(side.put(batch))
        matching_ms += side.matching_ms / steps
    side.synchronise()
    end = time.perf_counter()
    side.synchronise(side.put(batch))
    input_ms = 1000 * (time.perf_counter() - end)
    step_ms = 1000 * (end - start) / steps
    return step_ms, input_ms, matching_ms, step_ms - input_ms - matching_ms


def describe(settings: Settings, batch: Batch, times: dict[str, dict[str, float]]) -> dict:
    """The row of a task."""
    flops = model_flops(settings.tasks[batch.task], settings, batch)
    sides = {name: with_rates(time_of, flops, settings) for name, time_of in times.items()}
    return dict(task=batch.task, flops_formula=flops, sides=sides)


def mixture(rows: list[dict[str, Any]], settings: Settings) -> dict[str, Any]:
    """The row of the mean step, tasks weighted by their sampling ratios."""
    weights = np.array([settings.ratios[row["task"]] for row in rows])

    def mean(values) -> float:
        return float(np.average(list(values), weights=weights))

    flops = mean(row["flops_formula"] for row in rows)
    sides = {}
    for name in rows[0]["sides"]:
        parts = {part: mean(row["sides"][name][part] for row in rows) for part in PARTS}
        sides[name] = with_rates(parts, flops, settings)
    return dict(
        task="mixture",
        flops_formula=flops,
        flops_xla=mean(row["flops_xla"] for row in rows),
        memory_bytes=max(row["memory_bytes"] for row in rows),
        sides=sides,
    )


def with_rates(times: dict[str, float], flops: float, settings: Settings) -> dict[str, Any]:
    """Times of a step with what follows from them."""
    return dict(
        **times,
        examples_per_second=1000 * settings.train.batch_size / times["ms"],
        mfu=utilisation(flops, times["ms"], settings.model.dtype),
    )


def describe_machine() -> str:
    """Devices, processor cores and version of JAX in a line."""
    devices = jax.devices()
    return (
        f"{len(devices)} x {devices[0].device_kind} ({platform.machine()}, {os.cpu_count()} CPU "
        f"cores), jax {jax.__version__}"
    )


def show(result: dict[str, Any], sides: list[str]) -> None:
    """Prints the table, then matching on the host beside that on the device, and compilation."""
    base = "torch" if "torch" in sides else "ours"
    print(f"{result['parameters']:,} parameters; {result['machine']}\n")
    print(
        "| task | side | examples/s | ms/step | input | matching | device | MFU | speed |", end=""
    )
    print(" GFLOPs, formula | GFLOPs, XLA | GB |\n|" + " --- |" * 2 + " ---: |" * 10)
    for row in result["rows"]:
        for name in sides:
            side = row["sides"][name]
            cells = [row["task"], name, f"{side['examples_per_second']:.2f}"]
            cells += [f"{side[part]:.1f}" for part in PARTS]
            cells += ["-" if side["mfu"] is None else f"{side['mfu']:.1%}"]
            cells += [f"{row['sides'][base]['ms'] / side['ms']:.2f}"]
            if name == "ours":
                cells += [f"{row[key] / 1e9:.0f}" for key in ("flops_formula", "flops_xla")]
                cells += [f"{row['memory_bytes'] / 1e9:.2f}"]
            else:
                cells += [""] * 3
            print("|", " | ".join(cells), "|")
    print()
    for row in result["rows"]:
        if "compile_seconds" in row:
            alone = (f"{name} {took:.0f} ms" for name, took in row["ms_programs"].items())
            seconds = (f"{name} {took:.1f} s" for name, took in row["compile_seconds"].items())
            print(f"{row['task']}: {', '.join(alone)}; compiled: {', '.join(seconds)}")
        if "ms_matching_on_device" in row:
            print(
                f"{row['task']}: the device waits {row['sides']['ours']['ms_matching']:.2f} ms a "
                f"step for the host's matching; the solver on the device takes "
                f"{row['ms_matching_on_device']:.2f} ms"
            )


if __name__ == "__main__":
    main()
