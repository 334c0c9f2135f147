"""Data of one's own of every shape, and a kind of answer of one's own, from files to report.

Nothing of unit_jax is touched: sources, a room and a config, all in this file.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
from etils import epath
from flax import nnx, struct
from PIL import Image

import unit_jax
from tests import tiny
from unit_jax import outputs
from unit_jax import run as run_lib
from unit_jax.batch import Outputs
from unit_jax.data import prepare
from unit_jax.data.prepared import PreparedData
from unit_jax.data.sources import base, images
from unit_jax.evaluation import submissions
from unit_jax.models.transformer import Linear
from unit_jax.outputs.base import Described, Output
from unit_jax.tasks import TaskSpec
from unit_jax.training import loop

COLOURS = {"red": (200, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 200)}
EXAMPLES = 8  # of each split

# ---- A kind of answer of one's own: a number with a squared loss ---------------------------------


@struct.dataclass
class NumberTargets:
    values: np.ndarray  # [batch]


class NumberHead(nnx.Module):
    def __init__(self, width: int, rngs: nnx.Rngs):
        self.linear = Linear(width, 1, rngs=rngs)

    def __call__(self, hidden_states, keys) -> Outputs:
        return Outputs(hidden_states, self.linear(hidden_states[-1:, :, 0]))


class Number(Output):
    """A number, and its mean squared error."""

    def is_labelled(self, record):
        return True

    def target(self, record, names):
        return float(record["value"])

    def collate(self, targets, sizes, settings):
        return NumberTargets(np.asarray(targets, np.float32))

    def target_shapes(self, settings):
        return NumberTargets(jax.ShapeDtypeStruct((), np.float32))

    def head(self, settings, rngs):
        return NumberHead(settings.decoder.width, rngs)

    def loss(self, outputs, targets, head, settings, matches=None):
        error = ((outputs.logits[-1, :, 0] - targets.values) ** 2).mean()
        return error, {"loss_squared": error}

    def predict(self, outputs, head):
        return {"values": outputs.logits[-1, :, 0]}

    def all_metrics(self):
        return ("closeness",)

    def measure(self, predictions, examples, names):
        truth = np.asarray([examples[row]["value"] for row in range(len(examples))])
        return {"closeness": float(1 / (1 + np.mean((predictions["values"] - truth) ** 2)))}

    def constant(self, train, count, names):
        values = [train[row]["value"] for row in range(len(train))]
        return {"values": np.full(count, np.mean(values))}

    def entries(self, record, prediction, names):
        return [{"id": record["id"], "value": float(prediction["values"])}]

    def describe(self, record, prediction, names):
        said, truth = float(prediction["values"]), float(record["value"])
        return Described(f"{said:.1f}", f"{truth:.1f}", abs(said - truth) < 0.5)


# ---- Sources of one's own ------------------------------------------------------------------------

TEXT, LABEL = {"text": tfds.features.Text()}, {"label": np.int32}
SQUARES = images.Family("images_squares", ("squares",))
NAMES = list(COLOURS)


class OwnSource(base.RecordSource):
    def required_files(self):
        return [self.source / "squares"]

    def read(self, store, problems):
        rows = [self.record(n, store) for n in range(2 * EXAMPLES)]
        facts = {"num_labels": len(NAMES), "label_names": NAMES}
        return base.Content({"train": rows[:EXAMPLES], "val": rows[EXAMPLES:]}, facts)


def colour(n: int) -> int:
    return n % len(NAMES)


class Sentences(OwnSource):
    name, features = "sentences", {**TEXT, **LABEL}

    def record(self, n, store):
        return {"text": f"a {NAMES[colour(n)]} thing", "label": colour(n)}


class Pairs(OwnSource):
    name, features = "pairs", {**TEXT, "text_b": tfds.features.Text(), **LABEL}

    def record(self, n, store):
        return {"text": "what is it", "text_b": NAMES[colour(n)], "label": colour(n)}


class Captions(OwnSource):
    name, features, image_family = "captions", {**TEXT, **LABEL}, SQUARES

    def record(self, n, store):
        located = store.locate(f"{NAMES[colour(n)]}")
        return {"id": f"c{n}", "text": "a colour", "label": colour(n), **located}


class Colours(Captions):
    name, features = "colours", LABEL

    def record(self, n, store):
        return {"label": colour(n), **store.locate(NAMES[colour(n)])}


class Lightness(Colours):
    name, features = "lightness", {"value": np.float32}

    def record(self, n, store):
        return {"value": sum(COLOURS[NAMES[colour(n)]]) / 765, **store.locate(NAMES[colour(n)])}


class Squares(Captions):
    name = "squares"
    features = {
        "boxes_xywh": tfds.features.Tensor(shape=(None, 4), dtype=np.float32),
        "category_ids": tfds.features.Tensor(shape=(None,), dtype=np.int32),
        "areas": tfds.features.Tensor(shape=(None,), dtype=np.float32),
        "iscrowd": tfds.features.Tensor(shape=(None,), dtype=np.bool_),
    }

    def read(self, store, problems):
        content = super().read(store, problems)
        counts = {split: {"num_objects": np.ones(EXAMPLES, np.int32)} for split in content.splits}
        return base.Content(content.splits, content.facts, index=counts)

    def record(self, n, store):
        objects = {
            "boxes_xywh": np.float32([[8, 8, 24, 24]]),
            "category_ids": np.int32([colour(n)]),
            "areas": np.float32([576]),
            "iscrowd": np.array([False]),
        }
        return {"id": n, **objects, **store.locate(NAMES[colour(n)])}


SOURCES = (Sentences, Pairs, Captions, Colours, Lightness, Squares)
TASKS = dict(
    sentences=dict(kind="language", max_tokens=8),
    pairs=dict(kind="language", max_tokens=8, metrics=("accuracy", "f1")),
    captions=dict(kind="vision_language", max_tokens=8),
    colours=dict(kind="image"),
    lightness=dict(inputs=("image",), output=f"{__name__}:Number"),
    squares=dict(kind="detection"),
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on all of them: (run, working folder)."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "squares").mkdir()
    for name, rgb in COLOURS.items():
        image = np.full((40, 40, 3), 255, np.uint8)
        image[8:32, 8:32] = rgb
        Image.fromarray(image).save(folder / "squares" / f"{name}.png")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *NAMES, *"a thing what is it colour".split()]
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in words))
    prepare.prepare(folder, folder / "data", SOURCES, prepare.Settings(progress=False))
    config = tiny.values(folder / "data", (), steps=8)
    config["tasks"] = {name: {"num_queries": 4, **task} for name, task in TASKS.items()}
    config["data"]["vocabulary"] = ""
    config["report"].update(blind_check=True, predictions=True)
    run = run_lib.open_run(config)
    (folder / "run").mkdir()
    assert loop.train(run, epath.Path(folder / "run")) == 0
    return run, epath.Path(folder / "run")


def test_each_has_a_row_of_its_own_without_being_told(trained):
    run, _ = trained
    assert len({spec.index for spec in run.settings.tasks.values()}) == len(TASKS)


def test_the_report_has_them_all(trained):
    _, workdir = trained
    rows = {
        (row["task"], row["metric"]): row
        for row in json.loads((workdir / "report.json").read_text())
    }
    headlines = dict.fromkeys(("sentences", "pairs", "captions", "colours"), "accuracy")
    headlines |= {"lightness": "closeness", "squares": "AP"}
    for task, metric in headlines.items():
        row = rows[task, metric]
        assert 0 <= row["value"] <= 1 and row["baseline"] is not None, row
    assert ("pairs", "f1") in rows and ("sentences", "f1") not in rows
    assert ("captions", "accuracy_images_exchanged") in rows
    # The text alone tells: a bag of words of the second text knows all answers.
    assert rows["pairs", "accuracy_bag_of_words_second_text"]["value"] == 1
    mean = np.mean([sum(COLOURS[NAMES[colour(n)]]) / 765 for n in range(EXAMPLES)])
    error = np.mean([(sum(COLOURS[NAMES[colour(n)]]) / 765 - mean) ** 2 for n in range(8, 16)])
    np.testing.assert_allclose(
        rows["lightness", "closeness"]["baseline"], 1 / (1 + error), rtol=1e-5
    )


def test_the_picture_shows_them_all(trained):
    _, workdir = trained
    with Image.open(workdir / "predictions.png") as picture:
        # Rows for four tasks with images are higher than cards for two of texts.
        assert picture.width > 1500 and picture.height > 4 * 285
        assert np.asarray(picture.convert("L")).std() > 5


def test_files_of_predictions(trained, tmp_path):
    run, workdir = trained
    submissions.predict_checkpoint(run, workdir, epath.Path(tmp_path))
    # The run itself ended with the same files.
    for path in (tmp_path / "predictions").iterdir():
        assert path.read_text() == (workdir / "predictions" / path.name).read_text()
    read = {
        task: json.loads((tmp_path / "predictions" / f"{task}-val.json").read_text())
        for task in TASKS
    }
    assert {entry["label"] for entry in read["sentences"]} <= set(NAMES)
    assert [entry["id"] for entry in read["captions"]] == [f"c{n}" for n in range(8, 16)]
    assert [entry["id"] for entry in read["colours"]] == [str(n) for n in range(8)]
    assert all(set(entry) == {"id", "value"} for entry in read["lightness"])
    assert {entry["image_id"] for entry in read["squares"]} == {str(n) for n in range(8, 16)}

    # The checkpoint alone says the same of each picture and text.
    model = unit_jax.load(workdir)
    assert set(model.tasks) == set(TASKS) and model.labels("colours") == tuple(NAMES)
    shown = {task: run.data.split(task, "val") for task in TASKS}
    for row in (0, 3):
        said = model.predict("lightness", image=shown["lightness"].image(row))
        value = read["lightness"][row]["value"]
        assert abs(float(said.best.removeprefix("values ")) - value) < 1e-3
        said = model.predict("colours", image=shown["colours"].image(row))
        assert said.best == read["colours"][row]["label"]
        said = model.classify("sentences", shown["sentences"][row]["text"])
        assert said.best == read["sentences"][row]["label"]


def test_the_own_loss_is_the_models(trained):
    run, _ = trained
    room = outputs.room(run.settings.tasks["lightness"])
    answers = Outputs(None, jnp.asarray([[[1.0], [3.0]]]))
    total, _ = room.loss(answers, NumberTargets(jnp.asarray([0.0, 1.0])), None, None)
    assert float(total) == (1 + 4) / 2


def test_features_outside_the_schema_are_refused(trained, tmp_path):
    class Nothing(Sentences):
        name, features = "nothing", TEXT

    class Half(Squares):
        name = "half"
        features = {"boxes_xywh": Squares.features["boxes_xywh"]}

    folder = PreparedData(trained[0].data.data_dir, ["pairs"]).data_dir.parent
    for source, told in ((Nothing, "hold nothing to learn"), (Half, "also need category_ids")):
        with pytest.raises(ValueError, match=f"{source.name}: .*{told}"):
            prepare.prepare(folder, tmp_path / "data", [source], prepare.Settings(progress=False))


def test_wrong_rooms_are_refused_by_name(trained):
    config = {"name": "x", "index": 10, "inputs": ("image",)}

    for output, told in (
        ("no_module:Room", "cannot be imported"),
        ("objectz", "no kind of answer"),
    ):
        with pytest.raises(ValueError, match=f"config.tasks.x.output: '{output}' .*{told}|{told}"):
            outputs.room(TaskSpec(**config, output=output))
    with pytest.raises(ValueError, match="config.tasks.x.metrics: unknown f2; known here: acc"):
        outputs.room(TaskSpec(**config, output="label", metrics=("f2",)))
