"""Configs: every mistake is found at the start, all of them at once."""

import pytest

from configs import demo, unit
from unit_jax import settings


def test_the_configs_and_their_variants_are_valid():
    paper = settings.from_config(unit.get_config())
    assert sum(paper.ratios.values()) == pytest.approx(1)
    assert list(paper.tasks) == [
        "coco", "visual_genome", "vqa2", "snli_ve", "qnli", "mnli", "qqp", "sst2"
    ]  # fmt: skip
    assert paper.model.decoder.shared
    separate = settings.from_config(unit.get_config("separate_decoders,no_task_embedding"))
    assert not separate.model.decoder.shared and not separate.model.image_encoder.task_embedding
    settings.from_config(demo.get_config())
    single = settings.from_config(unit.get_config("coco,separate_decoders"))
    assert list(single.tasks) == ["coco"] and not single.model.decoder.shared


def test_a_file_is_read_with_changes(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("from configs.unit import get_config")
    for file in ("configs/unit.py", path):
        found = settings.read(f"{file}:coco", {"train.batch_size": 8, "mesh.fsdp": 2})
        assert list(found.tasks) == ["coco"]
        assert found.train.batch_size == 8 and found.mesh.fsdp == 2
        with pytest.raises(ValueError, match="mesh.pipeline: unknown key"):
            settings.read(str(file), {"mesh.pipeline": 2})
        with pytest.raises(ValueError, match="modle.dropout: .* no group of settings 'modle'"):
            settings.read(str(file), {"modle.dropout": 0.0})
    with pytest.raises(ValueError, match="none.py: no such file"):
        settings.read("none.py")


def test_unknown_variant_is_named():
    with pytest.raises(ValueError, match="unknown variant 'separate'; known: separate_decoders"):
        unit.get_config("separate")


def test_all_mistakes_are_listed_with_their_place():
    config = unit.values()
    config["model"]["decoder"]["depth"] = 6
    config["train"]["steps"] = "many"
    config["loss"]["matcher"] = "auction"
    del config["optimizer"]["eps"]
    config["data"]["buckets"] = ((800, 1088), (800,))
    config["tasks"]["coco"]["queries"] = 5
    with pytest.raises(ValueError) as error:
        settings.from_config(config)
    message = str(error.value)
    for expected in (
        "config.model.decoder.depth: unknown key; known here: width, layers, shared",
        "config.train.steps: expected int, got 'many'",
        "config.loss.matcher: 'auction' is not one of 'scipy', 'device'",
        "config.optimizer.eps: missing",
        "config.data.buckets[1]: expected 2 values, got (800,)",
        "config.tasks.coco: unknown key(s) queries",
    ):
        assert expected in message


def test_a_task_of_ones_own():
    config = unit.values()
    config["tasks"] = {
        "flowers": dict(kind="vision_language", index=10, num_queries=25, num_labels=7, ratio=2)
    }
    found = settings.from_config(config)
    assert found.tasks["flowers"].num_labels == 7 and found.ratios == {"flowers": 2.0}
    config["tasks"] = {"flowers": dict(index=10)}
    with pytest.raises(ValueError, match="must give kind, index, num_queries and num_labels"):
        settings.from_config(config)
    config["tasks"] = {}
    with pytest.raises(ValueError, match="no task is selected"):
        settings.from_config(config)
