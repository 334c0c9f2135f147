"""DETR backbones and BERT encoders by their own names, and the weights a run starts from."""

import dataclasses
import json
from unittest import mock

import huggingface_hub
import numpy as np
import pytest
from flax import nnx
from huggingface_hub import errors

from configs import demo
from configs import unit as config
from unit_jax import outputs
from unit_jax import settings as settings_lib
from unit_jax.interop import bert, detr, init_from, mmf, torch_files, transfer
from unit_jax.models import flat
from unit_jax.settings import Settings

WIDTH, LAYERS = 8, 2  # of the text encoder
VOCABULARY, POSITIONS, HIDDEN = 30, 16, 12
DEMO_VOCABULARY = 136  # tokens
CHANNELS = 4  # of the backbone's stem


def small_settings(tasks=("coco", "vqa2", "qnli"), shared: bool = True, **init) -> Settings:
    values = config.values()
    values["tasks"] = {name: {"num_queries": 3, "num_labels": 5} for name in tasks}
    for name in set(tasks) - {"coco", "visual_genome"}:
        values["tasks"][name]["max_tokens"] = POSITIONS
    model = values["model"]
    model["backbone"] |= dict(depths=(1, 2, 1, 1), width=CHANNELS)
    model["image_encoder"] |= dict(width=8, layers=1)
    model["text_encoder"] |= dict(
        vocab_size=VOCABULARY,
        width=WIDTH,
        layers=LAYERS,
        heads=2,
        mlp_width=HIDDEN,
        max_positions=POSITIONS,
        task_rows=10,
    )
    model["decoder"] = dict(width=12, layers=2, shared=shared)
    model |= dict(heads=2, mlp_width=16)
    values["init_from"] = dict(model="", backbone="", text_encoder="") | init
    return settings_lib.from_config(values)


