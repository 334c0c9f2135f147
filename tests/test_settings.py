"""Settings: every mistake is found at the start, all of them at once."""

import dataclasses
import itertools

import pytest

from configs import demo, demo_start, unit
from tests import ROOT
from unit_jax import checks, fields, settings
from unit_jax.interop import weights
from unit_jax.runtime import checkpoints
from unit_jax.tools import show_settings


def problems_of(config: dict, **changes) -> str:
    """What `from_config` says of a config after changes by dotted key ("__" for a dot)."""
    for key, value in changes.items():
        *groups, last = key.split("__")
        node = config
        for group in groups:
            node = node[group]
        node[last] = value
    with pytest.raises(ValueError) as error:
        settings.from_config(config)
    return str(error.value)


def test_the_configs_and_their_variants_are_valid():
    paper = settings.from_config(unit.get_config())
    assert sum(paper.ratios.values()) == pytest.approx(1)
    assert list(paper.tasks) == [
        "coco", "visual_genome", "vqa2", "snli_ve", "qnli", "mnli", "qqp", "sst2"
    ]  # fmt: skip
    assert paper.model.decoder.shared
    single = settings.from_config(unit.get_config("coco,separate_decoders"))
    assert list(single.tasks) == ["coco"] and not single.model.decoder.shared


@pytest.mark.parametrize("config", [unit, demo])
def test_every_variant_of_every_config_does_what_it_says(config):
    for count in range(3):
        for chosen in itertools.combinations(["separate_decoders", "no_task_embedding"], count):
            made = settings.from_config(config.get_config(",".join([*chosen, "qqp", "coco"])))
            assert made.model.decoder.shared == ("separate_decoders" not in chosen)
            for encoder in (made.model.image_encoder, made.model.text_encoder):
                assert encoder.task_embedding == ("no_task_embedding" not in chosen)
            assert list(made.tasks) == ["coco", "qqp"]
    numbers = "decoder_layers=2,decoder_width=48,batch_size=4,all_bert_states,loss_on_all_layers"
    made = settings.from_config(config.get_config(numbers))
    assert (made.model.decoder.layers, made.model.decoder.width) == (2, 48)
    assert made.train.batch_size == 4 and made.model.classify_all_layers
    assert not any(spec.cls_only for spec in made.tasks.values())


def test_the_defaults_are_the_papers_values():
    paper = settings.from_config(unit.values())
    tasks = {name: dict(ratio=ratio) for name, ratio in paper.ratios.items()}
    made = settings.from_config(dict(tasks=tasks))
    figures = made.report.paper | paper.report.paper
    assert (
        dataclasses.replace(made, report=dataclasses.replace(made.report, paper=figures)) == paper
    )
    # SPEC.md sections 7 and 8.
    assert made.optimizer == settings.OptimizerSettings(
        "adam_w",
        5e-5,
        1e-5,
        0.9,
        0.999,
        1e-8,
        1e-4,
        0.1,
        2000,
        ("backbone.conv1", "backbone.layer1"),
    )
    assert (made.train.steps, made.train.batch_size) == (500_000, 64)
    assert made.model.text_encoder == settings.TextEncoderSettings(
        30522, 768, 12, 12, 3072, 512, True, 256, tied_fresh_keys=False
    )
    assert made.model.decoder == settings.DecoderSettings(768, 6, True)
    assert made.model.image_encoder == settings.ImageEncoderSettings(256, 6, True, True, 256)


def test_every_setting_says_what_it_does():
    for name, (_, field) in fields.leaves(settings.Settings).items():
        assert fields.about(field).text, name


def test_unknown_variant_is_named():
    with pytest.raises(ValueError, match="'separate'; did you mean separate_decoders?"):
        unit.get_config("separate")
    with pytest.raises(ValueError, match=r"'cocoo'; did you mean coco\? \(known: separate_"):
        demo.get_config("cocoo")


