"""The pytrees that travel between data, model, losses and metrics."""

from flax import struct
from jaxtyping import Array, Bool, Float, Int, UInt8


@struct.dataclass
class Targets:
    """What the model should answer; fields that a task does not have are None.

    Attributes:
      boxes_cxcywh: (centre x, centre y, width, height) in [0, 1] of the valid image (detection).
      labels: class ids, one per object (detection) or one per example (classification).
      attributes: up to 16 attribute ids per object, -1 = unused slot (detection with attributes).
      object_mask: True where an object is real (detection).
      answer_scores: soft score in [0, 1] per answer (tasks with soft targets).
    """

    boxes_cxcywh: Float[Array, "batch objects 4"] | None = None
    labels: Int[Array, "batch objects"] | Int[Array, "batch"] | None = None
    attributes: Int[Array, "batch objects 16"] | None = None
    object_mask: Bool[Array, "batch objects"] | None = None
    answer_scores: Float[Array, "batch answers"] | None = None


@struct.dataclass
class Batch:
    """Examples of ONE task, padded to static shapes.

    Attributes:
      task: name of the task (static: part of the compiled program's identity).
      images: RGB pixels; the valid region is the top-left corner, zero elsewhere.
      image_sizes: (height, width) of the valid region in pixels.
      input_ids: WordPiece ids, [CLS] first.
      token_mask: True where a token is real.
      segment_ids: 0 for the first text, 1 for the second.
      targets: None where the split has no labels.
      index: position of each example in its split; -1 marks a filler that fills up the last
        batch of an evaluation and that no metric counts.
    """

    task: str = struct.field(pytree_node=False)
    images: UInt8[Array, "batch height width 3"] | None = None
    image_sizes: Int[Array, "batch 2"] | None = None
    input_ids: Int[Array, "batch tokens"] | None = None
    token_mask: Bool[Array, "batch tokens"] | None = None
    segment_ids: Int[Array, "batch tokens"] | None = None
    targets: Targets | None = None
    index: Int[Array, "batch"] | None = None

    @property
    def bucket(self) -> tuple[int, ...]:
        """What the examples are padded to: (height, width) of images, else (tokens,)."""
        return self.input_ids.shape[1:] if self.images is None else self.images.shape[1:3]


@struct.dataclass
class Outputs:
    """What the model answers.

    Attributes:
      hidden_states: decoder output after the final layer norm, one per decoder layer.
      logits: detection: class logits per layer and query, the no-object class last;
        classification: label logits read from query 0, last layer last ("layers" is 1 unless
        `model.classify_all_layers`).
      boxes_cxcywh: box per layer and query in [0, 1] (detection).
    """

    hidden_states: Float[Array, "layers batch queries width"]
    logits: Float[Array, "layers batch queries classes"] | Float[Array, "layers batch classes"]
    boxes_cxcywh: Float[Array, "layers batch queries 4"] | None = None