def randoms(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {n: generator.standard_normal(s).astype(np.float32) for n, s in shapes.items()}


def fresh(settings: Settings, seed: int = 0) -> dict[str, np.ndarray]:
    """The model's paths and shapes with numbers that stand for initial ones."""
    _, params, statistics = flat.abstract(
        lambda: outputs.build(settings.model, settings.tasks, rngs=nnx.Rngs(0))
    )
    return randoms({name: x.shape for name, x in {**params, **statistics}.items()}, seed)


def bert_state() -> dict[str, np.ndarray]:
    """A BertModel's tensors, as Hugging Face names and shapes them."""
    square, norm = (WIDTH, WIDTH), (WIDTH,)
    shapes = {
        "embeddings.word_embeddings.weight": (VOCABULARY, WIDTH),
        "embeddings.position_embeddings.weight": (POSITIONS, WIDTH),
        "embeddings.token_type_embeddings.weight": (2, WIDTH),
        "embeddings.LayerNorm.weight": norm,
        "embeddings.LayerNorm.bias": norm,
    }
    for layer in range(LAYERS):
        for module, shape in {
            "attention.self.query": square,
            "attention.self.key": square,
            "attention.self.value": square,
            "attention.output.dense": square,
            "attention.output.LayerNorm": norm,
            "intermediate.dense": (HIDDEN, WIDTH),
            "output.dense": (WIDTH, HIDDEN),
            "output.LayerNorm": norm,
        }.items():
            shapes[f"encoder.layer.{layer}.{module}.weight"] = shape
            shapes[f"encoder.layer.{layer}.{module}.bias"] = shape[:1]
    return randoms(shapes | {"pooler.dense.weight": square, "pooler.dense.bias": norm})


def detr_state() -> dict[str, np.ndarray]:
    """A DETR's tensors: torchvision's ResNet names under `backbone.0.body`, then the rest."""
    shapes: dict[str, tuple[int, ...]] = {}

    def convolution(name: str, norm: str, outputs: int, inputs: int, size: int):
        shapes[f"{name}.weight"] = (outputs, inputs, size, size)
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{norm}.{part}"] = (outputs,)

    body = "backbone.0.body"
    convolution(f"{body}.conv1", f"{body}.bn1", CHANNELS, 3, 7)
    inputs = CHANNELS
    for stage, depth in enumerate((1, 2, 1, 1)):
        width = CHANNELS * 2**stage
        for block in range(depth):
            here = f"{body}.layer{stage + 1}.{block}"
            convolution(f"{here}.conv1", f"{here}.bn1", width, inputs, 1)
            convolution(f"{here}.conv2", f"{here}.bn2", width, width, 3)
            convolution(f"{here}.conv3", f"{here}.bn3", 4 * width, width, 1)
            if block == 0:
                convolution(f"{here}.downsample.0", f"{here}.downsample.1", 4 * width, inputs, 1)
            inputs = 4 * width
    return randoms(shapes | {"query_embed.weight": (100, 256), "class_embed.bias": (92,)})


def assert_same(actual, expected):
    assert sorted(actual) == sorted(expected)
    for name, array in expected.items():
        assert actual[name].dtype == array.dtype and actual[name].shape == array.shape, name
        assert actual[name].tobytes() == array.tobytes(), name


# ---- names and layouts


def test_bert_goes_in_and_out_to_the_bit():
    state = bert_state()
    arrays, ignored = bert.import_weights(state)
    assert not ignored
    assert_same(bert.export_weights(arrays), state)
    assert_same(bert.export_weights(arrays, "bert."), {f"bert.{n}": a for n, a in state.items()})
    np.testing.assert_array_equal(
        arrays["text_encoder.layers.1.feed_forward.linear1.kernel"],
        state["encoder.layer.1.intermediate.dense.weight"].T,
    )
    np.testing.assert_array_equal(
        arrays["text_encoder.layers.0.norm2.scale"],
        state["encoder.layer.0.output.LayerNorm.weight"],
    )


def test_bert_fills_exactly_the_models_bert():
    model = fresh(small_settings())
    arrays, _ = bert.import_weights(bert_state())
    own = ("task_embedding", "memory_projection", "position_projection")
    expected = {
        name: array.shape
        for name, array in model.items()
        if name.startswith("text_encoder.") and name.split(".")[1] not in own
    }
    assert {name: array.shape for name, array in arrays.items()} == expected


def test_bert_in_its_oldest_spelling():
    """As in the first bert-base-uncased file: prefix, gamma and beta, heads of pre-training."""
    state = bert_state()
    old = {
        "bert."
        + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): array
        for name, array in state.items()
    }
    heads = randoms({"cls.predictions.bias": (30,), "cls.seq_relationship.weight": (2, 8)})
    buffers = {"bert.embeddings.position_ids": np.arange(POSITIONS)[None]}
    arrays, ignored = bert.import_weights(old | heads | buffers)
    assert_same(arrays, bert.import_weights(state)[0])
    assert sorted(ignored) == sorted([*heads, *buffers])


def test_what_is_no_bert_or_two_is_refused():
    with pytest.raises(ValueError, match="not a BERT"):
        bert.import_weights(detr_state())
    state = bert_state()
    twice = {"embeddings.LayerNorm.gamma": state["embeddings.LayerNorm.weight"]}
    with pytest.raises(ValueError, match=r"two spellings: embeddings\.LayerNorm\.gamma"):
        bert.import_weights(state | twice)


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin", "other.pth"])
def test_bert_is_found_as_file_and_in_a_folder(tmp_path, file):
    save = torch_files.save_safetensors if "safe" in file else torch_files.save_pth
    save(tmp_path / file, bert_state())
    assert_same(bert.load(tmp_path / file), bert_state())
    if file == "other.pth":
        with pytest.raises(ValueError, match="neither model.safetensors nor pytorch_model.bin"):
            bert.load(tmp_path)
    else:
        assert_same(bert.load(str(tmp_path)), bert_state())


def test_bert_by_hub_name(tmp_path, monkeypatch):
    """A model that has only the older kind of file."""
    torch_files.save_pth(tmp_path / "pytorch_model.bin", bert_state())

    def download(name, file):
        if name != "org/bert":
            raise errors.LocalEntryNotFoundError("no connection")
        if not (tmp_path / file).exists():
            raise errors.RemoteEntryNotFoundError("404", response=mock.MagicMock())
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert_same(bert.load("org/bert"), bert_state())
    with pytest.raises(ValueError, match="org/none: no such file or folder here.*no connection"):
        bert.load("org/none")


