"""The set loss against a loop-by-loop NumPy reference and against numbers of the reference UniT."""

import dataclasses
import json
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from configs.unit import values
from tests import REFERENCE_FILES
from unit_jax import settings as settings_lib
from unit_jax.batch import Outputs
from unit_jax.outputs.objects import loss as detection
from unit_jax.outputs.objects import matching
from unit_jax.outputs.objects.targets import ObjectTargets
from unit_jax.tasks import PUBLISHED

SETTINGS = settings_lib.build(settings_lib.LossSettings, values()["loss"])
SPEC = dataclasses.replace(PUBLISHED["visual_genome"], num_labels=5, num_attributes=7)
WIDTH = 6


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def random_case(seed, counts=(3, 0, 4, 1), layers=3, queries=6, objects=5):
    """Outputs, targets (objects first, then padding) and matches of a padded batch."""
    rng = np.random.default_rng(seed)
    batch = len(counts)

    def cxcywh(*shape):
        return np.concatenate(
            [rng.uniform(0.3, 0.7, (*shape, 2)), rng.uniform(0.1, 0.5, (*shape, 2))], -1
        )

    mask = np.arange(objects) < np.asarray(counts)[:, None]
    attributes = rng.integers(0, SPEC.num_attributes, (batch, objects, 16))
    given = np.arange(16) < rng.integers(0, 4, (batch, objects, 1))  # some objects have none
    outputs = Outputs(
        hidden_states=rng.normal(size=(layers, batch, queries, WIDTH)),
        logits=rng.normal(size=(layers, batch, queries, SPEC.num_labels + 1)),
        boxes_cxcywh=cxcywh(layers, batch, queries),
    )
    targets = ObjectTargets(
        boxes_cxcywh=np.where(mask[..., None], cxcywh(batch, objects), 0),
        labels=np.where(mask, rng.integers(0, SPEC.num_labels, (batch, objects)), 0),
        attributes=np.where(mask[..., None] & given, attributes, -1),
        object_mask=mask,
    )
    matches = np.full((layers, batch, objects), -1, np.int32)
    for layer, image in np.ndindex(layers, batch):
        n = min(counts[image], queries)
        matches[layer, image, :n] = rng.permutation(queries)[:n]
    return jax.tree.map(jnp.asarray, (outputs, targets, matches))


def attribute_head(seed=0):
    rng = np.random.default_rng(seed)
    table, weight = rng.normal(size=(SPEC.num_labels + 1, 3)), rng.normal(size=(WIDTH + 3, 7))

    def head(hidden_states, class_ids):
        inputs = jnp.concatenate([hidden_states, jnp.asarray(table)[class_ids]], -1)
        return jax.nn.relu(inputs @ weight)

    return head


def giou(a, b):
    (ax, ay, aw, ah), (bx, by, bw, bh) = a, b

    def overlap(c, s, d, t):
        return max(min(c + s / 2, d + t / 2) - max(c - s / 2, d - t / 2), 0)

    def span(c, s, d, t):
        return max(c + s / 2, d + t / 2) - min(c - s / 2, d - t / 2)

    inter = overlap(ax, aw, bx, bw) * overlap(ay, ah, by, bh)
    union, hull = aw * ah + bw * bh - inter, span(ax, aw, bx, bw) * span(ay, ah, by, bh)
    return inter / union - (hull - union) / hull


