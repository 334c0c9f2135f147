"""Weights of a checkpoint in a model of other tasks, classes and words."""

import dataclasses
import json
import pickle
import sys
import types

import numpy as np
import pytest

from tests.interop.pickles import write_zip
from tests.interop.test_detr_bert import detr_state, fresh, randoms, small_settings
from unit_jax.interop import coco_classes, detr, init_from, mmf, sources, torch_files, transfer
from unit_jax.interop.sources import Source, TaskFacts

IMAGE, PAIR, TEXT = (True, False), (True, True), (False, True)


def settings_of(*tasks, shared=True):
    """Settings whose tasks are (name, published task that it is like, changes)."""
    base = small_settings(["coco", "vqa2", "qnli"], shared)
    specs = {
        name: dataclasses.replace(base.tasks[like], name=name, **changes)
        for name, like, changes in tasks
    }
    return dataclasses.replace(base, tasks=specs, ratios=dict.fromkeys(specs, 1.0))


def source_of(arrays, vocabulary="", tokens=(), **labels):
    """A checkpoint of coco, vqa2 and qnli with names of labels."""
    inputs = dict(coco=IMAGE, vqa2=PAIR, qnli=TEXT)
    tasks = {
        name: TaskFacts(index, *reads, tuple(labels.get(name, ())))
        for index, (name, reads) in enumerate(inputs.items())
    }
    return Source("ours", arrays, tasks, vocabulary=vocabulary, tokens=tokens)


OLD = small_settings(["coco", "vqa2", "qnli"])  # 3 queries, 5 labels each
CLASSES = ("", "cat", "dog", "stop_sign", "")


@pytest.fixture(scope="module")
def old():
    return fresh(OLD, seed=1)


def fit(source, settings, labels=None, **known):
    before = fresh(settings)
    model = transfer.Model(init_from.task_facts(settings, labels), **known)
    return before, transfer.fit(source, before, model)


def test_an_own_task_starts_from_the_most_similar_one(old):
    """Queries as far as they go, boxes, classes by name, the "no object" class, its task row."""
    settings = settings_of(("pets", "coco", dict(num_queries=5, num_labels=3, index=40)))
    names = dict(pets=("Stop sign", "horse", "Dog"))
    before, fitted = fit(source_of(old, coco=CLASSES), settings, names)
    new = fitted.arrays
    np.testing.assert_array_equal(new["queries.pets"][:3], old["queries.coco"])
    np.testing.assert_array_equal(new["queries.pets"][3:], before["queries.pets"][3:])
    for layer in (0, 1, 2):
        path = f"boxes.{layer}.kernel"
        np.testing.assert_array_equal(new[f"heads.pets.{path}"], old[f"heads.coco.{path}"])
    kernel, theirs = new["heads.pets.classes.kernel"], old["heads.coco.classes.kernel"]
    np.testing.assert_array_equal(kernel[:, [0, 2, 3]], theirs[:, [3, 2, 5]])
    np.testing.assert_array_equal(kernel[:, 1], before["heads.pets.classes.kernel"][:, 1])
    bias = new["heads.pets.classes.bias"]
    np.testing.assert_array_equal(bias[[0, 2, 3]], old["heads.coco.classes.bias"][[3, 2, 5]])
    rows = new["image_encoder.task_embedding"]
    np.testing.assert_array_equal(rows[40], old["image_encoder.task_embedding"][0])
    np.testing.assert_array_equal(rows[:40], old["image_encoder.task_embedding"][:40])
    np.testing.assert_array_equal(
        new["decoder.layers.1.norm1.scale"], old["decoder.layers.1.norm1.scale"]
    )
    (line,) = fitted.lines
    assert line == (
        "pets starts from coco: 2 of 3 classes by name (Stop sign, Dog); 3 of its 3 queries for 5"
    )
    assert {"heads.pets.classes.kernel", "queries.pets"} < set(fitted.partly)
    assert "heads.vqa2.labels.kernel" in fitted.left and "queries.coco" not in fitted.left


