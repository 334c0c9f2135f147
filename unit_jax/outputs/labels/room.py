"""The rooms of labels: one of several is right, or several are right to a degree."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from flax import nnx, struct
from jaxtyping import Array, Float, Int

from unit_jax.batch import AnyArray, Outputs
from unit_jax.models.heads import ClassificationHead
from unit_jax.outputs import analysis
from unit_jax.outputs.analysis import Analysis
from unit_jax.outputs.base import (
    Described,
    Examples,
    Names,
    Output,
    Predictions,
    Record,
    shape_of,
)
from unit_jax.outputs.labels import answers, loss, metrics, vqa_server
from unit_jax.settings import DataSettings, LossSettings, ModelSettings


class LabelTargets(struct.PyTreeNode):
    """The one right label of each example.

    Attributes:
      labels: label numbers.
    """

    labels: Int[AnyArray, "batch"]


class ScoreTargets(struct.PyTreeNode):
    """How right each answer is.

    Attributes:
      answer_scores: soft score in [0, 1] per answer.
    """

    answer_scores: Float[AnyArray, "batch answers"]


class _Labelled(Output):
    """What both have in common: logits per label, read from query 0."""

    def from_logits(self, logits: Float[AnyArray, "examples labels"]) -> dict[str, Any]:
        """The predicted labels and their scores."""
        raise NotImplementedError

    def head(self, settings: ModelSettings, rngs: nnx.Rngs) -> ClassificationHead:
        return ClassificationHead(
            self.spec.num_labels,
            settings.decoder.width,
            settings.dropout,
            all_layers=settings.classify_all_layers,
            rngs=rngs,
        )

    def predict(self, outputs: Outputs, head: ClassificationHead) -> dict[str, Array]:
        return self.from_logits(outputs.logits[-1])

    def shown(self, outputs: Outputs, head: nnx.Module) -> dict[str, Array]:
        """`predict`, and the `scores` of all labels; that of one that is never chosen is -1."""
        logits = outputs.logits[-1]
        return {**self.from_logits(logits), "scores": self.probabilities(logits)}

    def probabilities(
        self, logits: Float[Array, "examples labels"]
    ) -> Float[Array, "examples labels"]:
        """What logits stand for, in [0, 1]."""
        raise NotImplementedError

    def said(self, prediction: Predictions, names: Names) -> str:
        return names.label(int(prediction["labels"]))

    def constant(self, train: Examples, count: int, names: Names) -> Predictions:
        """The label that does best on the training set, for every example."""
        totals = np.asarray(self.label_scores(train, names).sum(0))
        return {"labels": np.full(count, totals.argmax())}

    def label_scores(self, examples: Examples, names: Names) -> scipy.sparse.csr_matrix:
        """One-hot or soft scores; rows of unknown examples are 0."""
        numbers = self._numbers(names)
        rows, labels, scores = [], [], []
        for row in range(len(examples)):
            of_row = self._scores_of(examples[row], numbers)
            rows += [row] * len(of_row)
            labels += of_row
            scores += of_row.values()
        shape = (len(examples), self.spec.num_labels)
        return scipy.sparse.csr_matrix((np.asarray(scores, np.float32), (rows, labels)), shape)

    def _numbers(self, names: Names) -> Mapping[str, int]:
        return {}

    def _scores_of(self, record: Record, numbers: Mapping[str, int]) -> dict[int, float]:
        """Score of each label that is right to a degree."""
        raise NotImplementedError

    def entries(self, record: Record, prediction: Predictions, names: Names) -> list[dict]:
        """{"id", "label"}: the label's name, or what its server takes for it."""
        label = int(prediction["labels"])
        shown = names.submitted[label] if names.submitted else names.label(label)
        return [{"id": record["id"], "label": shown}]


class Label(_Labelled):
    """Cross-entropy against one label; accuracy."""

    def is_labelled(self, record: Record) -> bool:
        return record["label"] >= 0

    def target(self, record: Record, names: Names) -> int:
        if not 0 <= record["label"] < self.spec.num_labels:
            raise ValueError(f"label {record['label']}, known are 0 to {self.spec.num_labels - 1}")
        return record["label"]

    def collate(self, targets: Sequence[int], sizes, settings: DataSettings) -> LabelTargets:
        return LabelTargets(np.asarray(targets, np.int32))

    def target_shapes(self, settings: DataSettings) -> LabelTargets:
        return LabelTargets(shape_of(dtype=np.int32))

    def loss(
        self,
        outputs: Outputs,
        targets: LabelTargets,
        head: ClassificationHead,
        settings: LossSettings,
        matches: Array | None = None,
    ) -> tuple[Array, dict[str, Array]]:
        return loss.cross_entropy(outputs.logits, targets.labels)

    def from_logits(self, logits: Float[AnyArray, "examples labels"]) -> dict[str, Any]:
        labels = metrics.best_labels(logits)
        return {"labels": labels, "scores": metrics.probabilities(logits).max(-1)}

    def probabilities(
        self, logits: Float[Array, "examples labels"]
    ) -> Float[Array, "examples labels"]:
        return jax.nn.softmax(logits)

    def all_metrics(self) -> tuple[str, ...]:
        return ("accuracy", "f1")

    def default_metrics(self) -> tuple[str, ...]:
        return ("accuracy",)

    def measure(
        self, predictions: Predictions, examples: Examples, names: Names
    ) -> dict[str, float]:
        labels = np.asarray([examples[row]["label"] for row in range(len(examples))])
        predicted = predictions["labels"]
        return {
            "accuracy": metrics.accuracy(predicted, labels),
            "f1": metrics.f1(predicted, labels),
        }

    def _scores_of(self, record: Record, numbers: Mapping[str, int]) -> dict[int, float]:
        return {record["label"]: 1.0} if record["label"] >= 0 else {}

    def analyse(self, predictions: Predictions, examples: Examples, names: Names) -> Analysis:
        """Recall by true label; the faults say how sure wrong answers are."""
        true = np.asarray([examples[row]["label"] for row in range(len(examples))])
        wrong = (true >= 0) & (predictions["labels"] != true)
        faults = np.where(wrong, predictions["scores"], 0)
        labels = [*map(names.label, range(self.spec.num_labels))]
        return analysis.of_labels(predictions["labels"], true, faults, labels)

    def describe(self, record: Record, prediction: Predictions, names: Names) -> Described:
        said, true = int(prediction["labels"]), record["label"]
        return Described(names.label(said), names.label(true), said == true)