def test_detr_goes_in_and_out_to_the_bit():
    state = detr_state()
    arrays, ignored = detr.import_weights(state)
    assert ignored == ["query_embed.weight", "class_embed.bias"]
    assert_same(
        detr.export_weights(arrays), {n: a for n, a in state.items() if n.startswith("backbone")}
    )
    model = fresh(small_settings())
    assert {name: array.shape for name, array in arrays.items()} == {
        name: array.shape for name, array in model.items() if name.startswith("backbone.")
    }
    np.testing.assert_array_equal(
        arrays["backbone.layer2.1.conv2.kernel"][2, 0],
        state["backbone.0.body.layer2.1.conv2.weight"][:, :, 2, 0].T,
    )
    np.testing.assert_array_equal(
        arrays["backbone.layer1.0.shortcut_bn.var"],
        state["backbone.0.body.layer1.0.downsample.1.running_var"],
    )
    with pytest.raises(ValueError, match="not a DETR"):
        detr.import_weights(bert_state())


# ---- what a run starts from


def test_starts_from_detr_and_bert(tmp_path):
    torch_files.save_pth(tmp_path / "detr.pth", detr_state())
    torch_files.save_pth(tmp_path / "bert.bin", bert_state())
    settings = small_settings(
        backbone=str(tmp_path / "detr.pth"), text_encoder=str(tmp_path / "bert.bin")
    )
    before = fresh(settings)
    after, reports = init_from.start_from(before, settings)
    expected = dict(before)
    expected |= detr.import_weights(detr_state())[0] | bert.import_weights(bert_state())[0]
    assert_same(after, expected)
    assert all(array.flags.c_contiguous for array in after.values())
    backbone, text = (str(report) for report in reports)
    assert "backbone from" in backbone and "query_embed.weight" in backbone
    assert "stayed fresh" not in backbone
    assert "stayed fresh: text_encoder.memory_projection.* (2)" not in text
    assert f"{len(bert_state())} arrays loaded" in text
    assert before["backbone.conv1.kernel"] is not after["backbone.conv1.kernel"]


def test_the_resnet_may_be_that_of_a_checkpoint_of_ours(tmp_path):
    """All of a model, or the ResNet alone as it comes with the package."""
    settings = small_settings()
    ours, before = fresh(settings, seed=3), fresh(settings)
    told = {"settings": {"model": {"backbone": {"bn_eps": settings.model.backbone.bn_eps}}}}
    resnet = {name: array for name, array in ours.items() if name.startswith("backbone.")}
    for name, arrays in (("whole", ours), ("resnet", resnet)):
        path = tmp_path / f"{name}.safetensors"
        torch_files.save_safetensors(path, arrays, {"unit_jax": json.dumps(told)})
        starting = small_settings(backbone=str(path))
        after, (report,) = init_from.start_from(before, starting)
        assert_same(after, {**before, **resnet})
        assert f"backbone from {path}: {len(resnet)} arrays loaded" in str(report)
        assert ("left aside in it: " in str(report)) == (name == "whole")
        with pytest.raises(ValueError, match=rf"{name}\.safetensors: its batch norms have epsilon"):
            init_from.backbone_from_detector(before, path, bn_eps=0.0)
    del resnet["backbone.conv1.kernel"]
    path = tmp_path / "part.safetensors"
    torch_files.save_safetensors(path, resnet, {"unit_jax": json.dumps(told)})
    with pytest.raises(ValueError, match=r"part\.safetensors does.*\n.*backbone\.conv1\.kernel"):
        init_from.backbone_from_detector(before, path)


