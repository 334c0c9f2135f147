"""Finds the few shapes that waste the least when everything is padded to one of them.

A k-median problem: every size goes to the smallest shape that holds it and costs that shape's
area. Solved by the interchange heuristic (Teitz and Bart, 1968): from a start, each shape in turn
is replaced by the candidate that lowers the cost most, until no replacement lowers it.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from unit_jax.data import batching
from unit_jax.data.batching import Bucket

_UNHELD = 1e9  # times the largest area: the cost of a size that no shape holds
_NEARLY_ZERO = 1e-6  # of the total weight: sizes of no weight must be held all the same


def search(
    sizes: Int[np.ndarray, "sizes dims"],
    weights: Float[np.ndarray, "sizes"],
    count: int,
    multiple: int,
    seed: int = 0,
    restarts: int = 4,
) -> tuple[Bucket, ...]:
    """At most `count` shapes that hold all sizes with little padding.

    Args:
      sizes: (height, width) of images, or (tokens,) of texts.
      weights: how often each occurs; sizes that may occur but are not worth a shape weigh 0.
      count: shapes in all.
      multiple: every side is a multiple of it.
      seed: of the random starts; the result is a function of the arguments.
      restarts: random starts beside the greedy one; the best result counts.

    Raises:
      ValueError: there is no size.
    """
    if not len(sizes):
        raise ValueError("there are no sizes to choose shapes for")
    rounded = -(-np.asarray(sizes, np.int64) // multiple) * multiple
    cells, cell_of = np.unique(rounded, axis=0, return_inverse=True)
    weights = np.bincount(cell_of.ravel(), weights, len(cells))
    weights = weights / weights.sum() + _NEARLY_ZERO
    # An optimal shape is the least that holds what goes to it: its sides are sides of sizes.
    sides = [np.unique(column) for column in cells.T]
    candidates = np.stack(np.meshgrid(*sides, indexing="ij"), -1).reshape(-1, cells.shape[1])
    areas = candidates.prod(-1) / candidates.prod(-1).max()
    holds = (cells <= candidates[:, None]).all(-1)
    costs = np.where(holds, areas[:, None], _UNHELD)

    rng = np.random.default_rng(seed)
    starts = [_greedy(costs, weights, count)]
    starts += [rng.choice(len(costs), min(count, len(costs)), False) for _ in range(restarts)]
    chosen, _ = min((_interchange(costs, weights, s) for s in starts), key=lambda found: found[1])
    in_use = chosen[np.unique(costs[chosen].argmin(0))]
    return batching.sort_buckets(tuple(map(int, candidates[i])) for i in in_use)


def padded_share(
    sizes: Int[np.ndarray, "sizes dims"],
    weights: Float[np.ndarray, "sizes"],
    buckets: Sequence[Bucket],
) -> float:
    """Share of all pixels (tokens) that are padding, each size in the smallest bucket.

    Raises:
      ValueError: a size of some weight fits in none.
    """
    sizes, buckets = np.asarray(sizes)[weights > 0], batching.sort_buckets(buckets)
    weights = weights[weights > 0]
    chosen = batching.choose_bucket(sizes, buckets)
    if (chosen < 0).any():
        raise ValueError(f"no bucket holds {sizes[np.argmin(chosen)].tolist()}")
    return 1 - (weights @ sizes.prod(-1)) / (weights @ np.prod(buckets, axis=-1)[chosen])


def _greedy(costs, weights, count: int) -> Int[np.ndarray, "chosen"]:
    """One shape after the other, each the one that helps most."""
    chosen, best = [], np.full(costs.shape[1], np.inf)
    for _ in range(count):
        chosen.append(int(np.argmin(np.minimum(costs, best) @ weights)))
        best = np.minimum(best, costs[chosen[-1]])
    return np.asarray(chosen)


def _interchange(costs, weights, chosen) -> tuple[Int[np.ndarray, "chosen"], float]:
    """Replaces one shape at a time while that lowers the cost; returns shapes and cost."""
    chosen = np.array(chosen)
    cost, unchanged, place = np.inf, 0, 0
    while unchanged < len(chosen):
        others = np.delete(chosen, place)
        rest = costs[others].min(0, initial=np.inf)
        totals = np.minimum(costs, rest) @ weights
        new = int(np.argmin(totals))
        if totals[new] < cost * (1 - 1e-12):
            unchanged = 0
            chosen[place], cost = new, totals[new]
        unchanged += 1
        place = (place + 1) % len(chosen)
    return chosen, cost