def test_all_mistakes_are_listed_with_their_place():
    told = problems_of(
        unit.values(),
        model__decoder__depth=6,
        train__steps="many",
        loss__matcher="auction",
        data__buckets=((800, 1088), (800,)),
        tasks__coco__queries=5,
        modle={},
        batch_size=3,
        optimizer=[],
    )
    for expected in (
        "config.model.decoder.depth: unknown key (known here: width, layers, shared)",
        "config.train.steps: expected int, got 'many'",
        "config.loss.matcher: 'auction' is not one of 'scipy', 'device'",
        "config.data.buckets[1]: expected 2 values, got (800,)",
        "config.tasks.coco",
        "config.modle: unknown key; did you mean model?",
        "config.batch_size: unknown key; did you mean config.train.batch_size?",
        "config.optimizer: expected a group of settings, got []",
    ):
        assert expected in told
    assert len(told.splitlines()) == 9


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("data__flip_probability", 5, "5 is out of range: at least 0 and at most 1"),
        ("optimizer__learning_rate", -1e-4, "-0.0001 is out of range: at least 0"),
        ("optimizer__learning_rate", float("nan"), "nan is out of range"),
        ("optimizer__clip_norm", 0.0, "0 is out of range: above 0"),
        ("optimizer__b1", 1.0, "1 is out of range: at least 0 and below 1"),
        ("model__decoder__layers", 0, "0 is out of range: at least 1"),
        ("model__decoder__shared", 1, "expected True or False, got 1"),
        ("model__dtype", "bf16", "did you mean bfloat16?"),
        ("model__heads", 7, "config.model.image_encoder.width: 256 does not split"),
        ("data__train_short_sides", (), "expected 1 or more values, got ()"),
        ("data__train_short_sides", (480, 0), "[1]: 0 is out of range: at least 1"),
        ("data__skip", ((5, 4),), "((5, 4),) are not (first, last) steps in rising order"),
        ("data__skip", ((5, 9), (9, 12)), "in rising order"),
        ("data__skip", ((0, 4),), "0 is out of range: at least 1"),
        ("data__crop_min", 700, "700 is more than config.data.crop_max = 600"),
        ("train__batch_size", 5.5, "expected int, got 5.5"),
        ("train__batch_size", True, "expected int, got True"),
        ("train__best_metric", "vqa/accuracy", "there is no task vqa; did you mean vqa2?"),
        ("train__best_metric", "accuracy", 'write "task/metric"'),
        ("report__papper", {}, "unknown key; did you mean paper?"),
        ("report__paper", {"coco/AP": "high"}, ".coco/AP: expected float, got 'high'"),
        ("tasks__coco__ratio", -1, "-1 is out of range: at least 0"),
        ("tasks__coco__index", "ten", "config.tasks.coco.index: expected int, got 'ten'"),
        ("tasks__coco__index", -1, "-1 is out of range: at least 0"),
        ("tasks__vqa2__num_queries", 5.5, "config.tasks.vqa2.num_queries: expected int, got 5.5"),
        (
            "tasks__coco__kind",
            "vison",
            "'vison' is not one of detection, vision_language, language",
        ),
        ("tasks__coco__kind", "vison", "did you mean vision_language?"),
        ("tasks__coco__inputs", ("image", "sound"), "[1]: 'sound' is not one of 'image', 'text'"),
        ("tasks__coco__inputs", (), "expected 1 or more values"),
        ("tasks__coco__inputs", ("image", "image"), "says one input twice"),
        ("tasks__coco__output", "object", "did you mean objects?"),
        ("tasks__qqp__max_tokens", 0, "0 is no length of a text"),
        ("tasks__qqp__f1", "yes", "config.tasks.qqp.f1: expected True or False, got 'yes'"),
        ("tasks__qqp__querys", 3, "unknown key (known here: cls_only, f1"),
        ("tasks__coko", {}, "must give kind (detection, vision_language, language, image), or"),
        ("tasks__coko", {}, "did you mean coco?"),
        ("tasks__my.own", {"kind": "image"}, "names of tasks are letters, digits, _ and -"),
    ],
)
def test_what_cannot_be_is_refused(key, value, expected):
    told = problems_of(unit.values(), **{key: value})
    assert (
        "\n" not in told.replace("config.model.decoder.width: 768 does not", "", 1) or "7" in told
    )
    assert expected in told and "\\" not in told


def test_tasks_do_not_share_a_row_of_the_embeddings():
    flowers = dict(kind="vision_language", index=3, num_queries=25, num_labels=7)
    config = unit.values("vqa2")
    told = problems_of(config, tasks__flowers=flowers)
    assert "config.tasks.flowers.index: vqa2 and flowers have the same row" in told
    assert "such as 2" in told
    told = problems_of(config, tasks__flowers=flowers | dict(index=256))
    assert "config.tasks.flowers.index: 256 is beyond the task embedding's 256 rows" in told
    settings.from_config(config | dict(tasks=dict(flowers=flowers | dict(index=255))))
    told = problems_of(config, tasks__flowers=flowers | dict(index=255, max_tokens=513))
    assert "max_tokens: 513 is more than config.model.text_encoder.max_positions = 512" in told


def test_a_task_of_ones_own():
    config = unit.values()
    config["tasks"] = {
        "flowers": dict(kind="vision_language", index=10, num_queries=25, num_labels=7, ratio=2)
    }
    found = settings.from_config(config)
    assert found.tasks["flowers"].num_labels == 7 and found.ratios == {"flowers": 2.0}
    config["tasks"] = {"flowers": dict(index=10)}
    with pytest.raises(ValueError, match="must give kind"):
        settings.from_config(config)
    config["tasks"] = {}
    with pytest.raises(ValueError, match="no task is selected"):
        settings.from_config(config)


