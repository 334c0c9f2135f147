"""Trajectories: a recorded sequence of updates through the train step."""

import dataclasses
import functools
import json
import pathlib
from collections import Counter
from collections.abc import Iterator, Mapping

import jax
import numpy as np

from unit_jax.batch import Batch
from unit_jax.interop import mmf
from unit_jax.runtime import partitioning
from unit_jax.tools.parity import recipe
from unit_jax.tools.parity.cases import Case, build_case, make_batch, optimizer_settings
from unit_jax.tools.parity.report import STRUCTURAL_ZERO, Table
from unit_jax.training import optimizer as optim
from unit_jax.training import step as train_step

OPTIMIZERS = {"adam_w": "adam_w", "adam_w_skip_params_with_zero_grad": "adam_w_skip_zero_grad"}


def check_training(path: pathlib.Path, data: Mapping[str, np.ndarray]) -> Iterator[Table]:
    """Runs the recorded sequence of updates through the train step."""
    meta = json.loads(str(data["meta"]))
    for dtype in ("float32", "float64"):
        with jax.enable_x64(dtype == "float64"):
            case = build_case(meta, dtype)
            mesh = partitioning.make_mesh(case.settings.mesh, jax.devices()[:1])
            schedule = functools.partial(optim.Optimizer, total_steps=meta["num_training_steps"])
            gradients = train_step.Gradients(
                case.graph, case.settings, schedule(case.settings.optimizer), mesh
            )
            batches = {
                dataset: partitioning.to_devices(training_batch(meta, case, dataset), mesh)
                for dataset in set(meta["sequence"])
            }
            for name, ours in OPTIMIZERS.items():
                if f"{name}/{dtype}/loss" not in data:
                    continue
                optimizer = schedule(optimizer_settings(meta, ours))
                table = Table(f"{path.stem}: {name}", dtype)
                check_trajectory(table, data, name, meta, case, optimizer, gradients, batches, mesh)
                yield table


def training_batch(meta: Mapping, case: Case, dataset: str) -> Batch:
    """The recorded batch of a data set."""
    given = meta["inputs"]
    inputs = recipe.make_inputs(
        given["case"],
        dataset,
        meta["model_config"],
        given["sizes"],
        given["text_len"],
        given["counts"],
    )
    if given.get("drop_attributes"):
        inputs.pop("attributes", None)
    return make_batch(case.settings.tasks[mmf.TASKS[dataset]], inputs)


def check_trajectory(
    table: Table, data, name: str, meta, case: Case, optimizer, gradients, batches, mesh
) -> None:
    """One optimiser, one precision.

    An optimiser that skips zero gradients may skip a tensor more often than the reference did, but
    only in updates in which its gradient is zero by structure.
    """
    truth = {key.split("/")[2]: data[key] for key in data if key.startswith(f"{name}/float64/")}
    single = {key.split("/")[2]: data[key] for key in data if key.startswith(f"{name}/float32/")}
    put = functools.partial(jax.device_put, device=partitioning.replicated(mesh))
    params = {path: put(np.array(array)) for path, array in case.params.items()}
    statistics = {path: put(array) for path, array in case.statistics.items()}
    state = train_step.TrainState(params, statistics, put(optimizer.init(params)))
    update = train_step.Update(
        dataclasses.replace(case.settings, optimizer=optimizer.settings), optimizer, mesh
    )
    groups = [
        [path for tensor in group for path in mmf.RULES.paths(tensor)]
        for group in json.loads(str(data["param_groups"]))
    ]
    strict = optimizer.settings.name == "adam_w"
    vanished: Counter[str] = Counter()  # in how many updates a tensor had no gradient to speak of
    for step, dataset in enumerate(meta["sequence"]):
        logs, grads = gradients(state, batches[dataset])
        if not strict:
            vanished.update(vanishing(grads, STRUCTURAL_ZERO[table.dtype]))
        state, info = update(state, grads, mmf.TASKS[dataset])
        table.close("train/loss", logs["loss"], truth["loss"][step])
        table.close("train/grad_norm", info["grad_norm"], truth["grad_norm_before_clip"][step])
        for group, rate in zip(groups, truth["lr_per_group"][step], strict=True):
            for path in group:
                table.close("train/lr", optimizer.learning_rate(path, step), rate)

    moved = {
        path: np.asarray(state.params[path], np.float64) - np.asarray(start, np.float64)
        for path, start in case.params.items()
    }
    moved = mmf.to_mmf(moved)
    for i, (tensor, _, trainable) in enumerate(json.loads(str(data["params"]))):
        steps = {int(state.optimizer.counts.get(path, 0)) for path in mmf.RULES.paths(tensor)}
        expected = int(truth["adam_steps"][i])
        # Whether a sum that should vanish is zero to the last bit is up to its roundings.
        least = expected - vanished[tensor]
        fewer = len(steps) == 1 and least <= min(steps) < expected
        table.equal("train/adam_steps", fewer or steps == {expected}, True, f"at {tensor}: {steps}")
        if fewer or not trainable:
            continue
        ours = moved[tensor]
        norm, probe = truth["move_norm"][i], truth["move_probe"][i]
        gap = abs(single["move_norm"][i] - norm)
        # A number moves by about the learning rate at each update. Much smaller movements are those
        # of gradients that are zero by structure: rounding, which Adam turns into steps.
        scale = max(norm, optimizer.settings.learning_rate if table.dtype == "float64" else 0.0)
        table.close("train/move_norm", np.linalg.norm(ours), norm, gap=gap, scale=scale)
        if table.dtype == "float64":  # float32 noise would decide
            direction = recipe.normal("probe/" + tensor, ours.shape)
            table.close("train/move_probe", (ours * direction).sum(), probe, scale=scale)


def vanishing(grads: Mapping[str, jax.Array], share: float) -> list[str]:
    """The tensors whose gradient is a smaller share of the total norm than that."""
    norms = {
        name: np.linalg.norm(grad.astype(np.float64))
        for name, grad in mmf.to_mmf(jax.tree.map(np.asarray, dict(grads))).items()
    }
    least = share * np.linalg.norm(list(norms.values()))
    return [name for name, norm in norms.items() if norm < least]
