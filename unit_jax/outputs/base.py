"""What a kind of answer must say of itself. All other code asks this, and never which kind it is.

A room is one subclass of `Output`. It serves one task and holds no state but the task's entry. To
add a kind of answer, write one in a module of your own and name it in a config:

    config["tasks"]["age"] = dict(inputs=("image",), output="my_module:Number")

`tests/outputs/test_own_output.py` is a whole example.
"""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import numpy as np
import scipy.sparse
from flax import nnx
from jaxtyping import Array, Float

from unit_jax.batch import AnyArray, Outputs
from unit_jax.outputs.analysis import Analysis
from unit_jax.settings import DataSettings, LossSettings, ModelSettings
from unit_jax.tasks import TaskSpec

Record = Mapping[str, Any]
Predictions = dict[str, np.ndarray]  # rows in the order of the split
Terms = dict[str, Float[Array, ""]]


@dataclasses.dataclass(frozen=True)
class Names:
    """What numbers mean in a task's answers.

    Attributes:
      labels: by label number; "" where a number is not used.
      attributes: by attribute number; empty where there are none.
      submitted: what a benchmark's server takes for each label; empty = the label's name.
    """

    labels: tuple[str, ...] = ()
    attributes: tuple[str, ...] = ()
    submitted: tuple[str, ...] = ()

    def label(self, number: int) -> str:
        """The name of a label, its number where it has none, "?" where it is unknown (-1)."""
        if number < 0:
            return "?"
        return (self.labels[number] if number < len(self.labels) else "") or str(number)


class Flip(NamedTuple):
    """An image `width` pixels wide was mirrored left to right."""

    width: int


class Resize(NamedTuple):
    """An image was resized; both sizes are (height, width) in pixels."""

    old: tuple[int, int]
    new: tuple[int, int]


class Crop(NamedTuple):
    """A part of an image was taken, in pixels."""

    top: int
    left: int
    height: int
    width: int


Move = Flip | Resize | Crop


def shape_of(*shape: int, dtype: Any) -> Any:
    """What stands for an array of targets where only shapes matter."""
    return jax.ShapeDtypeStruct(shape, dtype)


class Examples(Protocol):
    """A split: its records by row."""

    @property
    def height(self) -> np.ndarray | None:
        """Height of each image in pixels; None without images."""

    @property
    def width(self) -> np.ndarray | None:
        """Width of each image in pixels; None without images."""

    @property
    def sizes(self) -> tuple[np.ndarray, np.ndarray]:
        """(heights, widths) of the images; ValueError without images."""

    @property
    def num_objects(self) -> np.ndarray | None:
        """Objects of each image that training keeps; None where answers are no objects."""

    def __len__(self) -> int: ...
    def __getitem__(self, row: int, /) -> Record: ...


class Described(NamedTuple):
    """An answer in words: what the model said, what is true, and whether they agree."""

    said: str
    truth: str
    right: bool


