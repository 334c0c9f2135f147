"""The train step: gradients of one batch, then one update.

Where a task's room matches answers to targets (detection), the gradient program is split in two:
forward (outputs, matching costs, what the model's derivative needs), the assignment solved on the
host from the process's own examples, then backward. No callback runs inside a compiled program, so
a failing solver is an ordinary Python error and any sharding works. With `loss.matcher` "device"
all of it is one program.

A step whose loss or gradient is not finite changes nothing but the step's number; its logs say
`bad_step` and, where the matching costs were the cause, `bad_costs`.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool

from unit_jax import outputs as rooms
from unit_jax.batch import Batch, Outputs
from unit_jax.models import flat, residuals
from unit_jax.models.flat import Flat, Model
from unit_jax.models.unit import Unit, used_parameters
from unit_jax.outputs.base import Output
from unit_jax.outputs.objects import matching
from unit_jax.runtime import partitioning
from unit_jax.settings import Settings
from unit_jax.training import optimizer as optim
from unit_jax.training import pullback as pullback_lib
from unit_jax.training.pullback import Pullback

Logs = dict[str, jax.Array | float]


class TrainState(struct.PyTreeNode):
    """All that a run must remember; `optimizer.step` is also the position in the data."""

    params: Flat
    statistics: Flat
    optimizer: optim.OptimizerState

    @property
    def model(self) -> Model:
        return Model(self.params, self.statistics)


class TrainStep:
    """step(state, batch) -> (state, logs); the state that is given is used up.

    Gradient programs are compiled once per task and batch shape, update programs once for all
    tasks with the same inputs. The batch is global and on the mesh.
    """

    def __init__(self, graph, settings: Settings, optimizer: optim.Optimizer, mesh):
        parts = settings.train.accumulate_steps
        self.gradients = Gradients(graph, settings, optimizer, mesh, parts)
        self.update = Update(settings, optimizer, mesh)

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Logs]:
        logs, grads = self.gradients(state, batch)
        state, info = self.update(state, grads, batch.task, logs["loss"])
        return state, {**logs, **info}

    def lower(self, state: TrainState, batch: Batch) -> Iterator[tuple[str, jax.stages.Lowered]]:
        """The programs of a step, by name; `.compile()` makes each ready before its first call.

        Args:
          state, batch: arrays, or shapes, dtypes and shardings of them.
        """
        lowered = None
        for name, lowered in self.gradients.lower(state, batch):
            yield name, lowered
        assert lowered is not None
        logs, grads = _abstract(lowered.out_info, lowered)
        yield "update", self.update.lower(state, grads, batch.task, logs["loss"])


def has_gradient(settings: Settings, optimizer: optim.Optimizer, task: str, path: str) -> bool:
    """Whether a step of `task` gives the parameter a gradient."""
    return used_parameters(path, settings.tasks[task], settings.model) and not (
        optimizer.is_frozen(path)
    )


class Gradients:
    """gradients(state, batch) -> (loss and its terms, gradients of what the task reaches).

    Dropout keys are folded from (seed, step), so a resumed run draws the same numbers.

    With `parts` above 1 the batch goes through the model in so many (`train.accumulate_steps`).
    Losses without matching are means over examples, so theirs is the mean of the parts'. Losses
    with matching divide by what the whole batch holds: a first pass gives the outputs of all
    examples, the loss of the whole batch gives their cotangents, and a second pass pulls these
    back part by part. That is exact for every loss, and costs one more forward pass.
    """

    def __init__(self, graph, settings: Settings, optimizer: optim.Optimizer, mesh, parts: int = 1):
        self._graph, self._settings, self._optimizer, self._mesh = graph, settings, optimizer, mesh
        self._parts = parts
        self._single = jax.jit(self._single_gradients)
        self._forward = jax.jit(self._matched_forward)
        self._backward = jax.jit(self._matched_backward)
        self._matched = jax.jit(self._matched_gradients)

    def __call__(self, state: TrainState, batch: Batch) -> tuple[Logs, Flat]:
        if not self._room(batch).matches:
            return self._single(state, batch)
        if self._settings.loss.matcher == "device":
            return self._matched(state, batch)
        outputs, pullback, costs = self._forward(state, batch)
        matches, milliseconds = self._match(costs, batch.targets.object_mask)
        logs, grads = self._backward(state, batch, outputs, pullback, matches)
        return {**logs, "matching_ms": milliseconds}, grads

    def lower(self, state: TrainState, batch: Batch) -> Iterator[tuple[str, jax.stages.Lowered]]:
        """The programs like `TrainStep.lower`; the last one returns what a call returns."""
        if not self._room(batch).matches:
            yield "gradients", self._single.lower(state, batch)
        elif self._settings.loss.matcher == "device":
            yield "gradients", self._matched.lower(state, batch)
        else:
            forward = self._forward.lower(state, batch)
            yield "forward", forward
            outputs, pullback, costs = _abstract(forward.out_info, forward)
            layers, examples, _, objects = costs.shape
            matches = jax.ShapeDtypeStruct(
                (layers, examples, objects),
                np.int32,
                sharding=partitioning.split_over_batch(self._mesh, axis=1),
            )
            yield "backward", self._backward.lower(state, batch, outputs, pullback, matches)

    def _room(self, batch: Batch) -> Output:
        return rooms.room(self._settings.tasks[batch.task])

    def match_on_device(self, costs: jax.Array, object_mask: jax.Array) -> jax.Array:
        """`matching.match_on_device`, each device solving its own examples."""
        over_batch = PartitionSpec(None, partitioning.BATCH_AXES)
        solve = jax.shard_map(
            matching.match_on_device,
            mesh=self._mesh,
            in_specs=(over_batch, PartitionSpec(partitioning.BATCH_AXES)),
            out_specs=over_batch,
            check_vma=False,
        )
        return solve(costs, object_mask)

    def _match(self, costs: jax.Array, object_mask: jax.Array) -> tuple[jax.Array, float]:
        """Matches of the process's own examples, solved on the host, and the milliseconds that
        the device waited for them."""
        costs.block_until_ready()
        start = time.perf_counter()
        own, mask = partitioning.to_host(costs, axis=1), partitioning.to_host(object_mask)
        try:
            matches = matching.match(own, mask)
        except matching.BadCosts:
            # Raised, it would leave the other processes waiting for this one.
            matches = np.full((len(own), *mask.shape), matching.UNUSABLE, np.int32)
        matches = partitioning.to_devices(matches, self._mesh, axis=1)
        return matches, 1000 * (time.perf_counter() - start)

    def kept(self, state: TrainState, batch: Batch) -> list[jax.Array]:
        """What the backward pass is handed of a batch that goes through the model at once."""
        return self._derived(state, batch)[1].kept

    def _derived(self, state: TrainState, batch: Batch) -> tuple[Outputs, Pullback]:
        """The model's outputs, and their derivative for what the task learns."""
        with partitioning.constrain_activations(self._mesh):
            return pullback_lib.vjp(
                lambda learned: self._outputs(learned, state, batch, 0),
                self.learned_by(state, batch.task),
                (state, batch),
                len(jax.tree.leaves(batch)[0]),
                residuals.policy(self._settings.model.rematerialise),
            )

    def learned_by(self, state: TrainState, task: str) -> Flat:
        """The parameters that a step of the task gives a gradient."""
        params = state.params.items()
        return {
            path: p
            for path, p in params
            if has_gradient(self._settings, self._optimizer, task, path)
        }

    def _model(self, learned: Flat, state: TrainState) -> Unit:
        dtype = self._settings.model.dtype
        params = partitioning.gathered({**state.params, **learned}, self._mesh, dtype)
        return flat.merge(self._graph, params, state.statistics)

    def _outputs(
        self, learned: Flat, state: TrainState, batch: Batch, part: int | Array
    ) -> Outputs:
        model = self._model(learned, state)
        key = jax.random.fold_in(jax.random.key(self._settings.seed), state.optimizer.step)
        if self._parts > 1:
            key = jax.random.fold_in(key, part)
        with partitioning.constrain_activations(self._mesh):
            return model(batch, key=key)

    def _single_gradients(self, state: TrainState, batch: Batch) -> tuple[Logs, Flat]:
        room, learned = self._room(batch), self.learned_by(state, batch.task)

        def one(batch: Batch, part: int):
            def loss(learned: Flat):
                answers = self._outputs(learned, state, batch, part)
                head = self._model(learned, state).heads[batch.task]
                return room.loss(answers, batch.targets, head, self._settings.loss)

            (total, terms), grads = jax.value_and_grad(loss, has_aux=True)(learned)
            return {"loss": total, **terms}, partitioning.constrain(grads, self._mesh)

        logs, grads = self._sum_over_parts(one, batch)
        logs, grads = jax.tree.map(lambda x: x / self._parts, (logs, grads))
        return logs, partitioning.constrain_gradients(grads, self._mesh)

    def _matched_forward(self, state: TrainState, batch: Batch):
        def run(batch: Batch, part: jax.Array) -> Outputs:
            return self._outputs({}, state, batch, part)

        if self._parts == 1:
            outputs, pullback = self._derived(state, batch)
        else:
            pullback = None
            parts = jax.lax.map(lambda xs: run(*xs), self._stacked_parts(batch))
            outputs = jax.tree.map(lambda x: _join(x, axis=1), parts)
        costs = self._room(batch).costs(outputs, batch.targets, self._settings.loss)
        over_batch = partitioning.split_over_batch(self._mesh, axis=1)
        return outputs, pullback, jax.lax.with_sharding_constraint(costs, over_batch)

    def _matched_backward(
        self, state: TrainState, batch: Batch, outputs: Outputs, pullback: Pullback | None, matches
    ) -> tuple[Logs, Flat]:
        room, learned = self._room(batch), self.learned_by(state, batch.task)
        bad_costs = (matches == matching.UNUSABLE).any()

        def loss(parts: Flat, outputs: Outputs):
            head = self._model(parts, state).heads[batch.task]
            total, terms = room.loss(outputs, batch.targets, head, self._settings.loss, matches)
            return jnp.where(bad_costs, jnp.nan, total), terms

        prefixes = tuple(f"heads.{batch.task}.{part}." for part in room.loss_parts)
        parts = {path: x for path, x in learned.items() if path.startswith(prefixes)}
        (total, terms), (head_grads, cotangents) = jax.value_and_grad(
            loss, argnums=(0, 1), has_aux=True
        )(parts, outputs)

        def pull_back(part_of: tuple[Batch, Outputs], part: int) -> Flat:
            batch, cotangents = part_of
            _, pullback = jax.vjp(lambda x: self._outputs(x, state, batch, part), learned)
            return partitioning.constrain(pullback(cotangents)[0], self._mesh)

        if pullback is not None:
            grads = pullback(cotangents, (state, batch))
        else:
            grads = self._sum_over_parts(pull_back, batch, cotangents)
        grads = partitioning.constrain_gradients({**grads, **head_grads}, self._mesh)
        return {"loss": total, **terms, "bad_costs": bad_costs}, grads

    def _matched_gradients(self, state: TrainState, batch: Batch) -> tuple[Logs, Flat]:
        outputs, pullback, costs = self._matched_forward(state, batch)
        matches = self.match_on_device(costs, batch.targets.object_mask)
        return self._matched_backward(state, batch, outputs, pullback, matches)

    def _stacked_parts(self, batch: Batch) -> tuple[Batch, jax.Array]:
        """The parts of a batch, stacked, and their numbers."""
        return _parts_of(batch, self._parts, axis=0), jnp.arange(self._parts)

    def _sum_over_parts(self, one: Callable, batch: Batch, cotangents: Outputs | None = None):
        """The sum of one(part of the batch, its number) over the parts; with cotangents (of
        outputs, so that dimension 1 is the batch) of one((part of batch, of cotangents), ...)."""
        if self._parts == 1:
            return one(batch, 0)
        stacked, numbers = self._stacked_parts(batch)
        if cotangents is not None:
            stacked = (stacked, _parts_of(cotangents, self._parts, axis=1))
        first = jax.tree.map(lambda x: x[0], stacked)
        zeros = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(one, first, numbers[0])
        )

        def add(total, part):
            return jax.tree.map(jnp.add, total, one(*part)), None

        return jax.lax.scan(add, zeros, (stacked, numbers))[0]


