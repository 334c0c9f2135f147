"""The pytrees that travel between data, model and rooms of answers."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, UInt8

# On the devices or on the host.
AnyArray = Array | np.ndarray


class Batch(struct.PyTreeNode):
    """Examples of ONE task, padded to static shapes.

    Attributes:
      task: name of the task (static: part of the compiled program's identity).
      images: RGB pixels; the valid region is the top-left corner, zero elsewhere.
      image_sizes: (height, width) of the valid region in pixels.
      input_ids: WordPiece ids, [CLS] first.
      token_mask: True where a token is real.
      segment_ids: 0 for the first text, 1 for the second.
      targets: what the model should answer, a pytree of the task's room (`outputs/`) whose leaves
        have the batch as first dimension; None where the split has no labels.
      index: position of each example in its split; -1 marks a filler that fills up the last
        batch of an evaluation and that no metric counts.
    """

    task: str = struct.field(pytree_node=False)
    images: UInt8[AnyArray, "batch height width 3"] | None = None
    image_sizes: Int[AnyArray, "batch 2"] | None = None
    input_ids: Int[AnyArray, "batch tokens"] | None = None
    token_mask: Bool[AnyArray, "batch tokens"] | None = None
    segment_ids: Int[AnyArray, "batch tokens"] | None = None
    targets: Any = None
    index: Int[AnyArray, "batch"] | None = None

    @property
    def size(self) -> int:
        """How many examples there are, fillers too."""
        first = self.input_ids if self.images is None else self.images
        return 0 if first is None else len(first)

    @property
    def pictures(self) -> tuple[UInt8[Array, "batch height width 3"], Int[Array, "batch 2"]]:
        """(images, image_sizes) as JAX sees them.

        Raises:
          ValueError: the batch has no images.
        """
        if self.images is None or self.image_sizes is None:
            raise ValueError(f"a batch of {self.task} has no images")
        return jnp.asarray(self.images), jnp.asarray(self.image_sizes)

    @property
    def texts(
        self,
    ) -> tuple[Int[Array, "batch tokens"], Bool[Array, "batch tokens"], Int[Array, "batch tokens"]]:
        """(input_ids, token_mask, segment_ids) as JAX sees them.

        Raises:
          ValueError: the batch has no texts.
        """
        if self.input_ids is None or self.token_mask is None or self.segment_ids is None:
            raise ValueError(f"a batch of {self.task} has no texts")
        return (
            jnp.asarray(self.input_ids),
            jnp.asarray(self.token_mask),
            jnp.asarray(self.segment_ids),
        )

    @property
    def bucket(self) -> tuple[int, ...]:
        """What the examples are padded to: (height, width) of images, else (tokens,)."""
        if self.images is not None:
            return self.images.shape[1:3]
        if self.input_ids is None:
            raise ValueError(f"a batch of {self.task} has neither images nor texts")
        return self.input_ids.shape[1:]


class Outputs(struct.PyTreeNode):
    """What the model answers. A room of one's own may return a subclass with more fields.

    Attributes:
      hidden_states: decoder output after the final layer norm, one per decoder layer.
      logits: objects: class logits per layer and query, the no-object class last; labels: logits
        read from query 0, last layer last ("layers" is 1 unless `model.classify_all_layers`).
      boxes_cxcywh: box per layer and query in [0, 1] (objects).
    """

    hidden_states: Float[Array, "layers batch queries width"]
    logits: Float[Array, "layers batch queries classes"] | Float[Array, "layers batch classes"]
    boxes_cxcywh: Float[Array, "layers batch queries 4"] | None = None

    @property
    def boxes(self) -> Float[Array, "layers batch queries 4"]:
        """`boxes_cxcywh` of a room that answers with objects.

        Raises:
          ValueError: there are none.
        """
        if self.boxes_cxcywh is None:
            raise ValueError("these outputs have no boxes")
        return self.boxes_cxcywh
