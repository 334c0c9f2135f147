"""This library's numbers are the reference's; broken functions are found."""

import os
import pathlib
import types

import jax
import numpy as np
import pytest

from tests import REFERENCE_FILES
from unit_jax import tasks
from unit_jax.models import lean
from unit_jax.outputs.base import Flip
from unit_jax.outputs.objects import boxes, targets
from unit_jax.tools import check_parity
from unit_jax.tools.parity import cases, compute, model_files, report
from unit_jax.training import optimizer as optim

CASES = REFERENCE_FILES / "parity"
PROCESSING = CASES / "processing.npz"
GIVEN = sorted(pathlib.Path(os.environ.get("PARITY_DIR", "no folder given")).glob("*.npz"))


@pytest.mark.parametrize("name", ["processing", "no_task_embedding", "tiny_f64", "unpadded"])
def test_numbers_are_the_references(name, capsys):
    assert check_parity.main([str(CASES / f"{name}.npz")]) == 0, capsys.readouterr().out


@pytest.mark.slow
def test_trajectories_are_the_references(capsys):
    assert check_parity.main([str(CASES / "tiny_train.npz")]) == 0, capsys.readouterr().out


@pytest.mark.slow
def test_broken_schedule_is_found(monkeypatch, capsys):
    factor = optim.Optimizer.learning_rate_factor
    late = lambda optimizer, step: factor(optimizer, step + 1)  # noqa: E731
    monkeypatch.setattr(optim.Optimizer, "learning_rate_factor", late)
    found = failures(CASES / "tiny_train.npz", capsys)
    assert found >= {"train/lr", "train/move_norm"} and "train/adam_steps" not in found


@pytest.mark.parity_full
@pytest.mark.parametrize("path", GIVEN, ids=lambda path: path.stem)
def test_given_files(path, capsys):
    """`PARITY_DIR=folder pytest -m parity_full`."""
    assert check_parity.main([str(path)]) == 0, capsys.readouterr().out