class Update:
    """update(state, gradients, task, loss) -> (state, logs); the state that is given is used up.

    One program serves all tasks with the same inputs: what another one of them owns (queries, head)
    gets a gradient of zero and a flag that says whether this task reaches it.
    """

    def __init__(self, settings: Settings, optimizer: optim.Optimizer, mesh):
        self._settings, self._optimizer, self._mesh = settings, optimizer, mesh
        # Parameters that are gathered from all devices' shares would be gathered aside and then
        # copied to where the old ones lie; new arrays take no more memory than that.
        gathers = mesh.shape["data"] > 1
        donated = ("rest",) if gathers else ("params", "rest")
        self._program = jax.jit(self._update, donate_argnames=donated, static_argnames="paths")
        # Of each task: which parameters only some tasks with its inputs reach, and whether it does.
        self._plans: dict[str, dict[str, bool]] = {}
        self._zeros: dict[str, jax.Array] = {}

    def __call__(
        self, state: TrainState, grads: Flat, task: str, loss: jax.Array | float = 0.0
    ) -> tuple[TrainState, Logs]:
        args, paths = self._arguments(state, grads, task, loss, self._zero)
        return self._program(*args, paths=paths)

    def lower(self, state: TrainState, grads: Flat, task: str, loss) -> jax.stages.Lowered:
        """The program of a call with arguments of these shapes."""
        args, paths = self._arguments(state, grads, task, loss, lambda path, like: like)
        return self._program.lower(*args, paths=paths)

    def _arguments(
        self, state: TrainState, grads: Flat, task: str, loss, zero: Callable[[str, Any], Any]
    ) -> tuple[tuple, tuple[str, ...]]:
        """The program's arrays, and the paths of the parameters that only some tasks reach.

        Args:
          zero: zero(path, array of the same shape) is the gradient where the task does not reach.
        """
        plan, moments = self._plan(state.params, task), state.optimizer.mu
        zeros = {path: zero(path, moments[path]) for path, reached in plan.items() if not reached}
        # One array of flags: each by itself would be a transfer of its own.
        flags = np.array([*plan.values()], bool)
        params, rest = state.params, state.replace(params={})
        return (params, rest, {**grads, **zeros}, flags, loss), tuple(plan)

    def _zero(self, path: str, like: jax.Array) -> jax.Array:
        """Zeros for a path, made once."""
        if path not in self._zeros:
            self._zeros[path] = partitioning.zeros_like(like)
        return self._zeros[path]

    def _update(
        self,
        params: Flat,
        rest: TrainState,
        grads: Flat,
        flags: Bool[Array, "paths"],
        loss,
        paths: tuple[str, ...],
    ) -> tuple[TrainState, Logs]:
        used = dict.fromkeys(grads, True) | dict(zip(paths, flags, strict=True))
        params, opt_state, info = self._optimizer.update(
            grads, rest.optimizer, params, used, usable=jnp.isfinite(loss)
        )
        params, opt_state = partitioning.constrain((params, opt_state), self._mesh)
        return rest.replace(params=params, optimizer=opt_state), info._asdict()

    def _plan(self, params: Flat, task: str) -> dict[str, bool]:
        if task not in self._plans:
            inputs = self._settings.tasks[task].inputs
            alike = [name for name, spec in self._settings.tasks.items() if spec.inputs == inputs]
            self._plans[task] = {}
            for path in params:
                reached = {
                    name: has_gradient(self._settings, self._optimizer, name, path)
                    for name in alike
                }
                if len(set(reached.values())) == 2:
                    self._plans[task][path] = reached[task]
        return self._plans[task]


def _parts_of(tree, parts: int, axis: int):
    """[..., examples, ...] to [parts, ..., examples / parts, ...]: every parts-th example, so that
    a device that holds a stretch of the examples holds as many of each part."""

    def split(x: jax.Array) -> jax.Array:
        shape = (*x.shape[:axis], x.shape[axis] // parts, parts, *x.shape[axis + 1 :])
        return jnp.moveaxis(x.reshape(shape), axis + 1, 0)

    return jax.tree.map(split, tree)


def _join(x: jax.Array, axis: int) -> jax.Array:
    """The inverse of `_parts_of`, of one array."""
    x = jnp.moveaxis(x, 0, axis + 1)
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])


def _abstract(tree, lowered: jax.stages.Lowered):
    """Shapes, dtypes and shardings of a program's results."""
    shardings = lowered.compile().output_shardings
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        tree,
        shardings,
    )
