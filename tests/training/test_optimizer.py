"""AdamW over several mixed steps against a float64 NumPy reimplementation."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs.unit import values
from unit_jax import settings as settings_lib
from unit_jax.training.optimizer import Optimizer, group_of, reference_tensor

SETTINGS = dataclasses.replace(
    settings_lib.build(settings_lib.OptimizerSettings, values()["optimizer"]),
    learning_rate=1e-2,
    backbone_learning_rate=1e-3,
    weight_decay=0.05,
    warmup_steps=2,
    clip_norm=1.5,
)
STEPS = 8
SHAPES = {
    "backbone.conv1.kernel": (3,),  # frozen
    "backbone.layer1.0.conv1.kernel": (2,),  # frozen
    "backbone.layer2.0.conv1.kernel": (2, 3),
    "input_proj.kernel": (4,),
    "decoder.layers.0.self_attention.query.kernel": (3, 2),
    "decoder.layers.0.self_attention.key.kernel": (3, 2),
    "decoder.layers.0.self_attention.value.kernel": (3, 2),
    "text_encoder.layers.0.attention.query.kernel": (2, 2),
    "text_encoder.layers.0.attention.key.kernel": (2, 2),
    "heads.coco.bias": (3,),
    "heads.sst2.bias": (2,),
    "heads.never.bias": (2,),
}
FROZEN = ("backbone.conv1.kernel", "backbone.layer1.0.conv1.kernel")
SHARED = frozenset(path for path in SHAPES if path.startswith("decoder"))
IMAGE = frozenset({"backbone.layer2.0.conv1.kernel", "input_proj.kernel", "heads.coco.bias"})
TEXT = frozenset(p for p in SHAPES if p.startswith("text_encoder")) | {"heads.sst2.bias"}
# (used parameters, used ones whose gradient is all zeros)
SEQUENCE = [
    (SHARED | TEXT, {"text_encoder.layers.0.attention.key.kernel"}),
    (SHARED | IMAGE, {"decoder.layers.0.self_attention.query.kernel"}),
    (SHARED | TEXT, {p for p in SHARED}),
    (SHARED | IMAGE, set()),
    (SHARED | IMAGE, {"heads.coco.bias"}),
    (SHARED | TEXT, set()),
]


def numpy_factor(k, warmup=2, total=STEPS):
    if k < warmup:
        return k / warmup
    return max(0.0, 0.5 * (1 + math.cos(math.pi * (k - warmup) / (total - warmup))))


def numpy_run(settings, params, gradients):
    """The reference's loop over tensors that own their moments and count; float64."""
    params = {path: p.copy() for path, p in params.items()}
    fused = {
        path: (
            "in_proj"
            if path.startswith("decoder") and path.split(".")[-2] in ("query", "key", "value")
            else path
        )
        for path in params
    }
    moments, ever_used, norms = {}, set(), []
    for k, (used, grads) in enumerate(gradients):
        ever_used |= set(used)
        norm = math.sqrt(sum((grads[path] ** 2).sum() for path in used))
        norms.append(norm)
        scale = min(1.0, settings.clip_norm / (norm + 1e-6))
        for path in params:
            if path in FROZEN or path not in ever_used:
                continue
            g = grads[path] * scale if path in used else np.zeros_like(params[path])
            if settings.name == "adam_w_skip_zero_grad":
                siblings = [p for p in params if fused[p] == fused[path]]
                if not any(p in used and grads[p].any() for p in siblings):
                    continue
            m, v, t = moments.get(path, (0.0, 0.0, 0))
            t += 1
            m = settings.b1 * m + (1 - settings.b1) * g
            v = settings.b2 * v + (1 - settings.b2) * g**2
            moments[path] = (m, v, t)
            rate = 1e-3 if path.startswith("backbone") else 1e-2
            rate *= numpy_factor(k)
            step = rate * math.sqrt(1 - settings.b2**t) / (1 - settings.b1**t)
            params[path] -= step * m / (np.sqrt(v) + settings.eps)
            params[path] -= rate * settings.weight_decay * params[path]
    return params, moments, norms


