"""`--dry_run`: what would be trained, on what, and about how long; nothing is trained or kept."""

import io
import math
import textwrap
import time
from collections import Counter
from collections.abc import Iterator

import jax
import matplotlib
import numpy as np
from etils import epath
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from rich.console import Console
from rich.table import Table

from unit_jax import run as run_lib
from unit_jax.batch import Batch
from unit_jax.data import loader, sampling
from unit_jax.models.flat import Flat
from unit_jax.outputs import drawing
from unit_jax.outputs.objects.targets import ObjectTargets
from unit_jax.runtime import checkpoint_folder, distributed, partitioning
from unit_jax.training import loop
from unit_jax.training import optimizer as optim
from unit_jax.training.step import TrainState, TrainStep

matplotlib.use("Agg")

FILE = "dry_run.png"
EXAMPLES = 5  # shown per task
MOST_CLASSES = 12  # told by name and number
_SEARCHED = 200  # steps looked through for examples of every task
_TIMED = 3  # steps timed after compiling


def dry_run(run: run_lib.Run, workdir: epath.Path) -> None:
    """Prints what a run would do and writes dry_run.png with examples as training sees them.

    The time is that of a few steps of the first task and shape, with those of the others by their
    number of pixels or tokens; compiling is measured once and told per program.
    """
    settings, first = run.settings, distributed.is_first()
    optimizer = optim.Optimizer(settings.optimizer, settings.train.steps)
    state = loop.fresh_state(run, optimizer)
    if first:
        console = Console()
        console.print(_tasks(run))
        for name in run.settings.tasks:
            console.print(f"{name}: {_classes(run, name)}", soft_wrap=True, highlight=False)
        for line in _plan(run, state.params, optimizer):
            console.print(line, soft_wrap=True, highlight=False)
    examples = _examples(run)
    if first:
        draw(run, examples, workdir / FILE)
        print(f"examples as training sees them: {workdir / FILE}")
        print("timing a few steps ...", flush=True)
    told = _time(run, state, optimizer)
    if first:
        print(told)
    if first:
        print("nothing was trained or saved; the same command without --dry_run does it")
        if checkpoint_folder.exist(workdir):
            print(f"({workdir} has checkpoints: it would go on from the newest, not start afresh)")


def _tasks(run: run_lib.Run) -> Table:
    """A row for each task: its examples, classes and share of the steps."""
    table = Table(title="what would be trained", title_justify="left")
    for name in ("task", "train", "val", "classes", "queries", "share of steps"):
        table.add_column(name, justify="left" if name == "task" else "right")
    ratios = run.settings.ratios
    for name, spec in run.settings.tasks.items():
        splits = [
            str(len(run.data.split(name, split))) if split in run.data.splits(name) else "–"
            for split in ("train", "val")
        ]
        share = f"{ratios[name] / sum(ratios.values()):.0%}"
        table.add_row(name, *splits, str(spec.num_labels), str(spec.num_queries), share)
    return table


def _classes(run: run_lib.Run, task: str) -> str:
    """The most frequent classes of the training split by name, with the examples that show them."""
    examples, names = run.data.split(task, "train"), run.data.label_names(task)
    counts: Counter = Counter()
    for row in range(min(len(examples), 20_000)):
        counts.update(sampling.classes_of(examples[row]))
    told = [
        f"{names[label] if isinstance(label, int) else label} {count}"
        for label, count in counts.most_common(MOST_CLASSES)
    ]
    used = sum(map(bool, names)) or run.settings.tasks[task].num_labels
    rest = f", ... ({used} in all)" if used > MOST_CLASSES else ""
    unseen = [name for label, name in enumerate(names) if name and label not in counts]
    if unseen and isinstance(next(iter(counts), 0), int):
        rest += f"; never: {', '.join(unseen[:5])}" + ", ..." * (len(unseen) > 5)
    return ", ".join(told) + rest


def _plan(run: run_lib.Run, params: Flat, optimizer: optim.Optimizer) -> Iterator[str]:
    settings = run.settings
    train = settings.train
    examples = sum(len(run.data.split(t, "train")) for t in settings.tasks if settings.ratios[t])
    yield (
        f"{train.steps} steps of {train.batch_size} examples, "
        f"{train.steps * train.batch_size / examples:.3g} passes over {examples}; evaluation every "
        f"{train.eval_every}, checkpoint every {train.checkpoint_every} steps"
    )
    shapes = loader.shapes(settings, run.data, "train")
    told = Counter("x".join(map(str, bucket)) for _, bucket in shapes)
    yield f"shapes that batches are padded to: {', '.join(told)} ({len(shapes)} with the tasks)"
    sizes = {path: math.prod(array.shape) for path, array in params.items()}
    frozen = sum(size for path, size in sizes.items() if optimizer.is_frozen(path))
    yield (
        f"{sum(sizes.values()) / 1e6:.2f} million parameters, {frozen / 1e6:.2f} of them frozen "
        f"({', '.join(settings.optimizer.frozen) or 'none'}); on {run.mesh.size} device(s)"
    )


