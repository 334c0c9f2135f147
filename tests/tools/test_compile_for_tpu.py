"""Reading optimised HLO, and the tool that compiles for a TPU that is not there."""

import argparse
import importlib.util
import json

import pytest

from unit_jax import config_files
from unit_jax.tools import compile_for_tpu
from unit_jax.tools.tpu import chips, hlo

PROGRAM = """\
HloModule jit_step, is_scheduled=true, num_partitions=8

%scaled (param_0.1: f32[6,128], param_1.1: s32[]) -> f32[1,128] {
  %param_0.1 = f32[6,128]{1,0:T(8,128)} parameter(0)
  %param_1.1 = s32[]{:T(128)S(6)} parameter(1)
  %zero.1 = s32[]{:T(128)} constant(0)
  %slice.1 = f32[1,128]{1,0} dynamic-slice(%param_0.1, %param_1.1, %zero.1), \
dynamic_slice_sizes={1,128}
  ROOT %mul.1 = f32[1,128]{1,0} multiply(%slice.1, %slice.1)
}

%sum (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %add = f32[] add(%x, %y)
}

%body (arg: (s32[], f32[6,128], f32[128,256])) -> (s32[], f32[6,128], f32[128,256]) {
  %arg = (s32[]{:T(128)}, f32[6,128]{1,0:T(8,128)}, f32[128,256]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%arg), index=0
  %rows = f32[6,128]{1,0:T(8,128)} get-tuple-element(%arg), index=1
  %w = f32[128,256]{1,0:T(8,128)} get-tuple-element(%arg), index=2
  %row = f32[1,128]{1,0:T(8,128)S(1)} fusion(%rows, %i), kind=kLoop, calls=%scaled, \
backend_config={"window_config":{"estimated_cycles":"100"}}
  %y = f32[1,256]{1,0:T(8,128)} convolution(%row, %w), dim_labels=bf_io->bf, \
backend_config={"window_config":{"estimated_cycles":"1000"}}
  %all-reduce.1 = (f32[1,256]{1,0}, bf16[10]{0}) all-reduce(%y, %y), channel_id=1, to_apply=%sum
  %one = s32[] constant(1)
  %next = s32[]{:T(128)} add(%i, %one)
  ROOT %out = (s32[], f32[6,128]{1,0}, f32[128,256]{1,0}) tuple(%next, %rows, %w)
}

%until (arg.2: (s32[], f32[6,128], f32[128,256])) -> pred[] {
  %arg.2 = (s32[]{:T(128)}, f32[6,128]{1,0:T(8,128)}, f32[128,256]{1,0}) parameter(0)
  %j = s32[]{:T(128)} get-tuple-element(%arg.2), index=0
  %limit = s32[]{:T(128)} constant(6)
  ROOT %lt = pred[]{:T(512)} compare(%j, %limit), direction=LT
}

ENTRY %main (p0: f32[6,128], p1: f32[128,256]) -> f32[128,256] {
  %p0 = f32[6,128]{1,0:T(8,128)} parameter(0), metadata={op_name="state.params[\\'a\\']"}
  %p1 = f32[128,256]{1,0:T(8,128)} parameter(1), metadata={op_name="batch"}
  %start = s32[] constant(0)
  %copy-start = (f32[128,256]{1,0:S(1)}, f32[128,256]{1,0}, u32[]{:S(2)}) copy-start(%p1)
  %copy-done = f32[128,256]{1,0:S(1)} copy-done(%copy-start)
  %ag-start = (f32[6,128]{1,0}, f32[48,128]{1,0}) all-gather-start(%p0), channel_id=2, \
dimensions={0}
  %ag-done = f32[48,128]{1,0} all-gather-done(%ag-start)
  %init = (s32[], f32[6,128]{1,0}, f32[128,256]{1,0}) tuple(%start, %p0, %p1)
  %loop = (s32[], f32[6,128]{1,0}, f32[128,256]{1,0}) while(%init), condition=%until, body=%body
  ROOT %result = f32[128,256]{1,0} get-tuple-element(%loop), index=2
}
"""


@pytest.fixture(scope="module")
def program() -> hlo.Module:
    return hlo.Module(PROGRAM)


def test_a_loops_body_counts_as_often_as_it_runs(program):
    assert program.cycles() == 6 * 1100
    assert program.unknown_loops() == 0
    assert program.flops_in_loops() == 5 * 2 * 128 * 256  # its first run is XLA's to count


def test_trips_that_xla_tells_or_nobody_knows():
    told = '), condition=%until, body=%body, backend_config={"known_trip_count":{"n":"3"}}'
    text = PROGRAM.replace("), condition=%until, body=%body", told)
    assert hlo.Module(text).cycles() == 3 * 1100
    module = hlo.Module(PROGRAM.replace("direction=LT", "direction=NE"))
    assert (module.unknown_loops(), module.cycles()) == (1, 1100)


def test_collectives_by_kind_in_tuples_and_in_two_halves(program):
    assert program.collectives() == {
        "all-gather": {"count": 1, "bytes": 48 * 128 * 4},
        "all-reduce": {"count": 6, "bytes": 6 * (256 * 4 + 10 * 2)},
    }


def test_bytes_are_those_of_main_memory_and_of_the_parts_that_are_read(program):
    # The slice that the fusion reads (its result stays in fast memory), the product's operand and
    # result, both operands and the results of the sum; four numbers of the loop's counter.
    turn = 128 * 4 + (128 * 256 + 256) * 4 + (2 * 256 * 4 + 256 * 4 + 20) + 16
    copied, gathered = 128 * 256 * 4, (6 * 128 + 48 * 128) * 4
    assert program.bytes_moved() == copied + gathered + 6 * turn


