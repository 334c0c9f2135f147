"""An answer does not depend on padding: alone, in any bucket, beside any other example.

Outputs and parameter gradients, in float64 (in float32 a ReLU whose input is zero but for rounding
may change sides, and a gradient by a percent), to 1e-6 relative: pixels and masks are float32.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import unit
from tests.models.test_unit import TASKS, TOKENS, tiny_settings
from unit_jax import outputs as rooms
from unit_jax import settings as settings_lib
from unit_jax.batch import Batch
from unit_jax.data import batching
from unit_jax.models import flat
from unit_jax.models.unit import Unit
from unit_jax.outputs.labels.room import LabelTargets, ScoreTargets
from unit_jax.outputs.objects.targets import ObjectTargets

LOSS = settings_lib.from_config(unit.values()).loss  # normalised per image
IMAGE_TASKS = ("coco", "visual_genome", "vqa2", "snli_ve")
TWINS = ("coco", "snli_ve")  # the same network as visual_genome's and vqa2's but for a head
OBJECTS = 2  # of every image: box losses are divided by the mean count of a batch
RELATIVE = 1e-6


@pytest.fixture(scope="module", autouse=True)
def in_float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def model(in_float64) -> Unit:
    settings = tiny_settings(decoder=dict(layers=1), image_encoder=dict(layers=1), dtype="float64")
    found = rooms.build(settings, TASKS, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    found.calibrate(rng.integers(0, 256, (2, 64, 64, 3), np.uint8), np.full((2, 2), 64))
    return found


def random_examples(task: str, sizes, rng) -> Batch:
    """Examples of one task, without padding between them: images are a list."""
    spec, n = TASKS[task], len(sizes)
    batch = Batch(task, images=[rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes])
    if spec.has_text:
        texts = [(rng.integers(1, 50, k), int(k) // 2) for k in rng.integers(3, TOKENS + 1, n)]
        ids, mask, segments = batching.pad_texts(texts, TOKENS)
        batch = batch.replace(input_ids=ids, token_mask=mask, segment_ids=segments)
    if spec.output == "objects":
        targets = ObjectTargets(
            boxes_cxcywh=rng.uniform(0.2, 0.8, (n, OBJECTS, 4)).astype(np.float32),
            labels=rng.integers(0, spec.num_labels, (n, OBJECTS)),
            object_mask=np.ones((n, OBJECTS), bool),
        )
        if spec.num_attributes:
            slots = rng.integers(0, spec.num_attributes, (n, OBJECTS, 16))
            targets = targets.replace(attributes=slots)
    elif spec.output == "scores":
        targets = ScoreTargets(rng.uniform(0, 1, (n, spec.num_labels)).astype(np.float32))
    else:
        targets = LabelTargets(labels=rng.integers(0, spec.num_labels, n))
    return batch.replace(targets=targets)


def padded(batch: Batch, rows, bucket) -> Batch:
    """Some of the examples, their images padded to a bucket."""
    images, sizes = batching.pad_images([batch.images[row] for row in rows], bucket)
    rest = jax.tree.map(lambda leaf: leaf[np.asarray(rows)], batch.replace(images=None))
    return rest.replace(images=images, image_sizes=sizes)


@functools.cache
def compiled(graph: nnx.GraphDef):
    """(outputs, gradients of the training loss) of a batch."""

    @jax.jit
    def run(params, statistics, batch):
        def loss(params):
            model, spec = flat.merge(graph, params, statistics), TASKS[batch.task]
            outputs = model(batch)
            room, matches = rooms.room(spec), None
            if room.matches:
                # Always the same matches: how they are found is no matter of padding.
                shape = (outputs.logits.shape[0], *batch.targets.object_mask.shape)
                matches = jnp.broadcast_to(jnp.arange(OBJECTS), shape)
            total, _ = room.loss(outputs, batch.targets, model.heads[spec.name], LOSS, matches)
            return total, outputs

        (_, outputs), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return outputs, grads

    return run


def answer(model: Unit, batch: Batch):
    graph, params, statistics = flat.split(model)
    return jax.tree.map(np.asarray, compiled(graph)(params, statistics, batch))


def assert_close(
    ours: np.ndarray, expected: np.ndarray, least: float = 0.0, name: str = ""
) -> None:
    scale = max(np.abs(expected).max(), least)
    assert np.abs(ours - expected).max() <= RELATIVE * scale, name


def assert_same_gradients(ours, expected) -> None:
    total = np.sqrt(sum((grad**2).sum() for grad in expected.values()))
    for path, grad in expected.items():
        # What is zero by structure is rounding noise: it is held to the whole gradient.
        gap, norm = np.linalg.norm(ours[path] - grad), np.linalg.norm(grad)
        assert gap <= max(RELATIVE * norm, 1e-6 * total), path


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "task", [pytest.param(t, marks=pytest.mark.slow if t in TWINS else ()) for t in IMAGE_TASKS]
)
def test_an_image_answers_alike_alone_and_in_any_batch(model, task, seed):
    rng = np.random.default_rng([seed, IMAGE_TASKS.index(task)])
    sizes = rng.integers(17, 90, (2, 2))
    bucket = tuple(sizes.max(0) + rng.integers(0, 40, 2))
    examples = random_examples(task, sizes, rng)
    alone = [answer(model, padded(examples, [i], sizes[i])) for i in range(2)]
    for order in ([0, 1], [1, 0], [1, 1]):  # the same example in several places
        outputs, grads = answer(model, padded(examples, order, bucket))
        for place, row in enumerate(order):
            expected = jax.tree.leaves(alone[row][0])
            for ours, leaf in zip(jax.tree.leaves(outputs), expected, strict=True):
                assert_close(ours[:, place], leaf[:, 0])
        mean = jax.tree.map(lambda *grads: np.mean(grads, 0), *(alone[row][1] for row in order))
        assert_same_gradients(grads, mean)


@pytest.mark.parametrize("task", ["qnli", pytest.param("sst2", marks=pytest.mark.slow)])
def test_a_text_answers_alike_in_any_length(model, task):
    rng = np.random.default_rng(0)
    texts = [(rng.integers(1, 50, n), min(n, 3)) for n in (4, 6)]
    labels = LabelTargets(labels=np.asarray([1, 0]))
    found = []
    for length in (6, 7, TOKENS):
        ids, mask, segments = batching.pad_texts(texts, length)
        batch = Batch(task, input_ids=ids, token_mask=mask, segment_ids=segments, targets=labels)
        found.append(answer(model, batch))
    (outputs, grads), *longer = found
    for other_outputs, other_grads in longer:
        for ours, leaf in zip(
            jax.tree.leaves(other_outputs), jax.tree.leaves(outputs), strict=True
        ):
            assert_close(ours, leaf)
        assert_same_gradients(other_grads, grads)


def test_without_masking_padding_is_seen(model):
    """The property is the mask's doing, and these checks notice its absence."""
    leaky = rooms.build(
        dataclasses.replace(model.settings, mask_padding=False), TASKS, rngs=nnx.Rngs(0)
    )
    rng = np.random.default_rng(0)
    examples = random_examples("snli_ve", [(40, 50)], rng)
    (alone, _), (outputs, _) = (
        answer(leaky, padded(examples, [0], bucket)) for bucket in ((40, 50), (64, 80))
    )
    with pytest.raises(AssertionError):
        assert_close(outputs.logits, alone.logits)
