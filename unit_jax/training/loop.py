"""The loop around the train step: data, logs, evaluation, checkpoints, interrupts."""

import contextlib
import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from tqdm import tqdm

from unit_jax import run as run_lib
from unit_jax.data import batching, loader
from unit_jax.evaluation import closing, report, submissions, tensorboard
from unit_jax.evaluation.evaluate import evaluate
from unit_jax.evaluation.loss import LossStep, losses
from unit_jax.evaluation.step import Predictor
from unit_jax.runtime import distributed, exits, partitioning, stopping, watchdog
from unit_jax.runtime.checkpoints import FOLDER, Checkpoints, best_step
from unit_jax.training import best as best_lib
from unit_jax.training import bundle, compilation, fit
from unit_jax.training import optimizer as optim
from unit_jax.training import session as session_lib
from unit_jax.training.run_log import RunLog, TooManyBadSteps
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
    """Trains to `train.steps`, from the newest good checkpoint of `workdir` if there is one.

    Evaluates and saves on their cadences and ends with the report. `train.stop_after` may end it
    before, see `best`; then, and with `train.report_best`, the report is the best checkpoint's,
    which is saved whatever the cadence. Ctrl-C or SIGTERM saves after the step at hand (of several
    processes: after the next one that is logged, as all must stop at the same) and returns
    exits.STOPPED; a run that is finished prints its report again.

    Raises:
      ValueError: see `start`; another run holds the folder; a checkpoint could not be written.
      FloatingPointError: too many steps in a row were not finite; names the bundle to replay.
    """
    last_words = last_words or distributed.LastWords(workdir / FOLDER)
    with session_lib.guarded(workdir, run.settings.train) as session:
        code = _train(run, workdir, last_words, session)
        session.journal.event("ended", exit=code)
        session.journal.status("stopped" if code else "finished", exit=code)
    return code


def _train(
    run: run_lib.Run,
    workdir: epath.Path,
    last_words: distributed.LastWords,
    session: session_lib.Session,
) -> int:
    settings, journal = run.settings.train, session.journal
    journal.status("starting")
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
            return exits.DONE
        target = abstract_state(run, optimizer)
        with distributed.together():
            checkpoints.check_room(target, settings.max_to_keep)
        fit.check(run.graph, run.settings, run.mesh, target)
        state, evaluation = start(run, optimizer, checkpoints), None
        step = int(state.optimizer.step)
        best = best_lib.Best(best.metric, settings.stop_after)  # up to the checkpoint that is good
        best_lib.recall(best, workdir, step)
        enough = distributed.any_process(best.exhausted)
        # A stop that was asked for in the middle of an evaluation left it for now.
        pending = bool(step) and checkpoints.metadata(step).get(_PENDING, False)
        journal.event("started", step=step)
        train_step = TrainStep(run.graph, run.settings, optimizer, run.mesh)
        predictor = Predictor.of_run(run, state.model)
        loss_step = LossStep(run) if run.settings.report.validation_loss else None
        places = partitioning.rows_of_process(run.mesh, settings.batch_size)
        with (
            contextlib.closing(RunLog(workdir, step, settings, examples(run), journal)) as log,
            loader.train_batches(run.settings, run.data, step, places) as batches,
            session_lib.Profiler(workdir, settings.profile_at) as profiler,
            stopping.graceful() as asked,
            last_words.instead_of_waiting(),
        ):
            if settings.compile_ahead and step < settings.steps:
                journal.status("compiling", step=step)
                with stopping.at_once("while compiling"):
                    compile_ahead(run, train_step, predictor, state, log)
            stop = False
            while (step < settings.steps or pending) and not stop and not enough:
                evaluation, keep = None, False
                if not pending:
                    batch = next(batches)
                    rows, padding = np.asarray(batch.index), batching.padding_share(batch)
                    batch = partitioning.to_devices(batch, run.mesh)
                    with log.program(("train", batch.task, batch.bucket)):
                        state, logs = train_step(state, batch)
                    step += 1
                    with bundle_of(run, state, workdir):
                        log.step(step, batch.task, logs, settings.batch_size, rows, padding)
                    last_words.step(step)
                    profiler.step(step)
                last = step == settings.steps
                if jax.process_count() == 1 or step % settings.log_every == 0:
                    stop = distributed.any_process(asked.is_set())
                if pending or step % settings.eval_every == 0 or last:
                    with bundle_of(run, state, workdir):
                        log.flush(step)
                    journal.status("evaluating", step=step)
                    try:
                        with log.program("evaluate"):
                            evaluation = evaluate(run, predictor.of(state.model))
                            held_out = losses(run, loss_step, state.model) if loss_step else {}
                    except stopping.Interrupted:
                        stop, pending, evaluation = True, True, None
                    else:
                        pending = False
                        log.write(step, {**evaluation.metrics, **held_out})
                        if distributed.is_first():
                            tensorboard.write(run, workdir, step, evaluation)
                        keep = best.add(step, evaluation.metrics) and reports_best(run)
                        enough = distributed.any_process(best.exhausted)
                    log.restart_clock()
                if step % settings.checkpoint_every == 0 or last or stop or keep or enough:
                    with bundle_of(run, state, workdir):
                        log.flush(step)  # too many bad steps end the run before it is saved
                    journal.status("saving", step=step)
                    session.before_saving()
                    metrics = evaluation and evaluation.metrics
                    save(checkpoints, run, step, state, metrics, pending)
                    journal.event("saving", step=step, digest_seconds=checkpoints.digest_seconds)
                    log.sync()
                    log.restart_clock()
            log.say(
                f"{log.compiled.programs} programs compiled in {log.compiled.seconds:.0f} s, "
                f"{log.recompilations} of them after warm-up"
            )
    if (step < settings.steps or pending) and not enough:
        if distributed.is_first():
            print(f"stopped after step {step}, which is saved; the same command goes on from there")
        return exits.STOPPED
    if enough and distributed.is_first():
        print(f"ended after step {step}: {settings.stop_after} evaluations without better {best}")
    journal.status("reporting", step=step)
    with stopping.at_once("while reporting"):
        model = state.model
        if reports_best(run) and best.value > -math.inf and best.step != step:
            if distributed.is_first():
                print(f"the report is the best checkpoint's: {best}")
            step = best_step(workdir, best.metric)
            model, evaluation = run.restored_model(workdir / FOLDER / str(step)), None
        evaluation = evaluation or evaluate(run, predictor.of(model))
        closing.write_report(run, predictor.of(model), workdir, evaluation=evaluation)
        if run.settings.report.predictions:
            submissions.write_all(run, workdir, "val", evaluation.predictions)
    return exits.DONE


