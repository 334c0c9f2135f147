"""Measures what exactness under padding costs.

unit-jax measure-masking [--config configs/unit.py] [--bucket 320x320] [--batch 2]

A model that masks padding and one that does not run a detection task forward and backward on the
same padded images, in turns, so that what else the machine does meets both. The medians of both and
their ratio are printed.
"""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable

import jax
import numpy as np
from flax import nnx

from unit_jax import config_files, outputs
from unit_jax import settings as settings_lib
from unit_jax.batch import Batch
from unit_jax.models import flat

TASK = "coco"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--config", default="configs/unit.py")
    parser.add_argument("--bucket", default="320x320", help="height x width of the padded images")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=10, help="of each model")
    options = parser.parse_args()
    height, width = map(int, options.bucket.split("x"))
    settings = config_files.read(options.config)
    seconds = measure(settings, (height, width), options.batch, options.repeats)
    medians = {name: statistics.median(of_model) for name, of_model in seconds.items()}
    for name, median in medians.items():
        print(f"{name:<28}{1e3 * median:10.1f} ms")
    print(f"{'ratio':<28}{medians['masked'] / medians['not masked']:10.3f}")


def measure(
    settings: settings_lib.Settings, bucket: tuple[int, int], batch: int, repeats: int
) -> dict[str, list[float]]:
    """Seconds of each repeat, of the model that masks padding and of the one that does not."""
    programs = made(settings, bucket, batch)
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(repeats):
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program())
            seconds[name].append(time.perf_counter() - start)
    return seconds


def made(
    settings: settings_lib.Settings, bucket: tuple[int, int], batch: int
) -> dict[str, Callable[[], flat.Flat]]:
    """Calls that give the gradients of both models for the same padded images."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch, *bucket, 3), np.uint8)
    sizes = np.tile(np.asarray(bucket) * 7 // 8, (batch, 1))
    inputs = jax.device_put(Batch(TASK, images=images, image_sizes=sizes))
    programs = {}
    for name, masked in (("masked", True), ("not masked", False)):
        model = dataclasses.replace(settings.model, mask_padding=masked)
        programs[name] = compiled(model, {TASK: settings.tasks[TASK]}, inputs)
    return programs


def compiled(settings: settings_lib.ModelSettings, tasks, inputs: Batch) -> Callable[[], flat.Flat]:
    """A call that gives the gradients of all parameters, compiled and warm."""
    graph, params, rest = flat.split(outputs.build(settings, tasks, rngs=nnx.Rngs(0)))

    @jax.jit
    def gradients(params, rest, inputs):
        def total(params):
            return flat.merge(graph, params, rest)(inputs).logits.sum()

        return jax.grad(total)(params)

    jax.block_until_ready(gradients(params, rest, inputs))
    return lambda: gradients(params, rest, inputs)


if __name__ == "__main__":
    main()
