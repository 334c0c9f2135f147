"""The train step: any number of devices and either matcher give the same update."""

import contextlib
import dataclasses
import json

import jax
import numpy as np
import pytest
from etils import epath

from tests import tiny
from unit_jax import run as run_lib
from unit_jax.data import loader, shapes
from unit_jax.evaluation.step import PredictStep
from unit_jax.runtime import partitioning
from unit_jax.training import compilation, loop
from unit_jax.training import optimizer as optim
from unit_jax.training import step as train_step


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    tasks = ("visual_genome", "snli_ve", "qqp")
    return tiny.make_data(tmp_path_factory.mktemp("demo"), tasks)


@pytest.fixture(scope="module")
def steps(data_dir):
    """update(devices, matcher, batch of each task) -> params and logs after both tasks' steps."""
    config = tiny.values(data_dir, ("visual_genome", "snli_ve"))
    run = run_lib.open_run(config)
    with loader.train_batches(run.settings, run.data) as batches:
        by_task = {}
        for batch in batches:
            by_task.setdefault(batch.task, batch)
        assert set(by_task) == {"visual_genome", "snli_ve"}
    fresh = jax.device_get(run.fresh_model())

    def update(devices: int, matcher: str = "scipy"):
        settings = dataclasses.replace(
            run.settings, loss=dataclasses.replace(run.settings.loss, matcher=matcher)
        )
        mesh = partitioning.make_mesh(settings.mesh, jax.devices()[:devices])
        # Past the warm-up, so that the very first update moves something.
        optimizer = optim.Optimizer(dataclasses.replace(settings.optimizer, warmup_steps=0), 100)
        state = train_step.TrainState(**fresh, optimizer=optimizer.init(fresh["params"]))
        state = jax.device_put(state, partitioning.replicated(mesh))
        step = train_step.TrainStep(run.graph, settings, optimizer, mesh)
        logs = {}
        for task, batch in by_task.items():
            state, logs[task] = step(state, partitioning.to_devices(batch, mesh))
        return jax.device_get((state, logs))

    return update


@pytest.mark.slow  # tests/training/test_sharding.py compares the same on made-up batches
def test_eight_devices_update_as_one_does(steps):
    state, logs = steps(8)
    alone, logs_alone = steps(1)
    for task in logs:
        for name, value in logs_alone[task].items():
            if name == "matching_ms":
                continue
            np.testing.assert_allclose(logs[task][name], value, rtol=2e-4, err_msg=name)
    assert {"loss", "loss_ce", "loss_attr_0", "grad_norm"} <= set(logs["visual_genome"])
    # Adam's first steps have the size of the rate whatever the gradient, so rounding may turn a
    # gradient that is zero but for noise: most parameters agree, none differs by more than a step.
    different = total = 0
    for path, value in alone.params.items():
        gap = np.abs(state.params[path] - value)
        assert gap.max() < 5e-3, path
        different, total = different + (gap > 2e-5).sum(), total + gap.size
    assert different < 0.02 * total
    moved = {path for path in alone.params if int(alone.optimizer.counts.get(path, 0))}
    assert any(p.startswith("heads.visual_genome.attributes") for p in moved)
    assert not any("pooler" in p or p == "backbone.conv1.kernel" for p in moved)


@pytest.mark.slow
def test_the_solver_on_the_device_gives_the_same_losses(steps):
    _, on_host = steps(1)
    _, on_device = steps(1, "device")
    assert on_host["visual_genome"].keys() - on_device["visual_genome"].keys() == {"matching_ms"}
    for name, value in on_host["visual_genome"].items():
        if name in on_device["visual_genome"]:
            np.testing.assert_allclose(on_device["visual_genome"][name], value, rtol=1e-5)


def test_tasks_without_images_need_none_to_start(data_dir):
    config = tiny.values(data_dir, ("qqp",))
    assert config["model"]["backbone"]["calibrate"] > 0
    assert run_lib.open_run(config).fresh_model().statistics


