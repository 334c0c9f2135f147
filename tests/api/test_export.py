"""Exported programs say what the model says, with JAX alone."""

import subprocess
import sys

import numpy as np
import pytest

import unit_jax
from tests import ROOT
from unit_jax.api import export
from unit_jax.api.results import Answers

QUESTION = "what color is the square?"
JAX_ALONE = """
import sys
class Only:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {'flax', 'PIL', 'tokenizers', 'orbax', 'etils', 'absl', 'grain',
                                  'transformers', 'safetensors', 'tensorflow_datasets', 'optax'}:
            raise ImportError(name + ' is not there')
sys.meta_path.insert(0, Only())
import numpy as np, unit_jax
model = unit_jax.load_exported(sys.argv[1])
pixels = np.load(sys.argv[2])
print(model.predict('vqa2', image=pixels, text=sys.argv[3], top=1)['answers'][0]['label'])
"""


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "out"
    made = export.export(model, folder, ["visual_genome", "vqa2", "qqp"])
    assert all(one.size < 400_000 for one in made)
    return folder


def test_it_agrees_with_the_model(model, pictures, folder):
    exported = unit_jax.load_exported(folder)
    assert exported.manifest["platforms"] == ["cpu", "cuda", "tpu"]
    assert exported.tasks == ("visual_genome", "vqa2", "qqp")
    assert exported.labels("vqa2") == model.labels("vqa2")
    shown = [np.asarray(picture) for picture in pictures[:2]]
    asked = [
        ("visual_genome", dict(image=shown[0]), dict(threshold=0.0)),
        ("vqa2", dict(image=shown, text=QUESTION), {}),
        ("vqa2", dict(image=shown[1], text="is there a red star?"), dict(top=3)),
        ("qqp", dict(text="is it red?", text_b="is the thing red?"), {}),
    ]
    for task, given, options in asked:
        ours = model.predict(task, **given, **options)
        theirs = exported.predict(task, **given, **options)
        many = isinstance(ours, list)
        for a, b in zip(ours if many else [ours], theirs if many else [theirs], strict=True):
            key = "answers" if isinstance(a, Answers) else "detections"
            a, b = a.to_dict()[key], b[key]
            assert [x["label"] for x in a] == [x["label"] for x in b]
            assert [x.get("attribute") for x in a] == [x.get("attribute") for x in b]
            assert np.allclose([x["score"] for x in a], [x["score"] for x in b], atol=1e-4)
            if key == "detections":
                boxes = [[x["box_xyxy"] for x in found] for found in (a, b)]
                assert np.allclose(*boxes, atol=1e-2)


def test_it_draws_frames(pictures, folder):
    exported = unit_jax.load_exported(folder)
    pixels = np.asarray(pictures[0])
    name = exported.labels("visual_genome")[1]
    result = {"detections": [{"label": name, "score": 1.0, "box_xyxy": [10.0, 12.0, 40.0, 50.0]}]}
    drawn = exported.draw(pixels, result, "visual_genome")
    changed = (drawn != pixels).any(-1)
    assert changed[30, 8:11].all() and changed[30, 40:43].all() and not changed[30, 12:39].any()
    assert (
        not changed[:9].any()
        and (exported.draw(pixels, {"detections": []}, "vqa2") == pixels).all()
    )


def test_it_needs_jax_alone(model, pictures, folder, tmp_path):
    np.save(tmp_path / "a.npy", np.asarray(pictures[0]))
    command = [sys.executable, "-c", JAX_ALONE, str(folder), str(tmp_path / "a.npy"), QUESTION]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert run.stdout.strip() == model.answer(pictures[0], QUESTION).best, run.stderr


def test_what_does_not_fit_is_told(model, folder, tmp_path):
    exported = unit_jax.load_exported(folder)
    with pytest.raises(ValueError, match="no task 'coco' was exported"):
        exported.predict("coco", image=np.zeros((5, 5, 3), np.uint8))
    with pytest.raises(ValueError, match="too narrow for this export"):
        exported.predict("visual_genome", image=np.zeros((3, 6000, 3), np.uint8))
    with pytest.raises(ValueError, match="vqa2 needs text"):
        exported.predict("vqa2", image=np.zeros((5, 5, 3), np.uint8))
    with pytest.raises(ValueError, match="no manifest.json"):
        unit_jax.load_exported(tmp_path)
    (tmp_path / "mine").write_text("x")
    with pytest.raises(ValueError, match="holds other files"):
        export.export(model, tmp_path, ["qqp"])
