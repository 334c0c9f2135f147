"""Config files: found, run, and changed by flags."""

import dataclasses

import ml_collections
import pytest

from configs import demo, unit
from unit_jax import config_files, settings, tasks


def test_a_file_is_read_with_changes(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("from unit_jax.configs.unit import get_config")
    for file in ("configs/unit.py", path):
        found = config_files.read(f"{file}:coco", {"train.batch_size": 8, "mesh.fsdp": 2})
        assert list(found.tasks) == ["coco"]
        assert found.train.batch_size == 8 and found.mesh.fsdp == 2
        with pytest.raises(ValueError, match="mesh.pipeline: unknown key"):
            config_files.read(str(file), {"mesh.pipeline": 2})
        with pytest.raises(ValueError, match="config.modle: unknown key; did you mean model"):
            config_files.read(str(file), {"modle.dropout": 0.0})


def test_what_flags_say_becomes_the_settings_type():
    found = config_files.read(
        "configs/demo.py",
        {
            "train.steps": "5",
            "optimizer.learning_rate": "1e-3",
            "optimizer.frozen": "backbone.conv1,queries",
            "data.train_short_sides": "(48, 56)",
            "data.crop_short_sides": "64",
            "data.vocabulary": "123",
            "model.pre_norm": "true",
            "tasks.qnli.cls_only": "False",
            "tasks.qnli.ratio": "2",
        },
    )
    assert found.train.steps == 5 and found.optimizer.learning_rate == 1e-3
    assert found.optimizer.frozen == ("backbone.conv1", "queries")
    assert found.data.train_short_sides == (48, 56) and found.data.crop_short_sides == (64,)
    assert found.data.vocabulary == "123" and found.model.pre_norm is True
    assert not found.tasks["qnli"].cls_only and found.tasks["mnli"].cls_only
    assert found.ratios["qnli"] == 2.0
    with pytest.raises(ValueError) as error:
        config_files.read("configs/demo.py:coco", {"tasks.cocoa.ratio": "1", "seed.x": "1"})
    assert "tasks.cocoa.ratio: write tasks.NAME.KEY" in str(error.value)
    assert "did you mean coco?" in str(error.value)
    assert "config.seed.x: config.seed is a value" in str(error.value)


def test_flags_are_taken_out_of_the_command_line():
    rest, changes = config_files.split_flags(
        ["main", "--config=f.py", "--config.a.b=1=2", "-config.c", "x", "--config.mesh.data", "-1",
         "--config.d", "--workdir=w", "--noconfig.e.f", "--config.g="]
    )  # fmt: skip
    assert rest == ["main", "--config=f.py", "--workdir=w"]
    assert changes == {
        "a.b": "1=2",
        "c": "x",
        "mesh.data": "-1",
        "d": "True",
        "e.f": "False",
        "g": "",
    }


def test_references_in_a_config_dict_follow_changes(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from unit_jax.configs import demo\n"
        "def get_config():\n"
        "    config = demo.get_config()\n"
        "    config.train.eval_every = config.train.get_ref('steps')\n"
        "    return config.lock()\n"
    )
    found = config_files.read(str(path), {"train.steps": "7", "tasks.coco.num_labels": "5"})
    assert found.train.eval_every == 7 and found.tasks["coco"].num_labels == 5


@pytest.mark.parametrize("config", [unit, demo])
def test_a_config_of_before_reads_and_one_that_leaves_out_takes_defaults(config):
    whole = config.values("coco,vqa2")
    expected = settings.from_config(whole)
    assert settings.from_config(ml_collections.ConfigDict(whole)) == expected
    # As configs were before `tied_fresh_keys` and `task_rows` of images existed.
    del whole["model"]["text_encoder"]["tied_fresh_keys"]
    del whole["model"]["image_encoder"]["task_rows"]
    before = settings.from_config(whole)
    tied = dataclasses.replace(expected.model.text_encoder, tied_fresh_keys=False)
    assert before == dataclasses.replace(
        expected, model=dataclasses.replace(expected.model, text_encoder=tied)
    )


def test_shipped_configs_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config_files.find("configs/unit.py").samefile(unit.__file__)
    assert config_files.find("demo.py").samefile(demo.__file__)
    for name in ("configs/demo.py:coco", f"{demo.__file__}:coco"):
        assert list(config_files.read(name).tasks) == ["coco"]
    (tmp_path / "configs").mkdir()
    own = tmp_path / "configs" / "unit.py"
    own.write_text("")
    assert config_files.find("configs/unit.py") == own
    assert config_files.find("configs/demo.py").samefile(demo.__file__)
    for name in ("configs/__init__.py", "other/unit.py"):
        with pytest.raises(
            ValueError, match=r"no such file.*shipped with unit_jax: configs/demo.py"
        ):
            config_files.find(name)
    with pytest.raises(ValueError, match="did you mean configs/demo.py?"):
        config_files.find("configs/dmeo.py")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def get_config(:", "mine.py, line 1: SyntaxError"),
        ("import nothing_like_it\n", "mine.py, line 1: ModuleNotFoundError"),
        ("def get_config():\n    return dict(tasks=1/0)", "mine.py, line 2: ZeroDivisionError"),
        ("def config(): ...", "it has no function get_config"),
        ("def get_config(): return 5", "get_config should return a nested dict"),
    ],
)
def test_a_file_that_fails_is_told_in_one_line(tmp_path, text, expected):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(ValueError) as error:
        config_files.read(str(path))
    assert expected in str(error.value) and "\n" not in str(error.value)
    assert str(path) in str(error.value)


