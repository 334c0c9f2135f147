"""The conversion tool: PyTorch files in, checkpoints out, and back to the bit."""

import json
import os
import pathlib
import pickle
import re
import tarfile

import numpy as np
import pytest

from tests import official_files
from tests.interop.pickles import Call
from tests.interop.test_detr_bert import (
    assert_same,
    bert_state,
    detr_state,
    fresh,
    from_checkpoint,
    small_settings,
)
from unit_jax.data import prepare
from unit_jax.data.prepared import PreparedData
from unit_jax.interop import init_from, mmf, sources, torch_files
from unit_jax.runtime import checkpoints
from unit_jax.tools import convert_checkpoint as convert

CONFIG = """
import json, pathlib

def get_config(variants=None):
    config = json.loads(pathlib.Path(__file__).with_suffix(".json").read_text())
    if variants == "separate_decoders":
        config["model"]["decoder"]["shared"] = False
    return config
"""


@pytest.fixture
def config(tmp_path):
    """A config file of the small model."""
    settings = checkpoints.jsonable(convert.dataclasses.asdict(small_settings()))
    tasks, ratios = settings["tasks"], settings.pop("ratios")
    for name, task in tasks.items():
        del task["name"]
        task["ratio"] = ratios[name]
    (tmp_path / "small.json").write_text(json.dumps(settings))
    (tmp_path / "small.py").write_text(CONFIG)
    return str(tmp_path / "small.py")


def run(**options) -> int:
    return convert.main([f"--{name}={value}" for name, value in options.items()])


@pytest.mark.parametrize("suffix, variant", [(".pth", ""), (".safetensors", ":separate_decoders")])
def test_mmf_goes_in_and_out_to_the_bit(tmp_path, config, capsys, suffix, variant):
    state = mmf.export_state(fresh(small_settings(shared=not variant)))
    torch_files.save_pth(tmp_path / "unit.pth", state)
    folder, file = tmp_path / "run", tmp_path / f"back{suffix}"
    options = {"from": "mmf", "input": tmp_path / "unit.pth", "config": config + variant}
    assert run(**options, output=folder, bn_eps=0) == 0
    printed = capsys.readouterr().out
    assert "epsilon of the frozen batch norms: 0, saved with the settings" in printed
    assert f"--config.model.backbone.bn_eps=0 --mode=eval --checkpoint={folder}" in printed
    arrays, metadata = sources.read_checkpoint(folder)
    assert metadata["settings"]["model"]["backbone"]["bn_eps"] == 0
    assert_same(arrays, fresh(small_settings(shared=not variant)))
    assert run(to="mmf", input=folder, output=file) == 0
    assert_same(torch_files.load_state_dict(file), state)
    names = {"small.json", "small.py", "unit.pth", "run", f"back{suffix}"}
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == names


def test_one_task_of_a_joint_mmf_file(tmp_path, config, capsys):
    arrays = fresh(small_settings(["coco", "vqa2", "qnli", "sst2"]))
    torch_files.save_pth(tmp_path / "unit.pth", mmf.export_state(arrays))
    options = {"from": "mmf", "input": tmp_path / "unit.pth", "config": config}
    assert run(**options, output=tmp_path / "run") == 0
    assert "its tasks sst2 left aside" in capsys.readouterr().out
    found, _ = sources.read_checkpoint(tmp_path / "run")
    assert_same(found, {n: x for n, x in arrays.items() if ".sst2" not in n})


def test_detr_and_bert_fill_a_fresh_model(tmp_path, config, capsys):
    torch_files.save_pth(tmp_path / "detr.pth", {"x": np.ones(2, np.float32)} | detr_state())
    options = {"from": "detr", "input": tmp_path / "detr.pth", "config": config}
    assert run(**options, output=tmp_path / "run") == 0
    printed = capsys.readouterr().out
    assert "backbone from" in printed and "all else is fresh (seed 0)" in printed
    assert run(to="detr", input=tmp_path / "run", output=tmp_path / "back.pth") == 0
    body = {name: array for name, array in detr_state().items() if name.startswith("backbone.")}
    assert_same(torch_files.load_state_dict(tmp_path / "back.pth"), body)

    torch_files.save_safetensors(tmp_path / "model.safetensors", bert_state())
    options = {"from": "bert", "input": tmp_path, "config": config}
    assert run(**options, output=tmp_path / "text") == 0
    assert run(to="bert", input=tmp_path / "text", output=tmp_path / "back.safetensors") == 0
    assert_same(torch_files.load_state_dict(tmp_path / "back.safetensors"), bert_state())

    assert run(to="safetensors", input=tmp_path / "text", output=tmp_path / "o.safetensors") == 0
    ours, _ = sources.read_checkpoint(tmp_path / "text")
    assert_same(torch_files.load_state_dict(tmp_path / "o.safetensors"), ours)


def test_the_zoos_tar_of_a_wrapped_model_in_old_spelling(tmp_path, config, capsys):
    """As `unit_final.pth` of a run on several GPUs, packed with its configuration."""
    arrays = fresh(small_settings())
    state = {
        "module." + name.replace("unit_base_model.", "detr_model."): array
        for name, array in mmf.export_state(arrays).items()
    }
    torch_files.save_pth(tmp_path / "unit.pth", state)
    (tmp_path / "config.yaml").write_text("model: unit")
    with tarfile.open(tmp_path / "unit.tar.gz", "w:gz") as archive:
        for name in ("config.yaml", "unit.pth"):
            archive.add(tmp_path / name, f"unit/{name}")
    options = {"from": "mmf", "input": tmp_path / "unit.tar.gz", "config": config}
    assert run(**options, output=tmp_path / "run") == 0
    assert "want --bn_eps=0" in capsys.readouterr().out
    assert_same(sources.read_checkpoint(tmp_path / "run")[0], arrays)


