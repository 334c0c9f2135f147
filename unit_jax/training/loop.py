"""The loop around the train step: data, logs, evaluation, checkpoints, interrupts."""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterator

import jax
from etils import epath
from tqdm import tqdm

from unit_jax import run as run_lib
from unit_jax.data import loader
from unit_jax.evaluation import closing, report, tensorboard
from unit_jax.evaluation.evaluate import evaluate
from unit_jax.evaluation.loss import LossStep, losses
from unit_jax.evaluation.step import Predictor
from unit_jax.runtime import distributed, partitioning
from unit_jax.runtime.checkpoints import FOLDER, Checkpoints, best_step
from unit_jax.training import best as best_lib
from unit_jax.training import compilation
from unit_jax.training import optimizer as optim
from unit_jax.training.run_log import RunLog
from unit_jax.training.step import TrainState, TrainStep


def start(run: run_lib.Run, optimizer: optim.Optimizer, checkpoints: Checkpoints) -> TrainState:
    """The newest good checkpoint's state, or that of a fresh run.

    Raises:
      ValueError: no checkpoint can be read, or the newest belongs to another model or other data,
        or was not left by training; or a file of `init_from` is missing or does not fit.
    """
    if checkpoints.latest_step() is None:
        return fresh_state(run, optimizer)
    target = abstract_state(run, optimizer)

    def read(step: int) -> TrainState:
        run.check_metadata(checkpoints.metadata(step), f"{checkpoints.directory}/{step}")
        if not checkpoints.has_optimizer(step):
            raise ValueError(
                f"{checkpoints.directory}/{step} holds weights but no state of training: start "
                "from it in another --workdir, with --config.init_from.model="
                f"{checkpoints.directory.parent}"
            )
        model, moments = target.model._asdict(), target.optimizer._asdict()
        model, moments = checkpoints.restore(step, model, moments)
        return TrainState(**model, optimizer=optim.OptimizerState(**moments))

    step, state = checkpoints.newest_good(read)
    if distributed.is_first():
        print(f"continuing from step {step} in {checkpoints.directory}")
    return state


def fresh_state(run: run_lib.Run, optimizer: optim.Optimizer) -> TrainState:
    """What a fresh run starts from; tells which weights of `init_from` are in it."""
    model = run.initial_model()
    moments = jax.eval_shape(optimizer.init, model.params)
    init = jax.jit(optimizer.init, out_shardings=partitioning.shardings(moments, run.mesh))
    return TrainState(*model, optimizer=init(model.params))


def abstract_state(run: run_lib.Run, optimizer: optim.Optimizer) -> TrainState:
    """Shapes, dtypes and shardings of what a run remembers."""
    model = run.abstract_model()
    moments = jax.eval_shape(optimizer.init, model.params)
    return TrainState(*model, optimizer=partitioning.abstract(moments, run.mesh))


