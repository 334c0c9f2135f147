"""Any layout over a mesh gives what one device gives, and splits memory as it promises."""

import dataclasses
import functools
import itertools
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from configs import unit
from tests import tiny
from unit_jax import outputs
from unit_jax import settings as settings_lib
from unit_jax.batch import Batch
from unit_jax.models import flat
from unit_jax.outputs.labels.room import LabelTargets, ScoreTargets
from unit_jax.outputs.objects.targets import ObjectTargets
from unit_jax.runtime import checkpoints, partitioning
from unit_jax.settings import MeshSettings, Settings
from unit_jax.tools import show_sharding
from unit_jax.training import optimizer as optim
from unit_jax.training import step as train_step
from unit_jax.training.state import abstract_run

LAYOUTS = [(8, 1, 1), (2, 4, 1), (2, 2, 2), (1, 8, 1)]
KINDS = {"detection": "visual_genome", "vision_language": "vqa2", "language": "qqp"}
EXAMPLES, TOKENS, OBJECTS, LABELS, ATTRIBUTES = 8, 6, 3, 7, 5

# Devices sum in another order than one alone does: float32 rounding, relative to the largest
# element of each array, is all that may differ.
TOLERANCE = 2e-5


def layout_id(layout: tuple[int, ...]) -> str:
    return "x".join(map(str, layout))


@functools.cache
def settings(dropout: float) -> Settings:
    config = tiny.values(pathlib.Path("nowhere"), ("coco", *KINDS.values()))
    for name, task in config["tasks"].items():
        task.update(num_labels=LABELS if name != "qqp" else 2)
    config["tasks"]["visual_genome"].update(num_attributes=ATTRIBUTES)
    config["model"].update(dropout=dropout, attention_dropout=dropout, mlp_width=32)
    config["model"]["backbone"].update(width=8)
    config["model"]["text_encoder"].update(vocab_size=24, mlp_width=32)
    # A large epsilon makes Adam's step a smooth function of the gradient, so that it can be
    # compared where the gradient is nothing but rounding, too.
    config["optimizer"].update(warmup_steps=0, learning_rate=0.1, eps=1e-2, clip_norm=1.0)
    return settings_lib.from_config(config)


def batch_of(kind: str) -> Batch:
    rng = np.random.default_rng(0)
    batch = Batch(KINDS[kind])
    if kind != "language":
        sizes = rng.integers(24, 33, (EXAMPLES, 2)).astype(np.int32)
        images = rng.integers(0, 256, (EXAMPLES, 32, 32, 3)).astype(np.uint8)
        batch = batch.replace(images=images, image_sizes=sizes)
    if kind != "detection":
        mask = np.arange(TOKENS) < rng.integers(2, TOKENS + 1, (EXAMPLES, 1))
        ids = np.where(mask, rng.integers(1, 24, mask.shape), 0).astype(np.int32)
        segments = ((np.arange(TOKENS) >= 3) & mask).astype(np.int32)
        batch = batch.replace(input_ids=ids, token_mask=mask, segment_ids=segments)
    if kind == "detection":
        shape = (EXAMPLES, OBJECTS)
        targets = ObjectTargets(
            boxes_cxcywh=rng.uniform(0.2, 0.8, (*shape, 4)).astype(np.float32),
            labels=rng.integers(0, LABELS, shape).astype(np.int32),
            attributes=rng.integers(-1, ATTRIBUTES, (*shape, 16)).astype(np.int32),
            object_mask=np.arange(OBJECTS) < rng.integers(0, OBJECTS + 1, (EXAMPLES, 1)),
        )
    elif kind == "vision_language":
        scores = rng.uniform(0, 1, (EXAMPLES, LABELS)).astype(np.float32)
        targets = ScoreTargets(answer_scores=scores)
    else:
        targets = LabelTargets(labels=rng.integers(0, 2, EXAMPLES).astype(np.int32))
    return batch.replace(targets=targets)


@functools.cache
def model():
    """Graph, parameters and statistics; dropout belongs to the settings, not to the weights."""
    made = settings(0.0)

    @jax.jit  # one program is compiled sooner than one per parameter
    def init():
        return flat.split(outputs.build(made.model, made.tasks, rngs=nnx.Rngs(0)))[1:]

    return jax.device_get(init())


@functools.cache
def moments():
    """The optimiser's state before the first update."""
    return jax.device_get(jax.jit(optim.Optimizer(settings(0.0).optimizer, 100).init)(model()[0]))


def graph_of(chosen: Settings):
    return flat.abstract(lambda: outputs.build(chosen.model, chosen.tasks, rngs=nnx.Rngs(0)))[0]


