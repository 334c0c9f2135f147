"""The backbone of a DETR checkpoint (R50-DC5), in both directions, and a whole DETR's way in.

As in the reference (`base_ckpt_load_backbone_only`) `import_weights` takes only the ResNet; the
decoder of the paper's UniT is wider than DETR's. Layouts and our names are `mmf`'s: MMF's UniT
wraps DETR, so its name of a tensor is mostly DETR's with a prefix.
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


def is_whole(state: Mapping[str, np.ndarray]) -> bool:
    """Whether a state dict is a DETR's: its backbone under DETR's names, and DETR's heads."""
    return all(
        any(name.startswith(part) for name in state)
        for part in (_BODY, "class_embed.", "bbox_embed.layers.", "query_embed.")
    )


def import_whole(state: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
    """All of a DETR as our arrays, its queries and head as those of the task coco, and the names
    that UniT has no place for.

    Encoder and decoder are UniT's image encoder and shared decoder, where their widths agree.
    """
    arrays, unknown = mmf.to_ours_partly({_as_mmf(name): array for name, array in state.items()})
    back = {_as_mmf(name): name for name in state}
    unknown = [back[name] for name in unknown]
    return arrays, [name for name in unknown if not name.endswith(".num_batches_tracked")]


def _as_mmf(name: str) -> str:
    for theirs, mmfs in (
        ("class_embed.", "class_embeds.detection_coco."),
        ("bbox_embed.", "bbox_embeds.detection_coco."),
        ("query_embed.", f"{_MMF}query_embeds.detection.detection_coco."),
    ):
        if name.startswith(theirs):
            return mmfs + name.removeprefix(theirs)
    return _MMF + name