def reference_losses(outputs, targets, matches, settings, head):
    """Unweighted losses of one layer's arrays over the given images, as one reference batch.

    Returns (losses without the division of box terms, number of objects).
    """
    ce, weights, matched_ce, unmatched_ce, l1, giou_sum, attr, n_attr = [0.0] * 8
    eos = float(np.float32(settings.no_object_weight))
    batch, queries = outputs.logits.shape[:2]
    for image in range(batch):
        pairs = {int(q): o for o, q in enumerate(matches[image]) if q >= 0}
        for q in range(queries):
            scores = log_softmax(np.asarray(outputs.logits[image, q]))
            label = int(targets.labels[image, pairs[q]]) if q in pairs else SPEC.num_labels
            weight = 1.0 if q in pairs else eos
            ce, weights = ce - weight * scores[label], weights + weight
            if q not in pairs:
                unmatched_ce -= scores[label]
                continue
            matched_ce -= scores[label]
            box = np.asarray(outputs.boxes_cxcywh[image, q])
            target = np.asarray(targets.boxes_cxcywh[image, pairs[q]])
            l1, giou_sum = l1 + np.abs(box - target).sum(), giou_sum + 1 - giou(box, target)
            if head is None:
                continue
            ids = [a for a in np.asarray(targets.attributes[image, pairs[q]]) if a >= 0]
            scores = log_softmax(
                head(outputs.hidden_states[image, q], targets.labels[image, pairs[q]])
            )
            if ids and (loss := -0.5 * np.mean([scores[a] for a in ids])) != 0:
                attr, n_attr = attr + loss, n_attr + 1
    return dict(
        ce=ce / weights,
        matched_ce=matched_ce,
        unmatched_ce=unmatched_ce,
        l1=l1,
        giou=giou_sum,
        attr=attr / max(n_attr, 1),
    )


def reference_terms(outputs, targets, matches, settings, head):
    """All weighted terms: the batch as one, or the mean over images that each are a batch."""
    images, queries = outputs.logits.shape[1:3]
    total_objects = int(targets.object_mask.sum())
    if settings.normalisation == "per_image":
        groups = [slice(i, i + 1) for i in range(images)]
    else:
        groups = [slice(0, images)]
    num_boxes = max(total_objects / len(groups), 1)
    terms, layers = {}, outputs.logits.shape[0]
    for layer in range(layers):
        sums = []
        for group in groups:
            part = jax.tree.map(lambda x, layer=layer, group=group: x[layer, group], outputs)
            goal = jax.tree.map(lambda x, group=group: x[group], targets)
            sums.append(reference_losses(part, goal, matches[layer, group], settings, head))
        mean = {key: np.mean([s[key] for s in sums]) for key in sums[0]}
        if settings.balanced:
            rest = images * queries / len(groups) - num_boxes
            mean["ce"] = 0.9 * mean["matched_ce"] / num_boxes + 0.1 * mean["unmatched_ce"] / rest
        suffix = "" if layer == layers - 1 else f"_{layer}"
        terms |= {
            "loss_ce" + suffix: mean["ce"],
            "loss_bbox" + suffix: 5 * mean["l1"] / num_boxes,
            "loss_giou" + suffix: 2 * mean["giou"] / num_boxes,
        }
        if head is not None:
            terms["loss_attr" + suffix] = mean["attr"]
    return terms


def assert_terms(terms, wanted, rtol=1e-12):
    assert set(terms) == set(wanted)
    for name, value in wanted.items():
        np.testing.assert_allclose(terms[name], value, rtol=rtol, atol=1e-15, err_msg=name)


def compiled(settings, spec=SPEC, head=None):
    return jax.jit(lambda o, t, m: detection.detection_loss(o, t, m, settings, spec, head))


@pytest.mark.parametrize("normalisation", ["batch", "per_image"])
@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("counts", [(3, 0, 4, 1), (0, 0, 0), (5,), (0, 1, 0, 0)])
def test_every_term_equals_the_loops(normalisation, balanced, counts):
    settings = dataclasses.replace(SETTINGS, normalisation=normalisation, balanced=balanced)
    outputs, targets, matches = random_case(7, counts)
    head = attribute_head()
    total, terms = compiled(settings, head=head)(outputs, targets, matches)
    assert_terms(terms, reference_terms(outputs, targets, matches, settings, head))
    np.testing.assert_allclose(total, sum(terms.values()), rtol=1e-12)


def test_more_objects_than_queries():
    outputs, targets, _ = random_case(8, (5, 2), queries=3)
    matches = matching.match(
        np.asarray(matching.cost_matrix(outputs, targets, SETTINGS)),
        np.asarray(targets.object_mask),
    )
    _, terms = compiled(SETTINGS, head=attribute_head())(outputs, targets, matches)
    assert_terms(terms, reference_terms(outputs, targets, matches, SETTINGS, attribute_head()))


