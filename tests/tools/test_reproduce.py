"""Each row equals the reference's configuration, value by value; commands, report and picture."""

import dataclasses
import json
import math

import pytest
from etils import epath
from PIL import Image

from unit_jax import config_files
from unit_jax.runtime import checkpoints
from unit_jax.tools import reproduce
from unit_jax.tools.paper import measured
from unit_jax.tools.paper.rows import ROWS, find, with_needs

ALL = ("coco", "visual_genome", "vqa2", "snli_ve", "qnli", "mnli", "qqp", "sst2")
EIGHT = (0.20, 0.07, 0.26, 0.12, 0.10, 0.10, 0.10, 0.05)
PLAIN, SKIP = "adam_w", "adam_w_skip_zero_grad"
# As the reference's thirteen configuration files say: tasks, shared decoder (None: one task has
# one), task embedding, optimizer, updates, parameters.
CONFIGURATIONS = {
    1: (("coco",), None, True, PLAIN, 150_000, 191_790_880),
    2: (("visual_genome",), None, True, PLAIN, 150_000, 194_092_695),
    3: (("vqa2",), None, True, PLAIN, 150_000, 193_476_601),
    4: (("coco", "vqa2"), True, True, SKIP, 300_000, 194_808_409),
    5: (("coco", "vqa2"), False, True, PLAIN, 300_000, 242_077_273),
    6: (("visual_genome", "vqa2"), True, True, SKIP, 300_000, 197_110_224),
    7: (("visual_genome", "vqa2"), False, True, PLAIN, 300_000, 244_379_088),
    8: (("coco", "visual_genome", "vqa2"), True, True, SKIP, 450_000, 198_442_032),
    9: (("coco", "visual_genome", "vqa2"), False, True, PLAIN, 450_000, 292_979_760),
    10: (ALL, True, True, PLAIN, 500_000, 201_507_900),
    11: (ALL, False, True, PLAIN, 500_000, 532_389_948),
    12: (("coco",), None, False, PLAIN, 150_000, 191_528_736),
    13: (ALL, True, False, PLAIN, 500_000, 201_245_756),
}
# Alike in all of them.
COMMON = {
    "optimizer.learning_rate": 5e-5, "optimizer.backbone_learning_rate": 1e-5,
    "optimizer.b1": 0.9, "optimizer.b2": 0.999, "optimizer.eps": 1e-8,
    "optimizer.weight_decay": 1e-4, "optimizer.clip_norm": 0.1, "optimizer.warmup_steps": 2000,
    "train.batch_size": 64, "train.eval_every": 10_000, "train.checkpoint_every": 10_000,
    "train.max_to_keep": 5, "model.decoder.width": 768, "model.decoder.layers": 6,
    "model.image_encoder.width": 256, "model.image_encoder.layers": 6, "model.heads": 8,
    "model.mlp_width": 2048, "model.dropout": 0.1, "model.attention_dropout": 0.1,
    "model.pre_norm": False, "model.classify_all_layers": False,
    "model.backbone.dilation": True, "model.backbone.depths": (3, 4, 6, 3),
    "loss.no_object_weight": 0.1, "loss.normalisation": "per_image", "loss.balanced": False,
}  # fmt: skip


def read(argument: str):
    return config_files.read(f"configs/unit.py{':' if argument else ''}{argument}")


def value(settings, key: str):
    for part in key.split("."):
        settings = getattr(settings, part)
    return settings


