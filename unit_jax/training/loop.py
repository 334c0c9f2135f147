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
from unit_jax.batch import Batch
from unit_jax.data import batching, loader
from unit_jax.evaluation import closing, report, submissions, tensorboard
from unit_jax.evaluation.evaluate import Evaluation, evaluate
from unit_jax.evaluation.loss import LossStep, losses
from unit_jax.evaluation.step import Predictor
from unit_jax.runtime import distributed, exits, partitioning, stopping, watchdog
from unit_jax.runtime.checkpoint_folder import FOLDER, best_step
from unit_jax.runtime.checkpoints import Checkpoints
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
    which is saved whatever the cadence. Ctrl-C or SIGTERM saves after the step at hand and returns
    exits.STOPPED. Several processes stop after the next step that is logged, so that all stop after
    the same one. A run that is finished prints its report again.

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
    settings = run.settings.train
    session.journal.status("starting")
    checkpoints = Checkpoints(
        workdir / FOLDER, settings.max_to_keep, run_lib.best_metric(run.settings)
    )
    with contextlib.closing(checkpoints):
        if _is_finished(run, workdir, checkpoints):
            if distributed.is_first():
                report.show(workdir)
            return exits.DONE
        loop = Loop(run, workdir, checkpoints, session)
        loop.go(last_words)
    step = loop.step
    if loop.has_more and not loop.enough:
        if distributed.is_first():
            print(f"stopped after step {step}, which is saved; the same command goes on from there")
        return exits.STOPPED
    if loop.enough and distributed.is_first():
        print(
            f"ended after step {step}: {settings.stop_after} evaluations without better {loop.best}"
        )
    session.journal.status("reporting", step=step)
    with stopping.at_once("while reporting"):
        _report(loop, run, workdir)
    return exits.DONE


def _best_until(run: run_lib.Run, workdir: epath.Path, step: int) -> best_lib.Best:
    """The best evaluation of the run up to a step."""
    best = best_lib.Best(run_lib.best_metric(run.settings), run.settings.train.stop_after)
    best_lib.recall(best, workdir, step)
    return best


def _is_finished(run: run_lib.Run, workdir: epath.Path, checkpoints: Checkpoints) -> bool:
    """Whether the run has come to its end and has its report.

    Raises:
      ValueError: it has, but with other settings or data.
    """
    newest = checkpoints.latest_step() or 0
    enough = distributed.any_process(_best_until(run, workdir, newest).exhausted)
    at_end = newest == run.settings.train.steps or enough
    if not at_end or not (workdir / report.FILE).exists():
        return False
    run.check_metadata(checkpoints.metadata(newest), f"{checkpoints.directory}/{newest}")
    return True