def _examples(run: run_lib.Run) -> dict[str, list[tuple[Batch, int]]]:
    """The first training examples of every task, as (batch, place in it)."""
    wanted = [name for name, ratio in run.settings.ratios.items() if ratio > 0]
    examples: dict[str, list[tuple[Batch, int]]] = {name: [] for name in wanted}
    with loader.train_batches(run.settings, run.data) as batches:
        for _, batch in zip(range(_SEARCHED), batches, strict=False):
            room = EXAMPLES - len(examples[batch.task])
            examples[batch.task] += [(batch, place) for place in range(batch.size)][:room]
            if all(len(of_task) == EXAMPLES for of_task in examples.values()):
                break
    return examples


def draw(run: run_lib.Run, examples: dict[str, list[tuple[Batch, int]]], path: epath.Path) -> None:
    """A row of examples per task: images with their boxes, and texts with their answers."""
    shown = {task: of_task for task, of_task in examples.items() if of_task}
    inches = [2.9 if run.settings.tasks[task].has_image else 1.0 for task in shown]
    figure = Figure(figsize=(2.8 * EXAMPLES, sum(inches) + 0.2), dpi=110, facecolor="white")
    axes = figure.subplots(len(shown), EXAMPLES, squeeze=False, height_ratios=inches)
    for row, (task, of_task) in zip(axes, shown.items(), strict=True):
        for ax in row:
            ax.set_axis_off()
        row[0].set_title(task, loc="left", weight="bold", color=drawing.INK)
        for ax, (batch, place) in zip(row, of_task, strict=False):
            _example(ax, run, task, batch, place)
    figure.tight_layout(rect=(0, 0, 1, 0.98))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    path.write_bytes(buffer.getvalue())


def _example(ax, run: run_lib.Run, task: str, batch: Batch, place: int) -> None:
    names = run.data.names(task)
    record = run.data.split(task, "train")[int(np.asarray(batch.index)[place])]
    if batch.images is not None:
        height, width = np.asarray(batch.image_sizes)[place].tolist()
        drawing.show_image(ax, np.asarray(batch.images[place][:height, :width]))
    if isinstance(batch.targets, ObjectTargets):
        for (x, y, w, h), label in boxes(batch.targets, place, height, width):
            color = drawing.color(label)
            ax.add_patch(
                Rectangle((x - w / 2, y - h / 2), w, h, fill=False, edgecolor=color, linewidth=1.8)
            )
            ax.text(x - w / 2, y - h / 2, names.label(label), size=7, color="white", clip_on=True,
                    bbox=dict(facecolor=color, edgecolor="none", pad=1))  # fmt: skip
        return
    answers = record["answers"][:1] if "answers" in record else [names.label(record["label"])]
    texts = [text for text in (record.get("text"), record.get("text_b")) if text]
    lines = [*(textwrap.shorten(text, 110) for text in texts), f"→ {', '.join(answers)}"]
    told = "\n".join(textwrap.fill(line, 42) for line in lines)
    top = 1.0 if batch.images is None else -0.02
    ax.text(0, top, told, transform=ax.transAxes, size=7.5, va="top", color=drawing.INK)


def boxes(
    targets: ObjectTargets, place: int, height: int, width: int
) -> Iterator[tuple[np.ndarray, int]]:
    """(box as (centre x, centre y, width, height) in pixels, class) of an example's objects."""
    real = np.asarray(targets.object_mask[place])
    scale = np.asarray([width, height, width, height])
    for box, label in zip(
        targets.boxes_cxcywh[place][real], targets.labels[place][real], strict=True
    ):
        yield box * scale, int(label)


def _time(run: run_lib.Run, state: TrainState, optimizer: optim.Optimizer) -> str:
    """About how long training takes, from a few steps on this machine."""
    settings = run.settings
    step = TrainStep(run.graph, settings, optimizer, run.mesh)
    places = partitioning.rows_of_process(run.mesh, settings.train.batch_size)
    with loader.train_batches(settings, run.data, 0, places) as batches:
        batch = partitioning.to_devices(next(batches), run.mesh)
        start = time.perf_counter()
        state, _ = jax.block_until_ready(step(state, batch))
        compiled = time.perf_counter() - start
        state, _ = jax.block_until_ready(step(state, batch))
        start = time.perf_counter()
        for _ in range(_TIMED):
            state, logs = step(state, batch)
            jax.block_until_ready(logs)
        jax.block_until_ready(state)
        seconds = (time.perf_counter() - start) / _TIMED
    shapes = len(loader.shapes(settings, run.data, "train"))
    total = seconds * settings.train.steps
    shape = "x".join(map(str, batch.bucket))
    return (
        f"a step of {batch.task} at {shape} takes {seconds:.2f} s here after {compiled:.0f} s of "
        f"compiling: about {_duration(total)} for {settings.train.steps} such steps, beside "
        f"compiling {shapes} such shapes, reading, evaluation and checkpoints"
    )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
