"""Attention and transformer layers, shared by image encoder, text encoder and decoder."""

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from unit_jax.models.attention import attend, fused_attention
from unit_jax.models.dropout import dropout, relu_dropout
from unit_jax.models.lean import from_inputs, gelu
from unit_jax.models.residuals import LAYER, keep
from unit_jax.precision import at_least_float32, broadcast_as
from unit_jax.runtime.partitioning import split_examples

Init = nnx.initializers.Initializer
xavier = nnx.initializers.xavier_uniform()


class Memory(NamedTuple):
    """What the decoder reads.

    Attributes:
      tokens: encoded image places or text tokens, in decoder width.
      positions: their positions, in decoder width.
      mask: True where a token is real.
    """

    tokens: Float[Array, "batch tokens width"]
    positions: Float[Array, "batch tokens width"]
    mask: Bool[Array, "batch tokens"]


class Keys:
    """Dropout keys for one forward pass: each call gives the next; None = no dropout."""

    def __init__(self, key: Array | None):
        self._key = key
        self._count = 0

    def __call__(self) -> Array | None:
        if self._key is None:
            return None
        self._count += 1
        return jax.random.fold_in(self._key, self._count)


def torch_default(key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
    """U(-1/sqrt(inputs), 1/sqrt(inputs)), what torch.nn.Linear and Conv2d start from."""
    bound = 1 / math.sqrt(math.prod(shape[:-1]))
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def bert_std(width: int) -> float:
    """Standard deviation of BERT's fresh matrices: 0.02 at its width of 768.

    At other widths scaled such that activations stay alike; a narrow encoder that started from
    0.02 would pass almost nothing through its layers.
    """
    return 0.02 * math.sqrt(768 / width)


def normal(rngs: nnx.Rngs, rows: int, width: int, std: float = 1.0) -> nnx.Param:
    """A table of embeddings, N(0, std) to start with."""
    return nnx.Param(std * jax.random.normal(rngs.params(), (rows, width), jnp.float32))


def prepend(
    token: Float[Array, "width"], x: Float[Array, "batch tokens width"]
) -> Float[Array, "batch 1+tokens width"]:
    """Puts the same token in front of every sequence."""
    token = broadcast_as(token, (x.shape[0], 1, x.shape[2]), x.dtype)
    return jnp.concatenate([token, x], axis=1)


def recomputed(function: Callable, wanted: bool) -> Callable:
    """The same function; if `wanted`, a backward pass computes its insides again."""
    return jax.checkpoint(function) if wanted else function


def through_layers(
    layers: nnx.List,
    x: Float[Array, "batch tokens width"] | None,
    call: Callable[[Any, Any, Keys], Array],
    keys: Keys,
    *,
    recompute: bool,
    scan: bool,
) -> tuple[Float[Array, "batch tokens width"], Float[Array, "layers batch tokens width"]]:
    """The output of the last of equal layers, one after the other, and the outputs of all.

    Args:
      call: call(layer, x, dropout keys of this layer) applies a layer.
      recompute: a backward pass computes a layer's insides again.
      scan: the layers are a loop over their stacked parameters, whose body is compiled once.
    """
    graphs, states = zip(*(nnx.split(layer) for layer in layers), strict=True)
    layer_keys = [keys() for _ in layers]

    def apply(x: Array | None, state: nnx.State, key: Array | None) -> Array:
        return call(nnx.merge(graphs[0], state), x, Keys(key))

    step = recomputed(apply, recompute)
    if scan:
        stack = lambda *leaves: jnp.stack(leaves)  # noqa: E731

        def body(x: Array, inputs: tuple) -> tuple[Array, Array]:
            x = step(x, *inputs)
            return x, x

        inputs = jax.tree.map(stack, *states), jax.tree.map(stack, *layer_keys)
        assert x is not None  # a loop starts from an array
        return jax.lax.scan(body, x, inputs)
    outputs = []
    for state, key in zip(states, layer_keys, strict=True):
        x = keep(step(x, state, key), LAYER)
        outputs.append(x)
    return outputs[-1], jnp.stack(outputs)


class Linear(nnx.Module):
    """x W + b, computed in the dtype of x."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        rngs: nnx.Rngs,
        kernel_init: Init = torch_default,
        zero_bias: bool = False,
    ):
        self.kernel = nnx.Param(kernel_init(rngs.params(), (inputs, outputs), jnp.float32))
        bias = jnp.zeros(outputs)
        if not zero_bias:
            bound = 1 / math.sqrt(inputs)
            bias = jax.random.uniform(rngs.params(), (outputs,), jnp.float32, -bound, bound)
        self.bias = nnx.Param(bias)

    def __call__(self, x: Float[Array, "... inputs"]) -> Float[Array, "... outputs"]:
        y = product(x, self.kernel[...])
        return y + broadcast_as(self.bias[...], y.shape, y.dtype)

    def of_zeros(self, shape: tuple[int, ...], dtype) -> Float[Array, "... outputs"]:
        """What it gives for zeros, whose product need not be computed, nor kept."""
        return broadcast_as(self.bias[...], shape, dtype)


@from_inputs
def product(
    x: Float[Array, "... inputs"], kernel: Float[Array, "inputs outputs"]
) -> Float[Array, "... outputs"]:
    """x times a matrix cast to the dtype of x; the derivative casts it again and keeps no copy."""
    return x @ kernel.astype(x.dtype)


class LayerNorm(nnx.Module):
    """Layer norm over the last axis, in at least float32; the derivative keeps x in its dtype."""

    def __init__(self, width: int, eps: float = 1e-5):
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))
        self.eps = eps

    def __call__(self, x: Float[Array, "... width"]) -> Float[Array, "... width"]:
        normed = from_inputs(functools.partial(layer_norm, eps=self.eps))
        return normed(x, self.scale[...], self.bias[...])


def layer_norm(
    x: Float[Array, "... width"],
    scale: Float[Array, "width"],
    bias: Float[Array, "width"],
    eps: float,
) -> Float[Array, "... width"]:
    """Layer normalisation over the last axis, computed in float32 at least."""
    y = at_least_float32(x)
    y = y - y.mean(-1, keepdims=True)
    y = y * jax.lax.rsqrt((y * y).mean(-1, keepdims=True) + eps)
    return (y * scale + bias).astype(x.dtype)


def fused_xavier(key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
    """Xavier uniform of a [width, 3 width] matrix, for one of the three projections in it."""
    bound = math.sqrt(6 / (4 * shape[0]))
    return jax.random.uniform(key, shape, dtype, -bound, bound)


class Attention(nnx.Module):
    """Multi-head attention with dropout on the weights."""

    def __init__(
        self,
        width: int,
        heads: int,
        dropout_rate: float,
        *,
        rngs: nnx.Rngs,
        in_init: Init = fused_xavier,
        out_init: Init = torch_default,
        fused: bool = False,
    ):
        if width % heads:
            raise ValueError(f"width {width} cannot be split into {heads} attention heads")
        projection = functools.partial(Linear, width, width, rngs=rngs, zero_bias=True)
        self.query = projection(kernel_init=in_init)
        self.key = projection(kernel_init=in_init)
        self.value = projection(kernel_init=in_init)
        self.out = projection(kernel_init=out_init)
        self.heads = heads
        self.dropout_rate = dropout_rate
        self.fused = fused

    def __call__(
        self,
        query: Float[Array, "batch queries width"],
        key: Float[Array, "batch keys width"],
        value: Float[Array, "batch keys width"] | None,
        mask: Bool[Array, "batch keys"] | None,
        keys: Keys,
    ) -> Float[Array, "batch queries width"]:
        """`mask` is True where a key is real; None = all are. `value` None = zeros."""
        values = self.value.of_zeros(key.shape, key.dtype) if value is None else self.value(value)
        q, k, v = (
            projected.reshape(*projected.shape[:2], self.heads, -1)
            for projected in (self.query(query), self.key(key), values)
        )
        dropout_key = keys()
        drops = dropout_key is not None and self.dropout_rate > 0
        if self.fused and not drops:
            out = fused_attention(q, k, v, mask)
        else:
            out = attend(q, k, v, mask, self.dropout_rate, dropout_key)
        return self.out(out.reshape(query.shape))


class FeedForward(nnx.Module):
    """Linear, activation, linear."""

    def __init__(
        self,
        width: int,
        hidden: int,
        activation: Literal["relu", "gelu"],
        dropout_rate: float,
        *,
        rngs: nnx.Rngs,
        kernel_init: Init = torch_default,
        zero_bias: bool = False,
    ):
        linear = functools.partial(Linear, rngs=rngs, kernel_init=kernel_init, zero_bias=zero_bias)
        self.linear1 = linear(width, hidden)
        self.linear2 = linear(hidden, width)
        self.activation = activation
        self.dropout_rate = dropout_rate  # between the two

    def __call__(self, x: Float[Array, "... width"], keys: Keys) -> Float[Array, "... width"]:
        hidden = self.linear1(x)
        if self.activation == "relu":
            hidden = relu_dropout(hidden, self.dropout_rate, keys())
        else:
            hidden = dropout(gelu(hidden), self.dropout_rate, keys())
        return self.linear2(hidden)


class EncoderLayer(nnx.Module):
    """Self-attention and feed-forward, each with residual and layer norm.

    With `text` it is BERT's (GELU, no dropout inside the feed-forward, its initial values), else
    DETR's. Post-norm (the norm follows the residual) unless `pre_norm`.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        dropout_rate: float,
        attention_dropout_rate: float,
        *,
        rngs: nnx.Rngs,
        text: bool = False,
        pre_norm: bool = False,
        fused: bool = False,
    ):
        matrix = nnx.initializers.normal(bert_std(width)) if text else xavier
        self.attention = Attention(
            width,
            heads,
            attention_dropout_rate,
            rngs=rngs,
            in_init=matrix if text else fused_xavier,
            out_init=matrix,
            fused=fused,
        )
        self.feed_forward = FeedForward(
            width,
            hidden,
            "gelu" if text else "relu",
            0.0 if text else dropout_rate,
            rngs=rngs,
            kernel_init=matrix,
            zero_bias=text,
        )
        eps = 1e-12 if text else 1e-5
        self.norm1 = LayerNorm(width, eps)
        self.norm2 = LayerNorm(width, eps)
        self.dropout_rate = dropout_rate
        self.pre_norm = pre_norm

    def __call__(
        self,
        x: Float[Array, "batch tokens width"],
        positions: Float[Array, "batch tokens width"] | None,
        mask: Bool[Array, "batch tokens"],
        keys: Keys,
    ) -> Float[Array, "batch tokens width"]:
        """`positions` are added to queries and keys, not to values."""

        def attend(y: Array) -> Array:
            q = y if positions is None else y + positions
            return self.attention(q, q, y, mask, keys)

        for norm, branch in (
            (self.norm1, attend),
            (self.norm2, lambda y: self.feed_forward(y, keys)),
        ):
            x = residual(x, branch, norm, self.pre_norm, self.dropout_rate, keys)
        return x