def test_the_text_encoder_may_be_that_of_a_checkpoint_of_ours(tmp_path):
    """Whole, or the text encoder alone as it comes with the package; words go over by token."""
    settings = small_settings()
    ours, before = fresh(settings, seed=3), fresh(settings)
    part = {name: array for name, array in ours.items() if name.startswith("text_encoder.")}
    tokens = [f"word{number}" for number in range(VOCABULARY)]
    told = {
        "settings": {"tasks": {}, "model": {"backbone": {"bn_eps": 0.5}}},
        "data": {"vocabulary": "a"},
        "names": {"tasks": {}, "vocabulary": tokens},
    }
    facts = init_from.task_facts(settings)
    turned = transfer.Model(facts, "b", tuple(tokens[::-1]))
    for name, arrays in (("whole", ours), ("part", part)):
        path = tmp_path / f"{name}.safetensors"
        torch_files.save_safetensors(path, arrays, {"unit_jax": json.dumps(told)})
        starting = small_settings(text_encoder=str(path))
        after, (report,) = init_from.start_from(
            before, starting, transfer.Model(facts, "a", tuple(tokens))
        )
        assert_same(after, {**before, **part})
        assert str(report).startswith(f"text encoder from {path} (")
        assert set(report.loaded) == set(part) and not report.fresh
        assert ("left aside in it: " in str(report)) == (name == "whole")
        after, (report,) = init_from.start_from(before, starting, turned)
        words = "text_encoder.word_embedding"
        assert_same(after, {**before, **part, words: part[words][::-1]})
        assert report.partly == (words,) and "the vocabularies differ" in str(report)
    path = tmp_path / "resnet.safetensors"
    rest = {name: array for name, array in ours.items() if name not in part}
    torch_files.save_safetensors(path, rest, {"unit_jax": json.dumps(told)})
    with pytest.raises(ValueError, match=r"resnet\.safetensors: it has no text encoder"):
        init_from.text_encoder_from(before, path, turned)
    with pytest.raises(ValueError, match="the folder holds neither model.safetensors nor"):
        init_from.text_encoder_from(before, tmp_path, turned)


def test_the_demo_starts_from_the_parts_that_come_with_the_package():
    values = demo.values("vqa2")
    values["model"]["text_encoder"]["vocab_size"] = DEMO_VOCABULARY
    settings = settings_lib.from_config(values)
    before = fresh(settings)
    after, (resnet, texts) = init_from.start_from(before, settings)
    filled = {name for name in before if name.startswith("backbone.")}
    assert set(resnet.loaded) == filled and not resnet.ignored
    words = {name for name in before if name.startswith("text_encoder.")}
    assert set(texts.loaded) == words and not texts.ignored and not texts.note
    frozen = settings.optimizer.frozen
    assert all(name.startswith(tuple(f"{prefix}." for prefix in frozen)) for name in filled)
    # Trained: the statistics of its batch norms are not those of fresh ones.
    assert all(np.std(after[name]) > 1e-3 for name in filled if name.endswith(".var"))


def test_a_bert_without_pooler_leaves_it_fresh(tmp_path):
    state = {name: array for name, array in bert_state().items() if "pooler" not in name}
    torch_files.save_safetensors(tmp_path / "model.safetensors", state)
    before = fresh(small_settings())
    after, report = init_from.text_encoder_from_bert(before, tmp_path)
    assert sorted(report.fresh) == ["text_encoder.pooler.bias", "text_encoder.pooler.kernel"]
    np.testing.assert_array_equal(
        after["text_encoder.pooler.kernel"], before["text_encoder.pooler.kernel"]
    )


def test_half_precision_files_fill_float32_parameters(tmp_path):
    state = {name: array.astype(np.float16) for name, array in bert_state().items()}
    torch_files.save_pth(tmp_path / "half.pth", state)
    after, _ = init_from.text_encoder_from_bert(fresh(small_settings()), tmp_path / "half.pth")
    words = after["text_encoder.word_embedding"]
    assert words.dtype == np.float32
    np.testing.assert_array_equal(words, state["embeddings.word_embeddings.weight"])