def test_the_donor_reads_the_same_then_names_the_same(old):
    settings = settings_of(
        ("moods", "qnli", dict(num_labels=2)), ("asks", "vqa2", dict(num_labels=2))
    )
    source = source_of(old, vqa2=tuple("abcde"), qnli=("good", "bad", "x", "y", "z"))
    names = dict(moods=("bad", "good"), asks=("yes", "no"))
    before, fitted = fit(source, settings, names)
    labels = fitted.arrays["heads.moods.labels.kernel"]
    np.testing.assert_array_equal(labels, old["heads.qnli.labels.kernel"][:, [1, 0]])
    np.testing.assert_array_equal(fitted.arrays["queries.asks"], old["queries.vqa2"])
    assert "heads.asks.labels.kernel" not in fitted.arrays  # no name is equal
    assert "heads.asks.transform.kernel" in fitted.arrays
    # A task of images alone has a head of labels: the one that reads images too is its donor.
    facts = TaskFacts(9, True, False)
    assert transfer.donor("kinds", facts, "labels", source) == "vqa2"
    assert transfer.donor("kinds", facts, "classes", source) == "coco"
    assert transfer.donor("kinds", facts, "", source) == ""
    # A published task that a checkpoint lacks stays fresh, as in the reference.
    assert transfer.donor("visual_genome", TaskFacts(1, True, False), "classes", source) == ""


def test_a_config_may_say_what_a_task_starts_from(old):
    settings = settings_of(("asks", "vqa2", {}), ("vqa2", "vqa2", {}))
    starts = dict(asks="qnli", vqa2="")
    before, fitted = fit(source_of(old), settings, starts=starts)
    np.testing.assert_array_equal(fitted.arrays["queries.asks"], old["queries.qnli"])
    assert "queries.vqa2" not in fitted.arrays and "heads.vqa2.norm.scale" not in fitted.arrays
    for wrong, told in (
        (dict(asks="nli"), "'nli' is no task there; it has"),
        (dict(x=""), "no task of"),
    ):
        with pytest.raises(ValueError, match=told):
            fit(source_of(old), settings, starts=wrong)


def test_the_same_task_with_other_classes(old):
    settings = settings_of(("coco", "coco", dict(num_labels=4)))
    before, fitted = fit(source_of(old), settings)
    kernel = fitted.arrays["heads.coco.classes.kernel"]
    np.testing.assert_array_equal(kernel[:, 4], old["heads.coco.classes.kernel"][:, 5])
    np.testing.assert_array_equal(kernel[:, :4], before["heads.coco.classes.kernel"][:, :4])
    assert "names are not known on both sides" in fitted.lines[0]
    # As many classes in another order go by name.
    names = dict(coco=("dog", "cat", "stop sign", "new", ""))
    before, fitted = fit(source_of(old, coco=CLASSES), settings_of(("coco", "coco", {})), names)
    kernel, theirs = fitted.arrays["heads.coco.classes.kernel"], old["heads.coco.classes.kernel"]
    np.testing.assert_array_equal(kernel[:, [0, 1, 2, 5]], theirs[:, [2, 1, 3, 5]])


@pytest.mark.parametrize("known", [True, False])
def test_words_of_another_vocabulary_go_by_token(old, known):
    theirs = tuple(f"w{number}" for number in range(30))
    ours = ("w7", "new", *(f"w{number}" for number in range(28)))
    source = source_of(old, "aaa", theirs if known else ())
    settings = settings_of(("qnli", "qnli", {}))
    before, fitted = fit(source, settings, vocabulary="bbb", tokens=ours)
    path = "text_encoder.word_embedding"
    if not known:
        assert path not in fitted.arrays
        assert "word embeddings start fresh" in fitted.lines[0]
        return
    words = fitted.arrays[path]
    np.testing.assert_array_equal(words[0], old[path][7])
    np.testing.assert_array_equal(words[1], before[path][1])
    np.testing.assert_array_equal(words[2:], old[path][:28])
    assert "29 of 30 tokens" in fitted.lines[0]