_PENDING = "evaluation_pending"  # in a checkpoint's metadata


@contextlib.contextmanager
def bundle_of(run: run_lib.Run, state: TrainState, workdir: epath.Path) -> Generator[None]:
    """Too many steps that are not finite: the last of them is left as a bundle."""
    try:
        yield
    except TooManyBadSteps as error:
        folder = bundle.save(run, state, error, workdir / "bundles")
        raise FloatingPointError(f"{error}; to repeat it: unit-jax replay {folder}") from error


def examples(run: run_lib.Run) -> Callable[[str, Sequence[int]], list[str]]:
    """(task, rows of its training split) -> ids of these examples."""

    def ids(task: str, rows: Sequence[int]) -> list[str]:
        records = run.data.split(task, "train").records
        return [_id(records[int(row)], int(row)) for row in rows if row >= 0]

    return ids


def _id(record: Mapping[str, Any], row: int) -> str:
    for name in ("id", "question_id", "example_id", "image_id"):
        if name in record:
            value = record[name]
            return value.decode() if isinstance(value, bytes) else str(value)
    return f"row {row}"


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
        watchdog.alive("a program is compiled")
    programs = log.compiled.programs - before
    log.say(
        f"{programs} programs for {len(work)} combinations of task and shape in training and "
        f"evaluation compiled (or read from the cache) in {time.perf_counter() - start:.0f} s"
    )
    log.restart_clock()


def save(
    checkpoints: Checkpoints,
    run: run_lib.Run,
    step: int,
    state: TrainState,
    metrics: Mapping[str, float] | None = None,
    evaluation_pending: bool = False,
) -> None:
    """Writes the state of `step` in the background."""
    metadata = run.metadata() | ({_PENDING: True} if evaluation_pending else {})
    checkpoints.save(step, state.model._asdict(), metadata, state.optimizer._asdict(), metrics)