def test_everything_that_does_not_fit_is_listed_at_once(tmp_path):
    state = bert_state()
    state["embeddings.word_embeddings.weight"] = np.zeros((7, WIDTH), np.float32)
    del state["encoder.layer.0.output.dense.bias"]
    state["encoder.layer.9.output.dense.bias"] = np.zeros(WIDTH, np.float32)
    torch_files.save_pth(tmp_path / "bert.bin", state)
    with pytest.raises(ValueError) as error:
        init_from.text_encoder_from_bert(fresh(small_settings()), tmp_path / "bert.bin")
    message = str(error.value)
    assert "bert.bin does not fit the text encoder" in message
    assert "missing: text_encoder.layers.0.feed_forward.linear2.bias" in message
    assert "unexpected: text_encoder.layers.9.feed_forward.linear2.bias" in message
    assert "text_encoder.word_embedding: shape (7, 8), the model has (30, 8)" in message


def from_checkpoint(settings, path, **options):
    model = transfer.Model(init_from.task_facts(settings))
    return init_from.model_from_checkpoint(fresh(settings), path, model, **options)


def single_task_file(tmp_path, own_decoder: bool):
    """A COCO UniT as MMF would have saved it, and its arrays by our paths."""
    arrays = fresh(small_settings(["coco"], shared=not own_decoder), seed=1)
    state = {f"module.{name}": array for name, array in mmf.export_state(arrays).items()}
    torch_files.save_pth(tmp_path / "unit.pth", state)
    return arrays, state


@pytest.mark.parametrize("own_decoder", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_starts_from_a_single_task_unit(tmp_path, own_decoder, shared):
    source, state = single_task_file(tmp_path, own_decoder)
    assert any(".decoders.detection.detection_coco." in name for name in state)
    settings = small_settings(shared=shared, model=str(tmp_path / "unit.pth"))
    before = fresh(settings)
    after, (report,) = init_from.start_from(before, settings)
    assert list(after) == list(before)
    theirs = "decoders.coco." if own_decoder else "decoder."
    ours = "decoder." if shared else "decoders.coco."
    for name, array in before.items():
        origin = name.replace(ours, theirs)
        expected = source[origin] if origin in source else array
        np.testing.assert_array_equal(after[name], expected, err_msg=name)
    loaded = {name.replace(ours, theirs) for name in report.loaded}
    assert loaded == set(source) and not report.ignored
    assert set(report.fresh) == set(before) - set(report.loaded)
    assert "heads.vqa2.* (6)" in str(report)
    assert "epsilon, 1e-05; the files of MMF's model zoo want --config" in str(report)


def test_a_unit_of_other_tasks_reports_what_it_left(tmp_path):
    arrays = fresh(small_settings(["vqa2", "qnli"]), seed=1)
    torch_files.save_pth(tmp_path / "unit.pth", {"model.x": np.ones(1)} | mmf.export_state(arrays))
    settings = small_settings(["coco", "qnli"])
    after, report = from_checkpoint(settings, tmp_path / "unit.pth")
    np.testing.assert_array_equal(after["queries.qnli"], arrays["queries.qnli"])
    assert "model.x" in report.ignored and "queries.vqa2" in report.ignored
    assert "queries.coco" in report.fresh


def test_a_unit_of_another_shape_is_an_error(tmp_path):
    settings = small_settings(["coco"])
    wide = dataclasses.replace(settings.model.decoder, width=16)
    model = dataclasses.replace(settings.model, decoder=wide)
    arrays = fresh(dataclasses.replace(settings, model=model))
    torch_files.save_pth(tmp_path / "unit.pth", mmf.export_state(arrays))
    with pytest.raises(
        ValueError, match=r"decoder\.norm\.scale: shape \(16,\), the model.*\(12,\)"
    ):
        from_checkpoint(settings, tmp_path / "unit.pth")
    torch_files.save_pth(tmp_path / "bert.pth", bert_state())
    with pytest.raises(ValueError, match="no parameter of it fits by name"):
        from_checkpoint(settings, tmp_path / "bert.pth")
    with pytest.raises(ValueError, match=r"bert\.pth: not a DETR checkpoint"):
        init_from.backbone_from_detector(fresh(settings), tmp_path / "bert.pth")
