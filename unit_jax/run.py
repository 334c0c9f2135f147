"""From a config to everything a run needs; shared by training, evaluation and prediction.

All that can be wrong with config, data, weights and devices is found here, before long work.
"""

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from flax import nnx
from jax.sharding import Mesh

from unit_jax import checks, outputs
from unit_jax import settings as settings_lib
from unit_jax.data import choices, loader
from unit_jax.data.integrity import fingerprint, read_lines
from unit_jax.data.own import prepare as own
from unit_jax.data.prepared import PreparedData
from unit_jax.interop import init_from, transfer, weights
from unit_jax.models import flat
from unit_jax.models.flat import Flat, Model
from unit_jax.models.unit import Unit
from unit_jax.runtime import checkpoint_folder, checkpoints, distributed, partitioning
from unit_jax.settings import Settings

DEMO = "no data at hand? `make demo` generates its own and trains on it"


@dataclasses.dataclass(frozen=True)
class Run:
    """What stays the same during a run.

    Attributes:
      settings: with the label counts of the prepared data filled in.
      data: the prepared data.
      mesh: all devices.
      graph: the model's static part.
      abstract_params, abstract_statistics: shapes, dtypes and shardings of its arrays.
    """

    settings: Settings
    data: PreparedData
    mesh: Mesh
    graph: nnx.GraphDef
    abstract_params: Flat
    abstract_statistics: Flat

    def abstract_model(self) -> Model:
        """The target of a checkpoint's `model` item."""
        return Model(self.abstract_params, self.abstract_statistics)

    def fresh_model(self) -> Model:
        """Initial parameters and statistics: a function of the seed and, with calibration, of the
        first training images."""
        return partitioning.place(self._fresh_model(), self.mesh)

    def _fresh_model(self) -> Model:
        model = _build(self.settings)
        count = self.settings.model.backbone.calibrate
        if count and any(spec.has_image for spec in self.settings.tasks.values()):
            images, sizes = _training_images(self, count)
            model.calibrate(images, sizes)
        _, params, statistics = flat.split(model)
        return Model(params, statistics)

    def initial_model(self) -> Model:
        """What training starts from: a fresh model with the weights of `init_from` in it.

        Prints what was loaded from where and what stayed fresh.
        """
        model = self._fresh_model()
        fresh = {path: np.asarray(x) for leaves in model for path, x in leaves.items()}
        arrays, reports = init_from.start_from(fresh, self.settings, self._known())
        if distributed.is_first():
            print(*reports, sep="\n")
        groups = [{path: arrays[path] for path in leaves} for leaves in model]
        return Model(*partitioning.place(groups, self.mesh))

    def _known(self) -> transfer.Model:
        """What the data tell of labels and words, for weights of other tasks."""
        if not (self.settings.init_from.model or self.settings.init_from.text_encoder):
            return transfer.Model({})
        path, vocabulary = pathlib.Path(self.data.vocabulary_path), ""
        if _has_text(self.data) and path.is_file():
            vocabulary = fingerprints(self.data)["vocabulary"]
        return transfer.Model(
            init_from.task_facts(self.settings, label_names(self.data)),
            vocabulary,
            tuple(read_lines(path)) if vocabulary else (),
            self.settings.init_from.tasks,
        )

    def restored_model(self, checkpoint: epath.PathLike) -> Model:
        """Parameters and statistics of a checkpoint.

        Args:
          checkpoint: a working folder (its newest step), a step's folder, "demo" or a .safetensors
            file of ours. Its model may have more tasks than the config.

        Raises:
          ValueError: there is none, or it does not fit the config's model or the data.
        """
        file = weights.file_at(checkpoint)
        if file:
            arrays, metadata = weights.read_safetensors(file)
            self.check_metadata(metadata, str(checkpoint))
            return self._of_arrays(arrays, str(checkpoint))
        directory, step = checkpoint_folder.locate(checkpoint)
        with contextlib.closing(checkpoints.Checkpoints(directory, read_only=True)) as saved:
            self.check_metadata(saved.metadata(step), f"{directory}/{step}")
            model, _ = saved.restore(step, self.abstract_model()._asdict(), partly=True)
        return Model(**model)

    def _of_arrays(self, arrays: Mapping[str, np.ndarray], where: str) -> Model:
        expected = self.abstract_model()
        wrong = [
            name
            for group in expected
            for name, leaf in group.items()
            if name not in arrays or arrays[name].shape != leaf.shape
        ]
        if wrong:
            raise ValueError(f"{where}: missing or of another shape: {_shortened(wrong)}")
        groups = [
            {name: arrays[name].astype(leaf.dtype) for name, leaf in group.items()}
            for group in expected
        ]
        return Model(*partitioning.place(groups, self.mesh))

    def metadata(self) -> dict[str, Any]:
        """What a checkpoint tells about itself."""
        return checkpoints.jsonable(
            {
                "settings": dataclasses.asdict(self.settings),
                "data": fingerprints(self.data),
                "names": weights.described(self.data),
            }
        )

    def must_agree(self) -> dict[str, Any]:
        """What must be equal in all processes: settings and description of the data, by name."""
        made = self.metadata()["settings"]
        for name in settings_lib.names(Settings, "local"):  # may differ from machine to machine
            *groups, last = name.split(".")
            del functools.reduce(dict.__getitem__, groups, made)[last]
        return {
            **{f"config.{name}": value for name, value in made.items()},
            "prepared data": self.data.content(),
        }

    def check_metadata(self, metadata: Mapping[str, Any], where: str) -> None:
        """Raises ValueError if a checkpoint was made by another model, or with another vocabulary,
        answer list or list of classes, or has a task in another row of the task embeddings."""
        checks.metadata(metadata, where, self.settings, fingerprints(self.data))


