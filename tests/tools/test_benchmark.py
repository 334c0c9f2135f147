"""The benchmark runs, its numbers are consistent, and its FLOPs are what XLA counts."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx

from tests import ROOT
from unit_jax import outputs
from unit_jax.models import flat
from unit_jax.models.unit import Unit
from unit_jax.tools import benchmark
from unit_jax.tools.speed import flops, steps
from unit_jax.tools.speed.ours import Ours

TINY = dict(
    heads=2,
    mlp_width=32,
    dropout=0.0,
    attention_dropout=0.0,
    **{
        "backbone.width": 4,
        "backbone.depths": (1, 1, 1, 1),
        "image_encoder.width": 16,
        "image_encoder.layers": 1,
        "text_encoder.vocab_size": 50,
        "text_encoder.width": 24,
        "text_encoder.layers": 1,
        "text_encoder.heads": 2,
        "text_encoder.mlp_width": 40,
        "decoder.width": 32,
        "decoder.layers": 1,
    },
)


def step_arguments(*others: str) -> list[str]:
    settings = [f"--set=model.{key}={value}" for key, value in TINY.items()]
    return ["--image=32x48", "--tokens=8", *settings, *others]


def arguments(*others: str) -> list[str]:
    return step_arguments("--blocks=1", "--steps=1", *others)


def prepared(*others: str):
    options = benchmark.parse(arguments(*others))
    settings = steps.load_settings(options)
    return settings, {
        task: steps.made_up_batch(spec, settings, options) for task, spec in settings.tasks.items()
    }


def test_a_run_is_consistent(tmp_path, capsys):
    path = tmp_path / "benchmark.json"
    benchmark.main(arguments("--tasks=coco,sst2", f"--json={path}", "--batch=8"))
    result = json.loads(path.read_text())
    rows = {row["task"]: row for row in result["rows"]}
    assert list(rows) == ["coco", "sst2", "mixture"]
    for row in rows.values():
        side = row["sides"]["ours"]
        assert side["ms_input"] > 0 and side["ms_device"] > 0.5 * side["ms"]
        assert side["examples_per_second"] == pytest.approx(8 / (side["ms"] / 1000))
        assert row["memory_bytes"] > 4 * result["parameters"]
    assert list(rows["coco"]["compile_seconds"]) == ["forward", "backward", "update"]
    assert list(rows["coco"]["ms_programs"]) == ["gradients", "update"]
    assert all(0 < took < 1e5 for took in rows["sst2"]["ms_programs"].values())
    assert rows["coco"]["sides"]["ours"]["ms_matching"] > 0
    assert rows["sst2"]["sides"]["ours"]["ms_matching"] == 0
    # The config's ratios of coco and sst2 are 0.20 and 0.05.
    for name in ("flops_formula", "flops_xla"):
        mean = 0.8 * rows["coco"][name] + 0.2 * rows["sst2"][name]
        assert rows["mixture"][name] == pytest.approx(mean)
    shown = capsys.readouterr().out
    assert f"{result['parameters']:,} parameters" in shown
    assert shown.count("| ours |") == 3


def test_flops_by_hand():
    """Two texts of 8 tokens and the task token, one layer of each transformer, 25 queries."""
    settings, batches = prepared("--tasks=sst2")
    tokens, width, queries, decoder = 9, 24, 25, 32
    attention = 4 * tokens * width * width + 2 * tokens * tokens * width
    text = attention + 2 * tokens * width * 40
    projection = 1 * width * decoder  # of [CLS], the only token that the decoder reads
    own = 4 * queries * decoder * decoder + 2 * queries * queries * decoder
    cross = 2 * (queries + 1) * decoder * decoder + 2 * queries * 1 * decoder
    feed_forward = 2 * queries * decoder * 32
    head = decoder * decoder + decoder * 2
    multiplications = text + projection + own + cross + feed_forward + head
    found = flops.model_flops(settings.tasks["sst2"], settings, batches["sst2"])
    assert found == 2 * 3 * 2 * multiplications


@pytest.mark.parametrize("task", ["coco", "vqa2"])
def test_flops_against_xla(task):
    """XLA also counts elementwise work, which is small beside wide layers only."""
    wide = ["backbone.width=16", "image_encoder.width=64", "text_encoder.width=96"]
    wide += ["decoder.width=128", "mlp_width=256", "text_encoder.mlp_width=256"]
    settings, batches = prepared(f"--tasks={task}", *(f"--set=model.{x}" for x in wide))

    def model() -> Unit:
        return outputs.build(settings.model, settings.tasks, rngs=nnx.Rngs(0))

    graph, params, rest = flat.abstract(model)

    @jax.jit
    def forward(params, rest, batch):
        return flat.merge(graph, params, rest)(batch)

    counted = forward.lower(params, rest, batches[task]).cost_analysis()["flops"]
    learned, frozen = flops.forward_flops(settings.tasks[task], settings, batches[task])
    assert frozen > 0
    assert learned + frozen == pytest.approx(counted, rel=0.15)


def test_batches_are_full_and_reproducible():
    _, batches = prepared("--tasks=visual_genome,vqa2", "--objects=3")
    _, again = prepared("--tasks=visual_genome,vqa2", "--objects=3")
    jax.tree.map(np.testing.assert_array_equal, batches, again)
    genome = batches["visual_genome"]
    assert genome.targets.object_mask.sum(-1).tolist() == [3, 3]
    assert ((genome.targets.attributes >= 0).sum(-1) == 2).all()
    assert genome.image_sizes.tolist() == [[32, 48]] * 2
    assert batches["vqa2"].token_mask.all()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("--set=model.no_such=1", "model.no_such"),
        ("--set=model.heads=many", "heads"),
        ("--objects=101", "room for 100"),
        ("--tasks=no_such", "no_such"),
    ],
)
def test_bad_options_are_told(given, told):
    with pytest.raises(SystemExit, match=told):
        prepared(given)


def test_tools_of_the_model_need_no_data_libraries():
    """Where there is only JAX: nothing that reads data or parses a run's flags is imported."""
    script = """
import sys
sys.modules.update(dict.fromkeys(["grain", "tensorflow_datasets", "ml_collections"]))
from unit_jax.tools import benchmark, compile_report, measure_masking
from unit_jax.tools import measure_matching, show_sharding
for options in ([], ["--tasks=coco", "--set=model.dropout=0"]):
    benchmark.steps.load_settings(benchmark.parse(options))
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


def test_losses_agree_with_pytorch():
    pytest.importorskip("torch")
    from unit_jax.tools.speed.torch_step import build

    settings, batches = prepared("--tasks=visual_genome,vqa2,sst2", "--batch=8")
    ours = Ours(settings)
    sides = dict(ours=ours, torch=build(settings, ours.mmf_weights()))
    assert sides["torch"].parameters == ours.parameters
    for batch in batches.values():
        benchmark.check_losses(sides, batch, benchmark.SAME_LOSS["float32"])