class Scores(_Labelled):
    """Binary cross-entropy against VQA's soft scores; VQA accuracy."""

    def is_labelled(self, record: Record) -> bool:
        return len(record["answers"]) > 0

    def target(self, record: Record, names: Names) -> Float[np.ndarray, "answers"]:
        if not record["answers"]:
            raise ValueError("no answer")
        return answers.answer_scores(record["answers"], self._numbers(names), self.spec.num_labels)

    def collate(self, targets: Sequence[np.ndarray], sizes, settings: DataSettings) -> ScoreTargets:
        return ScoreTargets(np.stack(targets))

    def target_shapes(self, settings: DataSettings) -> ScoreTargets:
        return ScoreTargets(shape_of(self.spec.num_labels, dtype=np.float32))

    def loss(
        self,
        outputs: Outputs,
        targets: ScoreTargets,
        head: ClassificationHead,
        settings: LossSettings,
        matches: Array | None = None,
    ) -> tuple[Array, dict[str, Array]]:
        return loss.binary_cross_entropy(outputs.logits, targets.answer_scores, self.spec.name)

    def from_logits(self, logits: Float[AnyArray, "examples labels"]) -> dict[str, Any]:
        labels = metrics.best_answers(logits)
        best = logits[:, metrics.UNKNOWN + 1 :].max(-1)
        return {"labels": labels, "scores": metrics.sigmoid(best)}

    def probabilities(
        self, logits: Float[Array, "examples labels"]
    ) -> Float[Array, "examples labels"]:
        known = jnp.arange(logits.shape[-1]) != metrics.UNKNOWN
        return jnp.where(known, jax.nn.sigmoid(logits), -1)

    def all_metrics(self) -> tuple[str, ...]:
        return ("vqa_accuracy", "vqa_evalai_accuracy")

    def measure(
        self, predictions: Predictions, examples: Examples, names: Names
    ) -> dict[str, float]:
        truth = self.label_scores(examples, names)
        on_server = [
            vqa_server.accuracy(vqa_server.as_written(names.label(int(label))), given)
            for label, given in zip(predictions["labels"], _given(examples), strict=True)
            if given
        ]
        return {
            "vqa_accuracy": metrics.vqa_accuracy(predictions["labels"], truth),
            "vqa_evalai_accuracy": float(np.mean(on_server)) if on_server else float("nan"),
        }

    def analyse(self, predictions: Predictions, examples: Examples, names: Names) -> Analysis:
        """Recall by the answer that most annotators gave; the faults say how far an answer is from
        right, and how sure."""
        truth = self.label_scores(examples, names)
        said, rows = predictions["labels"], np.arange(len(examples))
        known = np.asarray(truth.sum(1)).ravel() > 0
        best = np.where(known, np.asarray(truth.argmax(1)).ravel(), -1)
        right = np.asarray(truth[rows, said]).ravel()
        # An answer that is right to a degree counts as the annotators' own.
        counted = np.where(known & (right > 0), said, best)
        faults = np.where(known, (1 - right) * predictions["scores"], 0)
        labels = [*map(names.label, range(self.spec.num_labels))]
        return analysis.of_labels(said, counted, faults, labels)

    def _numbers(self, names: Names) -> Mapping[str, int]:
        return answers.numbers_of(names.labels)

    def _scores_of(self, record: Record, numbers: Mapping[str, int]) -> dict[int, float]:
        if not record["answers"]:
            return {}
        soft = answers.answer_scores(record["answers"], numbers, self.spec.num_labels)
        return {int(label): float(soft[label]) for label in np.flatnonzero(soft)}

    def describe(self, record: Record, prediction: Predictions, names: Names) -> Described:
        said = names.label(int(prediction["labels"]))
        given = [answers.normalise_answer(answer) for answer in record["answers"]]
        truth = max(sorted(set(given)), key=given.count) if given else "?"
        return Described(said, truth, said in given)


def _given(examples: Examples) -> Iterator[list[str]]:
    """What the annotators said of each example."""
    for row in range(len(examples)):
        yield examples[row]["answers"]