def failures(path: pathlib.Path, capsys) -> set[str]:
    """The quantities that fail, of a file that must."""
    capsys.readouterr()
    assert check_parity.main([str(path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    return {line.split()[0] for line in lines if line.startswith("  ") and " FAIL" in line}


def test_broken_giou_is_found(monkeypatch, capsys):
    case = CASES / "variant_pre_norm.npz"
    assert check_parity.main([str(case)]) == 0, capsys.readouterr().out
    giou = boxes.generalized_box_iou
    monkeypatch.setattr(boxes, "generalized_box_iou", lambda a, b: giou(a, b) - 0.001 * a[..., 0])
    found = failures(case, capsys)
    assert {"loss/loss_giou", "loss_raw/loss_giou", "total"} <= found
    assert not {"out/pred_boxes", "loss/loss_bbox"} & found


def test_approximate_gelu_is_found(monkeypatch, capsys):
    gelu = jax.nn.gelu
    monkeypatch.setattr(jax.nn, "gelu", lambda x, approximate: gelu(x, approximate=True))
    found = failures(CASES / "no_task_embedding.npz", capsys)
    assert {"out/hidden_states", "out/scores"} <= found


@pytest.mark.parametrize(("module", "activation"), [(jax.nn, "gelu"), (lean, "relu_input")])
def test_wrong_gradient_is_found_whatever_sides_relus_take(module, activation, monkeypatch, capsys):
    right = getattr(module, activation)

    def learns_more(x, *args, **kwargs):
        return right(x, *args, **kwargs) + 0.01 * (x - jax.lax.stop_gradient(x))

    monkeypatch.setattr(module, activation, learns_more)
    found = failures(CASES / "no_task_embedding.npz", capsys)
    assert found == {"grad_norm", "grad_probe"}


def test_only_relus_that_float32_is_unsure_of_change_sides():
    def passed(x, sides):
        with compute.relus(sides) as taken:
            y = lean.relu(x)
        return y.sum(), (y, taken)

    x = np.float32([4, -1e-6, 1e-6, 0, 1e-6, -1e-3, 1e-3])
    sides = [np.array([True, True, False, True, True, True, False])]
    gradient = jax.jit(jax.grad(passed, has_aux=True))
    kept, (y, (taken,)) = gradient(x, None)
    np.testing.assert_array_equal(kept, x > 0)
    np.testing.assert_array_equal(taken, x > 0)
    moved, (z, (taken,)) = gradient(x, sides)
    np.testing.assert_array_equal(moved, [1, 1, 0, 1, 1, 0, 1])
    np.testing.assert_array_equal(taken, [1, 1, 0, 1, 1, 0, 1])
    np.testing.assert_allclose(z, y, atol=2e-6)


def test_broken_transform_is_found(monkeypatch, capsys):
    flip = targets.flip
    off_by_one = lambda objects, by: flip(objects, Flip(by.width - 1))  # noqa: E731
    monkeypatch.setitem(targets.MOVES, Flip, off_by_one)
    assert failures(PROCESSING, capsys) == {"processing/boxes"}


@pytest.mark.parametrize(
    ("recorded", "eps"),
    [
        ({}, 1e-5),
        ({"frozen_bn_eps": 0}, 0.0),
        ({"model_config": {"base_args": {"batchnorm_eps": 1e-3}}}, 1e-3),
        ({"frozen_batch_norm": {"eps": 0.0}}, 0.0),
        ({"bert_config": {"layer_norm_eps": 1e-12}, "optimizer": {"eps": 1e-8}}, 1e-5),
    ],
)
def test_epsilon_of_batch_norms_is_found_where_it_is_recorded(recorded, eps):
    assert cases.recorded_bn_eps(recorded) == eps


def test_a_case_may_leave_out_what_the_reference_has_defaults_for():
    """A COCO model whose heads list more data sets than it builds, with a backbone that rests."""
    meta = {
        "model_config": {
            "base_args": {
                "lr_backbone": 0,
                "encoder_hidden_dim": 16,
                "decoder_hidden_dim": 16,
                "num_queries": {"detection": {"detection_coco": 3}},
                "bert_config": {"vocab_size": 20, "hidden_size": 12, "num_hidden_layers": 1},
            },
            "heads": {
                "detection": {
                    "detection_coco": {"task_idx": 0, "num_classes": 5, "use_attr": False}
                },
                "vl": {"vqa2": {"task_idx": 3, "num_labels": 7}},
            },
        }
    }
    case = cases.build_case(meta, "float32")
    assert list(case.settings.tasks) == ["coco"]
    assert not case.model.decoder.shared and not case.model.backbone.dilation
    assert case.settings.optimizer.frozen == ("backbone",)
    assert "image_encoder.memory_projection.kernel" not in case.params
    assert "image_encoder.task_embedding" not in case.params

    meta["model_config"]["base_args"]["num_queries"]["vl"] = {"hateful_memes": 4}
    with pytest.raises(ValueError, match="hateful_memes is none of UniT's"):
        cases.build_case(meta, "float32")
    meta["model_config"]["base_args"]["pass_pos_and_query"] = False
    with pytest.raises(ValueError, match="needs pass_pos_and_query"):
        cases.build_case(meta, "float32")


def test_table_counts_what_is_off():
    table = report.Table("case", "float32")
    table.close("out/scores", [1.0, 2.0], [1.0, 2.0 + 5e-6])
    assert table.rows["out/scores"].ok and 0.4 < table.rows["out/scores"].ratio < 0.6
    table.close("out/scores", [1.0], [1.1], gap=0.02)  # ten times the reference's own gap
    assert table.rows["out/scores"].ok
    table.close("out/scores", [1.0], [1.1], gap=0.001)
    assert not table.rows["out/scores"].ok
    table.close("total", np.nan, 3.0)
    assert not table.rows["total"].ok
    table.close("total", 3.0, 3.0)
    assert not table.rows["total"].ok  # a later success hides nothing
    table.close("grad_zero", 1e-9, 0.0, scale=1.0)
    assert table.rows["grad_zero"].ok
    table.equal("match", [1, 2], [1, 3])
    assert not table.rows["match"].ok
    table.close("loss/loss_ce", [1.0], [1.0, 2.0])
    assert "shape" in table.rows["loss/loss_ce"].problem
    table.row("mid/pos")
    assert not table.rows["mid/pos"].ok  # nothing was compared
    double = report.Table("case", "float64")
    double.close("out/scores", [2.0], [2.0 + 1e-8])
    assert not double.rows["out/scores"].ok


@pytest.mark.parametrize(("objects", "agrees"), [(28, True), (29, False)])
def test_cardinality_errors_are_compared_as_counts(objects, agrees):
    """Of three images: 28/3 is another number in float32 than in float64, but 28 objects are 28."""
    recorded = {"coco/loss_raw/cardinality_error": np.array(objects / 3)}
    ours = np.mean(np.array([9, 9, 10], np.float32), dtype=np.float32)
    assert float(ours) != 28 / 3
    results = types.SimpleNamespace(
        raw={"cardinality_error": ours}, outputs=types.SimpleNamespace(logits=np.zeros((6, 3, 1)))
    )
    table = report.Table("case", "float32")
    truth = model_files.Truth(pathlib.Path("case.npz"), recorded, "float32")
    model_files.compare(
        table, tasks.PUBLISHED["coco"], "coco", recorded, truth, results, lambda: []
    )
    assert table.rows["loss_raw/cardinality_error"].ok == agrees


def test_files_that_cannot_be_checked_are_named_and_the_others_still_checked(tmp_path, capsys):
    np.savez(tmp_path / "other.npz", x=np.zeros(2))
    cut = PROCESSING.read_bytes()[:-1000]
    (tmp_path / "cut.npz").write_bytes(cut)
    files = [tmp_path / "other.npz", tmp_path / "cut.npz", tmp_path / "none.npz", PROCESSING]
    assert check_parity.main(list(map(str, files))) == 1
    printed = capsys.readouterr()
    assert "12 of 12 quantities agree" in printed.out
    first, second, third = printed.err.splitlines()
    assert first.endswith("other.npz: not a file of reference numbers that this tool knows")
    assert "cut.npz: damaged or not an .npz file" in second
    assert third.endswith("none.npz: no such file")
