"""What crosses from the forward program of a step to the backward one."""

import jax
import numpy as np
import pytest

from tests.training import test_sharding as world
from unit_jax.runtime import partitioning
from unit_jax.training import optimizer as optim
from unit_jax.training import step as train_step


@pytest.fixture(scope="module")
def handed_on():
    """(results of the forward program on eight devices, the same with another batch and state)."""
    settings, mesh = world.settings(0.3), world.mesh_of((8, 1, 1))
    optimizer = optim.Optimizer(settings.optimizer, 100)
    step = train_step.Gradients(world.graph_of(settings), settings, optimizer, mesh)
    # Away from the initial values: biases of zero give zeros.
    state = world.placed_state(mesh)
    state = state.replace(
        params={path: x + 0.02 * path.endswith(".bias") for path, x in state.params.items()}
    )
    batch = partitioning.to_devices(world.batch_of("detection"), mesh)
    other_state = state.replace(
        params={path: 1.05 * x for path, x in state.params.items()},
        optimizer=state.optimizer._replace(step=state.optimizer.step + 1),
    )
    other_batch = batch.replace(images=255 - batch.images, image_sizes=batch.image_sizes - 3)
    return step._forward(state, batch), step._forward(other_state, other_batch)


def test_every_array_is_split_over_examples(handed_on):
    """None is as large as the global batch, or a parameter's copy."""
    for keys, x in jax.tree.leaves_with_path(handed_on[0]):
        name = f"{jax.tree_util.keystr(keys)}: {x.dtype}{x.shape}"
        assert world.EXAMPLES in x.shape[:2], name
        assert x.sharding.shard_shape(x.shape) != x.shape, name


def test_nothing_is_constant(handed_on):
    """Other weights, pixels, sizes and keys give other numbers in every array."""
    for (keys, x), y in zip(
        jax.tree.leaves_with_path(handed_on[0]), jax.tree.leaves(handed_on[1]), strict=True
    ):
        assert not np.array_equal(x, y), f"{jax.tree_util.keystr(keys)}: {x.dtype}{x.shape}"


def test_no_mask_and_no_second_copy(handed_on):
    """Masks are drawn or compared again, numbers are cast again."""
    for keys, x in jax.tree.leaves_with_path(handed_on[0]):
        assert x.dtype == np.float32, f"{jax.tree_util.keystr(keys)}: {x.dtype}{x.shape}"
    kept = [np.asarray(x) for x in jax.tree.leaves(handed_on[0])]
    contents = {(x.shape, x.tobytes()) for x in kept}
    assert len(contents) == len(kept)
