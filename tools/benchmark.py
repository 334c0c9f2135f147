"""Measures training steps on made-up batches: speed, where the time goes, FLOPs, memory.

python tools/benchmark.py --image 320x320 --batch 2 --tasks coco,vqa2,qnli
python tools/benchmark.py --reference torch --json benchmark.json

Per task, and for the mixture (steps weighted by the config's sampling ratios):

- examples a second, and milliseconds a step: of these input (host to device, measured alone),
  matching (the device waits for the host) and device (the rest). Batches are made up once and stay
  in host memory, so reading and decoding are not in it (tools/measure_loader.py measures these);
- FLOPs of a step, by formula (what the model must compute) and by XLA's cost analysis (what its
  programs compute before they are optimised, the update and elementwise work included);
- MFU: the formula's FLOPs over the device's peak, where that is known;
- memory: arguments, results and scratch of the step's largest program, as XLA plans it; all in one
  device's share.

--reference torch measures the same architecture in PyTorch (pip install unit-jax[benchmark]) in the
same run: blocks of steps take turns, the medians are compared, and both sides start from the same
weights and must agree on the number of parameters and on the loss without dropout. It computes in
`model.dtype` (bfloat16: autocast), on the GPU where there is one, there also with torch.compile.
"""

import argparse
import ast
import dataclasses
import functools
import gc
import json
import math
import os
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
# JAX would keep most of a GPU's memory from PyTorch.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax  # noqa: E402
import numpy as np  # noqa: E402
from flax import nnx  # noqa: E402

from unit_jax import optim, partitioning  # noqa: E402
from unit_jax import settings as settings_lib  # noqa: E402
from unit_jax import train_step as train_step_lib  # noqa: E402
from unit_jax.batch import Batch  # noqa: E402
from unit_jax.interop import mmf  # noqa: E402
from unit_jax.losses import classification, detection, matching  # noqa: E402
from unit_jax.models import functional, resnet  # noqa: E402
from unit_jax.models.unit import Unit  # noqa: E402
from unit_jax.settings import BackboneSettings, Settings  # noqa: E402
from unit_jax.tasks import TaskSpec  # noqa: E402

# Dense peaks in FLOP/s of one device, by a part of its `device_kind`: (bfloat16, float32). TPUs
# have no float32 peak of their own; None = MFU is not told.
PEAKS = {
    "H100": (989e12, 67e12),
    "H200": (989e12, 67e12),
    "A100": (312e12, 19.5e12),
    "TPU v4": (275e12, None),
    "TPU v5 lite": (197e12, None),
    "TPU v5e": (197e12, None),
    "TPU v5": (459e12, None),  # v5p calls itself "TPU v5"
    "TPU v6": (918e12, None),
}
SAME_LOSS = dict(float32=2e-4, bfloat16=3e-2)  # relative difference to PyTorch's
PARTS = ("ms", "ms_input", "ms_matching", "ms_device")


def main(argv: list[str] | None = None) -> None:
    options = parse(argv)
    settings = load_settings(options)
    if settings.model.dtype == "float32":
        jax.config.update("jax_default_matmul_precision", "highest")
    ours = Ours(settings)
    sides = {"ours": ours, **references(options, settings, ours)}
    batches = {
        task: made_up_batch(spec, settings, options) for task, spec in settings.tasks.items()
    }
    if len(sides) > 1:
        for batch in batches.values():
            check_losses(sides, batch, SAME_LOSS[settings.model.dtype])
    # Every task takes a step before the first is measured: from then on the optimiser updates all
    # parameters in every step, as in training.
    compiled = {task: ours.compile(batch) for task, batch in batches.items()}
    for batch in batches.values():
        for side in sides.values():
            run_block(side, batch, 1)
    rows = []
    for batch in batches.values():
        times = measure(sides, batch, options.blocks, options.steps)
        rows.append(describe(settings, batch, times) | compiled[batch.task])
        rows[-1]["ms_programs"] = ours.programs_ms(batch)
        if settings.tasks[batch.task].kind == "detection":
            rows[-1]["ms_matching_on_device"] = ours.device_matching_ms(batch)
        told = {name: f"{side['ms']:.1f} ms" for name, side in rows[-1]["sides"].items()}
        print(f"{batch.task}: {told}", file=sys.stderr)
    rows.append(mixture(rows, settings))
    result = dict(
        command=" ".join(["python", *sys.argv] if argv is None else argv),
        date=time.strftime("%Y-%m-%d"),
        machine=describe_machine(),
        parameters=ours.parameters,
        settings=dataclasses.asdict(settings),
        rows=rows,
    )
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(result, indent=1))
    show(result, list(sides))


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_step_options(parser)
    add = parser.add_argument
    add("--blocks", type=int, default=3, help="measurements of each side (%(default)s)")
    add("--steps", type=int, default=2, help="steps of a measurement (%(default)s)")
    add("--json", default="", help="also write everything to this file")
    add("--reference", choices=["none", "torch"], default="none", help="measure PyTorch too")
    return parser.parse_args(argv)


