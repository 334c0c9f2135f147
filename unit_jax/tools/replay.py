"""Repeats a step whose numbers went wrong, from its bundle: `unit-jax replay BUNDLE`.

Says which terms of the loss, which layers' gradients and which examples are not finite. Needs
neither the data nor the run.
"""

import argparse
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unit_jax import outputs
from unit_jax.batch import Batch
from unit_jax.models import flat
from unit_jax.runtime import partitioning
from unit_jax.training import bundle as bundles
from unit_jax.training import optimizer as optim
from unit_jax.training.step import Gradients, TrainState

_SHOWN = 10


def replay(bundle: bundles.Bundle) -> dict[str, Any]:
    """What the step gives again.

    Returns:
      logs: loss and its terms as numbers; gradients: paths of those that are not finite, in the
      model's order; examples: places in the batch of those that are bad by themselves; parameters:
      paths of those that are not finite to begin with.
    """
    from flax import nnx

    settings = bundle.settings
    task, step = bundle.facts["task"], bundle.facts["step"] - 1
    graph, _, _ = flat.abstract(
        lambda: outputs.build(settings.model, settings.tasks, rngs=nnx.Rngs(settings.seed))
    )
    mesh = partitioning.make_mesh(settings.mesh, jax.devices()[:1])
    optimizer = optim.Optimizer(settings.optimizer, settings.train.steps)
    everywhere = partitioning.replicated(mesh)
    params, statistics = jax.device_put((bundle.params, bundle.statistics), everywhere)
    moments = optimizer.init(params)._replace(step=jnp.asarray(step, jnp.int32))
    state = TrainState(params, statistics, jax.device_put(moments, everywhere))
    gradients = Gradients(graph, settings, optimizer, mesh)

    def run(batch: Batch):
        logs, grads = gradients(state, partitioning.to_devices(batch, mesh))
        return jax.device_get((logs, grads))

    logs, grads = run(bundle.batch)
    count = bundle.batch.size
    alone = [i for i in range(count) if not _is_finite(run(_one(bundle.batch, i)))]
    return {
        "task": task,
        "logs": {name: float(value) for name, value in logs.items()},
        "gradients": [path for path, x in grads.items() if not np.isfinite(x).all()],
        "parameters": [path for path, x in bundle.params.items() if not np.isfinite(x).all()],
        "examples": alone,
    }


def _is_finite(results: tuple[dict, dict]) -> bool:
    logs, grads = results
    return bool(np.isfinite(logs["loss"])) and all(np.isfinite(x).all() for x in grads.values())


def _one(batch: Batch, i: int) -> Batch:
    """One example as often as the batch has examples: the shapes stay."""
    return jax.tree.map(lambda x: np.repeat(x[i : i + 1], len(x), 0), batch)


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="unit-jax replay", description=__doc__)
    parser.add_argument("bundle", help="folder that a run left in <workdir>/bundles")
    arguments = parser.parse_args(argv)
    try:
        bundle = bundles.read(arguments.bundle)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    facts, result = bundle.facts, replay(bundle)
    print(f"step {facts['step']} of {facts['task']}; the run said: {facts['cause']} not finite")
    for name, value in result["logs"].items():
        print(f"  {name} = {value:.6g}{'' if np.isfinite(value) else '   <- not finite'}")
    for what in ("parameters", "gradients"):
        paths = result[what]
        more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
        print(f"{what} that are not finite: {', '.join(paths[:_SHOWN]) or 'none'}{more}")
    ids = facts["examples"]
    named = [f"{ids[i]} (place {i})" if i < len(ids) else f"place {i}" for i in result["examples"]]
    print(f"examples that are not finite by themselves: {', '.join(named) or 'none'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
