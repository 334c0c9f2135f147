"""Our train step, for the tools that measure it."""

import functools
import math
import statistics
import time
from typing import Any, cast

import jax
import numpy as np
from flax import nnx

from unit_jax import outputs as outputs_lib
from unit_jax.batch import Batch
from unit_jax.interop import mmf
from unit_jax.models import flat
from unit_jax.outputs.objects import matching
from unit_jax.runtime import partitioning
from unit_jax.settings import Settings
from unit_jax.training import optimizer as optim
from unit_jax.training import step as train_step_lib


class Ours:
    """The train step as training runs it.

    Attributes:
      graph, state, mesh: the model's graph, the run's state, the devices.
      parameters: their number.
      matching_ms: what the device waited for the host in the last step.
    """

    def __init__(self, settings: Settings):
        self._settings = settings
        self.mesh = partitioning.make_mesh(settings.mesh)
        model = outputs_lib.build(settings.model, settings.tasks, rngs=nnx.Rngs(settings.seed))
        if any(spec.has_image for spec in settings.tasks.values()):
            # Statistics as of a trained network, so that numbers stay small.
            pixels = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
            model.calibrate(pixels, np.array([[64, 64]]))
        self.graph, params, statistics = flat.split(model)
        del model  # its arrays are given away with the state
        optimizer = optim.Optimizer(settings.optimizer, settings.train.steps)
        state = train_step_lib.TrainState(params, statistics, optimizer.init(params))
        self.state = partitioning.place(state, self.mesh)
        self._train_step = train_step_lib.TrainStep(self.graph, settings, optimizer, self.mesh)
        self.parameters = sum(x.size for x in params.values())
        self.matching_ms = 0.0

    def mmf_weights(self) -> dict[str, np.ndarray]:
        """The model under MMF's names."""
        arrays = {**self.state.params, **self.state.statistics}
        return mmf.to_mmf({path: np.asarray(x) for path, x in arrays.items()})

    def compile(self, batch: Batch) -> dict[str, Any]:
        """Compiles the programs of a step; what that took and what XLA says about them."""
        seconds, flops, memory = {}, 0.0, 0
        start = time.perf_counter()
        for name, lowered in self._train_step.lower(self.state, self.put(batch)):
            compiled = lowered.compile()
            seconds[name] = time.perf_counter() - start
            flops += (lowered.cost_analysis() or {}).get("flops", math.nan)
            plan = cast(Any, compiled.memory_analysis())
            memory = max(
                memory,
                plan.argument_size_in_bytes
                + plan.output_size_in_bytes
                - plan.alias_size_in_bytes
                + plan.temp_size_in_bytes,
            )
            start = time.perf_counter()
        return dict(flops_xla=flops, memory_bytes=memory, compile_seconds=seconds)

    def put(self, batch: Batch) -> Batch:
        """The batch, on its way to the devices."""
        return partitioning.to_devices(batch, self.mesh)

    def step(self, batch: Batch) -> None:
        """One update."""
        self.state, logs = self._train_step(self.state, batch)
        self.matching_ms = float(logs.get("matching_ms", 0.0))

    def synchronise(self, *others) -> None:
        """Waits for the last step, and for the others."""
        jax.block_until_ready((self.state, others))

    def programs_ms(self, batch: Batch, repeats: int = 3) -> dict[str, float]:
        """What a step's gradients (with matching) and its update take, each alone: the best of
        some repeats."""
        batch, best = self.put(batch), dict(gradients=math.inf, update=math.inf)
        for _ in range(repeats):
            start = time.perf_counter()
            logs, grads = jax.block_until_ready(self._train_step.gradients(self.state, batch))
            middle = time.perf_counter()
            self.state, _ = jax.block_until_ready(
                self._train_step.update(self.state, grads, batch.task, logs["loss"])
            )
            end = time.perf_counter()
            best["gradients"] = min(best["gradients"], 1000 * (middle - start))
            best["update"] = min(best["update"], 1000 * (end - middle))
        return best

    def device_matching_ms(self, batch: Batch) -> float:
        """What the solver on the device takes for random costs of this batch's sizes."""
        layers = self._settings.model.decoder.layers if self._settings.loss.auxiliary else 1
        queries = self._settings.tasks[batch.task].num_queries
        examples, objects = batch.targets.object_mask.shape
        costs = np.random.default_rng(0).normal(size=(layers, examples, queries, objects))
        arguments = (
            partitioning.to_devices(np.float32(costs), self.mesh, axis=1),
            partitioning.to_devices(batch.targets.object_mask, self.mesh),
        )
        solve = jax.jit(self._train_step.gradients.match_on_device)
        milliseconds = []
        for _ in range(4):
            start = time.perf_counter()
            jax.block_until_ready(solve(*arguments))
            milliseconds.append(1000 * (time.perf_counter() - start))
        return statistics.median(milliseconds[1:])

    def evaluation_loss(self, batch: Batch) -> float:
        """The loss without dropout."""
        return float(self._evaluation_loss(self.state.params, self.state.statistics, batch))

    @functools.partial(jax.jit, static_argnums=0)
    def _evaluation_loss(self, params, statistics, batch: Batch):
        spec, own, targets = self._settings.tasks[batch.task], self._settings.loss, batch.targets
        model = flat.merge(self.graph, params, statistics)
        outputs = model(batch)
        room, head, matches = outputs_lib.room(spec), model.heads[batch.task], None
        if room.matches:
            costs = room.costs(outputs, targets, own)
            matches = matching.match_on_device(costs, targets.object_mask)
        return room.loss(outputs, targets, head, own, matches)[0]
