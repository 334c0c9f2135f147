"""`unit_jax.load` and its answers: the same alone, in batches, in any order, as evaluation's."""

import io
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import unit_jax
from tests import ROOT, tiny
from unit_jax import run as run_lib
from unit_jax.api import explain
from unit_jax.api import load as load_lib
from unit_jax.api.results import Answers, Detections
from unit_jax.configs import demo
from unit_jax.evaluation import evaluate
from unit_jax.evaluation.step import Predictor
from unit_jax.interop import guess, mmf, torch_files, weights
from unit_jax.models.flat import Model as Arrays
from unit_jax.models.transformer import Attention, Keys
from unit_jax.runtime import partitioning

QUESTION = "what color is the square?"


def same(a, b) -> None:
    """Two results say the same, scores to 1e-5."""
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.label == y.label and abs(x.score - y.score) < 1e-5
        if isinstance(a, Detections):
            assert np.allclose(x.box_xyxy, y.box_xyxy, atol=1e-3)


def test_importing_the_package_imports_nothing_else():
    code = "import sys, unit_jax; print({'jax', 'numpy', 'PIL'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout.strip() == "set()", run


def test_the_same_answers_alone_in_a_batch_and_in_any_order(model, pictures):
    together = model.detect(pictures, threshold=0.2)
    assert sum(map(len, together)) > 5
    for picture, expected in zip(pictures, together, strict=True):
        same(model.detect(picture, threshold=0.2), expected)
    turned = model.detect(pictures[::-1], threshold=0.2)
    for a, b in zip(turned[::-1], together, strict=True):
        same(a, b)
    said = model.answer(pictures[:5], QUESTION)
    same(said[3], model.answer(pictures[3], QUESTION))
    same(model.answer(pictures[3], [QUESTION, "how many are there?"])[0], said[3])
    pairs = model.classify("qqp", ["a red star", "yes"], ["the star is red", "no"])
    same(pairs[1], model.classify("qqp", "yes", "no"))


def test_nothing_is_compiled_after_the_first_call_of_a_shape(pictures):
    model = unit_jax.load("demo", batch_size=4)
    made = model.warm_up(["coco"])
    assert made == model.compilations == 4  # of two shapes, each one example, and a batch
    model.detect(pictures)
    model.detect(pictures[::-1][:3])
    model.detect(pictures[2])
    assert model.compilations == made
    strip = Image.new("RGB", (1000, 10), "red")
    with jax.log_compiles(False):
        model.detect(strip)
        first = model.compilations
        model.detect(Image.new("RGB", (970, 10)))
    assert model.compilations == first == made + 1


def test_scores_boxes_and_names(model, pictures):
    found = model.detect(pictures[0], threshold=0.0, top=5)
    assert len(found) == 5 and found.size == (pictures[0].height, pictures[0].width)
    assert [d.score for d in found] == sorted((d.score for d in found), reverse=True)
    assert found[0].label in model.labels("coco") and found[0].label_id > 0
    half = pictures[0].resize((pictures[0].width * 3, pictures[0].height * 3))
    x = model.detect(half, threshold=0.0, top=1)[0].box_xyxy
    assert np.allclose(np.asarray(x) / 3, found[0].box_xyxy, atol=3)
    objects = model.predict("visual_genome", image=pictures[0], threshold=0.0)
    assert {d.attribute for d in objects} <= set(model.names("visual_genome").attributes)
    said = model.answer(pictures[0], QUESTION, top=3)
    assert len(said) == 3 and all(0 <= a.score <= 1 for a in said) and "<unk>" not in str(said)
    labels = model.entails(pictures[0], "a red star")
    assert {a.label for a in labels} == set(model.labels("snli_ve"))
    assert abs(sum(a.score for a in labels) - 1) < 1e-5
    assert model.classify("sst2", "a lovely picture").given() == {"text": "a lovely picture"}


def test_generators_in_generators_out(model, pictures):
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield pictures[len(taken) % 3]

    results = model.detect(endless(), threshold=0.2)
    first = next(results)
    assert isinstance(first, Detections) and len(taken) <= 16
    same(first, model.detect(pictures[1], threshold=0.2))
    assert model.detect([]) == [] and list(model.detect(iter(()))) == []


