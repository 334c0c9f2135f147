"""Runs a recorded case: all that a model file may hold of a data set, computed here."""

import contextlib
import dataclasses
from collections.abc import Callable, Generator
from typing import Any, cast
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from unit_jax import outputs as rooms
from unit_jax.batch import Batch, Outputs
from unit_jax.interop import mmf
from unit_jax.models import flat, lean
from unit_jax.models import image_encoder as image_encoder_lib
from unit_jax.models import unit as unit_lib
from unit_jax.models.transformer import Keys
from unit_jax.models.unit import Unit
from unit_jax.outputs.objects import loss as detection
from unit_jax.outputs.objects import matching
from unit_jax.tasks import TaskSpec
from unit_jax.tools.parity.cases import Arrays, Case, concatenate
from unit_jax.training import optimizer as optim

# ReLU inputs below this share of their layer's largest have no certain sign in float32: errors
# there reach some 2e-6.
NEAR_ZERO = 1e-5

Sides = list[np.ndarray]  # of every ReLU, in the order they are called: True where it lets pass


@dataclasses.dataclass
class Results:
    """All that a model file may record about one data set, computed here."""

    outputs: Outputs
    matches: Any  # None without matching
    terms: Arrays
    raw: Arrays
    total: np.ndarray
    gradients: Arrays  # by MMF's names
    gradients_at: Callable[[Sides], Arrays]  # with the uncertain ReLUs on these sides
    sides: Sides
    middle: Arrays
    attribute_logits: Any  # None without attributes


def run_case(
    case: Case, spec: TaskSpec, batches: list[Batch], with_middle: bool, with_gradients: bool
) -> Results:
    """Runs the batches (one, or one per image); loss and gradients are those of all together."""
    loss_settings = case.settings.loss
    targets = concatenate([batch.targets for batch in batches], 0)
    batches = [batch.replace(targets=None) for batch in batches]
    if getattr(targets, "attributes", True) is None:
        spec = dataclasses.replace(spec, num_attributes=0)
    room = rooms.room(spec)
    optimizer = optim.Optimizer(case.settings.optimizer, 1)
    learned = {
        path: array
        for path, array in case.params.items()
        if with_gradients
        and unit_lib.used_parameters(path, spec, case.model)
        and not optimizer.is_frozen(path)
    }
    prefix = f"heads.{spec.name}.attributes."
    attribute_head = {path: p for path, p in learned.items() if path.startswith(prefix)}

    def model_of(learned: Arrays, weights: tuple[Arrays, Arrays]) -> Unit:
        params, statistics = weights
        return flat.merge(case.graph, {**params, **learned}, statistics)

    @jax.jit
    def forward(learned, weights, batches, targets, sides=None):
        def run(learned: Arrays) -> tuple[Outputs, list[jax.Array]]:
            model = model_of(learned, weights)
            with relus(sides) as taken:
                outputs = concatenate([model(batch) for batch in batches], 1)
            return outputs, taken

        outputs, pullback, taken = jax.vjp(run, learned, has_aux=True)
        model = model_of(learned, weights)
        costs = attributes = None
        if room.matches:
            costs = room.costs(outputs, targets, loss_settings)
        if case.settings.tasks[spec.name].num_attributes:
            best = outputs.logits[-1, ..., :-1].argmax(-1)
            attributes = cast(Any, model.heads[spec.name]).attributes(
                outputs.hidden_states[-1], best
            )
        middle = middle_of(model, spec, batches[0]) if with_middle else {}
        return outputs, pullback, taken, costs, attributes, middle

    @jax.jit
    def backward(attribute_head, outputs, pullback, weights, targets, matches):
        def loss(attribute_head: Arrays, outputs: Outputs):
            head = model_of(attribute_head, weights).heads[spec.name]
            return room.loss(outputs, targets, head, loss_settings, matches)

        (total, terms), (grads, cotangents) = jax.value_and_grad(
            loss, argnums=(0, 1), has_aux=True
        )(attribute_head, outputs)
        return total, terms, {**pullback(cotangents)[0], **grads}

    weights = case.params, case.statistics
    outputs, pullback, taken, costs, attributes, middle = forward(
        learned, weights, batches, targets
    )
    matches, raw = None, {}
    if room.matches:
        matches = matching.match(np.asarray(costs), targets.object_mask)
        raw = unweighted(model_of({}, weights), spec, outputs, targets, matches, loss_settings)
    total, terms, grads = backward(attribute_head, outputs, pullback, weights, targets, matches)

    def by_name(grads: Arrays) -> Arrays:
        return mmf.to_mmf({path: np.asarray(grad) for path, grad in grads.items()})

    def gradients_at(sides: Sides) -> Arrays:
        there = forward(learned, weights, batches, targets, sides)[:2]
        return by_name(backward(attribute_head, *there, weights, targets, matches)[2])

    return Results(
        *jax.tree.map(np.asarray, (outputs, matches, terms, raw, total)),
        by_name(grads),
        gradients_at,
        *jax.tree.map(np.asarray, (taken, middle, attributes)),
    )