def train(
    run: run_lib.Run, workdir: epath.Path, last_words: distributed.LastWords | None = None
) -> int:
    """Trains to `train.steps`, from the newest checkpoint of `workdir` if there is one.

    Evaluates and saves on their cadences and ends with the report. `train.stop_after` may end it
    before, see `best`; then, and with `train.report_best`, the report is the best checkpoint's,
    which is saved whatever the cadence. Ctrl-C or SIGTERM saves after
    the step at hand (of several processes: after the next one that is logged, as all must stop at
    the same) and returns 130; a run that is finished prints its report again.
    """
    settings = run.settings.train
    last_words = last_words or distributed.LastWords(workdir / FOLDER)
    optimizer = optim.Optimizer(run.settings.optimizer, settings.steps)
    checkpoints = Checkpoints(
        workdir / FOLDER, settings.max_to_keep, run_lib.best_metric(run.settings)
    )
    with contextlib.closing(checkpoints):
        newest = checkpoints.latest_step() or 0
        best = best_lib.Best(run_lib.best_metric(run.settings), settings.stop_after)
        best_lib.recall(best, workdir, newest)
        enough = distributed.any_process(best.exhausted)
        if (newest == settings.steps or enough) and (workdir / report.FILE).exists():
            run.check_metadata(checkpoints.metadata(newest), f"{checkpoints.directory}/{newest}")
            if distributed.is_first():
                report.show(workdir)
            return 0
        checkpoints.check_room(abstract_state(run, optimizer), settings.max_to_keep)
        state, evaluation = start(run, optimizer, checkpoints), None
        step = int(state.optimizer.step)
        train_step = TrainStep(run.graph, run.settings, optimizer, run.mesh)
        predictor = Predictor.of_run(run, state.model)
        loss_step = LossStep(run) if run.settings.report.validation_loss else None
        places = partitioning.rows_of_process(run.mesh, settings.batch_size)
        with (
            contextlib.closing(RunLog(workdir, step, settings)) as log,
            loader.train_batches(run.settings, run.data, step, places) as batches,
            stop_request() as asked,
            last_words.instead_of_waiting(),
        ):
            if settings.compile_ahead and step < settings.steps:
                compile_ahead(run, train_step, predictor, state, log)
            stop = False
            while step < settings.steps and not stop and not enough:
                batch = partitioning.to_devices(next(batches), run.mesh)
                with log.program(("train", batch.task, batch.bucket)):
                    state, logs = train_step(state, batch)
                step += 1
                log.step(step, batch.task, logs, settings.batch_size)
                last_words.step(step)
                last = step == settings.steps
                if jax.process_count() == 1 or step % settings.log_every == 0:
                    stop = distributed.any_process(asked.is_set())
                evaluation, keep = None, False
                if step % settings.eval_every == 0 or last:
                    log.flush(step)
                    with log.program("evaluate"):
                        evaluation = evaluate(run, predictor.of(state.model))
                        held_out = losses(run, loss_step, state.model) if loss_step else {}
                    log.write(step, {**evaluation.metrics, **held_out})
                    if distributed.is_first():
                        tensorboard.write(run, workdir, step, evaluation)
                    keep = best.add(step, evaluation.metrics) and reports_best(run)
                    enough = distributed.any_process(best.exhausted)
                    log.restart_clock()
                if step % settings.checkpoint_every == 0 or last or stop or keep or enough:
                    log.flush(step)  # too many bad steps end the run before it is saved
                    save(checkpoints, run, step, state, evaluation and evaluation.metrics)
                    log.sync()
                    log.restart_clock()
            log.say(
                f"{log.compiled.programs} programs compiled in {log.compiled.seconds:.0f} s, "
                f"{log.recompilations} of them after warm-up"
            )
    if step < settings.steps and not enough:
        if distributed.is_first():
            print(f"stopped after step {step}, which is saved; the same command goes on from there")
        return 130
    if enough and distributed.is_first():
        print(f"ended after step {step}: {settings.stop_after} evaluations without better {best}")
    model = state.model
    if reports_best(run) and best.value > -math.inf and best.step != step:
        if distributed.is_first():
            print(f"the report is the best checkpoint's: {best}")
        step = best_step(workdir, best.metric)
        model, evaluation = run.restored_model(workdir / FOLDER / str(step)), None
    closing.write_report(run, predictor.of(model), workdir, evaluation=evaluation)
    return 0


def reports_best(run: run_lib.Run) -> bool:
    """Whether the report is that of the best checkpoint."""
    return run.settings.train.report_best or run.settings.train.stop_after > 0


def compile_ahead(
    run: run_lib.Run, train_step: TrainStep, predictor: Predictor, state: TrainState, log: RunLog
) -> None:
    """Compiles the programs of training and evaluation, so that no step waits for one."""
    start, before = time.perf_counter(), log.compiled.programs
    work = compilation.work(
        train_step,
        predictor.step,
        state,
        run.settings,
        run.mesh,
        training=loader.shapes(run.settings, run.data, "train"),
        evaluation=loader.shapes(run.settings, run.data, "val"),
    )
    shown = dict(leave=False, dynamic_ncols=True, disable=not distributed.is_first())
    done = compilation.compile_all(work, compilation.THREADS)
    for name in tqdm(done, "compiling", len(work), unit="shape", **shown):
        log.has_compiled(name)
    programs = log.compiled.programs - before
    log.say(
        f"{programs} programs for {len(work)} combinations of task and shape in training and "
        f"evaluation compiled (or read from the cache) in {time.perf_counter() - start:.0f} s"
    )
    log.restart_clock()


def save(checkpoints: Checkpoints, run: run_lib.Run, step: int, state: TrainState, metrics) -> None:
    """Writes the state of `step` in the background."""
    checkpoints.save(
        step, state.model._asdict(), run.metadata(), state.optimizer._asdict(), metrics
    )


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