def random_run(seed=0):
    rng = np.random.default_rng(seed)
    params = {path: rng.normal(size=shape) for path, shape in SHAPES.items()}
    gradients = [
        (
            used,
            {
                path: np.zeros(SHAPES[path]) if path in zero else rng.normal(size=SHAPES[path])
                for path in used
            },
        )
        for used, zero in SEQUENCE
    ]
    return params, gradients


@pytest.mark.parametrize("name", ["adam_w", "adam_w_skip_zero_grad"])
@pytest.mark.parametrize(("x64", "rtol"), [(True, 1e-12), (False, 2e-6)])
def test_mixed_steps_equal_the_numpy_loop(name, x64, rtol):
    settings = dataclasses.replace(SETTINGS, name=name)
    start, gradients = random_run()
    wanted, moments, norms = numpy_run(settings, start, gradients)
    with jax.enable_x64(x64):
        optimizer = Optimizer(settings, STEPS)
        params = {path: jnp.asarray(p) for path, p in start.items()}
        dtype = params["heads.coco.bias"].dtype
        state = optimizer.init(params)
        update = jax.jit(optimizer.update, static_argnames="used")
        for k, (used, grads) in enumerate(gradients):
            grads = {path: jnp.asarray(g) for path, g in grads.items()}
            params, state, info = update(grads, state, params, used=used)
            np.testing.assert_allclose(info.grad_norm, norms[k], rtol=rtol)
            np.testing.assert_allclose(info.learning_rate, 1e-2 * numpy_factor(k), rtol=rtol)
            if k == 0:  # rate 0: nothing moves, but the moments fill
                for path in SHAPES:
                    np.testing.assert_array_equal(params[path], jnp.asarray(start[path]))
                assert state.mu["heads.sst2.bias"].any()
    assert state.step == len(SEQUENCE)
    for path in SHAPES:
        np.testing.assert_allclose(params[path], wanted[path], rtol=rtol, err_msg=path)
        assert params[path].dtype == dtype
        if path in FROZEN:
            assert path not in state.mu
            np.testing.assert_array_equal(params[path], np.asarray(start[path], dtype))
            continue
        m, v, t = moments.get(path, (np.zeros(()), np.zeros(()), 0))
        assert state.counts[path] == t, path
        m, v = (np.broadcast_to(x, SHAPES[path]) for x in (m, v))
        np.testing.assert_allclose(state.mu[path], m, rtol=rtol, atol=1e-7 * (not x64))
        np.testing.assert_allclose(state.nu[path], v, rtol=rtol, atol=1e-7 * (not x64))


def run(settings, gradients, start):
    optimizer = Optimizer(settings, STEPS)
    params = {path: jnp.asarray(p, jnp.float32) for path, p in start.items()}
    state = optimizer.init(params)
    for used, grads in gradients:
        grads = {path: jnp.asarray(g, jnp.float32) for path, g in grads.items()}
        params, state, _ = optimizer.update(grads, state, params, used)
    return params, state


def test_never_used_stays_and_once_used_keeps_moving():
    start, gradients = random_run()
    params, state = run(SETTINGS, gradients, start)
    np.testing.assert_array_equal(params["heads.never.bias"], np.float32(start["heads.never.bias"]))
    assert state.counts["heads.never.bias"] == 0
    assert state.counts["heads.sst2.bias"] == 6  # used at steps 0, 2, 5, takes part in all
    assert state.counts["heads.coco.bias"] == 5  # from step 1 on
    before, _ = run(SETTINGS, gradients[:3], start)
    after, _ = run(SETTINGS, gradients[:4], start)  # an image step
    assert (after["heads.sst2.bias"] != before["heads.sst2.bias"]).all()


def test_skipping_decides_for_query_key_and_value_together():
    start, gradients = random_run()
    settings = dataclasses.replace(SETTINGS, name="adam_w_skip_zero_grad")
    _, state = run(settings, gradients, start)
    attention = "decoder.layers.0.self_attention."
    counts = {int(state.counts[attention + p + ".kernel"]) for p in ("query", "key", "value")}
    assert counts == {5}  # all but the step in which all three are zero
    assert state.counts["text_encoder.layers.0.attention.query.kernel"] == 3
    assert state.counts["text_encoder.layers.0.attention.key.kernel"] == 2  # its own tensor
    assert state.counts["heads.coco.bias"] == 2