@contextlib.contextmanager
def relus(sides: Sides | None = None) -> Generator[list[jax.Array]]:
    """Within, the side of zero of every ReLU's input is appended to the list that this yields.

    With `sides`, an input that float32 cannot tell from zero is moved to the given one. What a
    ReLU makes of its input, and its gradient, remain its own.
    """
    read, taken = lean.relu_input, []

    def sided(x: jax.Array) -> jax.Array:
        if sides is not None:
            side = sides[len(taken)]
            uncertain = jnp.abs(x) < NEAR_ZERO * jnp.abs(x).max()
            there = jnp.where(side, 1e-30, -1e-30) + (x - jax.lax.stop_gradient(x))
            x = jnp.where(uncertain & (side != (x > 0)), there.astype(x.dtype), x)
        taken.append(x > 0)
        return read(x)

    with mock.patch.object(lean, "relu_input", sided):
        yield taken


def exact_sides(build: Callable[[str], Case], batches: list[Batch]) -> Sides:
    """The sides that ReLUs take in float64.

    Args:
      build: makes the case in a precision.
      batches: as those of `run_case`.
    """
    with jax.enable_x64(True):
        case = build("float64")

        @jax.jit
        def run(params, statistics, batches):
            model = flat.merge(case.graph, params, statistics)
            with relus() as taken:
                for batch in batches:
                    model(batch)
            return taken

        batches = [batch.replace(targets=None) for batch in batches]
        return jax.tree.map(np.asarray, run(case.params, case.statistics, batches))


def attribute_logits(model: Unit, spec: TaskSpec) -> detection.AttributeLogits | None:
    """The attribute head of a task, None where it has none."""
    return cast(Any, model.heads[spec.name]).attributes if spec.num_attributes else None


def unweighted(
    model: Unit, spec: TaskSpec, outputs, targets, matches, settings
) -> dict[str, jax.Array]:
    """The loss terms before weighting, and the cardinality error, named like the weighted ones."""
    head = attribute_logits(model, spec)
    losses = detection.unweighted_losses(outputs, targets, matches, settings, spec, head)
    raw = detection.cardinality_error(outputs, targets, settings)
    for name, values in losses.items():
        for layer, value in enumerate(values):
            raw[name if layer == len(values) - 1 else f"{name}_{layer}"] = value
    return raw


def middle_of(model: Unit, spec: TaskSpec, batch: Batch) -> dict[str, jax.Array]:
    """Values on the way to the decoder, laid out as the reference has them (channels first)."""
    keys, middle = Keys(None), {}
    if spec.has_text:
        ids, token_mask, segments = batch.texts
        embedded = model.text_encoder.embed(ids, segments, keys)
        middle["bert_embeddings"] = embedded
        middle["bert_encoder"] = model.text_encoder.encode(embedded, token_mask, spec.index, keys)
    if spec.has_image:
        features, mask = model.features(*batch.pictures)
        encoder = model.image_encoder
        x, positions = (
            encoder.input_projection(features),
            image_encoder_lib.sine_positions(mask, encoder.width),
        )
        first = {"backbone_64": features[..., :64], "pos": positions, "input_proj": x}
        middle |= {name: jnp.moveaxis(value, -1, 1) for name, value in first.items()}
        middle["backbone_mask"] = ~mask  # True where padded, as the reference has it
        tokens = [v.reshape(len(v), -1, v.shape[-1]) for v in (x, positions.astype(x.dtype))]
        middle["encoder"] = encoder.encode(*tokens, mask.reshape(len(mask), -1), spec.index, keys)
    middle["memory"] = model.memory(batch, keys).tokens
    return middle