@pytest.mark.parametrize("source", ["mmf", "detr", "bert"])
def test_hostile_and_damaged_files_are_refused_and_leave_nothing(tmp_path, config, capsys, source):
    whole, bad, output = tmp_path / "whole.pth", tmp_path / "bad.pth", tmp_path / "out" / "run"
    states = {"mmf": lambda: mmf.export_state(fresh(small_settings()))}
    states |= {"detr": detr_state, "bert": bert_state}
    state = states[source]()
    torch_files.save_pth(whole, state)
    content = whole.read_bytes()
    flipped = bytearray(content)
    flipped[content.index(max(state.values(), key=np.size).tobytes()) + 9] ^= 16  # in a weight
    mark = tmp_path / "executed"
    attack = pickle.dumps({"weight": Call(os.system, f"touch {mark}")}, 2)
    for damage, message in (
        (content[: len(content) // 3], r"bad\.pth: damaged or not a checkpoint"),
        (bytes(flipped), r"bad\.pth: damaged.*CRC"),
        (attack, r"bad\.pth: refused: the file asks for os\.system.*nothing was executed"),
    ):
        bad.write_bytes(damage)
        assert run(**{"from": source}, input=bad, config=config, output=output) == 1
        assert re.search(message, capsys.readouterr().err)
        assert not output.parent.exists() and not mark.exists()


def test_a_converted_checkpoint_is_something_to_start_from(tmp_path, config):
    arrays = fresh(small_settings(), seed=3)
    torch_files.save_pth(tmp_path / "unit.pth", mmf.export_state(arrays))
    options = {"from": "mmf", "input": tmp_path / "unit.pth", "config": config}
    assert run(**options, output=tmp_path / "run") == 0
    settings = small_settings(["coco", "sst2"], shared=False, model=str(tmp_path / "run"))
    after, (report,) = init_from.start_from(fresh(settings), settings)
    name = "decoders.coco.layers.1.self_attention.query.kernel"
    np.testing.assert_array_equal(after[name], arrays[name.replace("decoders.coco", "decoder")])
    assert "queries.sst2" in report.fresh and "queries.vqa2" in report.ignored
    with pytest.raises(ValueError, match=r"epsilon 1e-05, this config's 0; set --config\.model"):
        from_checkpoint(settings, tmp_path / "run", bn_eps=0.0)


def test_problems_are_told_and_leave_nothing(tmp_path, config, capsys):
    state = mmf.export_state(fresh(small_settings()))
    del state["bert_projection.bias"]
    state["input.x"] = np.ones(1, np.float32)
    state["classifiers.vl.vqa2.1.bias"] = np.ones(7, np.float32)
    torch_files.save_pth(tmp_path / "unit.pth", state)
    (tmp_path / "cut.pth").write_bytes((tmp_path / "unit.pth").read_bytes()[:-100])
    (tmp_path / "old").mkdir()
    before = sorted(path.name for path in tmp_path.iterdir())

    def error(**options) -> str:
        assert run(**options) == 1
        return capsys.readouterr().err

    source = {"from": "mmf", "input": tmp_path / "unit.pth"}
    target = {"config": config, "output": tmp_path / "out" / "run"}
    message = error(**source, **target)
    for part in (
        r"unit\.pth: ",
        "bert_projection.bias",
        "input.x",
        r"classifiers.vl.vqa2.1.bias.*\(7,\)",
    ):
        assert re.search(part, message), message
    assert "cut.pth: damaged" in error(**source | {"input": tmp_path / "cut.pth"}, **target)
    assert "no such file" in error(**source | {"input": tmp_path / "none"}, **target)
    assert "exists already" in error(**source, **target | {"output": tmp_path / "old"})
    assert "no such file" in error(**source, **target | {"config": "none.py"})
    assert "no checkpoint" in error(to="mmf", input=tmp_path / "old", output=tmp_path / "x.pth")
    assert "no checkpoint" in error(to="mmf", input=tmp_path / "cut.pth", output=tmp_path / "x.pth")
    assert "end in .pth or .safetensors" in error(to="mmf", input=tmp_path, output=tmp_path / "x")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__") == before


def test_counts_come_from_prepared_data(tmp_path, config):
    source = official_files.write_world(tmp_path / "official")
    data_dir = tmp_path / "data"
    prepare.prepare(source, data_dir, ["coco", "vqa2", "qnli"], official_files.settings())
    file = tmp_path / "small.json"
    values = json.loads(file.read_text())
    values["model"]["text_encoder"]["vocab_size"] = 0
    file.write_text(json.dumps(values | {"data": values["data"] | {"vocabulary": ""}}))
    with pytest.raises(ValueError, match=r"vocab_size is 0.*give --data_dir"):
        convert.load_settings(config, None, None)
    settings = convert.load_settings(config, None, str(data_dir))
    data = PreparedData(data_dir, ["vqa2"])
    assert settings.tasks["vqa2"].num_labels == data.num_labels("vqa2")
    vocabulary = pathlib.Path(data.vocabulary_path).read_text().splitlines()
    assert settings.model.text_encoder.vocab_size == len(vocabulary)


def test_a_failing_write_leaves_nothing(tmp_path, config, monkeypatch, capsys):
    torch_files.save_pth(tmp_path / "unit.pth", mmf.export_state(fresh(small_settings())))

    def full(self):
        raise OSError("no space left")

    monkeypatch.setattr(checkpoints.Checkpoints, "wait", full)
    options = {"from": "mmf", "input": tmp_path / "unit.pth", "config": config}
    assert run(**options, output=tmp_path / "out" / "run") == 1
    assert capsys.readouterr().err == "error: no space left\n"
    assert list((tmp_path / "out").iterdir()) == []
