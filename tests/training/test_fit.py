"""What a run needs is estimated before it is compiled, and refused where it cannot fit."""

import dataclasses

import jax
import pytest

from tests.training import test_sharding as world
from unit_jax.runtime import partitioning
from unit_jax.training import fit
from unit_jax.training import optimizer as optim
from unit_jax.training import step as train_step


@pytest.fixture(scope="module")
def run():
    """(graph, settings with the batch of the world's arrays, mesh, state)."""
    settings, mesh = world.settings(0.3), world.mesh_of((8, 1, 1))
    train = dataclasses.replace(settings.train, batch_size=world.EXAMPLES)
    data = dataclasses.replace(settings.data, buckets=((32, 32),), max_objects=world.OBJECTS)
    settings = dataclasses.replace(settings, train=train, data=data)
    return world.graph_of(settings), settings, mesh, world.placed_state(mesh)


def test_the_estimate_is_what_arrays_take(run):
    graph, settings, mesh, state = run
    spec = settings.tasks["visual_genome"]
    need = fit.estimate(graph, settings, mesh, state, spec, (32, 32))
    assert need.examples == 1
    step = train_step.Gradients(graph, settings, optim.Optimizer(settings.optimizer, 1), mesh)
    batch = partitioning.to_devices(world.batch_of("detection"), mesh)
    _, pullback, _ = step._forward(state, batch)
    device = jax.devices()[0]
    held = lambda tree: sum(  # noqa: E731
        shard.data.nbytes
        for x in jax.tree.leaves(tree)
        for shard in x.addressable_shards
        if shard.device == device
    )
    assert need.activations == held(pullback)
    assert need.state == held(state)


@pytest.mark.parametrize("parts, told", [(1, "accumulate_steps=2"), (2, "model.dtype=bfloat16")])
def test_what_cannot_fit_is_refused_with_the_setting_to_change(run, monkeypatch, parts, told):
    graph, settings, mesh, state = run
    size = dict(batch_size=2 * world.EXAMPLES, accumulate_steps=parts)
    settings = dataclasses.replace(settings, train=dataclasses.replace(settings.train, **size))
    settings = dataclasses.replace(settings, ratios={**settings.ratios, "coco": 0, "vqa2": 0})
    needs = [
        fit.estimate(graph, settings, mesh, state, *one).total for one in fit.largest(settings)
    ]
    monkeypatch.setattr(fit, "device_memory", lambda mesh: max(needs))
    fit.check(graph, settings, mesh, state)
    monkeypatch.setattr(fit, "device_memory", lambda mesh: max(needs) - 1)
    with pytest.raises(ValueError, match=f"visual_genome at 32x32 needs at least .*{told}"):
        fit.check(graph, settings, mesh, state)


def test_a_cpu_is_not_asked(run):
    assert fit.device_memory(run[2]) is None