def test_one_decoder_of_many_for_a_shared_one():
    """Own decoders: that of the one task that is started from."""
    old = fresh(small_settings(["coco", "vqa2", "qnli"], shared=False), seed=1)
    settings = settings_of(("asks", "vqa2", {}))
    _, fitted = fit(source_of(old), settings)
    path = "layers.0.self_attention.query.kernel"
    np.testing.assert_array_equal(fitted.arrays[f"decoder.{path}"], old[f"decoders.vqa2.{path}"])
    own = dataclasses.replace(
        settings,
        model=dataclasses.replace(
            settings.model, decoder=dataclasses.replace(settings.model.decoder, shared=False)
        ),
    )
    _, fitted = fit(source_of(fresh(OLD, seed=2)), own)
    shared = fresh(OLD, seed=2)[f"decoder.{path}"]
    np.testing.assert_array_equal(fitted.arrays[f"decoders.asks.{path}"], shared)


# ---- files of others


def whole_detr(width: int) -> dict[str, np.ndarray]:
    """A DETR of the given width with COCO's 91 classes."""
    state = {name: x for name, x in detr_state().items() if name.startswith("backbone.")}
    shapes = {"class_embed.weight": (92, width), "class_embed.bias": (92,)}
    for number, out in enumerate((width, width, 4)):
        shapes[f"bbox_embed.layers.{number}.weight"] = (out, width)
        shapes[f"bbox_embed.layers.{number}.bias"] = (out,)
    shapes |= {"query_embed.weight": (4, width), "input_proj.weight": (width, 128, 1, 1)}
    shapes["input_proj.bias"] = (width,)
    for part, attentions in (
        ("encoder", ["self_attn"]),
        ("decoder", ["self_attn", "multihead_attn"]),
    ):
        layer = f"transformer.{part}.layers.0"
        for attention in attentions:
            shapes[f"{layer}.{attention}.in_proj_weight"] = (3 * width, width)
            shapes[f"{layer}.{attention}.in_proj_bias"] = (3 * width,)
            shapes[f"{layer}.{attention}.out_proj.weight"] = (width, width)
            shapes[f"{layer}.{attention}.out_proj.bias"] = (width,)
        for number, (out, inputs) in enumerate(((16, width), (width, 16)), start=1):
            shapes[f"{layer}.linear{number}.weight"] = (out, inputs)
            shapes[f"{layer}.linear{number}.bias"] = (out,)
        for number in range(1, len(attentions) + 2):
            shapes[f"{layer}.norm{number}.weight"] = shapes[f"{layer}.norm{number}.bias"] = (width,)
    shapes |= {f"transformer.decoder.norm.{part}": (width,) for part in ("weight", "bias")}
    return state | randoms(shapes) | {"mask_head.x": np.ones(1, np.float32)}


def test_a_whole_detr_fills_what_has_its_width(tmp_path):
    """Image encoder at width 8; decoder and head are wider in UniT and stay fresh."""
    state = whole_detr(8)
    torch_files.save_pth(tmp_path / "detr.pth", state)
    settings = settings_of(("signs", "coco", dict(num_labels=2)))
    before = fresh(settings)
    model = transfer.Model(init_from.task_facts(settings, dict(signs=("dog", "cart"))))
    after, report = init_from.model_from_checkpoint(before, tmp_path / "detr.pth", model, 1e-5)
    np.testing.assert_array_equal(
        after["image_encoder.input_projection.kernel"], state["input_proj.weight"][:, :, 0, 0].T
    )
    np.testing.assert_array_equal(
        after["image_encoder.layers.0.feed_forward.linear1.kernel"],
        state["transformer.encoder.layers.0.linear1.weight"].T,
    )
    for path, array in detr.import_weights(state)[0].items():
        np.testing.assert_array_equal(after[path], array)
    for path in ("queries.signs", "heads.signs.boxes.0.kernel", "decoder.norm.scale"):
        np.testing.assert_array_equal(after[path], before[path])
        assert path in report.fresh
    assert "decoder does not fit and stays fresh" in str(report)
    assert "mask_head.x" in report.ignored and "a DETR file" in str(report)

    state = whole_detr(12)  # the decoder's width here
    torch_files.save_pth(tmp_path / "detr.pth", state)
    narrow = dataclasses.replace(settings.model.image_encoder, width=12)
    settings = dataclasses.replace(
        settings, model=dataclasses.replace(settings.model, image_encoder=narrow)
    )
    after, report = init_from.model_from_checkpoint(fresh(settings), tmp_path / "detr.pth", model)
    np.testing.assert_array_equal(after["queries.signs"], state["query_embed.weight"][:3])
    dog = coco_classes.NAMES.index("dog")
    np.testing.assert_array_equal(
        after["heads.signs.classes.kernel"][:, 0], state["class_embed.weight"][dog]
    )
    np.testing.assert_array_equal(
        after["heads.signs.classes.kernel"][:, 2], state["class_embed.weight"][91]
    )
    assert "signs starts from coco" in str(report) and "1 of 2 classes by name (dog)" in str(report)