def mesh_of(layout: tuple[int, ...]):
    return partitioning.make_mesh(MeshSettings(*layout), jax.devices()[: math.prod(layout)])


def placed_state(mesh) -> train_step.TrainState:
    return partitioning.place(train_step.TrainState(*model(), moments()), mesh)


@functools.cache
def one_step(layout: tuple[int, ...], kind: str, dropout: float, examples: int = EXAMPLES):
    """Logs, gradients and the state after one optimiser step, on the host."""
    chosen, mesh = settings(dropout), mesh_of(layout)
    optimizer = optim.Optimizer(chosen.optimizer, 100)
    state = placed_state(mesh)
    batch = jax.tree.map(lambda x: x[:examples], batch_of(kind))
    gradients = train_step.Gradients(graph_of(chosen), chosen, optimizer, mesh)
    logs, grads = gradients(state, partitioning.to_devices(batch, mesh))
    assert_laid_out(grads, partitioning.gradient_shardings(grads, mesh))
    logs.pop("matching_ms", None)  # a time
    on_host = jax.device_get((logs, grads))
    update = train_step.Update(chosen, optimizer, mesh)
    state, _ = update(state, grads, KINDS[kind])
    assert_laid_out(state, partitioning.shardings(state, mesh))
    return *on_host, jax.device_get(state)


def assert_laid_out(tree, shardings) -> None:
    jax.tree.map(
        lambda x, wanted: np.testing.assert_equal(
            x.sharding.shard_shape(x.shape), wanted.shard_shape(x.shape)
        ),
        tree,
        shardings,
    )


def assert_close(found, wanted) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for (path, x), y in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(wanted), strict=True):
        scale = max(np.abs(y).max(), 1e-3)
        gap = np.abs(np.asarray(x, np.float64) - y).max() / scale
        assert gap < TOLERANCE, f"{jax.tree_util.keystr(path)}: {gap:.1e}"


def cases():
    """All of them. The suite has what broke before: one example a device, dropout on all axes at
    once; the rest is for `make test-slow`."""
    for layout, kind, dropout in itertools.product(LAYOUTS, KINDS, (0.0, 0.3)):
        images, all_axes = kind != "language", layout == (2, 2, 2)
        fast = kind != "detection" and all_axes if dropout else images
        name = f"{layout_id(layout)}-{kind}-{'dropout' if dropout else 'no_dropout'}"
        marks = () if fast else pytest.mark.slow
        yield pytest.param(layout, kind, dropout, id=name, marks=marks)


@pytest.mark.parametrize("layout, kind, dropout", cases())
def test_a_mesh_computes_what_one_device_does(layout, kind, dropout):
    """Losses, gradients and one optimiser step; without dropout each device has one example."""
    examples = EXAMPLES if dropout else layout[0] * layout[1]
    found, wanted = (one_step(on, kind, dropout, examples) for on in (layout, (1, 1, 1)))
    assert_close(found, wanted)
    assert any(np.abs(grad).max() > 1e-4 for grad in found[1].values())


@pytest.mark.parametrize(
    "kind", ["language", *(pytest.param(k, marks=pytest.mark.slow) for k in list(KINDS)[:2])]
)
def test_dropout_is_on(kind):
    """Else the test above would compare less than it says."""
    assert one_step((1, 1, 1), kind, 0.3)[0] != one_step((1, 1, 1), kind, 0.0)[0]


@pytest.mark.parametrize("layout", LAYOUTS, ids=layout_id)
def test_bytes_per_device_of_the_papers_model(layout):
    mesh = partitioning.abstract_mesh(MeshSettings(*layout), 8)
    paper = settings_lib.from_config(unit.values())
    _, state = abstract_run(paper, mesh)
    named = {
        "parameters": state.params,
        "optimiser": state.optimizer,
        "batch-norm statistics": state.statistics,
    }
    for name, tree in named.items():
        leaves = jax.tree.leaves(tree)
        total = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
        held = sum(map(show_sharding.bytes_per_device, leaves))
        parts = {"parameters": layout[1] * layout[2], "optimiser": 8, "batch-norm statistics": 1}
        assert held == pytest.approx(total / parts[name], rel=0.1), name


def test_a_dimension_that_does_not_divide_leaves_its_part_to_another():
    spec = functools.partial(
        partitioning.parameter_spec, mesh=partitioning.abstract_mesh(MeshSettings(1, 2, 4), 8)
    )
    assert spec("decoder.layers.0.feed_forward.linear1.kernel", (8, 16)) == P("fsdp", "tensor")
    assert spec("text_encoder.word_embedding", (30522, 768)) == P(None, ("tensor", "fsdp"))
    assert spec("backbone.conv1.kernel", (7, 7, 3, 64)) == P(None, None, None, ("fsdp", "tensor"))
    assert spec("heads.vqa2.labels.kernel", (5, 7)) == P()
    assert spec("decoder.norm.scale", (768,)) == P()