def add_step_options(parser: argparse.ArgumentParser) -> None:
    """The options that say what a step is: `load_settings` and `made_up_batch` read them."""
    add = parser.add_argument
    add("--config", default="configs/unit.py", help="FILE.py[:variants] (%(default)s)")
    add("--tasks", default="", help="names, joined by commas; default: all of the config")
    add("--image", default="320x320", help="height x width of padded images (%(default)s)")
    add("--tokens", type=int, default=64, help="of padded texts, at most (%(default)s)")
    add("--objects", type=int, default=8, help="real objects of an image (%(default)s)")
    add("--batch", type=int, default=2, help="examples of a step, all devices (%(default)s)")
    add(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting, such as model.dtype=bfloat16, loss.matcher=device, mesh.fsdp=2",
    )


def load_settings(options: argparse.Namespace) -> Settings:
    """The config with the command line's changes; label counts are the published ones."""
    path, _, variants = options.config.partition(":")
    name = ":".join(filter(None, [path, ",".join(filter(None, [variants, options.tasks]))]))
    changes = {"train.batch_size": options.batch}
    for change in options.set:
        key, _, value = change.partition("=")
        changes[key] = _literal(value)
    try:
        settings = settings_lib.read(name, changes)
        if not settings.model.text_encoder.vocab_size:  # that of data, and there are none
            settings = settings_lib.read(name, {**changes, "model.text_encoder.vocab_size": 1000})
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    queries = [spec.num_queries for spec in settings.tasks.values() if spec.kind == "detection"]
    most = min([settings.data.max_objects, *queries])
    if options.objects > most:
        raise SystemExit(f"error: --objects {options.objects}: the config has room for {most}")
    return settings


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def made_up_batch(spec: TaskSpec, settings: Settings, options: argparse.Namespace) -> Batch:
    """A batch of noise: full images and texts, `--objects` objects each; NumPy arrays."""
    rng = np.random.default_rng(spec.index)
    bucket = tuple(map(int, options.image.split("x")))
    tokens = min(options.tokens, spec.max_tokens)
    spec = dataclasses.replace(spec, max_tokens=tokens)
    mesh = partitioning.make_mesh(settings.mesh)
    shapes = train_step_lib.batch_shapes(
        spec, bucket if spec.has_image else (tokens,), settings, mesh
    )
    vocabulary = settings.model.text_encoder.vocab_size
    make = dict(
        index=lambda shape: np.arange(*shape),
        images=lambda shape: rng.integers(0, 256, shape),
        image_sizes=lambda shape: np.broadcast_to(bucket, shape),
        input_ids=lambda shape: rng.integers(1, vocabulary, shape),
        token_mask=np.ones,
        segment_ids=lambda shape: np.broadcast_to(np.arange(tokens) >= tokens // 2, shape),
        boxes_cxcywh=lambda shape: rng.uniform(0.25, 0.5, shape),
        labels=lambda shape: rng.integers(0, spec.num_labels, shape),
        # Two real ones, 14 unused slots.
        attributes=lambda shape: np.where(
            np.arange(shape[-1]) < 2, rng.integers(0, spec.num_attributes, shape), -1
        ),
        object_mask=lambda shape: np.broadcast_to(np.arange(shape[1]) < options.objects, shape),
        answer_scores=lambda shape: rng.uniform(size=shape) < 3 / spec.num_labels,
    )
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: make[path[-1].name](leaf.shape).astype(leaf.dtype), shapes
    )