class Loop:
    """A run that trains; it begins at the newest good checkpoint.

    Attributes:
      state, step: after the last update, and how many updates are done.
      best: the best evaluation so far.
      enough: `train.stop_after` evaluations brought nothing better.
      evaluation: of `state`; None where it was not evaluated.
    """

    def __init__(
        self,
        run: run_lib.Run,
        workdir: epath.Path,
        checkpoints: Checkpoints,
        session: session_lib.Session,
    ):
        self._run, self._workdir, self._settings = run, workdir, run.settings.train
        self._checkpoints, self._session, self._journal = checkpoints, session, session.journal
        optimizer = optim.Optimizer(run.settings.optimizer, self._settings.steps)
        target = abstract_state(run, optimizer)
        with distributed.together():
            checkpoints.check_room(target, self._settings.max_to_keep)
        fit.check(run.graph, run.settings, run.mesh, target)
        self.state = start(run, optimizer, checkpoints)
        self.step = int(self.state.optimizer.step)
        self.best = _best_until(run, workdir, self.step)
        self.enough = distributed.any_process(self.best.exhausted)
        self.evaluation: Evaluation | None = None
        # A stop that was asked for in the middle of an evaluation left it for now.
        self._pending = bool(self.step) and checkpoints.metadata(self.step).get(_PENDING, False)
        self._stop = False
        self._journal.event("started", step=self.step)
        self._train_step = TrainStep(run.graph, run.settings, optimizer, run.mesh)
        self.predictor = Predictor.of_run(run, self.state.model)
        self._loss_step = LossStep(run) if run.settings.report.validation_loss else None

    @property
    def has_more(self) -> bool:
        """Whether updates, or an evaluation, are left to do."""
        return self.step < self._settings.steps or self._pending

    def go(self, last_words: distributed.LastWords) -> None:
        """Trains until the end, or until somebody asks to stop; what was done is saved."""
        run, settings = self._run, self._settings
        places = partitioning.rows_of_process(run.mesh, settings.batch_size)
        log = RunLog(self._workdir, self.step, settings, examples(run), self._journal)
        with (
            contextlib.closing(log),
            loader.train_batches(run.settings, run.data, self.step, places) as batches,
            session_lib.Profiler(self._workdir, settings.profile_at) as profiler,
            stopping.graceful() as asked,
            last_words.instead_of_waiting(),
        ):
            self._compile_ahead(log)
            while self.has_more and not self._stop and not self.enough:
                self.evaluation, keep = None, False
                if not self._pending:
                    self._update(next(batches), log)
                    last_words.step(self.step)
                    profiler.step(self.step)
                if jax.process_count() == 1 or self.step % settings.log_every == 0:
                    self._stop = distributed.any_process(asked.is_set())
                if self._pending or self._is_due(settings.eval_every):
                    keep = self._evaluate(log)
                if self._is_due(settings.checkpoint_every) or self._stop or keep or self.enough:
                    self._save(log)
            log.say(
                f"{log.compiled.programs} programs compiled in {log.compiled.seconds:.0f} s, "
                f"{log.recompilations} of them after warm-up"
            )

    def _is_due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self._settings.steps

    def _compile_ahead(self, log: RunLog) -> None:
        if self._settings.compile_ahead and self.step < self._settings.steps:
            self._journal.status("compiling", step=self.step)
            with stopping.at_once("while compiling"):
                compile_ahead(self._run, self._train_step, self.predictor, self.state, log)

    def _update(self, batch: Batch, log: RunLog) -> None:
        rows, padding = np.asarray(batch.index), batching.padding_share(batch)
        batch = partitioning.to_devices(batch, self._run.mesh)
        with log.program(("train", batch.task, batch.bucket)):
            self.state, logs = self._train_step(self.state, batch)
        self.step += 1
        with bundle_of(self._run, self.state, self._workdir):
            log.step(self.step, batch.task, logs, self._settings.batch_size, rows, padding)

    def _evaluate(self, log: RunLog) -> bool:
        """Evaluates the state; returns whether its checkpoint must be kept."""
        run, model = self._run, self.state.model
        with bundle_of(run, self.state, self._workdir):
            log.flush(self.step)
        self._journal.status("evaluating", step=self.step)
        keep = False
        try:
            with log.program("evaluate"):
                evaluation = evaluate(run, self.predictor.of(model))
                held_out = losses(run, self._loss_step, model) if self._loss_step else {}
        except stopping.Interrupted:
            self._stop, self._pending = True, True
        else:
            self._pending, self.evaluation = False, evaluation
            log.write(self.step, {**evaluation.metrics, **held_out})
            if distributed.is_first():
                tensorboard.write(run, self._workdir, self.step, evaluation)
            keep = self.best.add(self.step, evaluation.metrics) and reports_best(run)
            self.enough = distributed.any_process(self.best.exhausted)
        log.restart_clock()
        return keep

    def _save(self, log: RunLog) -> None:
        with bundle_of(self._run, self.state, self._workdir):
            log.flush(self.step)  # too many bad steps end the run before it is saved
        self._journal.status("saving", step=self.step)
        self._session.before_saving()
        metrics = self.evaluation and self.evaluation.metrics
        save(self._checkpoints, self._run, self.step, self.state, metrics, self._pending)
        seconds = self._checkpoints.digest_seconds
        self._journal.event("saving", step=self.step, digest_seconds=seconds)
        log.sync()
        log.restart_clock()


def _report(loop: Loop, run: run_lib.Run, workdir: epath.Path) -> None:
    """Writes the report of the last state or of the best one, and files of predictions."""
    model, evaluation, best = loop.state.model, loop.evaluation, loop.best
    if reports_best(run) and best.value > -math.inf and best.step != loop.step:
        if distributed.is_first():
            print(f"the report is the best checkpoint's: {best}")
        step = best_step(workdir, best.metric)
        model, evaluation = run.restored_model(workdir / FOLDER / str(step)), None
    evaluation = evaluation or evaluate(run, loop.predictor.of(model))
    closing.write_report(run, loop.predictor.of(model), workdir, evaluation=evaluation)
    if run.settings.report.predictions:
        submissions.write_all(run, workdir, "val", evaluation.predictions)


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
