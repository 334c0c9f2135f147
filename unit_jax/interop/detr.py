"""The backbone of a DETR checkpoint (R50-DC5), in both directions.

As in the reference (`base_ckpt_load_backbone_only`) only the ResNet is taken; DETR's transformer
and heads have no place in UniT. Layouts and our names are `mmf`'s: MMF's UniT wraps DETR, so its
name of a backbone tensor is DETR's with a prefix.
"""

from collections.abc import Mapping

import numpy as np

from unit_jax.interop import mmf

_BODY = "backbone.0.body."
_MMF = "unit_base_model."


def import_weights(state: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns (our backbone's arrays by parameter path, the checkpoint's names that were ignored).

    Raises:
      ValueError: there is no `backbone.0.body.*` in it.
    """
    taken = {
        _MMF + name: array
        for name, array in state.items()
        # Left by ordinary batch norms; a frozen one has no use for the count.
        if name.startswith(_BODY) and not name.endswith(".num_batches_tracked")
    }
    if not taken:
        raise ValueError(f"not a DETR checkpoint: no entry is called {_BODY}*")
    return mmf.to_ours(taken), [name for name in state if _MMF + name not in taken]


def export_weights(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The backbone of our flat parameters and statistics under DETR's names."""
    backbone = {path: array for path, array in arrays.items() if path.startswith("backbone.")}
    return {name.removeprefix(_MMF): array for name, array in mmf.to_mmf(backbone).items()}
