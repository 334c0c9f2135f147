"""UniT: images and text of any task through two encoders and one decoder (Hu & Singh 2021)."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt8

from unit_jax.batch import AnyArray, Batch, Outputs
from unit_jax.models import resnet
from unit_jax.models.decoder import Decoder
from unit_jax.models.image_encoder import ImageEncoder
from unit_jax.models.residuals import PART, keep
from unit_jax.models.text_encoder import TextEncoder
from unit_jax.models.transformer import Keys, Memory, normal, recomputed
from unit_jax.runtime.partitioning import split_examples
from unit_jax.settings import ModelSettings
from unit_jax.tasks import TaskSpec

# ImageNet's, red, green, blue.
PIXEL_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
PIXEL_STD = np.array([0.229, 0.224, 0.225], np.float32)


class Unit(nnx.Module):
    """The whole model; all that differs between tasks is looked up in their TaskSpec.

    `outputs.build` makes it with the heads of the tasks' rooms.

    Args:
      make_head: the head of a task, called as head(hidden states of all layers, dropout keys) and
        giving Outputs.
    """

    def __init__(
        self,
        settings: ModelSettings,
        tasks: Mapping[str, TaskSpec],
        make_head: Callable[[TaskSpec], nnx.Module],
        *,
        rngs: nnx.Rngs,
    ):
        width = settings.decoder.width
        recompute_blocks = settings.rematerialise != "nothing"
        self.backbone = resnet.ResNet(
            settings.backbone, rngs=rngs, recompute_blocks=recompute_blocks
        )
        self.image_encoder = ImageEncoder(settings, self.backbone.channels, rngs=rngs)
        self.text_encoder = TextEncoder(settings, rngs=rngs)
        if settings.decoder.shared:
            self.decoder = Decoder(settings, rngs=rngs)
        else:
            self.decoders = nnx.Dict({name: Decoder(settings, rngs=rngs) for name in tasks})
        self.queries = nnx.Dict(
            {name: normal(rngs, task.num_queries, width) for name, task in tasks.items()}
        )
        self.heads = nnx.Dict({name: make_head(task) for name, task in tasks.items()})
        self.tasks = tuple(tasks.items())  # hashable: part of the static graph
        self.settings = settings

    def __call__(self, batch: Batch, *, key: Array | None = None) -> Outputs:
        """Answers a batch of one task.

        Args:
          batch: `images` and `image_sizes` where the task has images, `input_ids`, `token_mask`
            and `segment_ids` where it has text.
          key: for dropout; None = no dropout.

        Returns:
          Outputs; logits and boxes in at least float32.
        """
        task = self._task(batch.task)
        keys = Keys(key)
        decoder = self.decoder if self.settings.decoder.shared else self.decoders[task.name]
        queries, memory = self.queries[task.name][...], self.memory(batch, keys)
        count = len(queries)
        if memory.mask.shape[1] == 1 and (key is None or not self._drops()):
            # All queries read the one token with weight 1 and start from the same zeros, so their
            # states are the same: one is enough.
            queries = queries[:1]
        hidden_states = self._part(lambda q, m: decoder(q, m, keys))(queries, memory)
        hidden_states = jnp.broadcast_to(
            hidden_states, (*hidden_states.shape[:2], count, hidden_states.shape[3])
        )
        return self.heads[task.name](hidden_states, keys)

    def memory(self, batch: Batch, keys: Keys) -> Memory:
        """What the decoder reads: image tokens, text tokens, or image then text."""
        task = self._task(batch.task)
        parts = []
        if task.has_image:
            features, mask = self._part(self.features)(*batch.pictures)
            features = split_examples(features)
            encode = lambda x, mask: self.image_encoder(x, mask, task.index, keys)  # noqa: E731
            parts.append(self._part(encode)(features, mask))
        if task.has_text:
            encode = lambda *text: self.text_encoder(*text, task.index, task.cls_only, keys)  # noqa: E731
            parts.append(self._part(encode)(*batch.texts))
        return Memory(*(jnp.concatenate(part, axis=1) for part in zip(*parts, strict=True)))

    def features(
        self, images: UInt8[Array, "batch height width 3"], image_sizes: Int[Array, "batch 2"]
    ) -> tuple[Float[Array, "batch h w channels"], Bool[Array, "batch h w"]]:
        """The backbone's features and a mask, True where one is real.

        With `mask_padding` padding changes nothing. Without it padding is treated as the reference
        does: padded pixels leak into real features, and the mask is shrunk to nearest pixels.
        """
        pixel_mask = resnet.valid_mask(image_sizes, *images.shape[1:3])
        pixels = jnp.where(pixel_mask[..., None], normalise(images), 0)
        pixels = pixels.astype(self.settings.dtype)
        if not self.settings.mask_padding:
            features, _ = self.backbone(pixels, None)
            return features, shrink_mask(pixel_mask, *features.shape[1:3])
        features, sizes = self.backbone(pixels, image_sizes)
        assert sizes is not None  # as they were given
        return features, resnet.valid_mask(sizes, *features.shape[1:3])

    def calibrate(
        self, images: UInt8[AnyArray, "batch height width 3"], image_sizes: Int[AnyArray, "batch 2"]
    ) -> None:
        """Sets the backbone's batch-norm statistics to those of some images, in place.

        Frozen statistics of 0 and 1 neither normalise nor learn; this is for training without a
        pretrained backbone. Padding does not count: every image is cut to what all of them fill.
        Not for use under jit.
        """
        height, width = np.asarray(image_sizes).min(0)
        pixels = normalise(jnp.asarray(images)[:, :height, :width])
        resnet.calibrate(self.backbone, pixels.astype(self.settings.dtype))

    def _part(self, function: Callable) -> Callable:
        """A large part of the model, computed again in the backward pass if that is wanted."""
        part = recomputed(function, self.settings.rematerialise == "everything")
        named = lambda x: keep(x, PART) if jnp.issubdtype(x.dtype, jnp.floating) else x  # noqa: E731
        return lambda *inputs: jax.tree.map(named, part(*inputs))

    def _drops(self) -> bool:
        return self.settings.dropout > 0 or self.settings.attention_dropout > 0

    def _task(self, name: str) -> TaskSpec:
        try:
            return dict(self.tasks)[name]
        except KeyError:
            known = ", ".join(name for name, _ in self.tasks)
            raise ValueError(f"task {name!r} is none of this model's: {known}") from None


def normalise(images: UInt8[Array, "... 3"]) -> Float[Array, "... 3"]:
    """(pixel / 255 - mean) / std in float32.

    XLA may divide by a constant through its reciprocal and pass over a rounding in between, which
    is off in the last bit. With x64 on, where results are compared in float64, the 256 values that
    a channel can have are looked up as NumPy rounds them.
    """
    if jax.dtypes.canonicalize_dtype(float) == jnp.float32:
        return (images.astype(jnp.float32) / np.float32(255) - PIXEL_MEAN) / PIXEL_STD
    values = np.arange(256, dtype=np.float32)[:, None] / np.float32(255)
    values = jnp.asarray((values - PIXEL_MEAN) / PIXEL_STD)
    return values[images, np.arange(3)]


def shrink_mask(
    mask: Bool[Array, "batch height width"], height: int, width: int
) -> Bool[Array, "batch h w"]:
    """The mask at another size: nearest pixel, torch's index floor(i * float32(in / out))."""

    def nearest(size: int, new_size: int) -> np.ndarray:
        scale = np.float32(size) / np.float32(new_size)
        index = np.floor(np.arange(new_size, dtype=np.float32) * scale).astype(np.int32)
        return np.minimum(index, size - 1)

    rows, columns = nearest(mask.shape[1], height), nearest(mask.shape[2], width)
    return mask[:, rows[:, None], columns[None, :]]


def used_parameters(path: str, task: TaskSpec, settings: ModelSettings) -> bool:
    """Whether a training step of `task` reaches the parameter.

    What it does not reach has no gradient at all (torch: `.grad` is None), which the optimiser
    treats otherwise than a gradient of zero. With `task.num_attributes` 0 the attribute head is
    not reached.
    """
    part, *rest = path.split(".")
    if part in ("backbone", "image_encoder"):
        return task.has_image
    if part == "text_encoder":
        return task.has_text and rest[0] != "pooler"
    if part == "heads":
        return rest[0] == task.name and (rest[1] != "attributes" or task.num_attributes > 0)
    if part in ("queries", "decoders"):
        return rest[0] == task.name
    if part == "decoder":
        return True
    raise ValueError(f"{path} is no parameter of UniT")
