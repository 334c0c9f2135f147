"""Compiles all programs of a run, first with an empty cache, then from the cache; no data needed.

python tools/compile_report.py --config configs/unit.py

These are the programs that training compiles before its first step (`train.compile_ahead`): for
every task and every shape of `data.buckets` or `data.text_buckets`, and one update for each kind of
task. Prints how many there are, and the seconds that compiling them takes cold and warm.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import time

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[i]) for i in (1, 0)]

from flax import nnx  # noqa: E402
from show_sharding import abstract_state  # noqa: E402
from tqdm import tqdm  # noqa: E402

from unit_jax import compilation, optim, partitioning  # noqa: E402
from unit_jax import settings as settings_lib  # noqa: E402
from unit_jax.models import functional  # noqa: E402
from unit_jax.models.unit import Unit  # noqa: E402
from unit_jax.settings import Settings  # noqa: E402
from unit_jax.train_step import TrainState, TrainStep, batch_shapes  # noqa: E402

CACHE = "JAX_COMPILATION_CACHE_DIR"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config", default="configs/unit.py", help="FILE.py[:variants] (%(default)s)")
    add("--once", action="store_true", help="one pass, with the cache that JAX is told to use")
    options = parser.parse_args(argv)
    if options.once:
        print(compile_all(settings_lib.read(options.config)))
        return 0
    again = [sys.executable, __file__, "--once", f"--config={options.config}"]
    with tempfile.TemporaryDirectory() as cache:
        for name in ("cold", "warm"):
            print(f"{name}: ", end="", flush=True)
            code = subprocess.run(again, env={**os.environ, CACHE: cache}).returncode
            if code:
                return code
    return 0


def compile_all(settings: Settings) -> str:
    """Compiles every program; tells how many there are and how long it took."""
    mesh = partitioning.make_mesh(settings.mesh)
    graph, *_ = functional.abstract(
        lambda: Unit(settings.model, settings.tasks, rngs=nnx.Rngs(settings.seed))
    )
    step = TrainStep(graph, settings, optim.Optimizer(settings.optimizer, 1), mesh)
    parts = abstract_state(settings, mesh)
    state = TrainState(parts["parameters"], parts["batch-norm statistics"], parts["optimiser"])
    combinations = compilation.combinations(settings)
    counter, start = compilation.Counter(), time.perf_counter()
    for spec, bucket in tqdm(combinations, "compiling", unit="shape", leave=False):
        compilation.compile_step(step, state, batch_shapes(spec, bucket, settings, mesh))
    seconds = time.perf_counter() - start
    counter.close()
    return (
        f"{counter.programs} programs for {len(combinations)} combinations of task and shape in "
        f"{seconds:.0f} s ({counter.seconds:.0f} s in XLA or its cache, the rest in tracing)"
    )


if __name__ == "__main__":
    sys.exit(main())
