"""Compiles all programs of a run, first with an empty cache, then from the cache; no data needed.

unit-jax compile-report --config configs/unit.py

These are the programs that a run compiles before its first step (`train.compile_ahead`), for every
task and every shape of `data.buckets` or `data.text_buckets`: gradients and predictions, and one
update for each kind of task. Prints how many there are, and the seconds that compiling them takes
cold and warm. A run that knows its data leaves out shapes that these cannot have.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time

from tqdm import tqdm

from unit_jax import config_files
from unit_jax.evaluation.step import PredictStep
from unit_jax.runtime import partitioning
from unit_jax.settings import Settings
from unit_jax.training import compilation
from unit_jax.training import optimizer as optim
from unit_jax.training.state import abstract_run
from unit_jax.training.step import TrainStep

PARTS = ("training", "evaluation")
CACHE = "JAX_COMPILATION_CACHE_DIR"


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config", default="configs/unit.py", help="FILE.py[:variants] (%(default)s)")
    add("--once", choices=PARTS, help="one pass over a part, with JAX's own cache")
    add("--threads", type=int, default=compilation.THREADS, help="that compile (%(default)s)")
    options = parser.parse_args(argv)
    if options.once:
        try:
            print(compile_all(config_files.read(options.config), options.once, options.threads))
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        return 0
    again = [
        sys.executable,
        "-m",
        "unit_jax.tools.compile_report",
        f"--config={options.config}",
        f"--threads={options.threads}",
    ]
    with tempfile.TemporaryDirectory() as cache:
        for name in ("cold", "warm"):
            for part in PARTS:  # each in a process: on CPU a hundred programs are too many for one
                print(f"{name}, {part}: ", end="", flush=True)
                command = [*again, f"--once={part}"]
                code = subprocess.run(command, env={**os.environ, CACHE: cache}).returncode
                if code:
                    return code
    return 0


def compile_all(settings: Settings, part: str, threads: int) -> str:
    """Compiles every program of a part; tells how many there are and how long it took."""
    mesh = partitioning.make_mesh(settings.mesh)
    partitioning.check_batch_sizes(settings.train, mesh)
    graph, state = abstract_run(settings, mesh)
    step = TrainStep(graph, settings, optim.Optimizer(settings.optimizer, 1), mesh)
    shapes = compilation.all_shapes(settings)
    predict = PredictStep(graph, settings, mesh)
    of_part = {name: shapes if name == part else [] for name in PARTS}
    work = compilation.work(step, predict, state, settings, mesh, **of_part)
    counter, start = compilation.Counter(), time.perf_counter()
    done = compilation.compile_all(work, threads)
    for _ in tqdm(done, "compiling", len(work), unit="shape", leave=False):
        pass
    seconds = time.perf_counter() - start
    counter.close()
    return (
        f"{counter.programs} programs for {len(work)} combinations of task and shape "
        f"in {seconds:.0f} s ({threads} threads spent {counter.seconds:.0f} s in "
        "XLA or its cache)"
    )


if __name__ == "__main__":
    sys.exit(main())
