"""One train step: in parts, with recomputation, in half precision, with bad numbers, of text."""

import dataclasses
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from tests.training import test_sharding as world
from unit_jax.models import attention, unit
from unit_jax.models import flat as functional
from unit_jax.outputs.objects import matching
from unit_jax.runtime import partitioning
from unit_jax.training import optimizer as optim
from unit_jax.training import step as train_step

SLOW = pytest.mark.slow
MESH = functools.cache(lambda data=1, fsdp=1, tensor=1: world.mesh_of((data, fsdp, tensor)))


def changed(settings, **changes):
    """Settings with fields replaced: changed(settings, train=dict(accumulate_steps=2))."""
    groups = {
        group: dataclasses.replace(getattr(settings, group), **fields)
        for group, fields in changes.items()
    }
    return dataclasses.replace(settings, **groups)


def make_step(settings, *layout: int) -> tuple[train_step.TrainStep, train_step.TrainState]:
    optimizer = optim.Optimizer(settings.optimizer, 100)
    step = train_step.TrainStep(world.graph_of(settings), settings, optimizer, MESH(*layout))
    return step, world.placed_state(MESH(*layout))


def gradients(settings, kind: str, *layout: int):
    """(logs, gradients) of a kind's batch, on the host."""
    step, state = make_step(settings, *layout)
    batch = partitioning.to_devices(world.batch_of(kind), MESH(*layout))
    return jax.device_get(step.gradients(state, batch))


@functools.cache
def plain_gradients(kind: str, normalisation: str = "per_image", dropout: float = 0.0):
    settings = changed(world.settings(dropout), loss=dict(normalisation=normalisation))
    return gradients(settings, kind)


def assert_same(found, expected, tolerance=2e-5) -> None:
    """Equal but for float32 rounding, relative to the largest element of each gradient."""
    (logs, grads), (true_logs, true_grads) = found, expected
    assert grads.keys() == true_grads.keys()
    for name, value in true_logs.items():
        if name != "matching_ms":
            np.testing.assert_allclose(logs[name], value, rtol=tolerance, err_msg=name)
    largest = max(np.abs(grad).max() for grad in true_grads.values())
    for path, grad in true_grads.items():
        scale = max(np.abs(grad).max(), 1e-4 * largest)
        assert np.abs(grads[path] - grad).max() <= tolerance * scale, path


@pytest.mark.parametrize(
    "parts, layout",
    [(2, (2, 2, 2)), *(pytest.param(*case, marks=SLOW) for case in ((4, (2,)), (2, ())))],
)
@pytest.mark.parametrize(
    "kind, normalisation",
    [
        ("detection", "per_image"),
        pytest.param("detection", "batch", marks=SLOW),
        pytest.param("vision_language", "per_image", marks=SLOW),
        ("language", "per_image"),  # classification is normalised one way
    ],
)
def test_a_batch_in_parts_gives_the_gradients_of_the_whole(kind, normalisation, parts, layout):
    settings = changed(
        world.settings(0.0),
        loss=dict(normalisation=normalisation),
        train=dict(accumulate_steps=parts),
    )
    assert_same(gradients(settings, kind, *layout), plain_gradients(kind, normalisation))


def test_parts_must_divide_the_batch():
    train = dataclasses.replace(world.settings(0.0).train, batch_size=8, accumulate_steps=3)
    with pytest.raises(ValueError, match="accumulate_steps = 3 parts; use a divisor"):
        partitioning.check_batch_sizes(train, MESH())
    train = dataclasses.replace(train, accumulate_steps=8)
    with pytest.raises(ValueError, match="accumulate_steps = 1 cannot be split over 2 devices"):
        partitioning.check_batch_sizes(train, MESH(2))


@SLOW
@pytest.mark.parametrize("policy", ["layers", "everything"])
@pytest.mark.parametrize("kind", ["detection", "vision_language"])
def test_recomputing_changes_no_gradient(kind, policy):
    """With dropout: what is computed again draws the same numbers again."""
    settings = changed(world.settings(0.1), model=dict(rematerialise=policy))
    assert_same(gradients(settings, kind), plain_gradients(kind, dropout=0.1))


@SLOW
@pytest.mark.parametrize("kind", ["detection", "vision_language"])
def test_a_mesh_with_all_that_is_done_otherwise(kind):
    settings = changed(
        world.settings(0.0),
        model=dict(rematerialise="everything", scan_layers=True, attention="fused"),
        loss=dict(matcher="device"),
        train=dict(accumulate_steps=2),
    )
    assert_same(gradients(settings, kind, 2, 2, 2), plain_gradients(kind))


@SLOW
@pytest.mark.parametrize("kind", ["detection", "vision_language", "language"])
def test_a_loop_over_layers_changes_no_gradient(kind):
    """With dropout: every layer draws the numbers that it draws without the loop."""
    settings = changed(world.settings(0.1), model=dict(scan_layers=True))
    assert_same(gradients(settings, kind), plain_gradients(kind, dropout=0.1))