class Ours:
    """The train step as training runs it.

    Attributes:
      graph, state, mesh: the model's graph, the run's state, the devices.
      parameters: their number.
      matching_ms: what the device waited for the host in the last step.
    """

    def __init__(self, settings: Settings):
        self._settings = settings
        self.mesh = partitioning.make_mesh(settings.mesh)
        model = Unit(settings.model, settings.tasks, rngs=nnx.Rngs(settings.seed))
        if any(spec.has_image for spec in settings.tasks.values()):
            # Statistics as of a trained network, so that numbers stay small.
            pixels = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
            model.calibrate(pixels, np.array([[64, 64]]))
        self.graph, params, statistics = functional.split(model)
        del model  # its arrays are given away with the state
        optimizer = optim.Optimizer(settings.optimizer, settings.train.steps)
        state = train_step_lib.TrainState(params, statistics, optimizer.init(params))
        self.state = partitioning.place(state, self.mesh)
        self._train_step = train_step_lib.TrainStep(self.graph, settings, optimizer, self.mesh)
        self.parameters = sum(x.size for x in params.values())
        self.matching_ms = 0.0

    def mmf_weights(self) -> dict[str, np.ndarray]:
        """The model under MMF's names."""
        arrays = {**self.state.params, **self.state.statistics}
        return mmf.to_mmf({path: np.asarray(x) for path, x in arrays.items()})

    def compile(self, batch: Batch) -> dict[str, Any]:
        """Compiles the programs of a step; what that took and what XLA says about them."""
        seconds, flops, memory = {}, 0.0, 0
        start = time.perf_counter()
        for name, lowered in self._train_step.lower(self.state, self.put(batch)):
            compiled = lowered.compile()
            seconds[name] = time.perf_counter() - start
            flops += (lowered.cost_analysis() or {}).get("flops", math.nan)
            plan = compiled.memory_analysis()
            memory = max(
                memory,
                plan.argument_size_in_bytes
                + plan.output_size_in_bytes
                - plan.alias_size_in_bytes
                + plan.temp_size_in_bytes,
            )
            start = time.perf_counter()
        return dict(flops_xla=flops, memory_bytes=memory, compile_seconds=seconds)

    def put(self, batch: Batch) -> Batch:
        """The batch, on its way to the devices."""
        return partitioning.to_devices(batch, self.mesh)

    def step(self, batch: Batch) -> None:
        """One update."""
        self.state, logs = self._train_step(self.state, batch)
        self.matching_ms = float(logs.get("matching_ms", 0.0))

    def synchronise(self, *others) -> None:
        """Waits for the last step, and for the others."""
        jax.block_until_ready((self.state, others))

    def programs_ms(self, batch: Batch, repeats: int = 3) -> dict[str, float]:
        """What a step's gradients (with matching) and its update take, each alone: the best of
        some repeats."""
        batch, best = self.put(batch), dict(gradients=math.inf, update=math.inf)
        for _ in range(repeats):
            start = time.perf_counter()
            logs, grads = jax.block_until_ready(self._train_step.gradients(self.state, batch))
            middle = time.perf_counter()
            self.state, _ = jax.block_until_ready(
                self._train_step.update(self.state, grads, batch.task, logs["loss"])
            )
            end = time.perf_counter()
            best["gradients"] = min(best["gradients"], 1000 * (middle - start))
            best["update"] = min(best["update"], 1000 * (end - middle))
        return best

    def device_matching_ms(self, batch: Batch) -> float:
        """What the solver on the device takes for random costs of this batch's sizes."""
        layers = self._settings.model.decoder.layers if self._settings.loss.auxiliary else 1
        queries = self._settings.tasks[batch.task].num_queries
        examples, objects = batch.targets.object_mask.shape
        costs = np.random.default_rng(0).normal(size=(layers, examples, queries, objects))
        arguments = (
            partitioning.to_devices(np.float32(costs), self.mesh, axis=1),
            partitioning.to_devices(batch.targets.object_mask, self.mesh),
        )
        solve = jax.jit(self._train_step.gradients.match_on_device)
        milliseconds = []
        for _ in range(4):
            start = time.perf_counter()
            jax.block_until_ready(solve(*arguments))
            milliseconds.append(1000 * (time.perf_counter() - start))
        return statistics.median(milliseconds[1:])

    def evaluation_loss(self, batch: Batch) -> float:
        """The loss without dropout."""
        return float(self._evaluation_loss(self.state.params, self.state.statistics, batch))

    @functools.partial(jax.jit, static_argnums=0)
    def _evaluation_loss(self, params, statistics, batch: Batch):
        spec, own, targets = self._settings.tasks[batch.task], self._settings.loss, batch.targets
        model = functional.merge(self.graph, params, statistics)
        outputs = model(batch)
        if spec.kind != "detection":
            return classification.classification_loss(outputs, targets, spec, own)[0]
        costs = matching.cost_matrix(outputs, targets, own)
        matches = matching.match_on_device(costs, targets.object_mask)
        head = (
            functools.partial(model.attribute_logits, batch.task) if spec.num_attributes else None
        )
        return detection.detection_loss(outputs, targets, matches, own, spec, head)[0]