def open_run(config: Mapping[str, Any] | Settings, needs_initial_weights: bool = False) -> Run:
    """Checks a config against data, weights and devices and returns the run it describes.

    Args:
      config: settings, or a nested config as `configs/*.py` return it.
      needs_initial_weights: a fresh run: the files of `init_from` must be there.

    Raises:
      ValueError: one message with everything that is wrong or missing, and what to do.
    """
    settings = settings_lib.from_config(config)
    prepare_own(settings)
    problems = checks.metric_problems(settings)
    try:
        data = PreparedData(
            settings.data.data_dir, settings.tasks, vocabulary=settings.data.vocabulary
        )
    except ValueError as error:
        problems.append(str(error))
    if needs_initial_weights:
        problems += checks.missing_weights(settings.init_from)
    if problems:
        raise ValueError("\n".join([*problems, DEMO]))
    mesh = partitioning.make_mesh(settings.mesh)
    settings, told = choices.fill(with_label_counts(settings, data), data, mesh.size)
    if told and distributed.is_first():
        print("chosen by the data:", *told, sep="\n  ")
    loader.check(
        settings, data, [(task, split) for task in settings.tasks for split in ("train", "val")]
    )
    partitioning.check_batch_sizes(settings.train, mesh)
    graph, params, statistics = flat.abstract(lambda: _build(settings))
    problem = checks.frozen(settings.optimizer, params)
    if problem:
        raise ValueError(problem)
    return Run(settings, data, mesh, graph, *partitioning.abstract((params, statistics), mesh))


def prepare_own(settings: Settings) -> list[own.Summary]:
    """Prepares the data sets of `config.data.own` that are not prepared, or whose files changed;
    the first process tells what it found.

    Raises:
      ValueError: a line for each that cannot be prepared.
    """
    data, first = settings.data, distributed.is_first()
    summaries = own.prepare(
        data.own,
        data.data_dir,
        data.vocabulary,
        also_vocabularies=[settings.init_from.text_encoder],
        progress=first,
    )
    if first:
        own.show(summaries)
    return summaries