@pytest.mark.parametrize("balanced", [False, True])
def test_per_image_is_what_devices_with_one_image_each_would_give(balanced):
    """Class and attribute terms are means of one-image losses; box terms share one divisor."""
    settings = dataclasses.replace(SETTINGS, normalisation="per_image", balanced=balanced)
    outputs, targets, matches = random_case(9, (2, 3, 1, 4))
    whole = compiled(settings, head=attribute_head())(outputs, targets, matches)[1]
    halves = []
    for part in (slice(0, 2), slice(2, 4)):
        pieces = (
            jax.tree.map(lambda x, p=part: x[:, p], outputs),
            jax.tree.map(lambda x, p=part: x[p], targets),
            matches[:, part],
        )
        halves.append(compiled(settings, head=attribute_head())(*pieces)[1])
    # Both halves hold five objects, so also their box terms are just averaged.
    assert_terms(whole, {name: (halves[0][name] + halves[1][name]) / 2 for name in whole})


@pytest.mark.parametrize("normalisation", ["batch", "per_image"])
def test_padding_never_matters(normalisation):
    settings = dataclasses.replace(SETTINGS, normalisation=normalisation)
    outputs, targets, matches = random_case(10)
    longer = [(0, 0), (0, 6)]
    padded = ObjectTargets(
        boxes_cxcywh=jnp.pad(targets.boxes_cxcywh, [*longer, (0, 0)]),
        labels=jnp.pad(targets.labels, longer, constant_values=SPEC.num_labels),
        attributes=jnp.pad(targets.attributes, [*longer, (0, 0)], constant_values=3),
        object_mask=jnp.pad(targets.object_mask, longer),
    )
    padded_matches = jnp.pad(matches, [(0, 0), *longer], constant_values=-1)
    head = attribute_head()
    _, terms = compiled(settings, head=head)(outputs, padded, padded_matches)
    assert_terms(terms, compiled(settings, head=head)(outputs, targets, matches)[1])


@pytest.mark.parametrize("counts", [(3, 0, 4, 1), (0, 0)])
def test_gradients_are_finite_and_equal_finite_differences(counts):
    outputs, targets, matches = random_case(11, counts)
    head = attribute_head()

    @jax.jit
    def total(outputs):
        return detection.detection_loss(outputs, targets, matches, SETTINGS, SPEC, head)[0]

    gradients = jax.grad(total)(outputs)
    rng = np.random.default_rng(0)
    direction = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), outputs)
    slope = sum(
        (g * d).sum()
        for g, d in zip(jax.tree.leaves(gradients), jax.tree.leaves(direction), strict=True)
    )
    ends = [
        total(jax.tree.map(lambda x, d, s=s: x + s * d, outputs, direction)) for s in (1e-7, -1e-7)
    ]
    np.testing.assert_allclose(slope, (ends[0] - ends[1]) / 2e-7, rtol=1e-6)
    # A box that collapsed to a point (sigmoid underflow) must not poison the rest.
    point = outputs.replace(boxes_cxcywh=jnp.zeros_like(outputs.boxes_cxcywh))
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(jax.grad(total)(point)))


def test_attribute_loss_only_where_there_are_attributes():
    outputs, targets, matches = random_case(12)
    head = attribute_head()
    coco = dataclasses.replace(SPEC, num_attributes=0)
    without = [
        compiled(SETTINGS, head=head)(outputs, targets.replace(attributes=None), matches)[1],
        compiled(SETTINGS, spec=coco, head=head)(outputs, targets, matches)[1],
        compiled(SETTINGS)(outputs, targets, matches)[1],
    ]
    for terms in without:
        assert not any("attr" in name for name in terms)
    none_given = targets.replace(attributes=jnp.full_like(targets.attributes, -1))
    terms = compiled(SETTINGS, head=head)(outputs, none_given, matches)[1]
    assert terms["loss_attr"] == terms["loss_attr_0"] == 0


