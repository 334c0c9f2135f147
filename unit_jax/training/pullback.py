"""A derivative that is taken in one program and used in another."""

from collections.abc import Callable
from typing import Any

import jax
from flax import struct

from unit_jax.runtime import partitioning


@struct.dataclass
class Pullback:
    """What crosses from a forward program to its backward program.

    Attributes:
      kept: what the policy keeps, split over examples; nothing else takes memory.
      tree, sources: how `jax.vjp`'s function is put together again, of the kept arrays and (where
        a source is a number) of the leaf of that number of `inputs`, which both programs are given.
    """

    kept: list[jax.Array]
    tree: Any = struct.field(pytree_node=False)
    sources: tuple[int | None, ...] = struct.field(pytree_node=False)

    def __call__(self, cotangents, inputs):
        """The gradients; `inputs` as `vjp` was given them, in the same order."""
        given, kept = jax.tree.leaves(inputs), iter(self.kept)
        leaves = [next(kept) if source is None else given[source] for source in self.sources]
        return jax.tree.unflatten(self.tree, leaves)(cotangents)[0]


def vjp(
    function: Callable, primal, inputs, examples: int, policy: Callable[..., bool]
) -> tuple[Any, Pullback]:
    """Like `jax.vjp(function, primal)`, but what the pullback holds is chosen and can be returned.

    Args:
      function: reads leaves of `inputs` besides `primal`, which is made of such leaves too.
      inputs: arguments of the program that is being traced.
      policy: what is kept, see models/residuals.py.
      examples: the global batch; arrays that have it in front are split like it.
    """
    # Nothing that is computed again could be shared: the other half is another program.
    function = jax.checkpoint(function, policy=policy, prevent_cse=False)
    outputs, pullback = jax.vjp(function, primal)
    leaves, tree = jax.tree.flatten(pullback)
    numbers = {id(leaf): number for number, leaf in enumerate(jax.tree.leaves(inputs))}
    sources = tuple(numbers.get(id(leaf)) for leaf in leaves)
    kept = [leaf for leaf, source in zip(leaves, sources, strict=True) if source is None]
    return outputs, Pullback([_over_devices(leaf, examples) for leaf in kept], tree, sources)


def _over_devices(x: jax.Array, examples: int) -> jax.Array:
    """x split over its dimension of examples: the first, or the second after the layers."""
    for axis in range(min(2, x.ndim)):
        if x.shape[axis] == examples:
            return partitioning.split_examples(x, axis)
    return x
