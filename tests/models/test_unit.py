"""The whole model: sizes, what a task reaches, padding, dropout, initial values."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import demo, unit
from unit_jax import outputs as rooms
from unit_jax import settings as settings_lib
from unit_jax.batch import Batch, Outputs
from unit_jax.models import flat
from unit_jax.models.unit import Unit, normalise, shrink_mask, used_parameters

PAPER = settings_lib.from_config(unit.values())
TOKENS = 8


def tiny_settings(**changes) -> settings_lib.ModelSettings:
    config = demo.values()["model"]
    config["backbone"].update(width=4)
    config["image_encoder"].update(width=16)
    config["text_encoder"].update(vocab_size=50, width=24, mlp_width=32, max_positions=16)
    config["decoder"].update(width=32, layers=2)
    config.update(mlp_width=32)
    for key, value in changes.items():
        (config[key].update if isinstance(value, dict) else config.__setitem__)(
            *([value] if isinstance(value, dict) else [key, value])
        )
    return settings_lib.build(settings_lib.ModelSettings, config)


TASKS = {
    name: dataclasses.replace(
        spec,
        num_queries=3,
        num_labels=5,
        num_attributes=spec.num_attributes and 7,
        max_tokens=spec.max_tokens and TOKENS,
    )
    for name, spec in PAPER.tasks.items()
}


def build(**changes) -> Unit:
    model = rooms.build(tiny_settings(**changes), TASKS, rngs=nnx.Rngs(0))
    images, sizes = pictures()
    model.calibrate(images, sizes)
    return model


def pictures(sizes=((48, 70), (37, 53)), seed=0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    images = np.zeros((len(sizes), *np.max(sizes, axis=0), 3), np.uint8)
    for image, (height, width) in zip(images, sizes, strict=True):
        image[:height, :width] = rng.integers(0, 256, (height, width, 3))
    return images, np.asarray(sizes, np.int32)


def make_batch(task: str) -> Batch:
    batch = Batch(task)
    if TASKS[task].has_image:
        images, sizes = pictures()
        batch = batch.replace(images=images, image_sizes=sizes)
    if TASKS[task].has_text:
        rng = np.random.default_rng(1)
        mask = np.arange(TOKENS) < np.array([[TOKENS], [5]])
        ids = np.where(mask, rng.integers(1, 50, (2, TOKENS)), 0)
        segments = ((np.arange(TOKENS) >= 3) & mask).astype(np.int32)
        batch = batch.replace(input_ids=ids, token_mask=mask, segment_ids=segments)
    return batch


@functools.cache
def compiled(graph: nnx.GraphDef):
    def run(params, statistics, batch, key):
        return flat.merge(graph, params, statistics)(batch, key=key)

    return jax.jit(run)


def answer(model: Unit, batch: Batch, key=None) -> Outputs:
    graph, params, statistics = flat.split(model)
    return compiled(graph)(params, statistics, batch, key)


@functools.cache
def compiled_features(graph: nnx.GraphDef):
    def run(params, statistics, images, sizes):
        return flat.merge(graph, params, statistics).features(images, sizes)

    return jax.jit(run)


def features(model: Unit, images, sizes):
    graph, params, statistics = flat.split(model)
    return compiled_features(graph)(params, statistics, images, sizes)


@pytest.fixture(scope="module")
def model() -> Unit:
    return build()


@pytest.mark.parametrize(
    ("variant", "parameters"),
    [("", 201_507_900), ("no_task_embedding", 201_245_756), ("separate_decoders", 532_389_948)],
)
def test_parameter_counts_are_the_papers(variant, parameters):
    settings = settings_lib.from_config(unit.values(variant))
    _, params, statistics = flat.abstract(
        lambda: rooms.build(settings.model, settings.tasks, rngs=nnx.Rngs(0))
    )
    assert sum(leaf.size for leaf in params.values()) == parameters
    # Batch norms are no parameters: four tensors in each of ResNet-50's 53.
    assert len(statistics) == 4 * 53
    assert {path.rsplit(".", 1)[-1] for path in statistics} == {"scale", "bias", "mean", "var"}


def test_answers_of_every_kind_of_task(model):
    for task in ("coco", "visual_genome", "vqa2", "snli_ve", "sst2"):
        spec = TASKS[task]
        outputs = answer(model, make_batch(task))
        assert outputs.hidden_states.shape == (2, 2, 3, 32)
        if spec.output == "objects":
            assert outputs.logits.shape == (2, 2, 3, 6)
            assert outputs.boxes_cxcywh.shape == (2, 2, 3, 4)
            assert ((outputs.boxes_cxcywh > 0) & (outputs.boxes_cxcywh < 1)).all()
        else:
            assert outputs.logits.shape == (1, 2, 5) and outputs.boxes_cxcywh is None
    hidden = answer(model, make_batch("visual_genome")).hidden_states
    attributes = model.heads["visual_genome"].attributes(hidden, np.zeros((2, 2, 3), np.int32))
    assert attributes.shape == (2, 2, 3, 7) and (attributes >= 0).all()


def zero_by_structure(path: str, inputs: tuple[str, ...]) -> bool:
    """Whether a parameter that the task reaches has no gradient all the same.

    Adding a constant to all keys of an attention changes nothing; the first decoder layer starts
    from zeros, so its queries all see the same; one memory token leaves nothing to choose.
    """
    if path.endswith("attention.key.bias"):
        return True
    if path.startswith("decoder.layers.0.self_attention."):
        return ".query." in path or ".key." in path or path.endswith("value.kernel")
    if inputs == ("image",) and path == "image_encoder.position_projection.bias":
        return True
    chooses = re.search(r"(self|cross)_attention\.(query|key)\.", path)
    return inputs == ("text",) and (
        bool(chooses) or path.startswith(("queries.", "text_encoder.position_projection."))
    )


@pytest.mark.parametrize("task", ["visual_genome", "vqa2", "qnli"])
def test_used_parameters_are_those_with_a_gradient(model, task):
    graph, params, statistics = flat.split(model)
    batch, spec = make_batch(task), TASKS[task]
    rng = np.random.default_rng(0)  # fresh biases are zeros, which would hide gradients
    params = {p: x + 0.1 * rng.standard_normal(x.shape, np.float32) for p, x in params.items()}

    def loss(params):
        model = flat.merge(graph, params, statistics)
        outputs = model(batch)
        total = (outputs.hidden_states**3).sum() + (outputs.logits**2).sum()
        if spec.output == "objects":
            total += (outputs.boxes_cxcywh**2).sum()
        if spec.num_attributes:
            ids = jnp.zeros((2, 2, 3), int)
            total += (model.heads[task].attributes(outputs.hidden_states, ids) ** 2).sum()
        return total

    norms = {path: float(jnp.abs(g).max()) for path, g in jax.jit(jax.grad(loss))(params).items()}
    largest = max(norms.values())
    for path, norm in norms.items():
        if not used_parameters(path, spec, model.settings):
            assert norm == 0, path
        else:
            assert (norm > 1e-5 * largest) != zero_by_structure(path, spec.inputs), (path, norm)


def test_attribute_head_is_not_reached_without_attributes():
    path = "heads.visual_genome.attributes.linear1.kernel"
    with_attributes = TASKS["visual_genome"]
    without = dataclasses.replace(with_attributes, num_attributes=0)
    assert used_parameters(path, with_attributes, PAPER.model)
    assert not used_parameters(path, without, PAPER.model)


def test_padding_changes_nothing(model):
    images, sizes = pictures()
    batch = make_batch("vqa2")
    together = answer(model, batch)
    height, width = sizes[1]
    alone = jax.tree.map(lambda leaf: leaf[1:], batch)
    alone = answer(model, alone.replace(images=images[1:, :height, :width]))
    for ours, expected in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(ours[:, 1:], expected, atol=2e-5)


def test_padding_leaks_without_the_mask():
    leaky = build(mask_padding=False)
    images, sizes = pictures()
    height, width = sizes[1]
    together, mask = features(leaky, images, sizes)
    alone, _ = features(leaky, images[1:, :height, :width], sizes[1:])
    difference = np.abs(together[1:, : alone.shape[1], : alone.shape[2]] - alone)
    assert difference.max() > 1e-3
    assert mask.shape == together.shape[:3]


def test_what_lies_in_the_padding_does_not_matter(model):
    images, sizes = pictures()
    dirty = images.copy()
    dirty[1, sizes[1, 0] :] = 255
    for clean, soiled in zip(
        features(model, images, sizes), features(model, dirty, sizes), strict=True
    ):
        np.testing.assert_array_equal(clean, soiled)


def test_padded_tokens_do_not_matter(model):
    batch = make_batch("vqa2")
    other = np.where(batch.token_mask, batch.input_ids, 17)
    np.testing.assert_allclose(
        answer(model, batch).logits, answer(model, batch.replace(input_ids=other)).logits, atol=1e-6
    )


def test_shrunk_mask_takes_the_nearest_pixel():
    mask = np.zeros((1, 5, 7), bool)
    mask[:, :4, :5] = True
    # Rows 0 and floor(5/2) = 2; columns 0, floor(7/3) = 2 and floor(14/3) = 4.
    np.testing.assert_array_equal(shrink_mask(mask, 2, 3), np.ones((1, 2, 3), bool))
    np.testing.assert_array_equal(
        shrink_mask(mask, 5, 4)[0], np.outer([1, 1, 1, 1, 0], [1, 1, 1, 0]).astype(bool)
    )


def test_pixels_are_normalised_in_float32():
    pixels = np.arange(256, dtype=np.uint8)[:, None].repeat(3, 1)
    mean, std = np.float64([0.485, 0.456, 0.406]), np.float64([0.229, 0.224, 0.225])
    ours = jax.jit(normalise)(pixels)
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, (pixels / 255.0 - mean) / std, rtol=2e-6, atol=2e-7)


def test_calibrated_statistics_normalise(model):
    images, sizes = pictures()
    crop = normalise(images[:, : sizes[:, 0].min(), : sizes[:, 1].min()])
    x = model.backbone.conv1(crop)
    np.testing.assert_allclose(model.backbone.bn1.mean[...], x.mean((0, 1, 2)), atol=1e-5)
    normed = model.backbone.bn1(x)
    np.testing.assert_allclose(normed.mean((0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(normed.var((0, 1, 2)), 1, atol=1e-3)


def test_dropout_follows_its_key():
    model = build(dropout=0.3, attention_dropout=0.3)
    batch = make_batch("vqa2")
    first, again, other, off, off_again = (
        answer(model, batch, key).logits
        for key in (jax.random.key(0), jax.random.key(0), jax.random.key(1), None, None)
    )
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(off, off_again)
    assert np.abs(first - other).max() > 1e-3 and np.abs(first - off).max() > 1e-3


def test_separate_decoders_answer_apart():
    model = build(decoder=dict(shared=False))
    _, params, _ = flat.split(model)
    layers = [f"decoders.coco.layers.{i}.cross_attention.out.kernel" for i in range(2)]
    # As in the reference: the layers of one decoder start alike, decoders do not.
    np.testing.assert_array_equal(params[layers[0]], params[layers[1]])
    assert (params[layers[0]] != params[layers[0].replace("coco", "vqa2")]).any()
    batch = make_batch("coco")
    before = answer(model, batch).logits
    model.decoders["vqa2"].norm.scale[...] *= 2
    np.testing.assert_array_equal(answer(model, batch).logits, before)
    model.decoders["coco"].norm.scale[...] *= 2
    assert np.abs(answer(model, batch).logits - before).max() > 1e-3
    assert not used_parameters(layers[0], TASKS["vqa2"], model.settings)
    assert used_parameters(layers[0], TASKS["coco"], model.settings)


def test_initial_values():
    settings = tiny_settings(image_encoder=dict(width=64), decoder=dict(width=128))
    _, params, _ = flat.split(rooms.build(settings, TASKS, rngs=nnx.Rngs(0)))

    def uniform(path: str, bound: float):
        values = np.asarray(params[path])
        assert np.abs(values).max() <= bound, path
        np.testing.assert_allclose(values.std(), bound / np.sqrt(3), rtol=0.1, err_msg=path)

    def gaussian(path: str, std: float):
        values = np.asarray(params[path])
        np.testing.assert_allclose(values.std(), std, rtol=0.1, err_msg=path)
        assert np.abs(values).max() > 2.2 * std, path

    # Xavier over the fused [3 width, width] matrix; xavier; torch's default.
    uniform("image_encoder.layers.0.attention.query.kernel", np.sqrt(6 / (64 + 3 * 64)))
    uniform("image_encoder.layers.0.attention.out.kernel", np.sqrt(6 / (64 + 64)))
    uniform("decoder.layers.1.cross_attention.value.kernel", np.sqrt(6 / (128 + 3 * 128)))
    uniform("image_encoder.memory_projection.kernel", np.sqrt(6 / (64 + 128)))
    uniform("image_encoder.input_projection.kernel", 1 / np.sqrt(4 * 32))
    uniform("heads.coco.boxes.0.kernel", 1 / np.sqrt(128))
    uniform("text_encoder.memory_projection.kernel", 1 / np.sqrt(24))
    gaussian("queries.coco", 1)
    gaussian("image_encoder.task_embedding", 1)
    gaussian("heads.visual_genome.attributes.linear1.kernel", 0.01)
    gaussian("heads.visual_genome.attributes.class_embedding", 0.01)
    # BERT's 0.02, scaled from its width to this one.
    gaussian("text_encoder.position_embedding", 0.02 * np.sqrt(768 / 24))
    gaussian("text_encoder.layers.0.feed_forward.linear1.kernel", 0.02 * np.sqrt(768 / 24))
    # Equal words attend to each other.
    attention = "text_encoder.layers.1.attention"
    gaussian(f"{attention}.key.kernel", 0.02 * np.sqrt(768 / 24))
    np.testing.assert_array_equal(
        params[f"{attention}.key.kernel"], params[f"{attention}.query.kernel"]
    )
    assert (params[f"{attention}.value.kernel"] != params[f"{attention}.query.kernel"]).any()
    for path in (
        "text_encoder.layers.0.attention.query.bias",
        "image_encoder.layers.0.attention.query.bias",
        "heads.visual_genome.attributes.linear1.bias",
    ):
        assert (params[path] == 0).all()
    assert (params["text_encoder.word_embedding"][0] == 0).all()  # [PAD]


def test_bfloat16_computes_nearly_the_same(model):
    graph, params, statistics = flat.split(build(dtype="bfloat16"))
    assert {leaf.dtype for leaf in params.values()} == {jnp.dtype("float32")}
    batch = make_batch("vqa2")
    half = compiled(graph)(params, statistics, batch, None)
    full = answer(model, batch)
    assert half.hidden_states.dtype == jnp.bfloat16
    assert half.logits.dtype == jnp.float32
    error = np.abs(np.float32(half.hidden_states) - full.hidden_states)
    assert 0 < error.mean() < 0.05


def test_pre_norm_and_options_build_and_run():
    changes = dict(
        pre_norm=True,
        classify_all_layers=True,
        image_encoder=dict(width=32, residual=False, task_embedding=False),
        text_encoder=dict(task_embedding=False),
        backbone=dict(dilation=False),
    )
    model = build(**changes)
    _, params, _ = flat.split(model)
    assert "image_encoder.norm.scale" in params
    assert not any("task_embedding" in path for path in params)
    # Widths are equal: no projection from image encoder to decoder.
    assert not any(path.startswith("image_encoder.memory_projection") for path in params)
    assert answer(model, make_batch("vqa2")).logits.shape == (2, 2, 5)
    found, _ = features(model, *pictures())
    assert found.shape[1:3] == (2, 3)  # ceil of 48 and 70 by 32


def test_mistakes_are_named(model):
    with pytest.raises(ValueError, match="'nlvr2' is none of this model's: coco, visual_genome"):
        model(Batch("nlvr2"))
    with pytest.raises(ValueError, match="width 32 cannot be split into 5 heads|5 attention heads"):
        build(heads=5)
    batch = make_batch("qnli")
    wide = {
        name: np.repeat(getattr(batch, name), 3, axis=1)
        for name in ("input_ids", "token_mask", "segment_ids")
    }
    with pytest.raises(ValueError, match="24 tokens, but model.text_encoder.max_positions is 16"):
        model(batch.replace(**wide))
    with pytest.raises(ValueError, match="no parameter of UniT"):
        used_parameters("encoder.layers.0", TASKS["coco"], model.settings)
