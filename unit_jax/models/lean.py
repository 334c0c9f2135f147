"""Derivatives that keep what the forward pass has anyway.

Left to itself, `jax.vjp` keeps masks, constants broadcast to the shape of the data and copies in
other dtypes. Inside one program XLA removes most of them; where forward and backward pass are two
programs (detection, see training/step.py) each is written, handed over and read, and a constant is
not even split over the mesh. What is written with the functions here keeps its inputs or its
output, which a neighbour keeps as well, and computes the rest again.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def from_inputs(function: Callable[..., Array]) -> Callable[..., Array]:
    """The same function of arrays; its derivative keeps nothing but the inputs.

    Unlike `jax.checkpoint` it puts no barrier between the passes: in one program XLA may still use
    a value of the forward pass again. A backward pass that is traced later sees the mesh that the
    forward pass saw. Inputs that are no floating-point numbers have no gradient.
    """

    @functools.wraps(function)
    def call(*inputs: Array) -> Array:
        mesh = jax.sharding.get_abstract_mesh()
        learns = [jnp.issubdtype(jnp.result_type(x), jnp.floating) for x in inputs]

        @jax.custom_vjp
        def same(*inputs):
            return function(*inputs)

        def forward(*inputs):
            return function(*inputs), inputs

        def backward(inputs, cotangent):
            def of_floats(*floats):
                rest = iter(floats)
                pairs = zip(inputs, learns, strict=True)
                return function(*(next(rest) if learn else x for x, learn in pairs))

            floats = (x for x, learn in zip(inputs, learns, strict=True) if learn)
            if mesh.empty:
                gradients = jax.vjp(of_floats, *floats)[1](cotangent)
            else:
                with jax.sharding.use_abstract_mesh(mesh):
                    gradients = jax.vjp(of_floats, *floats)[1](cotangent)
            found = iter(gradients)
            return tuple(next(found) if learn else None for learn in learns)

        same.defvjp(forward, backward)
        return same(*inputs)

    return call


def relu_input(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x; every ReLU of the model reads its input through here, so that a check can see it."""
    return x


def relu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """max(x, 0); keeps its output, which the next product keeps too, and no mask."""
    return _relu(relu_input(x))


@jax.custom_vjp
def _relu(x):
    return jnp.maximum(x, 0)


def _relu_forward(x):
    y = jnp.maximum(x, 0)
    return y, y


def _relu_backward(y, cotangent):
    return (jnp.where(y > 0, cotangent, 0),)


_relu.defvjp(_relu_forward, _relu_backward)


@from_inputs
def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The exact GELU; keeps its input."""
    return jax.nn.gelu(x, approximate=False)
