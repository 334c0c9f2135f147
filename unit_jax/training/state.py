"""The shapes of a training run's state, before there are arrays."""

import jax
from flax import nnx
from jax.sharding import AbstractMesh, Mesh

from unit_jax import outputs
from unit_jax.models import flat
from unit_jax.runtime import partitioning
from unit_jax.settings import Settings
from unit_jax.training import optimizer as optim
from unit_jax.training.step import TrainState


def abstract_run(settings: Settings, mesh: Mesh | AbstractMesh) -> tuple[nnx.GraphDef, TrainState]:
    """The model's graph, and shapes, dtypes and shardings of all that training remembers."""
    graph, params, statistics = flat.abstract(
        lambda: outputs.build(settings.model, settings.tasks, rngs=nnx.Rngs(settings.seed))
    )
    optimizer = optim.Optimizer(settings.optimizer, settings.train.steps)
    state = TrainState(params, statistics, jax.eval_shape(optimizer.init, params))
    return graph, partitioning.abstract(state, mesh)