class DecoderLayer(nnx.Module):
    """Self-attention of the queries, cross-attention to the memory, feed-forward (DETR)."""

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        dropout_rate: float,
        attention_dropout_rate: float,
        *,
        rngs: nnx.Rngs,
        pre_norm: bool = False,
        matrix_init: Init = torch_default,
        fused: bool = False,
    ):
        attention = functools.partial(
            Attention,
            width,
            heads,
            attention_dropout_rate,
            rngs=rngs,
            out_init=matrix_init,
            fused=fused,
        )
        self.self_attention = attention()
        self.cross_attention = attention()
        self.feed_forward = FeedForward(
            width, hidden, "relu", dropout_rate, rngs=rngs, kernel_init=matrix_init
        )
        self.norm1 = LayerNorm(width)
        self.norm2 = LayerNorm(width)
        self.norm3 = LayerNorm(width)
        self.dropout_rate = dropout_rate
        self.pre_norm = pre_norm

    def __call__(
        self,
        x: Float[Array, "batch queries width"] | None,
        queries: Float[Array, "batch queries width"],
        memory: Memory,
        keys: Keys,
    ) -> Float[Array, "batch queries width"]:
        """Query embeddings are added to queries and keys of self-attention and to queries of
        cross-attention; memory positions to keys of cross-attention. `x` None = zeros."""
        zeros = x is None and not self.pre_norm

        def attend(y: Array) -> Array:
            with_queries = y + queries
            return self.self_attention(with_queries, with_queries, None if zeros else y, None, keys)

        x = jnp.zeros_like(queries) if x is None else x
        for norm, branch in (
            (self.norm1, attend),
            (
                self.norm2,
                lambda y: self.cross_attention(
                    y + queries,
                    memory.tokens + memory.positions,
                    memory.tokens,
                    memory.mask,
                    keys,
                ),
            ),
            (self.norm3, lambda y: self.feed_forward(y, keys)),
        ):
            x = residual(x, branch, norm, self.pre_norm, self.dropout_rate, keys)
        return x


def residual(x, branch, norm: LayerNorm, pre_norm: bool, dropout_rate: float, keys: Keys):
    """x + branch(x) with dropout on the branch and the layer norm before it or after the sum."""
    if pre_norm:
        return split_examples(x + dropout(branch(norm(x)), dropout_rate, keys()))
    return split_examples(norm(x + dropout(branch(x), dropout_rate, keys())))
