"""The train step and the loop around it.

A step is a gradient program and an update program. The gradient program of a detection task is
split in two: forward (outputs, matching costs and the pullback of the model), the assignment
solved on the host from the process's own examples, then backward. No callback runs inside a
compiled program, so a failing solver is an ordinary Python error and any sharding works.
"""

import contextlib
import functools
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from etils import epath
from flax import struct

from unit_jax import distributed, evaluate, optim, partitioning, setup
from unit_jax.batch import Batch, Outputs
from unit_jax.checkpoints import FOLDER, Checkpoints
from unit_jax.data import loader
from unit_jax.losses import classification, detection, matching
from unit_jax.metrics import report
from unit_jax.models import functional
from unit_jax.models.functional import Flat
from unit_jax.models.unit import used_parameters
from unit_jax.run_log import RunLog
from unit_jax.settings import Settings

Logs = dict[str, jax.Array]


@struct.dataclass
class TrainState:
    """All that a run must remember; `optimizer.step` is also the position in the data."""

    params: Flat
    statistics: Flat
    optimizer: optim.OptimizerState


def make_train_step(
    graph, settings: Settings, optimizer: optim.Optimizer, mesh
) -> Callable[[TrainState, Batch], tuple[TrainState, Logs]]:
    """Returns step(state, batch) -> (state, logs); the state that is given is used up.

    Gradient programs are compiled once per task and batch shape, update programs once per kind
    of task. The batch is global and on the mesh.
    """
    gradients = make_gradients(graph, settings, optimizer, mesh)
    update = make_update(settings, optimizer, mesh)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Logs]:
        logs, grads = gradients(state, batch)
        state, info = update(state, grads, batch.task)
        return state, {**logs, **info}

    return step


def learns(settings: Settings, optimizer: optim.Optimizer, task: str, path: str) -> bool:
    """Whether a step of `task` gives the parameter a gradient."""
    return used_parameters(path, settings.tasks[task], settings.model) and not (
        optimizer.is_frozen(path)
    )


def make_gradients(
    graph, settings: Settings, optimizer: optim.Optimizer, mesh
) -> Callable[[TrainState, Batch], tuple[Logs, Flat]]:
    """Returns gradients(state, batch) -> (loss and its terms, gradients of what the task reaches).

    Dropout keys are folded from (seed, step), so a resumed run draws the same numbers.
    """

    def learned_by(state: TrainState, task: str) -> Flat:
        params = state.params.items()
        return {path: p for path, p in params if learns(settings, optimizer, task, path)}

    def forward(learned: Flat, state: TrainState, batch: Batch) -> Outputs:
        model = functional.merge(graph, {**state.params, **learned}, state.statistics)
        key = jax.random.fold_in(jax.random.key(settings.seed), state.optimizer.step)
        with partitioning.constrain_activations(mesh):
            return model(batch, key=key)

    @jax.jit
    def classification_gradients(state: TrainState, batch: Batch) -> tuple[Logs, Flat]:
        def loss(learned: Flat):
            outputs = forward(learned, state, batch)
            spec = settings.tasks[batch.task]
            return classification.classification_loss(outputs, batch.targets, spec, settings.loss)

        (total, terms), grads = jax.value_and_grad(loss, has_aux=True)(
            learned_by(state, batch.task)
        )
        return {"loss": total, **terms}, partitioning.constrain(grads, mesh)

    @jax.jit
    def detection_forward(state: TrainState, batch: Batch):
        outputs, pullback = jax.vjp(
            lambda learned: forward(learned, state, batch), learned_by(state, batch.task)
        )
        costs = matching.cost_matrix(outputs, batch.targets, settings.loss)
        costs = jax.lax.with_sharding_constraint(costs, partitioning.split_over_batch(mesh, axis=1))
        return outputs, pullback, costs

    @jax.jit
    def detection_backward(state, batch, outputs, pullback, matches) -> tuple[Logs, Flat]:
        spec = settings.tasks[batch.task]

        def loss(head: Flat, outputs: Outputs):
            model = functional.merge(graph, {**state.params, **head}, state.statistics)
            attribute_logits = functools.partial(model.attribute_logits, spec.name)
            return detection.detection_loss(
                outputs,
                batch.targets,
                matches,
                settings.loss,
                spec,
                attribute_logits if spec.num_attributes else None,
            )

        # The attribute head is applied by the loss: it is told the matched object's class.
        prefix = f"heads.{spec.name}.attributes."
        head = {p: x for p, x in learned_by(state, spec.name).items() if p.startswith(prefix)}
        (total, terms), (head_grads, cotangents) = jax.value_and_grad(
            loss, argnums=(0, 1), has_aux=True
        )(head, outputs)
        (grads,) = pullback(cotangents)
        grads = partitioning.constrain({**grads, **head_grads}, mesh)
        return {"loss": total, **terms}, grads

    def match(costs: jax.Array, object_mask: jax.Array) -> jax.Array:
        if settings.loss.matcher == "device":
            return matching.match_on_device(costs, object_mask)
        matches = matching.match(
            partitioning.to_host(costs, axis=1), partitioning.to_host(object_mask)
        )
        return partitioning.to_devices(matches, mesh, axis=1)

    def gradients(state: TrainState, batch: Batch) -> tuple[Logs, Flat]:
        if settings.tasks[batch.task].kind != "detection":
            return classification_gradients(state, batch)
        outputs, pullback, costs = detection_forward(state, batch)
        matches = match(costs, batch.targets.object_mask)
        return detection_backward(state, batch, outputs, pullback, matches)

    return gradients