@pytest.mark.parametrize("number", CONFIGURATIONS)
def test_a_row_equals_the_references_configuration(number):
    tasks, shared, embedding, optimizer, steps, parameters = CONFIGURATIONS[number]
    (row,) = (row for row in ROWS.values() if row.configuration == number)
    settings = read(row.argument)
    assert tuple(settings.tasks) == row.tasks == tasks
    assert settings.train.steps == row.steps == steps
    assert settings.optimizer.name == row.optimizer == optimizer
    assert shared is None or settings.model.decoder.shared == shared
    assert settings.model.image_encoder.task_embedding == embedding
    assert settings.model.text_encoder.task_embedding == embedding
    assert row.parameters == parameters
    ratios = EIGHT if tasks == ALL else (1,) * len(tasks)
    total = math.fsum(settings.ratios.values())
    for task, ratio in zip(tasks, ratios, strict=True):
        assert settings.ratios[task] / total == pytest.approx(ratio / sum(ratios))
        detection = task in ("coco", "visual_genome")
        spec = settings.tasks[task]
        assert spec.num_queries == (100 if detection else 25)
        assert spec.cls_only or task in ("coco", "visual_genome", "vqa2")
    assert {key: value(settings, key) for key in COMMON} == COMMON
    assert settings.init_from.model == "" and "r50-dc5" in settings.init_from.backbone


def test_every_row_says_what_its_config_does():
    for row in ROWS.values():
        settings = read(row.argument)
        facts = (tuple(settings.tasks), settings.train.steps, settings.optimizer.name)
        assert facts == (row.tasks, row.steps, row.optimizer), row.name
        for figures in (row.reference, row.paper):
            assert set(figures) <= set(row.tasks)
        assert not row.needs or find(row.needs).tasks
        config_files.read(f"configs/demo.py:{row.demo_argument}", row.demo)


def test_the_references_figures_stand_beside_the_variant_that_they_belong_to():
    """As the table of all rows has them; none beside other variants or the demo's data."""
    for row in ROWS.values():
        if row.configuration in (1, 12):
            expected = row.reference
        elif row.configuration in (10, 13):  # the released models have COCO init
            expected = ROWS[f"{row.name}_coco_init"].reference
        elif row.needs or row.reference:
            continue
        else:
            expected = {}
        shown = read(row.argument).report.paper
        assert {name.split("/")[0]: 100 * v for name, v in shown.items()} == pytest.approx(expected)
        assert config_files.read(f"configs/demo.py:{row.demo_argument}").report.paper == {}
    assert read("decoder_layers=8").report.paper == {}


@pytest.mark.parametrize(
    "name, key, changed",
    [
        ("8_decoder_layers", "model.decoder.layers", 8),
        ("12_decoder_layers", "model.decoder.layers", 12),
        ("decoder_width_256", "model.decoder.width", 256),
        ("loss_on_all_layers", "model.classify_all_layers", True),
        ("batch_size_32", "train.batch_size", 32),
    ],
)
def test_an_ablation_changes_one_setting(name, key, changed):
    settings = read(ROWS[f"ablation_{name}"].argument)
    assert value(settings, key) == changed
    assert {k: value(settings, k) for k in COMMON if k != key} == {
        k: v for k, v in COMMON.items() if k != key
    }


def test_all_bert_states_are_read_by_the_tasks_with_text():
    settings = read(ROWS["ablation_all_bert_states"].argument)
    assert [spec.cls_only for spec in settings.tasks.values() if spec.has_text] == [False, False]


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_the_model_of_a_row_has_so_many_parameters(name):
    from flax import nnx

    from unit_jax import outputs
    from unit_jax.models import flat

    settings = read(ROWS[name].argument)
    _, params, _ = flat.abstract(
        lambda: outputs.build(settings.model, settings.tasks, rngs=nnx.Rngs(0))
    )
    assert sum(math.prod(leaf.shape) for leaf in params.values()) == ROWS[name].parameters