def test_weights_and_layers_are_as_configured():
    outputs, targets, matches = random_case(13)
    terms = compiled(SETTINGS)(outputs, targets, matches)[1]
    doubled = dataclasses.replace(SETTINGS, detection_weight=2.0, class_weight=3.0)
    assert_terms(
        compiled(doubled)(outputs, targets, matches)[1],
        {name: value * (6 if "ce" in name else 2) for name, value in terms.items()},
    )
    last = dataclasses.replace(SETTINGS, auxiliary=False)
    assert_terms(
        compiled(last)(outputs, targets, matches[-1:])[1],
        {name: terms[name] for name in ("loss_ce", "loss_bbox", "loss_giou")},
    )
    with pytest.raises(ValueError, match="matches have shape"):
        detection.detection_loss(outputs, targets, matches, last, SPEC)


def test_cardinality_error():
    logits = np.zeros((1, 2, 4, 3))
    logits[0, 0, :3, 1] = 1  # three queries see an object, two objects are there
    logits[0, 0, 3, 2] = 1
    logits[0, 1, :, 2] = 1  # none sees one, and none is there
    outputs = Outputs(None, jnp.asarray(logits), jnp.zeros((1, 2, 4, 4)))
    mask = jnp.asarray([[True, True, False], [False, False, False]])
    targets = ObjectTargets(jnp.zeros((2, 3, 4)), jnp.zeros((2, 3), int), mask)
    errors = detection.cardinality_error(outputs, targets, SETTINGS)
    assert errors == {"cardinality_error": 0.5}


# Float64 numbers that the reference UniT computed at a small size: outputs, matches, losses.
REFERENCE = np.load(REFERENCE_FILES / "losses" / "reference.npz")
CASES = json.loads(str(REFERENCE["cases"]))


def recipe_weight(name, shape):
    """Weights of the reference cases follow from their names."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    n = rng.standard_normal(shape, dtype=np.float32)
    if name.endswith("bias"):
        n = np.float32(0.02) * n
    elif "cls_embed" not in name:
        n = n * np.float32(1 / np.sqrt(np.prod(shape[1:])))
    return n.astype(np.float64)


def recipe_head(names_and_shapes):
    """The reference's attribute head: embedding, linear, linear, ReLU."""
    embedding, linear1, bias1, linear2, bias2 = (
        recipe_weight(*entry) for entry in names_and_shapes
    )

    def head(hidden_states, class_ids):
        inputs = jnp.concatenate([hidden_states, jnp.asarray(embedding)[class_ids]], -1)
        return jax.nn.relu((inputs @ linear1.T + bias1) @ linear2.T + bias2)

    return head


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c['case']}-{c['dataset']}")
def test_numbers_of_the_reference(case):
    def array(name):
        key = f"{case['case']}/{case['dataset']}/{name}"
        return jnp.asarray(REFERENCE[key]) if key in REFERENCE else None

    settings = dataclasses.replace(
        SETTINGS, **{key: case[key] for key in ("normalisation", "balanced", "auxiliary")}
    )
    spec = dataclasses.replace(
        SPEC, num_labels=case["num_labels"], num_attributes=case["num_attributes"]
    )
    outputs = Outputs(array("hidden_states"), array("logits"), array("boxes_cxcywh"))
    targets = ObjectTargets(
        boxes_cxcywh=array("target_boxes"),
        labels=array("labels"),
        attributes=array("attributes"),
        object_mask=array("object_mask"),
    )
    head = recipe_head(case["head"]) if case["head"] else None
    costs = jax.jit(lambda o, t: matching.cost_matrix(o, t, settings))(outputs, targets)
    matches = matching.match(np.asarray(costs), np.asarray(targets.object_mask))
    np.testing.assert_array_equal(matches, array("matches"))
    on_device = jax.jit(matching.match_on_device)(costs, targets.object_mask)
    np.testing.assert_array_equal(on_device, matches)
    total, terms = compiled(settings, spec, head)(outputs, targets, matches)
    assert_terms(terms, case["losses"], rtol=1e-9)
    np.testing.assert_allclose(total, case["total"], rtol=1e-9)
    errors = jax.jit(lambda o, t: detection.cardinality_error(o, t, settings))(outputs, targets)
    assert {name: errors[name] for name in case["cardinality_error"]} == case["cardinality_error"]