def test_a_computation_may_name_its_core_behind_its_last_brace():
    text = PROGRAM.replace("}\n\n%sum", '}, execution_thread="sparsecore"\n\n%sum', 1)
    assert list(hlo.Module(text).computations) == list(hlo.Module(PROGRAM).computations)


def _fails_after_a_row(row):
    yield row
    raise RuntimeError("a fault of our own")


def test_a_fault_of_our_own_is_not_called_a_crash_of_the_compiler():
    rows = compile_for_tpu._in_a_process(_fails_after_a_row, {"task": "qnli"})
    assert next(rows) == {"task": "qnli"}
    with pytest.raises(RuntimeError, match="of our own"):
        next(rows)


def test_flops_of_convolutions_leave_out_padding():
    text = """\
ENTRY %main (p0: bf16[2,8,8,16], p1: bf16[3,3,16,32]) -> bf16[2,8,8,32] {
  %p0 = bf16[2,8,8,16]{3,2,1,0} parameter(0)
  %p1 = bf16[3,3,16,32]{3,2,1,0} parameter(1)
  ROOT %c = bf16[2,8,8,32]{3,2,1,0} convolution(%p0, %p1), \
window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f
}
"""
    computation = hlo.Module(text).computations["main"]
    pairs = 3 * 8 - 2  # of output row and kernel row that fall on the image
    assert hlo.product_flops(computation, computation["c"]) == 2 * 2 * 32 * 16 * pairs**2


def row(program: str, **values) -> dict:
    return (
        dict(
            dict(task="coco", program=program, bucket=[8, 8], examples_per_chip=2, hbm_bytes=100),
            **dict(bytes_accessed=1.0, bytes_accessed_xla=2.0, flops=3.0, roofline_ms=4.0),
            **dict(cycles_ms=5.0, peak_bytes=60, fixed_bytes=20, fits=True),
        )
        | values
    )


def test_the_most_examples_and_what_holds_the_next():
    rows = [row("forward"), row("backward", peak_bytes=80), row("update", peak_bytes=99)]
    assert compile_for_tpu.limits(rows)["coco"] == dict(most=2, holds="backward", each=30)


def test_the_code_of_all_shapes_counts_updates_once():
    settings = config_files.read(
        "configs/unit.py", {"data.text_buckets": (16, 32), "data.buckets": ((8, 8), (8, 16))}
    )
    rows = [row(name, code_bytes=1.0) for name in ("forward", "backward", "update", "predict")]
    for task in ("qnli", "mnli"):
        rows += [row(name, task=task, code_bytes=1.0) for name in ("gradients", "update")]
    # Three programs at two shapes and an update; one at three lengths, twice, and an update.
    assert compile_for_tpu.code_of_run(rows, settings) == 3 * 2 + 1 + 2 * 3 + 1


def test_the_mixture_is_weighted_by_ratios():
    rows = [row("forward"), row("backward"), row("update"), row("predict")]
    rows += [
        row("gradients", task="qnli", cycles_ms=1.0),
        row("update", task="qnli", cycles_ms=1.0),
    ]

    class Mix:
        ratios = {"coco": 1.0, "qnli": 3.0}

    assert compile_for_tpu.mixture(rows, Mix)["cycles_ms"] == (1 * 15 + 3 * 2) / 4
    rows[0]["error"] = "no"
    assert compile_for_tpu.mixture(rows, Mix) is None


def test_without_the_compiler_one_line_says_how_to_install_it(monkeypatch, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "libtpu" else found(name, *a)
    )
    assert compile_for_tpu.main(["--topology", "v5e:2x4"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "pip install 'unit-jax[tpu]'" in told


def test_a_chip_that_is_not_in_the_table():
    with pytest.raises(ValueError, match="--topology v9:2x2: write CHIP:SHAPE"):
        chips.chip_of("v9:2x2")


@pytest.mark.parametrize(
    ("estimated", "fitting", "tried"),
    [(3, 5, [3, 4, 5, 6]), (7, 5, [7, 6, 5]), (5, 5, [5, 6]), (2, 0, [2, 1])],
)
def test_search_ends_where_the_next_does_not_fit(monkeypatch, estimated, fitting, tried):
    compiled = []

    def compile_all(options, settings, show=False):
        compiled.append(options.images_per_chip)
        fits = options.images_per_chip <= fitting
        return [
            dict(program="forward", fits=True),
            dict(program="backward", fits=fits),
            dict(program="predict", fits=False),  # predictions choose their own batch
        ]

    monkeypatch.setattr(compile_for_tpu, "slice_size", lambda options: 8)
    monkeypatch.setattr(compile_for_tpu, "read_settings", lambda options, devices: None)
    monkeypatch.setattr(compile_for_tpu, "compile_all", compile_all)
    limit = dict(coco=dict(most=estimated, holds="forward", each=1.0))
    found = compile_for_tpu.search(argparse.Namespace(tasks="coco,qnli", programs=""), limit)
    assert compiled == tried
    expected = dict(most=fitting, holds="backward", each=1.0, compiled=True)
    assert found == {"coco": expected}


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_a_program_for_eight_chips(tmp_path):
    """The demo's detection, in bfloat16: what crosses between its two programs is split."""
    report = tmp_path / "report.json"
    options = "--config configs/demo.py --topology v5e:2x4 --tasks coco --images_per_chip 1"
    code = compile_for_tpu.main(
        [*options.split(), "--set", "model.dtype=bfloat16", "--json", str(report)]
    )
    rows = json.loads(report.read_text())["programs"]
    assert code == 0
    assert [one["program"] for one in rows] == ["forward", "backward", "update", "predict"]
    assert all(one["fits"] and one["cycles_ms"] > 0 and one["flops"] > 0 for one in rows)
    assert "all-gather" in rows[2]["collectives"]  # each chip updates its share of the parameters
