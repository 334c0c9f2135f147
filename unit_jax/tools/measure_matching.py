"""Measures where a detection step's assignment is best solved.

unit-jax measure-matching --tasks coco [--batch 2] [--image 320x320] [--repeats 10]

The same gradients are computed in three ways, by turns, so that other load meets all of them:

- split: a program up to the matching costs, scipy on the host, a program for the rest
  (`loss.matcher="scipy"`, the default);
- callback: one program that calls scipy from within (`jax.pure_callback` under shard_map). Only
  this tool has it: an error in a callback does not reach the caller as such;
- device: one program with the exact solver of optax (`loss.matcher="device"`).

Prints the median milliseconds of each, their ratio to the split, and for the split how long the
device waits for the host; all three must give the same loss.
"""

import argparse
import dataclasses
import math
import statistics
import time

import jax
import numpy as np
from jax.sharding import PartitionSpec

from unit_jax import outputs as rooms
from unit_jax.batch import Batch
from unit_jax.outputs.objects import matching
from unit_jax.runtime import partitioning
from unit_jax.settings import Settings
from unit_jax.tools.speed import steps
from unit_jax.tools.speed.ours import Ours
from unit_jax.training import optimizer as optim
from unit_jax.training.step import Gradients, TrainState

SAME_LOSS = 1e-5  # relative; the programs are fused differently


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    steps.add_options(parser)
    parser.add_argument("--repeats", type=int, default=10, help="of each way (%(default)s)")
    options = parser.parse_args(argv)
    settings = steps.load_settings(options)
    tasks = [spec for spec in settings.tasks.values() if rooms.room(spec).matches]
    if not tasks:
        raise SystemExit("error: --tasks: none of these is detection; use coco or visual_genome")
    ours = Ours(settings)
    sides = ways(settings, ours.graph, ours.mesh)
    for spec in tasks:
        batch = ours.put(steps.made_up_batch(spec, settings, options))
        print(f"{spec.name:<20}{'ms':>8}{'ratio':>8}{'waits, ms':>11}")
        rows = measure(sides, ours.state, batch, options.repeats)
        for name, (milliseconds, waits) in rows.items():
            ratio = milliseconds / rows["split"][0]
            told = "" if math.isnan(waits) else f"{waits:.1f}"
            print(f"  {name:<18}{milliseconds:>8.1f}{ratio:>8.3f}{told:>11}")


class WithCallback(Gradients):
    """One program; each device's own examples are solved by scipy, called from within."""

    def match_on_device(self, costs: jax.Array, object_mask: jax.Array) -> jax.Array:
        over_batch = PartitionSpec(None, partitioning.BATCH_AXES)

        def solve(costs: jax.Array, object_mask: jax.Array) -> jax.Array:
            matches = jax.ShapeDtypeStruct((len(costs), *object_mask.shape), np.int32)
            return jax.pure_callback(_match, matches, costs, object_mask)

        return jax.shard_map(
            solve,
            mesh=self._mesh,
            in_specs=(over_batch, PartitionSpec(partitioning.BATCH_AXES)),
            out_specs=over_batch,
            check_vma=False,
        )(costs, object_mask)


def _match(costs: jax.Array, object_mask: jax.Array) -> np.ndarray:
    return matching.match(np.asarray(costs), np.asarray(object_mask))


def ways(settings: Settings, graph, mesh) -> dict[str, Gradients]:
    """The three, by name."""

    def build(of: type[Gradients], matcher: str) -> Gradients:
        loss = dataclasses.replace(settings.loss, matcher=matcher)
        optimizer = optim.Optimizer(settings.optimizer, settings.train.steps)
        return of(graph, dataclasses.replace(settings, loss=loss), optimizer, mesh)

    return dict(
        split=build(Gradients, "scipy"),
        callback=build(WithCallback, "device"),
        device=build(Gradients, "device"),
    )


def measure(
    sides: dict[str, Gradients], state: TrainState, batch: Batch, repeats: int
) -> dict[str, tuple[float, float]]:
    """By name: median milliseconds of the gradients, and what the device waits for the host (nan
    where the program does not tell). Raises SystemExit if the losses differ."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    losses = {}
    for repeat in range(repeats + 1):
        for name, gradients in sides.items():
            start = time.perf_counter()
            logs, _ = jax.block_until_ready(gradients(state, batch))
            milliseconds = 1000 * (time.perf_counter() - start)
            losses[name] = float(logs["loss"])
            if repeat:  # the first compiles
                times[name].append((milliseconds, logs.get("matching_ms", math.nan)))
    if not np.allclose([*losses.values()], losses["split"], rtol=SAME_LOSS, atol=0):
        raise SystemExit(f"error: {batch.task}: the losses differ: {losses}")
    return {
        name: tuple(statistics.median(x) for x in zip(*of_side, strict=True))
        for name, of_side in times.items()
    }


if __name__ == "__main__":
    main()