def references(options: argparse.Namespace, settings: Settings, ours: Ours) -> dict[str, Any]:
    """PyTorch's sides by name: one, and on a GPU another with torch.compile."""
    if options.reference == "none":
        return {}
    try:
        import benchmark_torch
    except ImportError as error:
        raise SystemExit(
            f'error: --reference torch: {error}; install it: pip install "unit-jax[benchmark]"'
        ) from None
    sides = {"torch": benchmark_torch.build(settings, ours.mmf_weights())}
    if sides["torch"].device.type == "cuda":
        sides["torch.compile"] = benchmark_torch.build(settings, ours.mmf_weights())
        sides["torch.compile"].compile()
    if sides["torch"].parameters != ours.parameters:
        raise SystemExit(
            f"error: torch has {sides['torch'].parameters:,} parameters, ours {ours.parameters:,}"
        )
    return sides


def check_losses(sides: dict[str, Any], batch: Batch, tolerance: float) -> None:
    """Ends the run unless all sides give the same loss without dropout (before any update)."""
    losses = {name: side.evaluation_loss(side.put(batch)) for name, side in sides.items()}
    told = f"{batch.task}: loss without dropout: {losses}"
    print(told, file=sys.stderr)
    if not all(math.isclose(loss, losses["ours"], rel_tol=tolerance) for loss in losses.values()):
        raise SystemExit(f"error: {told}; these differ by more than {tolerance:g}")


def measure(
    sides: dict[str, Any], batch: Batch, blocks: int, steps: int
) -> dict[str, dict[str, float]]:
    """Milliseconds of a step and of its parts (PARTS), by side: medians over blocks of steps.

    The sides take turns, and who begins changes from block to block.
    """
    found: dict[str, list[tuple[float, ...]]] = {name: [] for name in sides}
    for block in range(blocks):
        for name in list(sides)[:: 1 if block % 2 == 0 else -1]:
            gc.collect()
            found[name].append(run_block(sides[name], batch, steps))
    return {
        name: dict(zip(PARTS, map(statistics.median, zip(*times, strict=True)), strict=True))
        for name, times in found.items()
    }