def kept_bytes(policy: str) -> int:
    """What the forward program hands on to the backward program."""
    settings = changed(world.settings(0.0), model=dict(rematerialise=policy))
    step, state = make_step(settings)
    batch = partitioning.to_devices(world.batch_of("detection"), MESH())
    _, forward = next(step.lower(state, batch))
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(forward.out_info))


def test_recomputing_keeps_less():
    nothing, layers, everything = map(kept_bytes, ("nothing", "layers", "everything"))
    assert everything < layers < 0.9 * nothing  # parameters, which all of them hold, included


@pytest.mark.parametrize("kind", ["detection", "vision_language", "language"])
def test_fused_attention_is_the_same(kind):
    settings = changed(world.settings(0.0), model=dict(attention="fused"))
    assert_same(gradients(settings, kind), plain_gradients(kind))


def as_on_a_gpu(monkeypatch, *, kernel):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax.nn, "dot_product_attention", kernel)


@pytest.mark.parametrize("queries, keys, masked", [(5, 7, True), (5, 7, False), (4, 6, False)])
def test_attention_pads_for_the_kernel(monkeypatch, queries, keys, masked):
    """XLA computes what cuDNN's kernel is given; the kernel's own checks are the next test."""
    rng = np.random.default_rng(0)
    q, k, v = (
        jnp.asarray(rng.normal(size=(3, length, 2, 8)), jnp.bfloat16)
        for length in (queries, keys, keys)
    )
    mask = jnp.arange(keys) < jnp.array([[2], [keys], [1]]) if masked else None
    xla = jax.nn.dot_product_attention
    wanted = xla(q, k, v, mask=None if mask is None else mask[:, None, None, :])

    def kernel(q, k, v, mask, implementation):
        assert implementation == "cudnn"
        assert (mask is None) == (not masked and keys % 2 == 0)
        return xla(q, k, v, mask=mask)

    as_on_a_gpu(monkeypatch, kernel=kernel)
    np.testing.assert_array_equal(attention.fused_attention(q, k, v, mask), wanted)


@pytest.mark.parametrize("kind", ["detection", "vision_language", "language"])
def test_cudnn_takes_what_attention_gives(monkeypatch, kind):
    """Its checks of shapes and dtypes, which need no GPU, in training and in evaluation."""
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    calls, original = [], jax.nn.dot_product_attention

    def kernel(*arguments, **options):
        calls.append(options["implementation"])
        return original(*arguments, **options)

    as_on_a_gpu(monkeypatch, kernel=kernel)
    settings = changed(world.settings(0.0), model=dict(attention="fused", dtype="bfloat16"))
    batch = world.batch_of(kind)

    def loss(params):
        model = functional.merge(world.graph_of(settings), params, world.model()[1])
        return model(batch).logits.sum()

    jax.eval_shape(jax.grad(loss), world.model()[0])
    assert calls and set(calls) == {"cudnn"}


@pytest.mark.parametrize("kind", ["detection", "vision_language", "language"])
def test_bfloat16_keeps_parameters_losses_and_gradients_in_float32(kind):
    settings = changed(world.settings(0.0), model=dict(dtype="bfloat16"))
    logs, grads = gradients(settings, kind)
    expected, true_grads = plain_gradients(kind)
    assert {grad.dtype for grad in grads.values()} == {np.dtype("float32")}
    assert logs["loss"].dtype == np.float32
    np.testing.assert_allclose(logs["loss"], expected["loss"], rtol=0.05)
    assert 0 < abs(logs["loss"] - expected["loss"])
    flat, true = (np.concatenate([g[p].ravel() for p in sorted(g)]) for g in (grads, true_grads))
    assert np.dot(flat, true) > 0.9 * np.linalg.norm(flat) * np.linalg.norm(true)


def test_softmax_and_costs_are_float32_in_bfloat16():
    """No exponential of the forward program is taken of 16-bit numbers, but GELU's and BERT's."""
    settings = changed(world.settings(0.0), model=dict(dtype="bfloat16"))
    step, state = make_step(settings)
    batch = partitioning.to_devices(world.batch_of("detection"), MESH())
    _, forward = next(step.lower(state, batch))
    lines = forward.as_text().splitlines()
    exponentials = [line for line in lines if "stablehlo.exponential" in line]
    assert exponentials and not any("bf16" in line for line in exponentials)
    _, _, costs = forward.out_info
    assert costs.dtype == np.float32


def test_one_query_is_as_good_as_all_where_memory_is_one_token(monkeypatch):
    calls = []
    original = unit.Unit._drops
    monkeypatch.setattr(unit.Unit, "_drops", lambda self: calls.append(1) or original(self))
    one = gradients(world.settings(0.0), "language")
    monkeypatch.setattr(unit.Unit, "_drops", lambda self: True)
    every = gradients(world.settings(0.0), "language")
    assert calls
    assert_same(one, every)
    # Dot products of one query, not of all: the program is smaller.
    sizes = []
    for drops in (True, False):
        monkeypatch.setattr(unit.Unit, "_drops", lambda self, drops=drops: drops)
        step, state = make_step(world.settings(0.0))
        batch = partitioning.to_devices(world.batch_of("language"), MESH())
        _, lowered = next(step.lower(state, batch))
        sizes.append(lowered.cost_analysis()["flops"])
    assert sizes[1] < sizes[0]