def test_broken_pictures_stop_or_stand_in_their_place(model, pictures):
    with pytest.raises(ValueError, match="none.jpg: no such file"):
        model.detect([pictures[0], "none.jpg"])
    found = model.detect([pictures[0], "none.jpg", pictures[1]], errors="return")
    assert [type(f) for f in found] == [Detections, ValueError, Detections]
    for call, told in (
        (lambda: model.predict("coc", image=pictures[0]), "no task 'coc'; it has coco"),
        (lambda: model.predict("vqa2", image=pictures[0]), "vqa2 needs text"),
        (lambda: model.predict("coco", image=pictures[0], text="x"), "coco takes no text"),
        (lambda: model.classify("qqp", ["a", "b"], ["c"]), "different lengths: 2 of text, 1"),
        (lambda: model.classify("qqp", 3), "text: int is neither one nor a list"),
        (lambda: unit_jax.load("nowhere"), "nowhere: no such file or folder"),
    ):
        with pytest.raises(ValueError, match=told):
            call()


def test_two_devices_give_the_same(model, pictures):
    split = unit_jax.load("demo", batch_size=4, devices=jax.devices()[:2])
    for a, b in zip(
        split.detect(pictures[:3], threshold=0.2),
        model.detect(pictures[:3], threshold=0.2),
        strict=True,
    ):
        same(a, b)


def test_evaluation_says_the_same(tmp_path):
    """A split through the API and through --mode=eval's predictor."""
    tasks = ("coco", "vqa2", "qqp")
    data_dir = tiny.make_data(tmp_path, tasks)
    config = demo.values(",".join(tasks))
    config["data"].update(data_dir=str(data_dir), num_workers=0, num_threads=0, prefetch=1)
    config["train"]["eval_batch_size"] = 8
    run = run_lib.open_run(config)
    shipped = load_lib.read("demo").arrays

    def cut(name, leaf):  # these data have fewer words and answers
        return shipped[name][tuple(map(slice, leaf.shape))]

    arrays = Arrays(*({name: cut(name, leaf) for name, leaf in group.items()}
                      for group in run.abstract_model()))  # fmt: skip
    predict = Predictor.of_run(run, partitioning.place(arrays, run.mesh))
    path = tmp_path / "unit.safetensors"
    weights.write_safetensors(path, {**arrays.params, **arrays.statistics}, run.metadata())
    model = unit_jax.load(path)
    assert model.labels("vqa2") == tuple(run.data.label_names("vqa2"))
    for task in tasks:
        split = run.data.split(task, "val")
        records = [split[row] for row in range(len(split))]
        found = evaluate.predict_split(run, predict, task, "val")
        given = dict(
            image=[split.image(row) for row in range(len(split))] if task != "qqp" else None,
            text=[r["text"] for r in records] if task != "coco" else None,
            text_b=[r["text_b"] for r in records] if task == "qqp" else None,
        )
        ours = model.predict(task, **given, threshold=0.0, progress=False)
        for row, one in enumerate(ours):
            if isinstance(one, Answers):
                assert one[0].label_id == found["labels"][row]
                continue
            by_query = sorted(one, key=lambda d: d.query)
            assert [d.label_id for d in by_query] == found["labels"][row].tolist()
            scores = np.asarray([d.score for d in by_query])
            assert np.abs(scores - found["scores"][row]).max() < 1e-4


def test_one_file_holds_all_that_is_needed(model, pictures, tmp_path):
    found = load_lib.read("demo")
    path = tmp_path / "unit.safetensors"
    weights.write_safetensors(path, found.arrays, found.metadata)
    again = unit_jax.load(path, batch_size=4)
    same(again.detect(pictures[0], threshold=0.2), model.detect(pictures[0], threshold=0.2))
    assert again.labels("vqa2") == model.labels("vqa2")
    bare = tmp_path / "bare.safetensors"
    torch_files.save_safetensors(bare, found.arrays)
    with pytest.raises(ValueError, match="bare.safetensors: no description of a model"):
        unit_jax.load(bare)