def test_coco_has_eighty_names():
    named = [name for name in coco_classes.NAMES if name]
    assert len(named) == len(set(named)) == 80 and len(coco_classes.NAMES) == 91
    assert (coco_classes.NAMES[1], coco_classes.NAMES[90]) == ("person", "toothbrush")
    assert coco_classes.NAMES[12] == coco_classes.NAMES[83] == ""


def test_lightning_nesting_and_averaged_copies(tmp_path, old, monkeypatch):
    """As PyTorch Lightning writes it, hyper-parameters in a class of its own; and weights that
    have an averaged copy beside them."""
    module = types.ModuleType("lightning_fabric.utilities.data")
    module.AttributeDict = type("AttributeDict", (dict,), {"__module__": module.__name__})
    for name in ("lightning_fabric", "lightning_fabric.utilities"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    state = mmf.export_state(old)
    nested = {f"model.{name}": array for name, array in state.items()}
    lightning = {
        "state_dict": nested | {"criterion.weight": np.ones(2, np.float32)},
        "hyper_parameters": module.AttributeDict(lr=0.1),
        "epoch": 3,
    }
    averaged = {"model": state, "ema": {"module": state}}
    settings = settings_of(("coco", "coco", {}))
    model = transfer.Model(init_from.task_facts(settings))
    for content, told in ((lightning, "criterion.weight"), (averaged, "'ema'")):
        write_zip(tmp_path / "file.ckpt", pickle.dumps(content, 2))
        after, report = init_from.model_from_checkpoint(
            fresh(settings), tmp_path / "file.ckpt", model
        )
        np.testing.assert_array_equal(after["queries.coco"], old["queries.coco"])
        assert told in str(report)


def test_a_file_of_ours_tells_its_tasks_and_words(tmp_path, old, monkeypatch):
    """As `convert --to safetensors` writes it; "demo" is such a file of the package."""
    tasks = {"coco": {"kind": "detection", "index": 0}}
    names = {"tasks": {"coco": {"labels": CLASSES}}, "vocabulary": ["[PAD]", "a"]}
    header = {"settings": {"tasks": tasks}, "names": names, "data": {"vocabulary": "abc"}}
    half = {name: array.astype(np.float16) for name, array in old.items()}
    path = tmp_path / "unit.safetensors"
    torch_files.save_safetensors(path, half, {"unit_jax": json.dumps(header)})
    monkeypatch.setattr(sources, "demo_file", lambda name: path)
    source = sources.read("demo")
    assert source.tasks["coco"] == TaskFacts(0, True, False, CLASSES)
    assert (source.tokens, source.vocabulary) == (("[PAD]", "a"), "abc")
    settings = settings_of(("pets", "coco", dict(num_labels=1)))
    model = transfer.Model(init_from.task_facts(settings, dict(pets=("cat",))))
    after, report = init_from.model_from_checkpoint(fresh(settings), path, model)
    kernel = after["heads.pets.classes.kernel"]
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel[:, 0], half["heads.coco.classes.kernel"][:, 1])
    assert "a checkpoint of ours" in str(report)


def test_what_old_metadata_tell_of_tasks():
    kinds = {"detection": IMAGE, "vision_language": PAIR, "language": TEXT}
    for kind, inputs in kinds.items():
        old = {"settings": {"tasks": {"a": {"name": "a", "kind": kind, "index": 7}}}}
        facts = sources.saved_tasks(old)["a"]
        assert (facts.has_image, facts.has_text) == inputs and facts.index == 7
    new = {"settings": {"tasks": {"a": {"inputs": ["image"], "output": "label"}}}}
    new["labels"] = {"a": ["x", "y"]}
    assert sources.saved_tasks(new)["a"] == TaskFacts(0, True, False, ("x", "y"))
    assert sources.saved_tasks({}) == {}
