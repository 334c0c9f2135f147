"""Attention by chunks against the written-out form, and what is kept for the backward pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from unit_jax.models import resnet
from unit_jax.models.attention import attend
from unit_jax.models.dropout import dropout
from unit_jax.models.transformer import EncoderLayer, Keys
from unit_jax.settings import BackboneSettings


def written_out(q, k, v, mask, rate, key):
    scores = jnp.einsum("bqhd,bkhd->bhqk", q / q.shape[-1] ** 0.5, k)
    if mask is not None:
        scores = jnp.where(mask[:, None, None, :], scores, jnp.finfo(q.dtype).min)
    weights = dropout(jax.nn.softmax(scores), rate, key)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


def inputs(queries: int, keys: int, dtype=np.float32):
    rng = np.random.default_rng(queries * keys)
    shapes = [(2, n, 3, 8) for n in (queries, keys, keys, queries)]
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


def results(function, arguments, mask, rate, key):
    *arguments, cotangent = arguments

    @jax.jit
    def run(*arguments):
        y, pull_back = jax.vjp(lambda *x: function(*x, mask, rate, key), *arguments)
        return y, *pull_back(cotangent)

    return run(*arguments)


def by_chunks(q, k, v, mask, rate, key):
    return attend(q, k, v, mask, rate, key, whole=8, chunk=8)


MASKS = {"all": None, "some": lambda keys: jnp.arange(keys) < jnp.array([[keys], [3]])}


@pytest.mark.parametrize("mask", ["all", "some"])
@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize(
    ("queries", "keys", "function"),
    [(5, 7, attend), (19, 19, by_chunks), (33, 10, by_chunks)],
)
def test_values_and_gradients(queries, keys, function, rate, mask):
    key = jax.random.key(4) if rate else None
    mask = MASKS[mask] and MASKS[mask](keys)
    arguments = inputs(queries, keys)
    found = results(function, arguments, mask, rate, key)
    wanted = results(written_out, arguments, mask, rate, key)
    for ours, expected in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours, expected, atol=5e-6)


def test_values_and_gradients_in_float64():
    with jax.enable_x64(True):
        arguments = inputs(19, 21, np.float64)
        mask = MASKS["some"](21)
        key = jax.random.key(4)
        found = results(by_chunks, arguments, mask, 0.3, key)
        wanted = results(written_out, arguments, mask, 0.3, key)
        for ours, expected in zip(found, wanted, strict=True):
            assert ours.dtype == np.float64
            np.testing.assert_allclose(ours, expected, atol=1e-14)


@pytest.mark.parametrize("function", [attend, by_chunks])
def test_half_precision(function):
    """As close to float32 as the written-out form in 16 bits, within a factor."""
    exact = results(written_out, inputs(19, 21), MASKS["some"](21), 0.3, jax.random.key(4))
    half = inputs(19, 21, jnp.bfloat16)
    found = results(function, half, MASKS["some"](21), 0.3, jax.random.key(4))
    for ours, expected in zip(found, exact, strict=True):
        assert ours.dtype == jnp.bfloat16
        gap = np.linalg.norm(ours.astype(jnp.float32) - expected)
        assert gap < 0.01 * np.linalg.norm(expected)


@pytest.mark.parametrize("function", [attend, by_chunks])
def test_where_nothing_is_real_all_count_alike(function):
    arguments, mask = inputs(18, 12), jnp.zeros((2, 12), bool)
    found = results(function, arguments, mask, 0.0, None)
    wanted = results(written_out, arguments, mask, 0.0, None)
    for ours, expected in ((found[0], wanted[0]), (found[3], wanted[3])):  # result and for values
        np.testing.assert_allclose(ours, expected, atol=5e-6)
    assert all(np.isfinite(x).all() for x in found)


def test_a_mesh_computes_what_one_device_does():
    """With dropout, whose bits belong to places in the global batch."""
    mesh = jax.make_mesh((2, 3), ("a", "b"), devices=jax.devices()[:6])
    sharding = jax.NamedSharding(mesh, jax.P("a", None, "b"))
    arguments, mask, key = inputs(19, 19), MASKS["some"](19), jax.random.key(4)
    found = results(by_chunks, jax.device_put(arguments, sharding), mask, 0.3, key)
    wanted = results(by_chunks, arguments, mask, 0.3, key)
    for ours, expected in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours, expected, atol=5e-6)


def sizes(jaxpr) -> list[int]:
    """Of all arrays that a program makes, loops included."""
    found = []
    for equation in jaxpr.eqns:
        found += [variable.aval.size for variable in equation.outvars]
        for inner in jax.core.jaxprs_in_params(equation.params):
            found += sizes(inner)
    return found


def test_no_array_of_all_weights_is_made():
    tokens = 1000
    x = jax.ShapeDtypeStruct((1, tokens, 2, 4), jnp.float32)

    def both(q, k, v):
        y, pull_back = jax.vjp(lambda *x: attend(*x, None, 0.1, jax.random.key(0)), q, k, v)
        return pull_back(y)

    assert max(sizes(jax.make_jaxpr(both)(x, x, x).jaxpr)) < 2 * tokens * tokens / 4


def kept(function, *arguments) -> list[jax.ShapeDtypeStruct]:
    """What a forward program hands on, arguments left out, each once."""

    def run(*arguments):
        _, pull_back = jax.vjp(function, *arguments)
        return jax.tree.leaves(pull_back)

    jaxpr = jax.make_jaxpr(run)(*arguments).jaxpr
    return [x.aval for x in {id(x): x for x in jaxpr.outvars if x not in jaxpr.invars}.values()]


@pytest.mark.parametrize("text", [False, True])
def test_an_encoder_layer_keeps_each_number_once(text):
    """In 16 bits: no mask, no constant, no copy in float32, no weights of attention."""
    batch, tokens, width, hidden = 2, 70, 32, 64
    layer = EncoderLayer(width, 4, hidden, 0.1, 0.1, rngs=nnx.Rngs(0), text=text)
    graph, params = nnx.split(layer)
    x, mask = jnp.ones((batch, tokens, width), jnp.bfloat16), jnp.ones((batch, tokens), bool)
    positions = None if text else x

    def run(params, x, key):
        return nnx.merge(graph, params)(x, positions, mask, Keys(key))

    found = kept(lambda params, x: run(params, x, jax.random.key(0)), params, x)
    large = [leaf for leaf in found if leaf.size >= batch * tokens * 4 and leaf.ndim]
    assert all(leaf.dtype == jnp.bfloat16 for leaf in large if leaf.size > 2 * batch * tokens * 4)
    # Attention: its input with positions, q, k, v, result; what the norms read and the first
    # one's result; the feed-forward's hidden values, before and after GELU where that is used.
    rows = (8 if text else 9) * width + hidden * (2 if text else 1)
    total = sum(leaf.size * leaf.dtype.itemsize for leaf in found)
    small = batch * tokens * 4 * (2 * 4 + 1)  # two numbers a query and head, and the mask
    assert total <= batch * tokens * 2 * rows + small + 100


def test_a_backbone_keeps_each_number_once():
    settings = BackboneSettings((1, 1, 1, 1), 4, True, bn_eps=1e-5, calibrate=0)
    graph, params, rest = nnx.split(resnet.ResNet(settings, rngs=nnx.Rngs(0)), nnx.Param, ...)
    x, sizes = jnp.ones((2, 64, 64, 3), jnp.bfloat16), jnp.array([[64, 64], [30, 40]])
    found = kept(lambda params: nnx.merge(graph, params, rest)(x, sizes)[0], params)
    maps = [leaf for leaf in found if leaf.ndim == 4 and leaf.shape[0] == 2]
    assert all(leaf.dtype == jnp.bfloat16 for leaf in maps)
    # What every convolution reads (the shortcut reads what the first does), and the output.
    wanted = {(64, 3): 1, (32, 4): 1, (16, 4): 3, (16, 16): 1, (16, 8): 1}
    assert sum(leaf.shape[1] * leaf.shape[1] * leaf.shape[3] for leaf in maps) < 2 * sum(
        size * size * width * times for (size, width), times in wanted.items()
    )
