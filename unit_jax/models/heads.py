"""Heads: from decoder states to the answers of a task."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from unit_jax.batch import Outputs
from unit_jax.models.dropout import dropout
from unit_jax.models.lean import gelu, relu
from unit_jax.models.transformer import Keys, LayerNorm, Linear
from unit_jax.precision import at_least_float32
from unit_jax.tasks import TaskSpec

CLASS_WIDTH = 256  # of the class embedding that the attribute head reads
ATTRIBUTE_WIDTH = 512
ATTRIBUTE_INIT = nnx.initializers.normal(0.01)


class DetectionHead(nnx.Module):
    """Class (no-object last) and box of every query, and attributes where the task has some."""

    def __init__(self, task: TaskSpec, width: int, *, rngs: nnx.Rngs):
        self.classes = Linear(width, task.num_labels + 1, rngs=rngs)
        self.boxes = nnx.List(Linear(width, out, rngs=rngs) for out in (width, width, 4))
        self.attributes = AttributeHead(task, width, rngs=rngs) if task.num_attributes else None

    def __call__(
        self, hidden_states: Float[Array, "layers batch queries width"], keys: Keys
    ) -> Outputs:
        """Class logits, and boxes as (cx, cy, w, h) in [0, 1], in at least float32."""
        del keys  # no dropout
        x = relu(self.boxes[0](hidden_states))
        x = self.boxes[2](relu(self.boxes[1](x)))
        logits = at_least_float32(self.classes(hidden_states))
        return Outputs(hidden_states, logits, jax.nn.sigmoid(at_least_float32(x)))


class AttributeHead(nnx.Module):
    """Attributes of an object from its query's state and its class."""

    def __init__(self, task: TaskSpec, width: int, *, rngs: nnx.Rngs):
        shape = (task.num_labels + 1, CLASS_WIDTH)
        self.class_embedding = nnx.Param(ATTRIBUTE_INIT(rngs.params(), shape, jnp.float32))
        linear = functools.partial(Linear, rngs=rngs, kernel_init=ATTRIBUTE_INIT, zero_bias=True)
        self.linear1 = linear(width + CLASS_WIDTH, ATTRIBUTE_WIDTH)
        self.linear2 = linear(ATTRIBUTE_WIDTH, task.num_attributes)

    def __call__(
        self, hidden_states: Float[Array, "*dims width"], class_ids: Int[Array, "*dims"]
    ) -> Float[Array, "*dims attributes"]:
        """Attribute logits; loss and prediction both see them after the ReLU, as the reference."""
        embedded = self.class_embedding[...][class_ids].astype(hidden_states.dtype)
        x = self.linear1(jnp.concatenate([hidden_states, embedded], axis=-1))
        return relu(at_least_float32(self.linear2(x)))


class ClassificationHead(nnx.Module):
    """BERT's prediction head on query 0: linear, GELU, layer norm, linear."""

    def __init__(
        self,
        num_labels: int,
        width: int,
        dropout_rate: float,
        *,
        all_layers: bool,
        rngs: nnx.Rngs,
    ):
        self.transform = Linear(width, width, rngs=rngs)
        self.norm = LayerNorm(width, 1e-12)
        self.labels = Linear(width, num_labels, rngs=rngs)
        self.dropout = dropout_rate
        self.all_layers = all_layers  # logits of every decoder layer, else of the last

    def __call__(
        self, hidden_states: Float[Array, "layers batch queries width"], keys: Keys
    ) -> Outputs:
        """Label logits in at least float32."""
        read = hidden_states if self.all_layers else hidden_states[-1:]
        x = self.transform(dropout(read[:, :, 0], self.dropout, keys()))
        logits = at_least_float32(self.labels(self.norm(gelu(x))))
        return Outputs(hidden_states, logits)
