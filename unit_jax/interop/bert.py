"""A Hugging Face BERT as the text encoder, in both directions.

Checkpoints name the same tensors in several ways: with or without a leading "bert.", layer norms
as weight and bias or, in the oldest, as gamma and beta. Layouts and our names are `mmf`'s: MMF's
UniT holds the same BERT under a prefix.
"""

import os
import re
from collections.abc import Mapping

import numpy as np
from etils import epath

from unit_jax.interop import mmf, torch_files

_MMF = "bert_model.module."
_FILES = ("model.safetensors", "pytorch_model.bin")
_OLD_SPELLINGS = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


def load(source: str | os.PathLike) -> dict[str, np.ndarray]:
    """The state dict of `source`: a file, a folder, or the name of a model on the hub.

    A folder or a hub model gives its model.safetensors, else its pytorch_model.bin.

    Raises:
      ValueError: there is no such thing, or it cannot be read.
    """
    path = epath.Path(source)
    if path.is_dir():
        files = [path / name for name in _FILES if (path / name).is_file()]
        if not files:
            raise ValueError(f"{path}: the folder holds neither {' nor '.join(_FILES)}")
        path = files[0]
    elif not path.exists():
        path = _download(str(source))
    return torch_files.load_state_dict(path)


def import_weights(state: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns (our text encoder's arrays by parameter path, the names that were ignored).

    Ignored are the heads of pre-training (`cls.*`) and whatever else is not the encoder itself.

    Raises:
      ValueError: it holds no BERT, or one tensor under two spellings.
    """
    taken: dict[str, np.ndarray] = {}
    ignored, twice = [], []
    for name, array in state.items():
        canonical = re.sub(r"^(module\.)?(bert\.)?", "", name)
        for old, new in _OLD_SPELLINGS.items():
            canonical = canonical.replace(old, new)
        if not re.match(r"(embeddings|encoder|pooler)\.", canonical) or re.search(
            r"\.(position_ids|token_type_ids)$", canonical
        ):
            ignored.append(name)
        elif _MMF + canonical in taken:
            twice.append(name)
        else:
            taken[_MMF + canonical] = array
    if twice:
        raise ValueError(f"BERT weights that stand there under two spellings: {', '.join(twice)}")
    if _MMF + "embeddings.word_embeddings.weight" not in taken:
        raise ValueError(
            "not a BERT checkpoint: it has no [bert.]embeddings.word_embeddings.weight"
        )
    return mmf.to_ours(taken), ignored


def export_weights(arrays: Mapping[str, np.ndarray], prefix: str = "") -> dict[str, np.ndarray]:
    """The text encoder of our flat parameters under Hugging Face's names.

    Args:
      prefix: "" as in a BertModel's own file, "bert." as in a file with a head.
    """
    encoder = {path: array for path, array in arrays.items() if path.startswith("text_encoder.")}
    return {
        prefix + name.removeprefix(_MMF): array
        for name, array in mmf.to_mmf(encoder).items()
        if name.startswith(_MMF)  # not UniT's own projections and task embedding
    }


def _download(name: str) -> epath.Path:
    """One weight file of a hub model, in the hub's local cache."""
    import huggingface_hub  # needed by hub names only
    from huggingface_hub import errors

    for file in _FILES:
        try:
            return epath.Path(huggingface_hub.hf_hub_download(name, file))
        except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
            if isinstance(error, errors.RemoteEntryNotFoundError):
                continue  # the model exists, without this file
            raise ValueError(
                f"{name}: no such file or folder here, and the hub gives no such model: {error}"
            ) from error
    raise ValueError(f"{name}: the hub's model has neither {' nor '.join(_FILES)}")
