"""Costs against float64 NumPy, matchings against exhaustive search and scipy."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special

from configs.unit import values
from unit_jax import settings as settings_lib
from unit_jax.batch import Outputs
from unit_jax.outputs.objects import matching
from unit_jax.outputs.objects.targets import ObjectTargets

SETTINGS = settings_lib.build(settings_lib.LossSettings, values()["loss"])


def random_case(seed, layers=2, batch=3, queries=5, objects=4, classes=6):
    """Random outputs and targets; objects are real at random places of the padded axis."""
    rng = np.random.default_rng(seed)

    def cxcywh(*shape):
        size = rng.uniform(0.1, 0.5, (*shape, 2))
        return np.concatenate([size / 2 + rng.uniform(0, 1, (*shape, 2)) * (1 - size), size], -1)

    mask = rng.random((batch, objects)) < 0.6
    mask[0] = False  # an image without objects
    outputs = Outputs(
        hidden_states=np.zeros((layers, batch, queries, 1)),
        logits=rng.normal(size=(layers, batch, queries, classes)),
        boxes_cxcywh=cxcywh(layers, batch, queries),
    )
    targets = ObjectTargets(
        boxes_cxcywh=np.where(mask[..., None], cxcywh(batch, objects), 0),
        labels=np.where(mask, rng.integers(0, classes - 1, (batch, objects)), 0),
        object_mask=mask,
    )
    return jax.tree.map(jnp.asarray, (outputs, targets))


def reference_cost(logits, box, label, target, balanced):
    """Cost of one pair, from the definition."""
    scores = scipy.special.log_softmax(logits) if balanced else scipy.special.softmax(logits)
    box, target = np.asarray(box), np.asarray(target)
    corners = [np.concatenate([b[:2] - b[2:] / 2, b[:2] + b[2:] / 2]) for b in (box, target)]
    low, high = np.maximum(*[c[:2] for c in corners]), np.minimum(*[c[2:] for c in corners])
    inter = np.prod(np.maximum(high - low, 0))
    union = sum(np.prod(c[2:] - c[:2]) for c in corners) - inter
    hull = np.prod(np.maximum(*[c[2:] for c in corners]) - np.minimum(*[c[:2] for c in corners]))
    giou = inter / union - (hull - union) / hull
    return -scores[label] + 5 * np.abs(box - target).sum() - 2 * giou


@pytest.mark.parametrize("balanced", [False, True])
def test_costs_equal_their_definition(balanced):
    settings = dataclasses.replace(SETTINGS, balanced=balanced)
    with jax.enable_x64(True):
        outputs, targets = random_case(0)
        costs = jax.jit(lambda o, t: matching.cost_matrix(o, t, settings))(outputs, targets)
        assert costs.dtype == jnp.float64
    for layer, image, query, obj in np.ndindex(costs.shape):
        wanted = 0.0
        if targets.object_mask[image, obj]:
            wanted = reference_cost(
                outputs.logits[layer, image, query],
                outputs.boxes_cxcywh[layer, image, query],
                targets.labels[image, obj],
                targets.boxes_cxcywh[image, obj],
                balanced,
            )
        np.testing.assert_allclose(costs[layer, image, query, obj], wanted, rtol=1e-12)


def test_costs_are_float32_of_half_precision_outputs_and_pass_no_gradient():
    outputs, targets = random_case(1)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), outputs)
    costs = jax.jit(lambda o: matching.cost_matrix(o, targets, SETTINGS))
    assert costs(half).dtype == jnp.float32
    gradients = jax.grad(lambda o: costs(o).sum())(outputs)
    assert all((g == 0).all() for g in jax.tree.leaves(gradients))


def test_without_auxiliary_losses_only_the_last_layer_is_matched():
    outputs, targets = random_case(2)
    last = dataclasses.replace(SETTINGS, auxiliary=False)
    costs = matching.cost_matrix(outputs, targets, last)
    np.testing.assert_array_equal(costs, matching.cost_matrix(outputs, targets, SETTINGS)[-1:])


def cheapest(costs):
    """Lowest total cost of a matching with as many pairs as fit, by trying all."""
    queries, objects = costs.shape
    if queries < objects:
        return cheapest(costs.T)
    return min(
        sum(costs[q, o] for o, q in enumerate(chosen))
        for chosen in itertools.permutations(range(queries), objects)
    )


@pytest.mark.parametrize(("queries", "objects"), [(5, 4), (3, 5), (4, 4)])
@pytest.mark.parametrize("solver", [matching.match, jax.jit(matching.match_on_device)])
def test_matchings_are_the_cheapest(solver, queries, objects):
    rng = np.random.default_rng(queries)
    costs = rng.normal(scale=3, size=(2, 6, queries, objects)).astype(np.float32)
    mask = rng.random((6, objects)) < 0.7
    mask[0], mask[1] = False, True
    matches = np.asarray(solver(np.where(mask[None, :, None], costs, 0), mask))
    assert matches.dtype == np.int32 and matches.shape == (2, 6, objects)
    for layer, image in np.ndindex(2, 6):
        matched = np.flatnonzero(matches[layer, image] >= 0)
        chosen = matches[layer, image, matched]
        assert mask[image, matched].all(), "padding must stay unmatched"
        assert len(set(chosen)) == len(chosen) == min(queries, mask[image].sum())
        np.testing.assert_allclose(
            costs[layer, image, chosen, matched].sum(),
            cheapest(costs[layer, image][:, mask[image]]),
            rtol=1e-5,
            atol=1e-5,
        )


@pytest.mark.parametrize(("queries", "objects"), [(20, 12), (12, 20)])
def test_device_solver_matches_as_scipy_does(queries, objects):
    rng = np.random.default_rng(3)
    costs = rng.uniform(-4, 20, (2, 8, queries, objects)).astype(np.float32)
    mask = np.arange(objects) < rng.integers(0, objects + 1, (8, 1))
    on_device = jax.jit(matching.match_on_device)(costs, mask)
    for layer, image in np.ndindex(2, 8):
        wanted = np.full(objects, -1)
        rows, columns = scipy.optimize.linear_sum_assignment(costs[layer, image][:, mask[image]])
        wanted[columns] = rows
        np.testing.assert_array_equal(on_device[layer, image], wanted)
    np.testing.assert_array_equal(on_device, matching.match(costs, mask))


@pytest.mark.parametrize("solver", [matching.match, jax.jit(matching.match_on_device)])
def test_padding_does_not_change_a_matching(solver):
    rng = np.random.default_rng(4)
    costs = rng.normal(size=(1, 1, 6, 3)).astype(np.float32)
    alone = solver(costs, np.ones((1, 3), bool))
    padded_costs = np.full((1, 1, 6, 9), -1e4, np.float32)  # would be tempting
    places = [1, 4, 7]
    padded_costs[..., places] = costs
    mask = np.zeros((1, 9), bool)
    mask[0, places] = True
    padded = np.asarray(solver(padded_costs, mask))
    np.testing.assert_array_equal(padded[..., places], alone)
    assert (padded[..., ~mask[0]] == -1).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_broken_costs_are_named(bad):
    costs = np.zeros((3, 2, 4, 3), np.float32)
    costs[1, 1, 2, 0] = bad
    with pytest.raises(ValueError, match="decoder layer 1, image 1"):
        matching.match(costs, np.ones((2, 3), bool))


def test_broken_costs_of_padding_do_not_matter():
    costs = np.zeros((1, 1, 4, 3), np.float32)
    costs[..., 2] = np.nan
    mask = np.array([[True, True, False]])
    assert (matching.match(costs, mask)[..., 2] == -1).all()


def test_device_solver_ends_on_broken_costs():
    costs = np.full((1, 1, 4, 3), np.nan, np.float32)
    matches = np.asarray(matching.match_on_device(costs, np.ones((1, 3), bool)))
    assert (matches == matching.UNUSABLE).all()