def make_update(
    settings: Settings, optimizer: optim.Optimizer, mesh
) -> Callable[[TrainState, Flat, str], tuple[TrainState, Logs]]:
    """Returns update(state, gradients, task) -> (state, logs).

    One program serves all tasks of a kind: what another task of that kind owns (queries, head)
    gets a gradient of zero and a flag that says whether this task reaches it.
    """

    @functools.partial(jax.jit, donate_argnums=0)
    def program(state: TrainState, grads: Flat, flags: dict[str, jax.Array]):
        used = {path: flags.get(path, True) for path in grads}
        params, opt_state, info = optimizer.update(grads, state.optimizer, state.params, used)
        params, opt_state = partitioning.constrain((params, opt_state), mesh)
        return state.replace(params=params, optimizer=opt_state), info._asdict()

    # Of each task: which of its kind's parameters it reaches, and zeros for those it does not.
    plans: dict[str, tuple[dict[str, bool], Flat]] = {}

    def plan(params: Flat, task: str) -> tuple[dict[str, bool], Flat]:
        kind = settings.tasks[task].kind
        of_kind = [name for name, spec in settings.tasks.items() if spec.kind == kind]
        flags, zeros = {}, {}
        for path, param in params.items():
            reached = {name: learns(settings, optimizer, name, path) for name in of_kind}
            if len(set(reached.values())) == 2:
                flags[path] = reached[task]
                if not reached[task]:
                    zeros[path] = partitioning.zeros_like(param)
        return flags, zeros

    def update(state: TrainState, grads: Flat, task: str) -> tuple[TrainState, Logs]:
        if task not in plans:
            plans[task] = plan(state.params, task)
        flags, zeros = plans[task]
        return program(state, {**grads, **zeros}, flags)

    return update


def start(run: setup.Run, optimizer: optim.Optimizer, checkpoints: Checkpoints) -> TrainState:
    """The newest checkpoint's state, or that of a fresh run.

    Raises:
      ValueError: the checkpoint is unreadable, belongs to another model or other data, or was
        not left by training; or a file of `init_from` is missing or does not fit.
    """
    newest = checkpoints.latest_step()
    if newest is None:
        model = run.initial_model()
        moments = jax.eval_shape(optimizer.init, model["params"])
        init = jax.jit(optimizer.init, out_shardings=partitioning.shardings(moments, run.mesh))
        return TrainState(**model, optimizer=init(model["params"]))
    _check(run, checkpoints)
    if not checkpoints.has_optimizer(newest):
        raise ValueError(
            f"{checkpoints.directory}/{newest} holds weights but no state of training: start from "
            f"it in another --workdir, with --config.init_from.model={checkpoints.directory.parent}"
        )
    model = run.abstract_model()
    moments = partitioning.abstract(jax.eval_shape(optimizer.init, model["params"]), run.mesh)
    model, moments = checkpoints.restore(newest, model, moments._asdict())
    if distributed.is_first():
        print(f"continuing from step {newest} in {checkpoints.directory}")
    return TrainState(**model, optimizer=optim.OptimizerState(**moments))