ALL = tuple(tasks.PUBLISHED)
JOINT = {"coco": 20, "visual_genome": 7, "vqa2": 26, "snli_ve": 12, "qnli": 10, "mnli": 10,
         "qqp": 10, "sst2": 5}  # fmt: skip
PLAIN, SKIP = "adam_w", "adam_w_skip_zero_grad"
# The reference's configurations: argument, tasks, shared, optimizer, updates, parameters. One
# task's decoder is its own, shared or not.
ROWS = {
    1: ("coco", ("coco",), None, PLAIN, 150_000, 191_790_880),
    2: ("visual_genome", ("visual_genome",), None, PLAIN, 150_000, 194_092_695),
    3: ("vqa2", ("vqa2",), None, PLAIN, 150_000, 193_476_601),
    4: ("coco,vqa2", ("coco", "vqa2"), True, SKIP, 300_000, 194_808_409),
    5: ("coco,vqa2,separate_decoders", ("coco", "vqa2"), False, PLAIN, 300_000, 242_077_273),
    6: ("visual_genome,vqa2", ("visual_genome", "vqa2"), True, SKIP, 300_000, 197_110_224),
    7: ("visual_genome,vqa2,separate_decoders", ("visual_genome", "vqa2"), False, PLAIN, 300_000,
        244_379_088),
    8: ("coco,visual_genome,vqa2", ALL[:3], True, SKIP, 450_000, 198_442_032),
    9: ("coco,visual_genome,vqa2,separate_decoders", ALL[:3], False, PLAIN, 450_000, 292_979_760),
    10: ("", ALL, True, PLAIN, 500_000, 201_507_900),
    11: ("separate_decoders", ALL, False, PLAIN, 500_000, 532_389_948),
    12: ("coco,no_task_embedding", ("coco",), None, PLAIN, 150_000, 191_528_736),
    13: ("no_task_embedding", ALL, True, PLAIN, 500_000, 201_245_756),
}  # fmt: skip


@pytest.mark.parametrize("row", ROWS)
def test_the_references_configurations(row):
    argument, names, shared, optimizer, steps, _ = ROWS[row]
    made = settings.from_config(unit.get_config(argument))
    assert tuple(made.tasks) == names
    assert shared is None or made.model.decoder.shared == shared
    assert (made.optimizer.name, made.train.steps) == (optimizer, steps)
    expected = [JOINT[name] if names == ALL else 1 for name in names]
    assert list(made.ratios.values()) == pytest.approx(
        [ratio / sum(expected) * sum(made.ratios.values()) for ratio in expected]
    )
    embedding = row not in (12, 13)
    assert made.model.image_encoder.task_embedding == embedding
    assert made.model.text_encoder.task_embedding == embedding
    # Alike in all of them.
    assert made.optimizer == dataclasses.replace(settings.OptimizerSettings(), name=optimizer)
    assert (made.train.batch_size, made.model.backbone.dilation) == (64, True)
    assert (made.model.decoder.width, made.model.decoder.layers) == (768, 6)
    for name, spec in made.tasks.items():
        assert spec.num_queries == (100 if name in ALL[:2] else 25)


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS)
def test_the_references_parameter_counts(row):
    import jax
    from flax import nnx

    from unit_jax import outputs

    made = settings.from_config(unit.get_config(ROWS[row][0]))
    model = nnx.eval_shape(lambda: outputs.build(made.model, made.tasks, rngs=nnx.Rngs(0)))
    leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
    assert sum(leaf.size for leaf in leaves) == ROWS[row][-1]


def test_the_papers_ablations_are_variants():
    base = settings.from_config(unit.get_config("coco,snli_ve,mnli"))
    made = settings.from_config(
        unit.get_config(
            "coco,snli_ve,mnli,decoder_layers=8,decoder_width=256,batch_size=32,all_bert_states,"
            "loss_on_all_layers"
        )
    )
    assert made.model == dataclasses.replace(
        base.model,
        decoder=settings.DecoderSettings(256, 8, True),
        classify_all_layers=True,
    )
    assert made.train == dataclasses.replace(base.train, batch_size=32)
    assert not any(spec.cls_only for spec in made.tasks.values())
    for word in ("decoder_layers", "decoder_layers=x", "all_bert_states=1", "layers=3"):
        with pytest.raises(ValueError, match=f"unknown variant '{word}'"):
            unit.get_config(word)


def test_published_figures_are_those_of_the_variant():
    def figures(argument):
        return settings.from_config(unit.get_config(argument)).report.paper

    assert figures("")["coco/AP"] == 0.3899 and figures("no_task_embedding")["coco/AP"] == 0.3847
    assert figures("coco") == {"coco/AP": 0.4054}
    assert figures("coco,no_task_embedding") == {"coco/AP": 0.4015}
    assert figures("vqa2") == figures("separate_decoders") == figures("coco,vqa2") == {}