class Output(abc.ABC):
    """One kind of answer, for one task.

    Attributes:
      spec: the task.
      matches: the loss needs `matching` of `costs` first; it may then divide by what the whole
        batch holds. A loss without matching must be a mean over examples.
      loss_parts: parts of the head that the loss applies itself (names below the head).
      columns: how wide one example is in a picture of six columns.
    """

    matches: ClassVar[bool] = False
    loss_parts: ClassVar[tuple[str, ...]] = ()
    columns: ClassVar[int] = 1

    def __init__(self, spec: TaskSpec):
        self.spec = spec
        unknown = sorted(set(spec.metrics) - set(self.all_metrics()))
        if unknown:
            raise ValueError(
                f"config.tasks.{spec.name}.metrics: unknown {', '.join(unknown)}; "
                f"known here: {', '.join(self.all_metrics())}"
            )

    # ---- From records to targets (NumPy, on the host) --------------------------------------------

    @abc.abstractmethod
    def is_labelled(self, record: Record) -> bool:
        """Whether the record says what is right."""

    @abc.abstractmethod
    def target(self, record: Record, names: Names) -> Any:
        """What is right for one example.

        Raises:
          ValueError: the record's answer is none that this task can have.
        """

    def move(self, target: Any, moves: Sequence[Move]) -> Any:
        """The target after its image went through `moves`; by default unchanged."""
        del moves
        return target

    @abc.abstractmethod
    def collate(
        self,
        targets: Sequence[Any],
        sizes: Sequence[tuple[int, int]] | None,
        settings: DataSettings,
    ) -> Any:
        """Targets of a batch: a pytree of arrays whose first dimension is the batch.

        Args:
          targets: one per example, moved.
          sizes: (height, width) in pixels of the images as the model sees them, if there are any.
        """

    @abc.abstractmethod
    def target_shapes(self, settings: DataSettings) -> Any:
        """The same pytree of one example: shapes without the batch, and dtypes, as
        `jax.ShapeDtypeStruct`."""

    def check(self, examples: Examples, settings: DataSettings) -> str | None:
        """What keeps a split from being used with these settings, in a sentence; None = nothing."""
        del examples, settings
        return None

    # ---- Model and loss (on the devices) ---------------------------------------------------------

    @abc.abstractmethod
    def head(self, settings: ModelSettings, rngs: nnx.Rngs) -> nnx.Module:
        """The module that is called with hidden states [layers, batch, queries, width] and dropout
        keys, and returns `Outputs`."""

    def costs(
        self, outputs: Outputs, targets: Any, settings: LossSettings
    ) -> Float[Array, "layers batch queries objects"]:
        """What it would cost to match queries to objects; with `matches` only."""
        raise TypeError(f"{type(self).__name__} has no matching")

    @abc.abstractmethod
    def loss(
        self,
        outputs: Outputs,
        targets: Any,
        head: Any,
        settings: LossSettings,
        matches: Array | None = None,
    ) -> tuple[Float[Array, ""], Terms]:
        """The loss of a batch, and its terms as they are summed into it."""

    @abc.abstractmethod
    def predict(self, outputs: Outputs, head: Any) -> dict[str, Array]:
        """What metrics and people need of the answers; arrays whose first dimension is the batch.
        Small ones: those of a whole split are kept in host memory."""

    def shown(self, outputs: Outputs, head: nnx.Module) -> dict[str, Array]:
        """`predict`, and what people like to see beside it; of labels, the score of each."""
        return self.predict(outputs, head)

    # ---- Evaluation (NumPy, on the host) ---------------------------------------------------------

    @abc.abstractmethod
    def all_metrics(self) -> tuple[str, ...]:
        """Names of all metrics that `TaskSpec.metrics` may choose from; the first is the
        headline where it chooses none."""

    def default_metrics(self) -> tuple[str, ...]:
        """Names of the metrics that are reported where `TaskSpec.metrics` chooses none."""
        return self.all_metrics()

    @property
    def headline(self) -> str:
        """Name of the metric that comes first in reports."""
        return (self.spec.metrics or self.default_metrics())[0]

    def metrics(
        self, predictions: Predictions, examples: Examples, names: Names
    ) -> dict[str, float]:
        """The chosen metrics of a split's predictions, in the order chosen."""
        wanted = self.spec.metrics or self.default_metrics()
        values = self.measure(predictions, examples, names)
        return {name: values[name] for name in wanted}

    @abc.abstractmethod
    def measure(
        self, predictions: Predictions, examples: Examples, names: Names
    ) -> dict[str, float]:
        """All metrics of a split's predictions."""

    def constant(self, train: Examples, count: int, names: Names) -> Predictions | None:
        """The best answer for `count` examples without looking at them, from the training split;
        None = there is none, the baseline is an untrained model."""
        del train, count, names
        return None

    def label_scores(self, examples: Examples, names: Names) -> scipy.sparse.csr_matrix | None:
        """How right each label is for each example, [examples, labels]; None where answers are
        no labels. With it a bag of words can be tried on the texts alone."""
        del examples, names
        return None

    def from_logits(self, logits: Float[AnyArray, "examples labels"]) -> dict[str, Any]:
        """The predictions that label logits stand for; needed where there are `label_scores`."""
        raise TypeError(f"{type(self).__name__} has no labels")

    def analyse(
        self, predictions: Predictions, examples: Examples, names: Names
    ) -> Analysis | None:
        """Where a split's predictions go wrong, by class and by example; None = not told."""
        del predictions, examples, names
        return None

    # ---- Files and pictures ----------------------------------------------------------------------

    @abc.abstractmethod
    def entries(self, record: Record, prediction: Predictions, names: Names) -> list[dict]:
        """One example's lines in a file of predictions, as JSON can hold them.

        Args:
          prediction: the example's row of each array of `predict`.
        """

    def said(self, prediction: Predictions, names: Names) -> str:
        """One example's answer in words, where nobody knows what is true."""
        del names
        return ", ".join(f"{name} {np.round(value, 3)}" for name, value in prediction.items())

    @abc.abstractmethod
    def describe(self, record: Record, prediction: Predictions, names: Names) -> Described:
        """One example's answer in words."""

    def draw(
        self, axes, record: Record, image: np.ndarray | None, prediction: Predictions, names: Names
    ) -> None:
        """Draws one example and its answer: a picture with a caption, or a card of text.

        Args:
          axes: of matplotlib.
          image: RGB pixels, if the task has images.
        """
        from unit_jax.outputs import drawing  # matplotlib: for people only

        described = self.describe(record, prediction, names)
        texts = [text for text in (record.get("text"), record.get("text_b")) if text]
        if image is None:
            drawing.card(axes, texts, described)
        else:
            drawing.show_image(axes, image)
            drawing.caption(axes, texts, described)