def with_label_counts(settings: Settings, data: PreparedData) -> Settings:
    """Fills in what the prepared data knows: label, attribute and vocabulary counts.

    Raises:
      ValueError: the config says another number of classes of a data set of one's own, or fewer
        rows of the word embedding than the vocabulary has.
    """
    wrong = [
        f"config.tasks.{name}.num_labels: {spec.num_labels}, but {name} has "
        f"{data.num_labels(name)} classes ({_shortened(data.label_names(name))}); take the setting "
        "away, or correct the files"
        for name, spec in settings.tasks.items()
        if name in settings.data.own and spec.num_labels not in (0, data.num_labels(name))
    ]
    rows, needed = settings.model.text_encoder.vocab_size, _vocabulary_size(data)
    if 0 < rows < needed:
        wrong.append(
            f"config.model.text_encoder.vocab_size: {rows} is less than the {needed} tokens of "
            f"{data.vocabulary_path}; use 0, which takes as many"
        )
    if wrong:
        raise ValueError("; ".join(wrong))
    specs = {
        name: dataclasses.replace(
            spec,
            num_labels=data.num_labels(name) or spec.num_labels,
            num_attributes=data.num_attributes(name) if spec.num_attributes else 0,
        )
        for name, spec in settings.tasks.items()
    }
    text_encoder = settings.model.text_encoder
    if not text_encoder.vocab_size:
        text_encoder = dataclasses.replace(text_encoder, vocab_size=_vocabulary_size(data))
    model = dataclasses.replace(settings.model, text_encoder=text_encoder)
    return dataclasses.replace(settings, tasks=specs, model=model)


def _shortened(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def fingerprints(data: PreparedData) -> dict[str, str]:
    """SHA-256 of what gives token ids and labels their meaning."""
    digests = {"vocabulary": data.manifest["vocabulary"]["sha256"]} if _has_text(data) else {}
    for task in data.tasks:
        answers = data.manifest["datasets"][task].get("answers")
        if answers:
            digests[f"{task} answer list"] = answers["sha256"]
        elif "own" in data.manifest["datasets"][task]:  # the published ones' never change
            names = "\n".join(data.label_names(task)).encode()
            digests[f"{task} list of classes"] = fingerprint(names)
    return digests


def label_names(data: PreparedData) -> dict[str, list[str]]:
    """Names of every task's labels, by number."""
    return {task: data.label_names(task) for task in data.tasks}


def _training_images(run: Run, count: int):
    """The first `count` training images of the first task that has some, without augmentation."""
    task = next(spec for spec in run.settings.tasks.values() if spec.has_image)
    images, sizes, same = [], [], []
    with loader.eval_batches(run.settings, run.data, task.name, "train") as batches:
        for batch in batches:
            images.append(np.asarray(batch.images))
            sizes.append(np.asarray(batch.image_sizes))
            # Batches are grouped by bucket; more than one bucket cannot be stacked.
            same = [x for x in images if x.shape[1:] == images[0].shape[1:]]
            if sum(len(x) for x in same) >= count or len(same) < len(images):
                break
    return np.concatenate(same)[:count], np.concatenate(sizes[: len(same)])[:count]


def best_metric(settings: Settings) -> str:
    """The metric ("task/metric") that says which checkpoint is best: `train.best_metric`, else
    vqa2's accuracy, else the first task's headline."""
    if settings.train.best_metric:
        return settings.train.best_metric
    name = "vqa2" if "vqa2" in settings.tasks else next(iter(settings.tasks))
    return f"{name}/{outputs.room(settings.tasks[name]).headline}"


def located(checkpoint: epath.Path, workdir: epath.Path, settings: Settings) -> epath.Path:
    """The checkpoint that a command asks for: itself (see `Run.restored_model`), or for
    `best` (of the working folder, or FOLDER/best) the step's folder with the highest `best_metric`.

    Raises:
      ValueError: there is none.
    """
    if weights.file_at(checkpoint):
        return checkpoint
    if checkpoint.name != "best" or checkpoint.exists():
        checkpoint_folder.locate(checkpoint)
        return checkpoint
    folder = workdir if checkpoint == epath.Path("best") else checkpoint.parent
    step = checkpoint_folder.best_step(folder, best_metric(settings))
    return folder / checkpoint_folder.FOLDER / str(step)


def _has_text(data: PreparedData) -> bool:
    return "vocabulary" in data.manifest


def _vocabulary_size(data: PreparedData) -> int:
    """Rows of the word embedding; data without texts leave it [PAD] alone."""
    return len(read_lines(pathlib.Path(data.vocabulary_path))) if _has_text(data) else 1


def _build(settings: Settings) -> Unit:
    return outputs.build(settings.model, settings.tasks, rngs=nnx.Rngs(settings.seed))