def test_moments_are_split_over_the_axes_that_parameters_leave():
    linear = "decoder.layers.0.feed_forward.linear1.kernel"
    for layout, split in {
        (2, 2, 2): P(("fsdp", "data"), "tensor"),
        (8, 1, 1): P("data"),
        (1, 8, 1): P("fsdp"),
        (256, 1, 1): P(None, "data"),  # 3 of 768 rows a device would be less than a tile
    }.items():
        mesh = partitioning.abstract_mesh(MeshSettings(*layout), math.prod(layout))
        assert partitioning.share_spec(linear, (768, 2048), mesh) == split
        assert partitioning.share_spec("decoder.norm.scale", (768,), mesh) == P()


def test_show_sharding_counts_what_devices_hold(capsys):
    layout = (2, 2, 2)
    state = placed_state(mesh_of(layout))
    chosen = dataclasses.replace(settings(0.0), mesh=MeshSettings(*layout))
    lines = [line.split() for line in show_sharding.layout(chosen)]
    told = {words[0]: words for words in lines if words}

    def held(tree) -> int:
        shards = [x.addressable_shards for x in jax.tree.leaves(tree)]
        per_device = [sum(s[i].data.nbytes for s in shards) for i in range(8)]
        assert len(set(per_device)) == 1
        return per_device[0]

    number = lambda word: int(word.replace(",", ""))  # noqa: E731
    for path, array in state.params.items():
        assert number(told[path][-1]) == held(array), path
    assert number(told["parameters"][-2]) == held(state.params)
    assert number(told["optimiser"][-2]) == held(state.optimizer)
    kernel = "decoder.layers.0.feed_forward.linear1.kernel"
    assert told[kernel][1:] == ["16", "32", "fsdp", "tensor", "512"]

    assert show_sharding.main(["--mesh", "data=2,fsdp=4,tensor=1"]) == 0
    assert "text_encoder.word_embedding" in capsys.readouterr().out
    assert show_sharding.main(["--mesh", "fsdp=4,pipeline=2"]) == 2
    assert "'pipeline=2'; write it like data=2" in capsys.readouterr().err


def test_a_checkpoint_may_change_mesh_devices_and_dtype(tmp_path):
    mesh, rng = mesh_of((2, 4, 1)), np.random.default_rng(0)
    used = jax.tree.map(
        lambda x: rng.uniform(1, 100, np.shape(x)).astype(np.asarray(x).dtype), moments()
    )
    state = partitioning.place(train_step.TrainState(*model(), used), mesh)
    params = state.params
    saved = checkpoints.Checkpoints(tmp_path)
    saved.save(1, state.model._asdict(), {}, state.optimizer._asdict())
    saved.wait()
    for layout in ((8, 1, 1), (2, 2, 2), (1, 1, 1)):
        mesh = mesh_of(layout)
        wanted = partitioning.abstract((state.model._asdict(), state.optimizer._asdict()), mesh)
        restored, optimizer = saved.restore(1, *wanted)
        assert_laid_out(restored["params"], partitioning.shardings(restored["params"], mesh))
        assert_laid_out(optimizer, partitioning.shardings(optimizer, mesh))
        for path, x in params.items():
            np.testing.assert_array_equal(restored["params"][path], x, path)
        assert jax.tree.all(jax.tree.map(np.array_equal, optimizer, state.optimizer._asdict()))
    narrow = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=x.sharding), wanted[0]
    )
    restored, _ = saved.restore(1, narrow)
    saved.close()
    for path, x in params.items():
        np.testing.assert_array_equal(restored["params"][path], x.astype(jnp.bfloat16), path)


@pytest.mark.parametrize(
    ("layout", "told"),
    [
        ((4, 4, 1), "data=4, fsdp=4, tensor=1 is for 16 devices, there are 8"),
        ((-1, 3, 1), "data=-1, fsdp=3, tensor=1 is for a multiple of 3 devices, there are 8"),
        ((-1, -1, 1), "-1 .the rest. once"),
        ((0, 8, 1), "numbers from 1 on"),
    ],
)
def test_a_mesh_that_does_not_fit_the_devices(layout, told):
    with pytest.raises(ValueError, match=told):
        partitioning.make_mesh(MeshSettings(*layout))


def test_the_rest_of_the_devices():
    assert partitioning.mesh_shape(MeshSettings(-1, 2, 1), 8) == (4, 2, 1)
    assert partitioning.mesh_shape(MeshSettings(2, -1, 2), 8) == (2, 2, 2)