def test_weights_without_names_show_numbers_once(tmp_path):
    found = load_lib.read("demo")
    metadata = json.loads(json.dumps(found.metadata))
    del metadata["names"]
    path = tmp_path / "old.safetensors"
    weights.write_safetensors(path, found.arrays, metadata)
    old = unit_jax.load(path)
    with pytest.warns(UserWarning, match="coco: the weights came without the names"):
        assert old.labels("coco")[:3] == ("0", "1", "2")
    with pytest.raises(ValueError, match="qqp: the weights came without their vocabulary"):
        old.classify("qqp", "a", "b")
    data_dir = tiny.make_data(tmp_path, ("coco", "qqp"))
    with pytest.raises(ValueError, match="vqa2"):
        unit_jax.load(path, data_dir=data_dir)  # it has not all of the model's tasks


def test_an_mmf_file_is_told_by_its_shapes(tmp_path):
    """Our demo under MMF's names: the same arrays, tasks and sizes without a config."""
    found = load_lib.read("demo")
    path = tmp_path / "unit.pth"
    torch_files.save_pth(path, mmf.export_state(found.arrays, 0.1))
    read = load_lib.read(path)
    assert set(read.arrays) == set(found.arrays)
    told = weights.settings_of(read.metadata, "it")
    ours = weights.settings_of(found.metadata, "it")
    for name, spec in ours[1].items():
        assert told[1][name].num_labels == spec.num_labels
        assert told[1][name].num_queries == spec.num_queries
    for field in ("image_encoder", "decoder", "mlp_width"):
        assert getattr(told[0], field) == getattr(ours[0], field)
    assert told[0].backbone.depths == ours[0].backbone.depths
    assert guess.model_of(found.arrays, ours[0]).text_encoder.mlp_width == 384


def test_weights_shown_are_those_of_the_attention():
    """With one head, values weighted by them are what the layer gives."""
    layer = Attention(8, 1, 0.0, rngs=nnx.Rngs(0))
    draw = np.random.default_rng(0).normal(size=(2, 11, 8)).astype(np.float32)
    query, key = draw[:, :4], draw[:, 4:]
    mask = np.arange(7)[None] < np.asarray([[7], [5]])
    shown = explain.weights(layer, query, key, mask)
    assert (np.asarray(shown)[1, :, 5:] == 0).all()
    ours = layer.out(jnp.einsum("bqk,bkd->bqd", shown, layer.value(key)))
    assert np.allclose(ours, layer(query, key, key, mask, Keys(None)), atol=1e-6)


def test_explanations_are_attention_and_effects(model, pictures):
    told = model.explain("vqa2", pictures[0], QUESTION)
    image, text = told.image_attention[-1, 0], told.word_attention[-1, 0]
    assert abs(image.sum() + text.sum() - 1) < 1e-5 and (image >= 0).all()
    assert told.tokens[0] == "[CLS]" and len(told.tokens) == text.size
    assert told.words == tuple(QUESTION.split())
    without = model.answer(pictures[0], "what color is the", top=None)
    left = next(a.score for a in without if a.label == told.result.best)
    assert abs(told.word_effects[-1] - (told.result.score - left)) < 1e-5
    place = told.at(pictures[0].width - 1, 0)
    rows, columns = image.shape
    # The rest is the task token's.
    assert place.shape == (rows, columns) and 0 < place.sum() < 1 and (place >= 0).all()
    assert np.allclose(told.looked(), told.image_attention.mean(0))
    assert (told.looked(0) == told.image_attention[0]).all() and told.looked().sum() > 0.01
    found = model.explain("coco", pictures[0], threshold=0.0, top=2)
    assert found.image_attention.shape[1] == 2 and found.word_effects is None
    assert np.allclose(found.image_attention.sum((2, 3)), 1, atol=1e-5)
    for drawing in (told.draw(), found.draw(), told.draw_at(3, 3)):
        buffer = io.BytesIO()
        drawing.save(buffer, "PNG")
    with pytest.raises(ValueError, match="outside the picture"):
        told.at(-1, 0)
