"""Compiles a run's programs for a TPU slice that need not be there, and measures each."""

import dataclasses
import importlib.util
import math
import os
import re
import time
from collections.abc import Collection, Iterator
from typing import Any

# The compiler looks for chips and for the slice's neighbours; here there are none.
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")  # only silences a warning
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh

from unit_jax.data.shapes import batch_shapes, input_shapes
from unit_jax.evaluation.step import PredictStep
from unit_jax.runtime import partitioning
from unit_jax.settings import Settings
from unit_jax.tasks import TaskSpec
from unit_jax.tools.tpu.chips import Chip
from unit_jax.tools.tpu.hlo import Module
from unit_jax.training import optimizer as optim
from unit_jax.training.state import abstract_run
from unit_jax.training.step import TrainStep, has_gradient

INSTALL = (
    "no TPU compiler here; install it (it needs no TPU): pip install 'unit-jax[tpu]', or "
    "pip install 'jax[tpu]'"
)


def slice_devices(topology: str, chip: Chip) -> list[jax.Device]:
    """The devices of a slice such as "v5e:2x4", one a chip.

    Raises:
      ValueError: libtpu is not installed, or knows no such slice.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(INSTALL)
    try:
        description = topologies.get_topology_desc(topology, "tpu", **dict(chip.options))
    except jax.errors.JaxRuntimeError as error:
        told = " ".join(str(error).split())
        raise ValueError(
            f"--topology {topology}: the compiler knows no such slice ({told})"
        ) from None
    return list(description.devices)


def largest_bucket(spec: TaskSpec, settings: Settings) -> tuple[int, ...]:
    """The shape that memory must be enough for."""
    if spec.has_image:
        return max(settings.data.buckets, key=math.prod)
    return (spec.max_tokens,)


def measure(
    settings: Settings,
    devices: list[jax.Device],
    chip: Chip,
    task: str,
    bucket: tuple[int, ...],
    wanted: Collection[str] = (),
) -> Iterator[dict[str, Any]]:
    """A row for each program of a task and shape, as it is compiled; of kinds that are `wanted`,
    or of all.

    What does not fit is a row too, with `fits` False; programs that need its result are left out.
    """
    mesh = partitioning.make_mesh(settings.mesh, devices)
    graph, state = abstract_run(settings, mesh)
    optimizer = optim.Optimizer(settings.optimizer, settings.train.steps)
    step = TrainStep(graph, settings, optimizer, mesh)
    spec = settings.tasks[task]
    batch = batch_shapes(spec, bucket, settings, mesh)
    about = _About(settings, mesh, chip, task, bucket, _bytes_on_a_chip(state))
    of_batch = {"forward", "backward", "gradients"}
    if not wanted or of_batch & set(wanted):
        try:
            for name, lowered in step.gradients.lower(state, batch):
                row, compiled = about.row(name, lowered, state)
                yield row
                if not compiled:
                    break
        except jax.errors.JaxRuntimeError as error:
            yield about.failed("gradients", error)
    if not wanted or "update" in wanted:
        learned = {
            path: leaf
            for path, leaf in state.params.items()
            if has_gradient(settings, optimizer, task, path)
        }
        grads = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            learned,
            partitioning.gradient_shardings(learned, mesh),
        )
        loss = jax.ShapeDtypeStruct((), jnp.float32, sharding=partitioning.replicated(mesh))
        yield about.row("update", step.update.lower(state, grads, task, loss), state)[0]
    if not wanted or "predict" in wanted:
        inputs = input_shapes(spec, bucket, settings.train.eval_batch_size, mesh)
        program = PredictStep(graph, settings, mesh)
        lowered = program.lower(state.model, inputs)
        yield about.row("predict", lowered, state.model)[0]


# "Used 85.88G of 15.75G hbm", "the total memory required for HLO temporaries (240.00G) exceeds"
_NEEDED = re.compile(r"(?:Used|require\w* [^()]*\(|exceed\w* [^()]*\()\s*([\d.]+)([GM])")


@dataclasses.dataclass(frozen=True)
class _About:
    settings: Settings
    mesh: Mesh
    chip: Chip
    task: str
    bucket: tuple[int, ...]
    resident: float  # parameters, statistics and optimiser state on a chip

    def row(self, name: str, lowered, state) -> tuple[dict[str, Any], bool]:
        """A program's row, and whether it compiled; `state` is what it reads of the run's."""
        start = time.perf_counter()
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            return self.failed(name, error), False
        seconds = time.perf_counter() - start
        plan, module = compiled.memory_analysis(), Module(compiled.as_text())
        summary = compiled.cost_analysis() or {}
        arguments, outputs = plan.argument_size_in_bytes, plan.output_size_in_bytes
        # What stays in memory without being an argument: parameters that the task does not
        # reach, moments while gradients are computed.
        idle = max(0.0, self.resident - _state_arguments(lowered, state))
        peak = (
            arguments
            + idle
            + outputs
            - plan.alias_size_in_bytes
            + plan.temp_size_in_bytes
            + plan.generated_code_size_in_bytes
        )
        flops = summary.get("flops", math.nan) + module.flops_in_loops()
        moved = module.bytes_moved()
        clock, chip = self.chip.clock, self.chip
        row = dict(
            self._head(name),
            seconds=seconds,
            argument_bytes=arguments,
            output_bytes=outputs,
            temporary_bytes=plan.temp_size_in_bytes,
            code_bytes=plan.generated_code_size_in_bytes,
            fixed_bytes=self.resident + plan.generated_code_size_in_bytes,
            peak_bytes=peak,
            hbm_bytes=chip.hbm_bytes,
            bytes_accessed=moved,
            bytes_accessed_xla=summary.get("bytes accessed", math.nan),
            flops=flops,
            roofline_ms=1000 * max(flops / chip.peak_flops, moved / chip.bandwidth),
            cycles_ms=1000 * module.cycles() / clock,
            unknown_loops=module.unknown_loops(),
            collectives=module.collectives(),
            fits=bool(peak <= chip.hbm_bytes),
        )
        return row, True

    def failed(self, name: str, error: Exception) -> dict[str, Any]:
        """The row of a program that the compiler refused."""
        told = " ".join(str(error).split())
        needed, peak = _NEEDED.search(told), None
        if needed:
            peak = float(needed.group(1)) * 2 ** (30 if needed.group(2) == "G" else 20)
        return dict(
            self._head(name),
            hbm_bytes=self.chip.hbm_bytes,
            peak_bytes=peak,
            fits=False,
            error=told[:300],
        )

    def _head(self, name: str) -> dict[str, Any]:
        parts = math.prod(self.mesh.shape[axis] for axis in partitioning.BATCH_AXES)
        train = self.settings.train
        size = train.eval_batch_size if name == "predict" else train.batch_size
        if name not in ("predict", "update"):
            size //= train.accumulate_steps
        return dict(
            task=self.task,
            program=name,
            bucket=list(self.bucket),
            examples_per_chip=size // parts,
        )


def _bytes_on_a_chip(tree) -> float:
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _state_arguments(lowered, state) -> float:
    """Bytes of the state that the program reads: unused arguments are not handed over."""
    kept = lowered._lowering.compile_args.get("kept_var_idx")  # JAX tells this nowhere else
    shapes, sharded = jax.tree.leaves(lowered.args_info), jax.tree.leaves(state)
    # The state comes first, whole or (predict) its parameters and statistics.
    total = 0.0
    for number, (info, leaf) in enumerate(zip(shapes, sharded, strict=False)):
        if info.shape != leaf.shape:
            break
        if kept is None or number in kept:
            total += _bytes_on_a_chip(leaf)
    return total