def run_block(side: Any, batch: Batch, steps: int) -> tuple[float, ...]:
    """Milliseconds of a step in a row of steps, as PARTS; input is measured after them, alone."""
    matching_ms = 0.0
    side.synchronise()
    start = time.perf_counter()
    for _ in range(steps):
        side.step(side.put(batch))
        matching_ms += side.matching_ms / steps
    side.synchronise()
    end = time.perf_counter()
    side.synchronise(side.put(batch))
    input_ms = 1000 * (time.perf_counter() - end)
    step_ms = 1000 * (end - start) / steps
    return step_ms, input_ms, matching_ms, step_ms - input_ms - matching_ms


def describe(settings: Settings, batch: Batch, times: dict[str, dict[str, float]]) -> dict:
    """The row of a task."""
    flops = model_flops(settings.tasks[batch.task], settings, batch)
    sides = {name: with_rates(time_of, flops, settings) for name, time_of in times.items()}
    return dict(task=batch.task, flops_formula=flops, sides=sides)


def mixture(rows: list[dict[str, Any]], settings: Settings) -> dict[str, Any]:
    """The row of the mean step, tasks weighted by their sampling ratios."""
    weights = np.array([settings.ratios[row["task"]] for row in rows])

    def mean(values) -> float:
        return float(np.average(list(values), weights=weights))

    flops = mean(row["flops_formula"] for row in rows)
    sides = {}
    for name in rows[0]["sides"]:
        parts = {part: mean(row["sides"][name][part] for row in rows) for part in PARTS}
        sides[name] = with_rates(parts, flops, settings)
    return dict(
        task="mixture",
        flops_formula=flops,
        flops_xla=mean(row["flops_xla"] for row in rows),
        memory_bytes=max(row["memory_bytes"] for row in rows),
        sides=sides,
    )


def with_rates(times: dict[str, float], flops: float, settings: Settings) -> dict[str, Any]:
    """Times of a step with what follows from them."""
    return dict(
        **times,
        examples_per_second=1000 * settings.train.batch_size / times["ms"],
        mfu=utilisation(flops, times["ms"], settings.model.dtype),
    )


def model_flops(spec: TaskSpec, settings: Settings, batch: Batch) -> float:
    """FLOPs of a training step: forward, and twice that backward but for what is frozen."""
    learned, frozen = forward_flops(spec, settings, batch)
    return 3 * learned + frozen


def forward_flops(spec: TaskSpec, settings: Settings, batch: Batch) -> tuple[float, float]:
    """Of the learned part and of the backbone's frozen stages; matrix products and convolutions
    only, 2 for a multiplication with its addition."""
    model, examples = settings.model, len(batch.index)
    width, mlp = model.decoder.width, model.mlp_width
    learned = frozen = 0.0
    memory = 0
    if spec.has_image:
        stages = list(backbone_stages(model.backbone, *batch.images.shape[1:3]))
        prefixes = settings.optimizer.frozen
        frozen = sum(flops for name, flops, *_ in stages if f"backbone.{name}" in prefixes)
        learned += sum(flops for _, flops, *_ in stages) - frozen
        *_, tokens, channels = stages[-1]
        own = model.image_encoder
        learned += 2 * tokens * channels * own.width
        learned += own.layers * encoder_layer(tokens + own.task_embedding, own.width, mlp)
        if own.width != width:
            learned += 2 * 2 * tokens * own.width * width
        memory += tokens
    if spec.has_text:
        own = model.text_encoder
        tokens = batch.input_ids.shape[1]
        with_task = tokens + own.task_embedding
        learned += own.layers * encoder_layer(with_task, own.width, own.mlp_width)
        read = 1 if spec.cls_only else tokens
        learned += 2 * read * own.width * width
        memory += read
    queries = spec.num_queries
    self_attention = 4 * 2 * queries * width**2 + 2 * 2 * queries**2 * width
    cross_attention = (
        2 * 2 * queries * width**2 + 2 * 2 * memory * width**2 + 2 * 2 * queries * memory * width
    )
    feed_forward = 2 * 2 * queries * width * mlp
    layers = model.decoder.layers
    learned += layers * (self_attention + cross_attention + feed_forward)
    if spec.kind == "detection":
        heads = width * (spec.num_labels + 1) + 2 * width**2 + 4 * width
        learned += 2 * layers * queries * heads
    else:
        learned += 2 * (width**2 + width * spec.num_labels)
    return examples * learned, examples * frozen