def test_reference_tensors_and_groups():
    assert reference_tensor("image_encoder.layers.0.attention.value.bias") == (
        "image_encoder.layers.0.attention.in_proj.bias"
    )
    for path in ("text_encoder.layers.0.attention.value.bias", "decoder.norm.scale"):
        assert reference_tensor(path) == path
    assert group_of("backbone.layer4.2.conv3.kernel") == "backbone"
    assert group_of("input_proj.kernel") == group_of("backbone_like.kernel") == "rest"


def test_frozen_prefixes_end_at_a_dot():
    optimizer = Optimizer(dataclasses.replace(SETTINGS, frozen=("backbone.layer1",)), STEPS)
    assert optimizer.is_frozen("backbone.layer1.0.conv1.kernel")
    assert not optimizer.is_frozen("backbone.layer10.conv1.kernel")


def test_schedule_equals_optax_and_both_number_types_agree():
    settings = dataclasses.replace(SETTINGS, warmup_steps=2000)
    optimizer = Optimizer(settings, 500_000)
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1.0, 2000, 500_000)
    factor = jax.jit(optimizer.learning_rate_factor)
    assert optimizer.learning_rate_factor(0) == 0
    for step in (0, 1, 999, 1999, 2000, 2001, 123_456, 251_000, 499_999, 500_000):
        wanted = optimizer.learning_rate_factor(step)
        np.testing.assert_allclose(wanted, schedule(step), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(factor(jnp.int32(step)), wanted, rtol=2e-6, atol=1e-7)
    assert optimizer.learning_rate("decoder.x", 1000) == 0.5e-2
    assert optimizer.learning_rate("backbone.layer2.x", 1000) == 0.5e-3


def test_clipping_keeps_small_gradients_and_can_be_switched_off():
    params = {"a": jnp.asarray([1.0, 2.0])}
    grads = {"a": jnp.asarray([3.0, 4.0])}
    for clip_norm, factor in ((10.0, 1.0), (1.0, 1 / (5 + 1e-6)), (float("inf"), 1.0)):
        optimizer = Optimizer(dataclasses.replace(SETTINGS, clip_norm=clip_norm), STEPS)
        _, state, info = optimizer.update(grads, optimizer.init(params), params, {"a"})
        assert info.grad_norm == 5
        np.testing.assert_allclose(state.mu["a"], 0.1 * factor * grads["a"], rtol=1e-6)


def test_a_state_of_other_parameters_is_refused():
    optimizer = Optimizer(SETTINGS, STEPS)
    params = {"a": jnp.ones(2), "b": jnp.ones(2)}
    state = optimizer.init(params)
    with pytest.raises(ValueError, match="does not belong to these parameters.*e.g. c"):
        optimizer.update({}, state, params | {"c": jnp.ones(1)}, set())
    with pytest.raises(ValueError, match="no gradient for 1 used parameters, e.g. b"):
        optimizer.update({"a": jnp.ones(2)}, state, params, {"a", "b"})


def test_no_first_moment():
    """b1 = 0: a step follows the gradient at hand alone."""
    settings = dataclasses.replace(SETTINGS, b1=0.0, warmup_steps=0, weight_decay=0.0)
    optimizer = Optimizer(settings, 10)
    params = {"decoder.norm.scale": jnp.ones(2)}
    state = optimizer.init(params)
    for sign in (1.0, -1.0):
        grads = {"decoder.norm.scale": jnp.full(2, sign)}
        before = params["decoder.norm.scale"]
        params, state, _ = optimizer.update(grads, state, params, grads.keys())
        assert (jnp.sign(before - params["decoder.norm.scale"]) == sign).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_changes_nothing_but_the_steps_number(bad):
    optimizer = Optimizer(dataclasses.replace(SETTINGS, warmup_steps=0), STEPS)
    params = {"a": jnp.ones(3), "b": jnp.ones(2)}
    state = optimizer.init(params)
    grads = {"a": jnp.asarray([1.0, bad, 1.0]), "b": jnp.ones(2)}
    new, after, info = optimizer.update(grads, state, params, {"a", "b"})
    assert bool(info.bad_step) and int(after.step) == 1
    for old, now in ((params, new), (state.mu, after.mu), (state.nu, after.nu)):
        jax.tree.map(np.testing.assert_array_equal, old, now)
    assert all(int(count) == 0 for count in after.counts.values())