@pytest.mark.slow
def test_nothing_is_compiled_after_warm_up(data_dir, tmp_path):
    """Several image shapes, text lengths and evaluations: each program is compiled once."""
    config = tiny.values(data_dir, ("snli_ve", "qqp"), steps=12)
    config["data"].update(buckets=((64, 80), (80, 80)), text_buckets=(14, 18))
    config["train"].update(eval_every=6, checkpoint_every=12)
    config["report"]["blind_check"] = False
    run = run_lib.open_run(config)
    with loader.train_batches(run.settings, run.data) as batches:
        shapes = {(batch.task, batch.bucket) for batch in batches}
    assert len(shapes) == 4 and {len(bucket) for _, bucket in shapes} == {1, 2}
    workdir = epath.Path(tmp_path)
    assert loop.train(run, workdir) == 0
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "train/compilations" in line]
    assert len(steps) == 12 and steps[-1]["train/compilations"] >= len(shapes)
    # All of them before the first step, so whatever a step compiled would be counted here.
    assert run.settings.train.compile_ahead
    assert steps[-1]["train/recompilations"] == 0


def test_evaluation_compiles_nothing_that_was_not_compiled_ahead(data_dir):
    """For the shapes that its data have, and no others."""
    config = tiny.values(data_dir, ("snli_ve", "qqp"))
    config["data"].update(buckets=((40, 40), (64, 80), (80, 80)), text_buckets=(14, 18))
    run = run_lib.open_run(config)
    model = run.fresh_model()
    predict = PredictStep(run.graph, run.settings, run.mesh)
    shapes = loader.shapes(run.settings, run.data, "val")
    assert {("snli_ve", (64, 80)), ("qqp", (18,))} <= named(shapes)
    assert ("snli_ve", (40, 40)) not in named(shapes)
    state = train_step.TrainState(*model, optimizer=None)
    work = compilation.work(None, predict, state, run.settings, run.mesh, [], shapes)
    assert [name for name, _ in work] == [("predict", spec.name, b) for spec, b in shapes]
    for _, compile_one in work:
        compile_one()
    seen = set()
    with contextlib.closing(compilation.Counter()) as counter:
        for task in ("snli_ve", "qqp"):
            with loader.eval_batches(run.settings, run.data, task) as batches:
                for batch in batches:
                    batch = partitioning.to_devices(batch.replace(targets=None), run.mesh)
                    predict(model, batch)
                    seen.add((task, batch.bucket))
    assert counter.programs == 0
    assert seen <= named(shapes)


def named(shapes) -> set:
    return {(spec.name, bucket) for spec, bucket in shapes}


def test_shapes_of_training_are_those_that_augmentation_can_give(data_dir):
    config = tiny.values(data_dir, ("visual_genome", "qqp"), steps=60)
    config["data"].update(buckets=((24, 24), (64, 80), (80, 80)))
    config["tasks"]["qqp"]["ratio"] = 0.0
    run = run_lib.open_run(config)
    with loader.train_batches(run.settings, run.data) as batches:
        seen = {(batch.task, batch.bucket) for batch in batches}
    assert seen == named(loader.shapes(run.settings, run.data, "train"))


def test_shapes_foretold_are_those_of_the_loader(data_dir):
    run = run_lib.open_run(tiny.values(data_dir, ("visual_genome", "snli_ve", "qqp"), steps=12))
    seen = set()
    with loader.train_batches(run.settings, run.data) as batches:
        for batch in batches:
            seen.add(batch.task)
            told = shapes.batch_shapes(
                run.settings.tasks[batch.task], batch.bucket, run.settings, run.mesh
            )
            jax.tree.map(lambda x, y: assert_alike(x, y), batch, told)
    assert len(seen) == 3


def assert_alike(array, told) -> None:
    assert (array.shape, array.dtype) == (told.shape, told.dtype)