def encoder_layer(tokens: int, width: int, mlp: int) -> float:
    """Forward FLOPs of self-attention and feed-forward."""
    return 2 * tokens * (4 * width**2 + 2 * width * mlp) + 2 * 2 * tokens**2 * width


def backbone_stages(
    backbone: BackboneSettings, height: int, width: int
) -> Iterator[tuple[str, float, int, int]]:
    """(name, forward FLOPs of an image, places and channels of the output) of stem and stages."""
    half = lambda size: (size + 1) // 2  # noqa: E731
    height, width = half(height), half(width)
    yield "conv1", 2 * height * width * 49 * 3 * backbone.width, height * width, backbone.width
    height, width = half(height), half(width)
    channels = backbone.width
    for stage, depth in enumerate(backbone.depths):
        inner, flops = backbone.width * 2**stage, 0.0
        outer = resnet.EXPANSION * inner
        for block in range(depth):
            places = height * width
            flops += 2 * places * channels * inner
            if block == 0 and stage > 0 and not (backbone.dilation and stage == 3):
                height, width = half(height), half(width)
                places = height * width
            flops += 2 * places * (9 * inner**2 + inner * outer)
            if block == 0:
                flops += 2 * places * channels * outer
            channels = outer
        yield f"layer{stage + 1}", flops, height * width, channels


def utilisation(flops: float, milliseconds: float, dtype: str) -> float | None:
    """Share of the peak of all devices; None where that is not known."""
    kind = jax.devices()[0].device_kind
    for name, peaks in PEAKS.items():
        peak = peaks[0 if dtype == "bfloat16" else 1]
        if name in kind and peak:
            return flops / (milliseconds / 1000) / (peak * jax.device_count())
    return None


def describe_machine() -> str:
    devices = jax.devices()
    return (
        f"{len(devices)} x {devices[0].device_kind} ({platform.machine()}, {os.cpu_count()} CPU "
        f"cores), jax {jax.__version__}"
    )


def show(result: dict[str, Any], sides: list[str]) -> None:
    """Prints the table, then matching on the host beside that on the device, and compilation."""
    base = "torch" if "torch" in sides else "ours"
    print(f"{result['parameters']:,} parameters; {result['machine']}\n")
    print(
        "| task | side | examples/s | ms/step | input | matching | device | MFU | speed |", end=""
    )
    print(" GFLOPs, formula | GFLOPs, XLA | GB |\n|" + " --- |" * 2 + " ---: |" * 10)
    for row in result["rows"]:
        for name in sides:
            side = row["sides"][name]
            cells = [row["task"], name, f"{side['examples_per_second']:.2f}"]
            cells += [f"{side[part]:.1f}" for part in PARTS]
            cells += ["-" if side["mfu"] is None else f"{side['mfu']:.1%}"]
            cells += [f"{row['sides'][base]['ms'] / side['ms']:.2f}"]
            if name == "ours":
                cells += [f"{row[key] / 1e9:.0f}" for key in ("flops_formula", "flops_xla")]
                cells += [f"{row['memory_bytes'] / 1e9:.2f}"]
            else:
                cells += [""] * 3
            print("|", " | ".join(cells), "|")
    print()
    for row in result["rows"]:
        if "compile_seconds" in row:
            alone = (f"{name} {took:.0f} ms" for name, took in row["ms_programs"].items())
            seconds = (f"{name} {took:.1f} s" for name, took in row["compile_seconds"].items())
            print(f"{row['task']}: {', '.join(alone)}; compiled: {', '.join(seconds)}")
        if "ms_matching_on_device" in row:
            print(
                f"{row['task']}: the device waits {row['sides']['ours']['ms_matching']:.2f} ms a "
                f"step for the host's matching; the solver on the device takes "
                f"{row['ms_matching_on_device']:.2f} ms"
            )


if __name__ == "__main__":
    main()