def _check(run: setup.Run, checkpoints: Checkpoints) -> None:
    newest = checkpoints.latest_step()
    run.check_metadata(checkpoints.metadata(newest), f"{checkpoints.directory}/{newest}")


def train(
    run: setup.Run, workdir: epath.Path, last_words: distributed.LastWords | None = None
) -> int:
    """Trains to `train.steps`, from the newest checkpoint of `workdir` if there is one.

    Evaluates and saves on their cadences and ends with the report. Ctrl-C or SIGTERM saves after
    the step at hand (of several processes: after the next one that is logged, as all must stop at
    the same) and returns 130; a run that is finished prints its report again.
    """
    settings = run.settings.train
    last_words = last_words or distributed.LastWords(workdir / FOLDER)
    optimizer = optim.Optimizer(run.settings.optimizer, settings.steps)
    checkpoints = Checkpoints(
        workdir / FOLDER, settings.max_to_keep, setup.best_metric(run.settings)
    )
    with contextlib.closing(checkpoints):
        if checkpoints.latest_step() == settings.steps:
            _check(run, checkpoints)
            if (workdir / report.FILE).exists():
                if distributed.is_first():
                    report.show(workdir)
                return 0
        state = start(run, optimizer, checkpoints)
        step = int(state.optimizer.step)
        train_step = make_train_step(run.graph, run.settings, optimizer, run.mesh)
        predict = evaluate.make_predict(run)
        places = partitioning.rows_of_process(run.mesh, settings.batch_size)
        with (
            contextlib.closing(RunLog(workdir, step, settings.steps, settings.log_every)) as log,
            loader.train_batches(run.settings, run.data, step, places) as batches,
            stop_request() as asked,
            last_words.instead_of_waiting(),
        ):
            stop = False
            while step < settings.steps and not stop:
                batch = partitioning.to_devices(next(batches), run.mesh)
                with log.program(("train", batch.task, batch.bucket)):
                    state, logs = train_step(state, batch)
                step += 1
                log.step(step, batch.task, logs, settings.batch_size)
                last_words.step(step)
                last = step == settings.steps
                if jax.process_count() == 1 or step % settings.log_every == 0:
                    stop = distributed.any_process(asked.is_set())
                metrics = None
                if step % settings.eval_every == 0 or last:
                    log.flush(step)
                    with log.program("evaluate"):
                        metrics = evaluate.evaluate(run, predict, state.params, state.statistics)
                    log.write(step, metrics)
                if step % settings.checkpoint_every == 0 or last or stop:
                    log.flush(step)  # a loss that is not finite ends the run before it is saved
                    save(checkpoints, run, step, state, metrics)
                    log.sync()
                    log.restart_clock()
            log.say(
                f"{log.compilations} programs compiled in {log.compile_seconds:.0f} s, "
                f"{log.recompilations} of them after warm-up"
            )
    if step < settings.steps:
        if distributed.is_first():
            print(f"stopped after step {step}, which is saved; the same command goes on from there")
        return 130
    evaluate.write_report(run, predict, state.params, state.statistics, workdir)
    return 0


def save(checkpoints: Checkpoints, run: setup.Run, step: int, state: TrainState, metrics) -> None:
    """Writes the state of `step` in the background."""
    model = {"params": state.params, "statistics": state.statistics}
    checkpoints.save(step, model, run.metadata(), state.optimizer._asdict(), metrics)


@contextlib.contextmanager
def stop_request() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets; the second ends the process at once."""
    event = threading.Event()
    before = {}

    def ask(number, frame):
        del frame
        event.set()
        signal.signal(number, before[number])

    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield event
        return
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, ask)
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
