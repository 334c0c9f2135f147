"""Layers against loops in float64 NumPy."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from unit_jax.models import flat, resnet
from unit_jax.models.image_encoder import sine_positions
from unit_jax.models.transformer import (
    Attention,
    EncoderLayer,
    Keys,
    LayerNorm,
    Linear,
    prepend,
    through_layers,
)
from unit_jax.precision import divide
from unit_jax.settings import BackboneSettings

NO_DROPOUT = Keys(None)


def array(*shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(2, 8, 6, 3), (1, 7, 9, 2), (1, 1, 1, 1)])
def test_max_pool_and_its_gradient(shape):
    """Many values are equal, as after a ReLU: the first of a window gets all of its gradient."""
    x = np.maximum(np.round(2 * array(*shape)), 0)
    batch, height, width, channels = shape
    h, w = -(-height // 2), -(-width // 2)
    cotangent = np.random.default_rng(1).integers(1, 99, (batch, h, w, channels)).astype(np.float32)
    expected, gradient = np.zeros_like(cotangent), np.zeros_like(x)
    for b, i, j, c in np.ndindex(expected.shape):
        window = [
            (y, z)
            for y in range(max(2 * i - 1, 0), min(2 * i + 2, height))
            for z in range(max(2 * j - 1, 0), min(2 * j + 2, width))
        ]
        y, z = max(window, key=lambda place: x[b, place[0], place[1], c])
        expected[b, i, j, c] = x[b, y, z, c]
        gradient[b, y, z, c] += cotangent[b, i, j, c]
    pooled, pull_back = jax.vjp(resnet.max_pool, jnp.asarray(x))
    np.testing.assert_array_equal(pooled, expected)
    np.testing.assert_array_equal(pull_back(jnp.asarray(cotangent))[0], gradient)


def test_positions_count_real_places():
    mask = np.zeros((2, 3, 4), bool)
    mask[0] = True
    mask[1, :2, :3] = True
    features = 8
    ours = sine_positions(mask, features)
    expected = np.zeros((2, 3, 4, features))
    for b, (height, width) in enumerate([(3, 4), (2, 3)]):
        for y in range(height):
            for x in range(width):
                places = ((y + 1) / (height + 1e-6), (x + 1) / (width + 1e-6))
                for half, place in enumerate(places):
                    for i in range(features // 2):
                        angle = 2 * math.pi * place / 10000 ** (2 * (i // 2) / (features // 2))
                        wave = math.cos if i % 2 else math.sin
                        expected[b, y, x, half * features // 2 + i] = wave(angle)
    real = mask[..., None]
    np.testing.assert_allclose(np.where(real, ours, 0), np.where(real, expected, 0), atol=1e-6)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def slow_attention(attention: Attention, query, key, value, mask):
    def project(linear: Linear, x):
        return x @ np.float64(linear.kernel[...]) + np.float64(linear.bias[...])

    heads, width = attention.heads, query.shape[-1]
    q, k, v = (
        project(linear, np.float64(x))
        for linear, x in (
            (attention.query, query),
            (attention.key, key),
            (attention.value, value),
        )
    )
    out = np.zeros_like(q)
    for b in range(len(q)):
        real = np.flatnonzero(mask[b])
        for h in range(heads):
            part = slice(h * width // heads, (h + 1) * width // heads)
            weights = softmax(q[b, :, part] @ k[b, real, part].T / math.sqrt(width / heads))
            out[b, :, part] = weights @ v[b, real, part]
    return project(attention.out, out)


def test_attention_is_a_weighted_mean_of_real_values():
    attention = Attention(12, 3, 0.0, rngs=nnx.Rngs(0))
    query, key, value = array(2, 4, 12), array(2, 6, 12, seed=1), array(2, 6, 12, seed=2)
    mask = np.arange(6) < np.array([[6], [3]])
    ours = attention(query, key, value, mask, NO_DROPOUT)
    np.testing.assert_allclose(ours, slow_attention(attention, query, key, value, mask), atol=1e-5)


def test_attention_over_nothing_is_finite():
    attention = Attention(8, 2, 0.0, rngs=nnx.Rngs(0))
    x = array(1, 3, 8)
    out = attention(x, x, x, np.zeros((1, 3), bool), NO_DROPOUT)
    assert np.isfinite(out).all()


def test_layer_norm_is_exact_for_large_offsets():
    norm = LayerNorm(16)
    norm.scale[...], norm.bias[...] = array(16), array(16, seed=1)
    x = array(5, 16, seed=2) + 1000
    wide = np.float64(x)
    expected = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-5)
    expected = expected * norm.scale[...] + norm.bias[...]
    np.testing.assert_allclose(norm(x), expected, atol=1e-3)
    assert norm(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.bfloat16


def test_post_norm_and_pre_norm_order():
    x, mask = array(1, 4, 8), np.ones((1, 4), bool)
    for pre_norm in (False, True):
        layer = EncoderLayer(8, 2, 16, 0.0, 0.0, rngs=nnx.Rngs(0), pre_norm=pre_norm)
        positions = array(1, 4, 8, seed=1)

        def attend(y, layer=layer, positions=positions):
            return layer.attention(y + positions, y + positions, y, mask, NO_DROPOUT)

        if pre_norm:
            y = x + attend(layer.norm1(x))
            expected = y + layer.feed_forward(layer.norm2(y), NO_DROPOUT)
        else:
            y = layer.norm1(x + attend(x))
            expected = layer.norm2(y + layer.feed_forward(y, NO_DROPOUT))
        np.testing.assert_allclose(layer(x, positions, mask, NO_DROPOUT), expected, atol=1e-6)


@pytest.mark.parametrize("recompute", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_layers_in_a_loop_are_the_layers_one_by_one(recompute):
    """Outputs and gradients, with dropout."""
    layers = nnx.List([EncoderLayer(8, 2, 16, 0.3, 0.3, rngs=nnx.Rngs(i)) for i in range(3)])
    graph, params = nnx.split(layers)
    x, mask = array(2, 4, 8), np.array([[True] * 4, [True] * 2 + [False] * 2])

    @functools.partial(jax.jit, static_argnums=1)
    def run(params, scan):
        def loss(params):
            last, outputs = through_layers(
                nnx.merge(graph, params),
                jnp.asarray(x),
                lambda layer, x, keys: layer(x, None, mask, keys),
                Keys(jax.random.key(5)),
                recompute=recompute,
                scan=scan,
            )
            return (outputs**2 * (1 + last)).sum(), (last, outputs)

        return jax.grad(loss, has_aux=True)(params)

    found, wanted = run(params, True), run(params, False)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4), found, wanted)
    last, outputs = wanted[1]
    np.testing.assert_array_equal(last, outputs[2])
    expected, keys = x, Keys(jax.random.key(5))
    for layer, output in zip(layers, outputs, strict=True):
        expected = layer(expected, None, mask, Keys(keys()))
        np.testing.assert_allclose(output, expected, atol=1e-5)


def test_text_layers_use_exact_gelu_and_no_relu():
    layer = EncoderLayer(8, 2, 16, 0.0, 0.0, rngs=nnx.Rngs(0), text=True)
    x = array(3, 8) * 3
    hidden = np.float64(layer.feed_forward.linear1(x))
    gelu = [v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in hidden.ravel()]
    expected = layer.feed_forward.linear2(np.float32(gelu).reshape(hidden.shape))
    np.testing.assert_allclose(layer.feed_forward(x, NO_DROPOUT), expected, atol=1e-5)
    assert layer.norm1.eps == 1e-12


def test_keys_differ_and_repeat():
    keys, again = Keys(jax.random.key(3)), Keys(jax.random.key(3))
    drawn = [jax.random.key_data(keys()).tolist() for _ in range(5)]
    assert drawn == [jax.random.key_data(again()).tolist() for _ in range(5)]
    assert len({tuple(key) for key in drawn}) == 5


def backbone(dilation: bool, depths=(1, 1, 1, 2)) -> resnet.ResNet:
    settings = BackboneSettings(depths, 4, dilation, bn_eps=1e-5, calibrate=0)
    model = resnet.ResNet(settings, rngs=nnx.Rngs(0))
    resnet.calibrate(model, jnp.asarray(array(1, 33, 47, 3)))
    return model


def run(model: resnet.ResNet, x, sizes):
    return jax.jit(lambda x, sizes: model(x, sizes))(x, sizes)


def slow_conv(x, kernel, stride, dilation):
    """One image, a loop over the kernel's cells."""
    size = kernel.shape[0]
    pad = dilation * (size // 2)
    padded = np.pad(np.float64(x), ((pad, pad), (pad, pad), (0, 0)))
    out = [-(-n // stride) for n in x.shape[:2]]
    total = np.zeros((*out, kernel.shape[-1]))
    for i in range(size):
        for j in range(size):
            rows = i * dilation + stride * np.arange(out[0])
            columns = j * dilation + stride * np.arange(out[1])
            total += padded[rows[:, None], columns] @ np.float64(kernel[i, j])
    return total


def slow_resnet(model: resnet.ResNet, image, dilation: bool):
    def norm(x, bn):
        mean, var = np.float64(bn.mean[...]), np.float64(bn.var[...])
        return (x - mean) / np.sqrt(var + 1e-5) * np.float64(bn.scale[...]) + np.float64(
            bn.bias[...]
        )

    x = np.maximum(norm(slow_conv(image, model.conv1.kernel[...], 2, 1), model.bn1), 0)
    out = [-(-n // 2) for n in x.shape[:2]]
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    x = np.array(
        [
            [padded[2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max((0, 1)) for j in range(out[1])]
            for i in range(out[0])
        ]
    )
    for stage in range(4):
        for i, block in enumerate(getattr(model, f"layer{stage + 1}")):
            stride = 2 if i == 0 and stage > 0 and not (dilation and stage == 3) else 1
            spread = 2 if dilation and stage == 3 and i > 0 else 1
            y = np.maximum(norm(slow_conv(x, block.conv1.kernel[...], 1, 1), block.bn1), 0)
            y = slow_conv(y, block.conv2.kernel[...], stride, spread)
            y = np.maximum(norm(y, block.bn2), 0)
            y = norm(slow_conv(y, block.conv3.kernel[...], 1, 1), block.bn3)
            if i == 0:
                x = norm(
                    slow_conv(x, block.shortcut_conv.kernel[...], stride, 1), block.shortcut_bn
                )
            x = np.maximum(x + y, 0)
    return x


def test_resnet_is_torchvisions():
    image = array(37, 50, 3, seed=4)
    for dilation in (True, False):
        model = backbone(dilation)
        ours, sizes = run(model, image[None], None)
        assert sizes is None
        assert ours.shape == ((1, 3, 4, 128) if dilation else (1, 2, 2, 128))
        np.testing.assert_allclose(ours[0], slow_resnet(model, image, dilation), atol=2e-3)


def test_resnet_sees_an_image_the_same_in_any_batch():
    model = backbone(True, (1, 1, 1, 1))
    image = array(37, 50, 3, seed=4)
    alone, _ = run(model, image[None], np.array([[37, 50]]))
    for height, width in ((37, 64), (64, 50), (96, 80)):
        padded = np.full((2, height, width, 3), 7.0, np.float32)  # not even zero
        padded[0, :37, :50] = image
        ours, sizes = run(model, padded, np.array([[37, 50], [height, width]]))
        assert sizes.tolist() == [[3, 4], [-(-height // 16), -(-width // 16)]]
        np.testing.assert_allclose(ours[:1, :3, :4], alone, rtol=1e-4, atol=1e-4)


def test_batch_norm_in_half_precision_rounds_once():
    rng = np.random.default_rng(0)
    norm = resnet.FrozenBatchNorm(64, 1e-5)
    norm.mean[...], norm.var[...] = rng.normal(0, 4, 64), rng.uniform(0.1, 2, 64)
    x = jnp.asarray(rng.normal(norm.mean[...], 1, (100, 64)), jnp.bfloat16)
    exact = norm(x.astype(jnp.float32))
    np.testing.assert_array_equal(norm(x), exact.astype(jnp.bfloat16))


def test_gradients_of_what_is_broadcast_are_summed_in_float32():
    graph, params, _ = flat.split(Linear(8, 8, rngs=nnx.Rngs(0)))
    token = jnp.ones(8)
    x = jnp.ones((64, 400, 8), jnp.bfloat16)

    def total(bias, token):
        layer = flat.merge(graph, params | {"bias": bias}, {})
        return prepend(token, layer(x)).astype(jnp.float32).sum()

    for_bias, for_token = jax.jit(jax.grad(total, (0, 1)))(params["bias"], token)
    np.testing.assert_array_equal(for_bias, np.full(8, 64 * 400))
    np.testing.assert_array_equal(for_token, np.full(8, 64))


def test_division_in_half_precision_keeps_the_scale():
    """1/sqrt(98) of 16 bits would be off by more than 0.1 %."""
    assert divide(jnp.bfloat16(98), 98**0.5) == jnp.bfloat16(98**0.5)
    assert divide(jnp.bfloat16(98), 98**0.5).dtype == jnp.bfloat16
