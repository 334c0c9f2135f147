"""Dropout's random bits: rate, independence, and threefry's as the measure."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from unit_jax.models.dropout import bits, dropout, relu_dropout, seed_of

SURPRISE = 1e-6  # a p-value below it is a failure


def words(key: jax.Array, rows: int, columns: int) -> np.ndarray:
    index = jnp.arange(rows, dtype=jnp.uint32)[:, None]
    return np.asarray(
        jax.jit(bits)(seed_of(key), index, jnp.arange(columns, dtype=jnp.uint32)[None])
    )


def threefry(key: jax.Array, rows: int, columns: int) -> np.ndarray:
    return np.asarray(jax.random.bits(key, (rows, columns), jnp.uint32))


def assert_plausible(statistic: float, degrees: int) -> None:
    """Of a chi-square statistic: neither too large nor too small."""
    assert SURPRISE < stats.chi2.cdf(statistic, degrees) < 1 - SURPRISE


def drops(shape: tuple[int, ...], rate: float, key: jax.Array) -> np.ndarray:
    return np.asarray(dropout(jnp.ones(shape), rate, key)) == 0


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.013])
def test_rate(rate):
    dropped = drops((3000, 1001), rate, jax.random.key(7))
    sigma = (rate * (1 - rate) / dropped.size) ** 0.5
    assert abs(dropped.mean() - rate) < 5 * sigma
    for axis in (0, 1):  # rows and columns are as uneven as chance makes them
        counts, n = dropped.sum(axis), dropped.shape[axis]
        statistic = ((counts - n * rate) ** 2 / (n * rate * (1 - rate))).sum()
        assert_plausible(statistic, len(counts))


def test_scale_and_no_key():
    x = np.ones((200, 201), np.float32)
    dropped = dropout(x, 0.25, jax.random.key(0))
    assert set(np.unique(dropped)) == {0, np.float32(1 / 0.75)}
    np.testing.assert_array_equal(dropout(x, 0.25, None), x)
    np.testing.assert_array_equal(dropout(x, 0.0, jax.random.key(0)), x)


@pytest.mark.parametrize("draw", [words, threefry])
def test_each_upper_bit_pattern_is_as_frequent_as_threefrys(draw):
    """Patterns of neighbours too: across columns, across rows, and far away."""
    found, wanted = draw(jax.random.key(1), 2048, 1024), threefry(jax.random.key(2), 2048, 1024)

    def nibbles(x, rows, columns):
        pair = x[: len(x) - rows, : x.shape[1] - columns] >> 28, x[rows:, columns:] >> 28
        return np.bincount((pair[0] * 16 + pair[1]).ravel(), minlength=256)

    for rows, columns in ((0, 1), (1, 0), (1, 1), (0, 256), (512, 0), (77, 3)):
        table = np.stack([nibbles(found, rows, columns), nibbles(wanted, rows, columns)])
        # Pairs overlap, but values at different places are independent if the null holds.
        statistic, _, degrees, _ = stats.chi2_contingency(table)
        assert_plausible(statistic, degrees)
    table = np.stack([np.bincount((x >> 16).ravel(), minlength=2**16) for x in (found, wanted)])
    statistic, _, degrees, _ = stats.chi2_contingency(table)
    assert_plausible(statistic, degrees)


@pytest.mark.parametrize("draw", [words, threefry])
def test_words_repeat_as_often_as_chance_says(draw):
    """Rows that were shifted copies of others, as those of one counter, would repeat by the
    thousand."""
    found = draw(jax.random.key(3), 4096, 512)
    repeats = found.size - len(np.unique(found))
    assert SURPRISE < stats.poisson.cdf(repeats, found.size**2 / 2**33) < 1 - SURPRISE


def test_positions_heads_steps_and_keys_are_independent():
    rate, shape = 0.1, (2, 4, 50, 203)
    key = jax.random.key(11)
    step = functools.partial(jax.random.fold_in, key)
    one = drops(shape, rate, key)
    others = {
        "example": one[1],
        "head": one[0, 1:],
        "query": one[:, :, 1:],
        "key": one[..., 1:],
        "step": drops(shape, rate, step(1)),
        "next step": drops(shape, rate, step(2)),
        "another key": drops(shape, rate, jax.random.key(12)),
    }
    here = {
        "example": one[0],
        "head": one[0, :-1],
        "query": one[:, :, :-1],
        "key": one[..., :-1],
        "next step": others["step"],
    }
    for name, other in others.items():
        mine = here.get(name, one)
        correlation = np.corrcoef(mine.ravel(), other.ravel())[0, 1]
        assert abs(correlation) < 5 / mine.size**0.5, name


def test_close_keys_give_unrelated_bits():
    """Words of keys that differ in one bit, position by position."""
    one = words(jax.random.wrap_key_data(jnp.array([5, 9], jnp.uint32)), 300, 300)
    for other in ([5, 8], [4, 9], [5, 9 + 2**31], [9, 5], [5 + 2**20, 9]):
        two = words(jax.random.wrap_key_data(jnp.array(other, jnp.uint32)), 300, 300)
        flips = np.array([((one ^ two) >> bit & 1).mean() for bit in range(32)])
        np.testing.assert_allclose(flips, 0.5, atol=5 * 0.5 / one.size**0.5)


def test_bits_belong_to_positions():
    """More examples, fewer columns, another generator's key: what is there stays."""
    key = jax.random.key(0)
    large, small = drops((4, 3, 40), 0.5, key), drops((2, 3, 40), 0.5, key)
    np.testing.assert_array_equal(large[:2], small)
    np.testing.assert_array_equal(drops((4, 3, 17), 0.5, key), large[..., :17])
    assert drops((50,), 0.5, jax.random.key(0, impl="rbg")).any()


def test_a_mesh_draws_what_one_device_does():
    mesh = jax.make_mesh((2, 4), ("a", "b"))
    x = np.ones((4, 6, 32), np.float32)
    sharding = jax.NamedSharding(mesh, jax.P("a", None, "b"))
    run = jax.jit(lambda x: dropout(x, 0.3, jax.random.key(2)))
    np.testing.assert_array_equal(run(jax.device_put(x, sharding)), run(x))


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_relu_and_dropout_in_one(rate):
    x = jax.random.normal(jax.random.key(0), (30, 40))
    key, g = jax.random.key(1), jax.random.normal(jax.random.key(2), x.shape)
    found, pull_back = jax.vjp(lambda x: relu_dropout(x, rate, key), x)
    wanted, plain = jax.vjp(lambda x: dropout(jax.nn.relu(x), rate, key), x)
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_allclose(pull_back(g)[0], plain(g)[0], rtol=1e-6)
    (kept,) = (leaf for leaf in jax.tree.leaves(pull_back) if leaf.size == x.size)
    np.testing.assert_array_equal(kept, found)


def test_the_mask_is_drawn_again_and_not_kept():
    x, key = jnp.ones((30, 40), jnp.bfloat16), jax.random.key(1)
    y, pull_back = jax.vjp(lambda x: dropout(x, 0.3, key), x)
    assert all(leaf.size <= 2 for leaf in jax.tree.leaves(pull_back))
    np.testing.assert_array_equal(pull_back(x)[0], y)


def test_half_precision_keeps_the_scale():
    """1/(1 - rate) of 16 bits would be off by more than 0.1 %."""
    kept = dropout(jnp.ones((256, 1024), jnp.bfloat16), 0.1, jax.random.key(0))
    assert kept.max() == jnp.bfloat16(1 / 0.9)
