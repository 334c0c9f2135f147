"""Shapes, dtypes and shardings of batches: what programs are compiled for before data are read."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from unit_jax import outputs
from unit_jax.batch import Batch
from unit_jax.data.batching import Bucket
from unit_jax.runtime import partitioning
from unit_jax.settings import Settings
from unit_jax.tasks import TaskSpec


def batch_shapes(spec: TaskSpec, bucket: Bucket, settings: Settings, mesh) -> Batch:
    """Shapes of the training batches of a task and bucket."""
    array = _arrays(settings.train.batch_size, mesh)
    targets = jax.tree.map(
        lambda leaf: array(*leaf.shape, dtype=leaf.dtype),
        outputs.room(spec).target_shapes(settings.data),
    )
    return input_shapes(spec, bucket, settings.train.batch_size, mesh).replace(targets=targets)


def input_shapes(spec: TaskSpec, bucket: Bucket, examples: int, mesh) -> Batch:
    """Shapes of batches of `examples` examples without targets, which a prediction reads."""
    array = _arrays(examples, mesh)
    batch = Batch(spec.name, index=array())
    if spec.has_image:
        batch = batch.replace(images=array(*bucket, 3, dtype=np.uint8), image_sizes=array(2))
    if spec.has_text:
        tokens = spec.max_tokens if spec.has_image else bucket[0]
        batch = batch.replace(
            input_ids=array(tokens), token_mask=array(tokens, dtype=bool), segment_ids=array(tokens)
        )
    return batch


def _arrays(examples: int, mesh) -> Callable[..., Any]:
    """array(*shape of an example, dtype=int32): a batch's, split over the mesh."""
    sharding = partitioning.split_over_batch(mesh)

    def array(*shape: int, dtype: Any = np.int32) -> Any:
        return jax.ShapeDtypeStruct((examples, *shape), dtype, sharding=sharding)

    return array