def test_the_nearest_name():
    assert fields.nearest("bf16", ("float32", "bfloat16", "float16")) == "bfloat16"
    assert fields.nearest("vison", ("language", "vision_language", "vision")) == "vision"
    assert fields.nearest("Stepz", ("steps", "seed")) == "steps"
    assert fields.nearest("weather", ("steps", "seed")) is None


def test_the_page_of_settings_is_what_the_tool_prints():
    told = "run: unit-jax show-settings > docs/configuration.md"
    assert (ROOT / "docs" / "configuration.md").read_text() == show_settings.page(), told


def test_metadata_of_a_checkpoint_made_before_a_setting_existed_reads():
    made = settings.from_config(demo.values("coco,qqp"))
    saved = checkpoints.jsonable({"settings": dataclasses.asdict(made)})
    assert weights.settings_of(saved, "here") == (made.model, made.tasks, made.data)
    inner = saved["settings"]
    del inner["model"]["scan_layers"], inner["model"]["text_encoder"]["tied_fresh_keys"]
    del inner["data"]["truncate_objects"], inner["tasks"]["coco"]["num_attributes"]
    # Tasks had a kind before they had inputs and outputs.
    for name in ("inputs", "output", "metrics", "transforms", "submission"):
        del inner["tasks"]["qqp"][name]
    inner["tasks"]["qqp"].update(kind="language", soft_targets=False, f1=True)
    tied = dataclasses.replace(made.model.text_encoder, tied_fresh_keys=False)
    model = dataclasses.replace(made.model, text_encoder=tied)
    assert weights.settings_of(saved, "here") == (model, made.tasks, made.data)
    # Made by a later version, with what cannot be left out without a word.
    inner["model"]["colour"] = 3
    with pytest.raises(ValueError, match="model.colour: unknown key"):
        weights.settings_of(saved, "here")


def test_metrics_must_exist():
    def problems(config=None, **changes):
        made = settings.from_config(config or unit.values("coco,qqp"))
        train = dataclasses.replace(made.train, **changes)
        return checks.metric_problems(dataclasses.replace(made, train=train))

    assert problems() == problems(best_metric="coco/AP50") == problems(best_metric="qqp/f1") == []
    (told,) = problems(best_metric="coco/AP5")
    assert "config.train.best_metric: coco has no metric 'AP5'; did you mean AP50?" in told
    assert "did you mean accuracy" in problems(best_metric="qqp/acuracy")[0]
    config = unit.values("coco")
    config["tasks"]["coco"].update(metrics=("AP", "mAP"))
    assert "config.tasks.coco.metrics" in problems(config)[0]


def test_frozen_parameters_must_exist():
    def problem(*frozen):
        made = settings.OptimizerSettings(frozen=frozen)
        return checks.frozen(made, ["backbone.conv1.kernel", "queries.coco"])

    assert problem() is problem("backbone", "queries.coco") is problem("backbone.conv1.") is None
    assert problem("backbone.conv1.kernel") is None
    told = problem("backbone", "bacbone.conv1", "conv1")
    assert "config.optimizer.frozen: 'bacbone.conv1', 'conv1': no parameter" in told
    assert "did you mean backbone.conv1?" in told and "parts: backbone, queries" in told


def test_what_the_demo_starts_from_is_trained_in_five_stages():
    """By the config that `make demo-start` names, as the parts that the demo takes."""
    makefile = (ROOT / "Makefile").read_text()
    demo_model = settings.from_config(demo.values()).model
    for stage in demo_start.STAGES:
        made = settings.from_config(demo_start.values(stage))
        assert dataclasses.replace(made.model.backbone, calibrate=0) == demo_model.backbone
        assert made.model.text_encoder == demo_model.text_encoder
        made_before = {
            "shapes": {"model": "colors"},
            "textures": {"backbone": "shapes"},
            "texts": {"backbone": "shapes"},
            "pairs": {"backbone": "shapes", "text_encoder": "texts"},
        }.get(stage, {})
        for part in ("model", "backbone", "text_encoder"):
            folder = f"runs/demo-start/{made_before[part]}" if part in made_before else ""
            assert getattr(made.init_from, part) == folder
        assert made.optimizer.frozen == (("backbone",) if stage in ("texts", "pairs") else ())
        assert f"configs/demo_start.py:{stage} --workdir=$(DEMO)-start/{stage}" in makefile
    stages = "colors, shapes, textures, texts, pairs"
    with pytest.raises(ValueError, match=f"no stage 'sizes', only {stages}"):
        demo_start.values("sizes")