def test_a_text_step_holds_no_image_tower():
    step, state = make_step(world.settings(0.1))
    batch = partitioning.to_devices(world.batch_of("language"), MESH())
    assert batch.images is None
    _, lowered = next(step.lower(state, batch))
    text = lowered.as_text()
    assert "stablehlo.convolution" not in text and "ui8" not in text
    read = sum(
        leaf.nbytes
        for path, leaf in state.params.items()
        if path.startswith(("text_encoder", "decoder.", "queries.qqp", "heads.qqp"))
    )
    arguments = lowered.compile().memory_analysis().argument_size_in_bytes
    assert arguments < 1.1 * read + sum(x.nbytes for x in jax.tree.leaves(batch))


def poison(state: train_step.TrainState, path: str, value=np.nan) -> train_step.TrainState:
    params = dict(state.params)
    params[path] = jax.device_put(jnp.full_like(params[path], value), params[path].sharding)
    return state.replace(params=params)


@pytest.mark.parametrize("matcher", ["scipy", "device"])
@pytest.mark.parametrize("devices", [1, 2])
def test_costs_that_are_not_finite_change_nothing(matcher, devices):
    step, state = make_step(changed(world.settings(0.0), loss=dict(matcher=matcher)), devices)
    batch = world.batch_of("detection")
    boxes = batch.targets.boxes_cxcywh.copy()
    row = int(np.flatnonzero(batch.targets.object_mask.any(1))[0])
    boxes[row, 0, 0] = np.nan  # a broken example, not a broken model
    bad = batch.replace(targets=batch.targets.replace(boxes_cxcywh=boxes))
    before = jax.device_get(state)
    state, logs = step(state, partitioning.to_devices(bad, MESH(devices)))
    assert logs["bad_step"] and logs["bad_costs"] and np.isnan(logs["loss"])
    assert_unchanged(before, state)
    state, logs = step(state, partitioning.to_devices(batch, MESH(devices)))
    assert not logs["bad_step"] and not logs["bad_costs"]
    assert int(state.optimizer.step) == 2
    assert any((np.asarray(x) != before.params[p]).any() for p, x in state.params.items())


def assert_unchanged(before: train_step.TrainState, state: train_step.TrainState) -> None:
    after = jax.device_get(state)
    jax.tree.map(np.testing.assert_array_equal, after.params, before.params)
    assert int(after.optimizer.step) == int(before.optimizer.step) + 1
    for part in ("mu", "nu", "counts"):
        jax.tree.map(
            np.testing.assert_array_equal,
            getattr(after.optimizer, part),
            getattr(before.optimizer, part),
        )


def test_a_gradient_that_is_not_finite_changes_nothing():
    step, state = make_step(world.settings(0.0))
    state = poison(state, "heads.qqp.labels.bias")
    before = jax.device_get(state)
    state, logs = step(state, partitioning.to_devices(world.batch_of("language"), MESH()))
    assert logs["bad_step"]
    assert_unchanged(before, state)


def test_matching_reports_what_the_device_waits(monkeypatch):
    solve = matching.match

    def slow(*arguments):
        time.sleep(0.3)
        return solve(*arguments)

    monkeypatch.setattr(matching, "match", slow)
    step, state = make_step(world.settings(0.0))
    _, logs = step(state, partitioning.to_devices(world.batch_of("detection"), MESH()))
    assert logs["matching_ms"] >= 300


def test_programs_made_ahead_are_those_that_run():
    """Lowered from shapes alone; running afterwards compiles nothing."""
    compiled = []

    def count(event: str, seconds: float, **_) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(seconds)

    step, state = make_step(world.settings(0.0))
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    batches = [partitioning.to_devices(world.batch_of(kind), MESH()) for kind in world.KINDS]
    for batch in batches:
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), batch
        )
        for _, program in step.lower(shapes, like):
            program.compile()
    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        for batch in batches:
            state, logs = step(state, batch)
        jax.block_until_ready((state, logs))
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    assert not compiled


def test_usable_costs_are_not_marked():
    mask = np.array([[True, False], [True, True]])
    costs = np.zeros((1, 2, 3, 2), np.float32)
    costs[0, 0, :, 1] = np.nan  # padding
    assert (np.asarray(matching.match_on_device(costs, mask)) != matching.UNUSABLE).all()
    costs[0, 1, 0, 0] = np.inf
    matches = np.asarray(matching.match_on_device(costs, mask))
    assert (matches[0, 1] == matching.UNUSABLE).all() and matches[0, 0, 0] >= 0