def test_what_a_row_starts_from_is_run_before(capsys):
    assert [row.name for row in with_needs(["finetuned_vqa2", "coco"])] == [
        "coco", "all_8_shared_coco_init", "finetuned_vqa2"
    ]  # fmt: skip
    words = ["--row", "all_8_shared_coco_init", "--runs", "R", "--dry_run"]
    assert reproduce.main([*words, "--config.train.batch_size=32"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert "--config=configs/unit.py:coco " in first and "init_from" not in first
    assert "--config.init_from.model=R/coco" in second and "--workdir=R/all_8_shared_" in second
    assert first.endswith("--config.train.batch_size=32")


def test_the_demo_is_the_papers_table_and_all_is_everything(capsys):
    assert reproduce.main(["--demo", "--dry_run"]) == 0
    named = [line.split(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert len(named) == len(set(named)) == 20
    assert {*ALL, "all_8_separate", "all_8_shared", "finetuned_sst2"} < set(named)
    assert (
        named.index("coco") < named.index("all_8_shared_coco_init") < named.index("finetuned_qqp")
    )
    assert reproduce.main(["--row", "all", "--dry_run"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(ROWS)


@pytest.mark.parametrize(
    "words, told",
    [(["--row", "coca"], "no row 'coca'"), (["--row", "coco", "--wrong=1"], "--wrong=1: unknown")],
)
def test_a_mistake_is_one_line(words, told, capsys):
    assert reproduce.main(words) == 1
    error = capsys.readouterr().err
    assert told in error and len(error.splitlines()) == 1


def test_the_list_names_every_row_and_marks_figures_from_memory(capsys):
    assert reproduce.main(["--list"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ROWS)
    assert "mem: the paper's, from memory" in shown


def write_report(runs, name: str, **values: float) -> None:
    folder = runs / name
    folder.mkdir(parents=True)
    rows = [
        dict(task=task, metric=measured.HEADLINES[task], value=number, baseline=0, paper=None)
        for task, number in values.items()
    ]
    rows.insert(1, dict(task="coco", metric="AP50", value=0.99, baseline=0, paper=None))
    (folder / "report.json").write_text(json.dumps(rows))


def test_a_run_of_any_name_is_known_by_its_settings(tmp_path):
    for name, argument, changes in (
        ("mine", "separate_decoders", {}),
        ("tuned", "vqa2", {"init_from.model": "somewhere"}),
        ("longer", "vqa2", {"train.steps": 150_001}),
        ("alone", "coco,separate_decoders", {"model.dropout": 0.0}),
        ("twice", "coco", {}),
    ):
        write_report(tmp_path, name, coco=0.5)
        config = f"configs/unit.py:{argument}"
        settings = dataclasses.asdict(config_files.read(config, changes))
        metadata = tmp_path / name / "checkpoints" / "9" / "metadata"
        metadata.mkdir(parents=True)
        (metadata.parent / "_CHECKPOINT_METADATA").write_text("{}")
        content = {"settings": checkpoints.jsonable(settings)}
        (metadata / "metadata").write_text(json.dumps(content))
    write_report(tmp_path, "empty", coco=0.5)
    found, unknown = measured.collect(epath.Path(tmp_path))
    assert [run.row.name for run in found] == ["coco", "all_8_separate", "finetuned_vqa2"]
    assert sorted(unknown) == ["empty", "longer", "twice"]


def test_the_report_prints_measured_beside_published(tmp_path, capsys):
    write_report(tmp_path, "coco", coco=0.4012)
    write_report(tmp_path, "all_8_shared_coco_init", coco=0.3877, vqa2=0.6701)
    write_report(tmp_path, "mine", coco=0.1)
    assert reproduce.main(["--report", str(tmp_path)]) == 0
    assert "mine: left out" in capsys.readouterr().out
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert lines[2].startswith("| coco | measured | 40.12 | –")
    assert lines[3].startswith("| coco | reference | 40.54 |")
    assert lines[5].startswith("| all_8_shared_coco_init | measured | 38.77 | – | 67.01 |")
    assert lines[7].startswith("| all_8_shared_coco_init | paper, from memory | 39.00 | 3.29 |")
    with Image.open(tmp_path / "table.png") as picture:
        assert picture.width > 1000
    assert reproduce.report(epath.Path(tmp_path), demo=True) == 0
    assert "reference" not in (tmp_path / "table.md").read_text()
    assert reproduce.main(["--report", str(tmp_path / "nowhere")]) == 1
