"""Measures training steps on made-up batches: speed, where the time goes, FLOPs, memory.

python tools/benchmark.py --image 320x320 --batch 2 --tasks coco,vqa2,qnli
python tools/benchmark.py --reference torch --json benchmark.json

Per task, and for the mixture (steps weighted by the config's sampling ratios): examples a second;
milliseconds a step, and of them input (host to device), matching (the device waits for the host)
and device (the rest). FLOPs of a step by formula (what the model must compute, the frozen stages
forward only) and by XLA's cost analysis (what the programs compute before they are optimised).
MFU: the formula's FLOPs over the device's peak. Batches are made up once and stay in host memory,
so reading and decoding are not measured (tools/measure_loader.py does that).

--reference torch measures the same architecture in PyTorch (pip install unit-jax[benchmark]) in the
same run: blocks of steps take turns, the medians are compared, and both sides start from the same
weights and must agree on the number of parameters and on the loss without dropout.
"""

import argparse
import dataclasses
import gc
import json
import math
import pathlib
import platform
import resource
import runpy
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax  # noqa: E402
import numpy as np  # noqa: E402
import rich  # noqa: E402
import rich.table  # noqa: E402
from flax import nnx  # noqa: E402

from unit_jax import optim, partitioning  # noqa: E402
from unit_jax import settings as settings_lib  # noqa: E402
from unit_jax import train_step as train_step_lib  # noqa: E402
from unit_jax.batch import Batch  # noqa: E402
from unit_jax.interop import mmf  # noqa: E402
from unit_jax.losses import classification, detection, matching  # noqa: E402
from unit_jax.models import functional  # noqa: E402
from unit_jax.models.unit import Unit  # noqa: E402
from unit_jax.settings import Settings  # noqa: E402
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


@dataclasses.dataclass
class Times:
    """Milliseconds of a step: median over blocks of steps, and what a step alone is made of."""

    step: float
    input: float
    matching: float

    @property
    def device(self) -> float:
        return max(self.step - self.input - self.matching, 0.0)


def main() -> None:
    options = parse()
    settings = load_settings(options)
    if settings.model.dtype == "float32" and jax.default_backend() != "cpu":
        jax.config.update("jax_default_matmul_precision", "highest")
    ours = Ours(settings)
    references = make_references(options, settings, ours)
    parameters = sum(x.size for x in ours.state.params.values())
    print(f"{parameters:,} parameters; {describe_machine()}")
    sides = {"ours": ours, **references}
    batches = {
        task: made_up_batch(spec, settings, options) for task, spec in settings.tasks.items()
    }
    for task, batch in batches.items():
        check_losses(sides, task, batch, settings)
    rows = []
    for task, batch in batches.items():
        times = measure(sides, task, batch, options.blocks, options.steps)
        rows.append(describe(task, times, ours, batch, settings))
        show_progress(rows[-1])
    rows.append(mixture(rows, settings))
    show(rows, list(references))
    result = dict(
        command=" ".join(["python", *sys.argv]),
        date=time.strftime("%Y-%m-%d"),
        machine=describe_machine(),
        settings=dataclasses.asdict(settings),
        parameters=parameters,
        compile_seconds=ours.compile_seconds,
        rows=rows,
    )
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(result, indent=1, default=str))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--config", default="configs/unit.py", help="FILE.py[:ARGUMENT]")
    parser.add_argument("--tasks", default="", help="names, joined by commas; all if empty")
    parser.add_argument("--image", default="320x320", help="height x width of padded images")
    parser.add_argument("--tokens", type=int, default=64, help="of padded texts, at most")
    parser.add_argument("--objects", type=int, default=8, help="real objects of an image")
    parser.add_argument("--batch", type=int, default=2, help="examples of a step, all devices")
    parser.add_argument("--blocks", type=int, default=3, help="measurements of each side")
    parser.add_argument("--steps", type=int, default=2, help="steps of a measurement")
    parser.add_argument("--json", default="", help="also write everything to this file")
    parser.add_argument("--reference", choices=["none", "torch"], default="none")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help='a setting, such as model.dtype=bfloat16, loss.matcher=device, mesh.fsdp="2"',
    )
    return parser.parse_args()


def load_settings(options: argparse.Namespace) -> Settings:
    """The config with the command line's changes; label counts are the published ones."""
    path, _, argument = options.config.partition(":")
    values = runpy.run_path(path)["values"](argument or None)
    if options.tasks:
        values["tasks"] = {name: values["tasks"].get(name, {}) for name in options.tasks.split(",")}
    values["train"].update(batch_size=options.batch)
    values["model"]["text_encoder"]["vocab_size"] = (
        values["model"]["text_encoder"]["vocab_size"] or 1000
    )
    for change in options.set:
        key, _, value = change.partition("=")
        *groups, name = key.split(".")
        group = values
        for part in groups:
            group = group.get(part, {})
        if name not in group:
            raise SystemExit(f"error: --set {change}: the config has no {key}")
        group[name] = (
            type(group[name])(json.loads(value.lower())) if _is_number(group[name]) else (value)
        )
    try:
        settings = settings_lib.from_config(values)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    most = min(
        [settings.data.max_objects]
        + [spec.num_queries for spec in settings.tasks.values() if spec.kind == "detection"]
    )
    if options.objects > most:
        raise SystemExit(f"error: --objects {options.objects}: the config has room for {most}")
    return settings


def _is_number(value: Any) -> bool:
    return isinstance(value, (bool, int, float))


def made_up_batch(spec: TaskSpec, settings: Settings, options: argparse.Namespace) -> Batch:
    """A batch of noise: full images and texts, `--objects` objects each."""
    rng = np.random.default_rng(spec.index)
    height, width = map(int, options.image.split("x"))
    tokens = min(options.tokens, spec.max_tokens)
    spec = dataclasses.replace(spec, max_tokens=tokens)
    mesh = partitioning.make_mesh(settings.mesh)
    shapes = train_step_lib.batch_shapes(
        spec, (height, width) if spec.has_image else (tokens,), settings, mesh
    )
    batch = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    size = options.batch
    if spec.has_image:
        batch = batch.replace(
            images=rng.integers(0, 256, batch.images.shape, np.uint8),
            image_sizes=np.tile(np.int32([height, width]), (size, 1)),
        )
    if spec.has_text:
        ids = rng.integers(1, settings.model.text_encoder.vocab_size, (size, tokens), np.int32)
        segments = np.int32(np.arange(tokens) >= tokens // 2)
        batch = batch.replace(
            input_ids=ids,
            token_mask=np.ones((size, tokens), bool),
            segment_ids=np.tile(segments, (size, 1)),
        )
    targets = batch.targets
    if spec.kind == "detection":
        real = np.arange(settings.data.max_objects) < options.objects
        extent = rng.uniform(0.05, 0.5, (*targets.boxes_cxcywh.shape[:2], 2))
        centre = extent / 2 + rng.uniform(size=extent.shape) * (1 - extent)
        boxes = np.concatenate([centre, extent], -1) * real[:, None]
        targets = targets.replace(
            boxes_cxcywh=np.float32(boxes),
            labels=rng.integers(0, spec.num_labels, targets.labels.shape, np.int32) * real,
            object_mask=np.tile(real, (size, 1)),
        )
        targets = targets.replace(labels=np.int32(targets.labels))
        if spec.num_attributes:
            attributes = np.full(targets.attributes.shape, -1, np.int32)
            attributes[..., :2] = rng.integers(
                0, spec.num_attributes, (*attributes.shape[:2], 2), np.int32
            )
            targets = targets.replace(attributes=attributes)
    elif spec.soft_targets:
        scores = rng.uniform(size=targets.answer_scores.shape) < 3 / spec.num_labels
        targets = targets.replace(answer_scores=np.float32(scores))
    else:
        targets = targets.replace(labels=rng.integers(0, spec.num_labels, size, np.int32))
    return batch.replace(targets=targets)


class Ours:
    """The train step as training runs it."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.mesh = partitioning.make_mesh(settings.mesh)
        model = Unit(settings.model, settings.tasks, rngs=nnx.Rngs(settings.seed))
        if any(spec.has_image for spec in settings.tasks.values()):
            # Statistics as of a trained network, so that numbers stay small.
            pixels = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
            model.calibrate(pixels, np.array([[64, 64]]))
        self.graph, params, statistics = functional.split(model)
        del model
        optimizer = optim.Optimizer(settings.optimizer, settings.train.steps)
        state = train_step_lib.TrainState(params, statistics, optimizer.init(params))
        self.state = partitioning.place(state, self.mesh)
        self.train_step = train_step_lib.TrainStep(self.graph, settings, optimizer, self.mesh)
        self.compile_seconds: dict[str, dict[str, float]] = {}
        self.flops: dict[str, float] = {}
        self.temporary_bytes: dict[str, int] = {}
        self._evaluate = jax.jit(self._evaluation_loss)

    def prepare(self, task: str, batch: Batch) -> None:
        """Compiles the programs of a batch like this one."""
        seconds, flops, temporary = {}, 0.0, 0
        on_device = self.put(batch)
        start = time.perf_counter()
        for name, lowered in self.train_step.lower(self.state, on_device):
            compiled = lowered.compile()
            seconds[name] = time.perf_counter() - start
            flops += (lowered.cost_analysis() or {}).get("flops", math.nan)
            memory = compiled.memory_analysis()
            temporary = max(temporary, getattr(memory, "temp_size_in_bytes", 0))
            start = time.perf_counter()
        self.compile_seconds[task] = seconds
        self.flops[task], self.temporary_bytes[task] = flops, temporary

    def put(self, batch: Batch) -> Batch:
        return partitioning.to_devices(batch, self.mesh)

    def step(self, task: str, batch: Batch) -> None:
        self.state, self.logs = self.train_step(self.state, batch)

    def synchronise(self) -> None:
        jax.block_until_ready(self.state)

    @property
    def matching_ms(self) -> float:
        return float(self.logs.get("matching_ms", 0.0))

    def device_matching_ms(self, task: str, batch: Batch) -> float:
        """What the solver on the device takes for the costs of this batch."""
        spec = self.settings.tasks[task]
        costs = np.random.default_rng(0).normal(
            size=(
                self.settings.model.decoder.layers,
                len(batch.index),
                spec.num_queries,
                self.settings.data.max_objects,
            )
        )
        solve = jax.jit(self.train_step.gradients.match_on_device)
        arguments = (
            partitioning.to_devices(np.float32(costs), self.mesh, axis=1),
            partitioning.to_devices(batch.targets.object_mask, self.mesh),
        )
        jax.block_until_ready(solve(*arguments))
        took = []
        for _ in range(3):
            start = time.perf_counter()
            jax.block_until_ready(solve(*arguments))
            took.append(1000 * (time.perf_counter() - start))
        return statistics.median(took)

    def evaluation_loss(self, task: str, batch: Batch) -> float:
        """The loss without dropout."""
        spec = self.settings.tasks[task]
        model = self.state.params, self.state.statistics
        found = self._evaluate(*model, batch, None)
        if spec.kind == "detection":
            matches = matching.match(np.asarray(found), np.asarray(batch.targets.object_mask))
            found = self._evaluate(*model, batch, matches)
        return float(found)

    def _evaluation_loss(self, params, statistics, batch: Batch, matches):
        """The loss; of detection without matches the matching costs."""
        spec, own = self.settings.tasks[batch.task], self.settings.loss
        model = functional.merge(self.graph, params, statistics)
        outputs = model(batch)
        if spec.kind != "detection":
            return classification.classification_loss(outputs, batch.targets, spec, own)[0]
        if matches is None:
            return matching.cost_matrix(outputs, batch.targets, own)

        def attributes(hidden_states, class_ids):
            return model.attribute_logits(batch.task, hidden_states, class_ids)

        loss, _ = detection.detection_loss(
            outputs, batch.targets, matches, own, spec, attributes if spec.num_attributes else None
        )
        return loss


def make_references(options: argparse.Namespace, settings: Settings, ours: Ours) -> dict[str, Any]:
    """PyTorch's models by name: one, and on a GPU also with autocast and torch.compile."""
    if options.reference == "none":
        return {}
    try:
        import benchmark_torch
    except ImportError as error:
        raise SystemExit(
            f'error: --reference torch: {error}; install it: pip install "unit-jax[benchmark]"'
        ) from None
    arrays = {**ours.state.params, **ours.state.statistics}
    weights = mmf.to_mmf({path: np.asarray(x) for path, x in arrays.items()})
    torch = benchmark_torch.torch
    on_gpu = torch.cuda.is_available()
    references = {
        "torch": benchmark_torch.build(settings, weights, settings.model.dtype != "float32")
    }
    if on_gpu:
        compiled = benchmark_torch.build(settings, weights, settings.model.dtype != "float32")
        compiled.compile()
        references["torch.compile"] = compiled
    count = sum(x.size for x in ours.state.params.values())
    for name, reference in references.items():
        theirs = sum(p.numel() for p in reference.model.parameters())
        if theirs != count:
            raise SystemExit(f"error: {name} has {theirs:,} parameters, ours {count:,}")
    return references


def check_losses(sides: dict[str, Any], task: str, batch: Batch, settings: Settings) -> None:
    """Ends the run unless all sides give the same loss without dropout (before any update)."""
    if len(sides) == 1:
        return
    losses = {name: side.evaluation_loss(task, side.put(batch)) for name, side in sides.items()}
    print(f"{task}: loss without dropout", *(f"{name} {x:.6g}" for name, x in losses.items()))
    for loss in losses.values():
        if not abs(loss - losses["ours"]) <= SAME_LOSS[settings.model.dtype] * abs(loss):
            raise SystemExit(f"error: {task}: the losses differ: {losses}")


def measure(
    sides: dict[str, Any], task: str, batch: Batch, blocks: int, steps: int
) -> dict[str, Times]:
    """Times of each side; they take turns, a block of steps each."""
    for side in sides.values():
        if isinstance(side, Ours):
            side.prepare(task, batch)
        run_block(side, task, batch, 1)
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in sides}
    for block in range(blocks):
        for name in list(sides)[:: 1 if block % 2 == 0 else -1]:
            side = sides[name]
            gc.collect()
            each = run_block(side, task, batch, steps)
            start = time.perf_counter()
            on_device = side.put(batch)
            if isinstance(side, Ours):
                jax.block_until_ready(on_device)
            side.synchronise()
            put = 1000 * (time.perf_counter() - start)
            found[name].append((each, put, side.matching_ms))
    return {
        name: Times(*(statistics.median(column) for column in zip(*times, strict=True)))
        for name, times in found.items()
    }


def run_block(side: Any, task: str, batch: Batch, steps: int) -> float:
    """Milliseconds of a step in a row of steps, input included."""
    side.synchronise()
    start = time.perf_counter()
    for _ in range(steps):
        side.step(task, side.put(batch))
    side.synchronise()
    return 1000 * (time.perf_counter() - start) / steps


def describe(
    task: str, times: dict[str, Times], ours: Ours, batch: Batch, settings: Settings
) -> dict[str, Any]:
    """Everything that was found out about a task."""
    spec, examples = settings.tasks[task], len(batch.index)
    flops = model_flops(spec, settings, batch)
    row: dict[str, Any] = dict(
        task=task,
        examples=examples,
        flops_formula=flops,
        flops_xla=ours.flops[task],
        peak_memory_bytes=peak_memory(),
        temporary_bytes=ours.temporary_bytes[task],
    )
    for name, time_of in times.items():
        row[name] = dict(
            examples_per_second=1000 * examples / time_of.step,
            ms=time_of.step,
            ms_input=time_of.input,
            ms_matching=time_of.matching,
            ms_device=time_of.device,
            mfu=utilisation(flops, time_of.step, settings.model.dtype),
        )
    if spec.kind == "detection":
        row["ms_matching_on_device"] = ours.device_matching_ms(task, batch)
    return row


def mixture(rows: list[dict[str, Any]], settings: Settings) -> dict[str, Any]:
    """The mean step, tasks weighted by their sampling ratios."""
    weights = np.array([settings.ratios[row["task"]] for row in rows])
    weights = weights / weights.sum()
    mean = lambda values: float(np.dot(weights, list(values)))  # noqa: E731
    total: dict[str, Any] = dict(
        task="mixture",
        examples=rows[0]["examples"],
        flops_formula=mean(row["flops_formula"] for row in rows),
        flops_xla=mean(row["flops_xla"] for row in rows),
        peak_memory_bytes=max(row["peak_memory_bytes"] for row in rows),
        temporary_bytes=max(row["temporary_bytes"] for row in rows),
    )
    for name in [key for key, value in rows[0].items() if isinstance(value, dict)]:
        parts = ("ms", "ms_input", "ms_matching", "ms_device")
        side = {part: mean(row[name][part] for row in rows) for part in parts}
        side["examples_per_second"] = 1000 * total["examples"] / side["ms"]
        side["mfu"] = utilisation(total["flops_formula"], side["ms"], settings.model.dtype)
        total[name] = side
    return total


def model_flops(spec: TaskSpec, settings: Settings, batch: Batch) -> float:
    """FLOPs of a training step (2 per multiplication with addition): forward, and twice that
    backward but for the backbone's frozen stages. Matrix products only."""
    model, examples = settings.model, len(batch.index)
    width, mlp = model.decoder.width, model.mlp_width
    learned = frozen = 0.0
    memory = 0
    if spec.has_image:
        stages = list(backbone_stages(model.backbone, *batch.images.shape[1:3]))
        prefixes = settings.optimizer.frozen
        for name, flops, _ in stages:
            if f"backbone.{name}" in prefixes:
                frozen += flops
            else:
                learned += flops
        tokens, own = stages[-1][2], model.image_encoder
        channels = 4 * model.backbone.width * 2 ** (len(model.backbone.depths) - 1)
        learned += 2 * tokens * channels * own.width
        with_task = tokens + int(own.task_embedding)
        learned += own.layers * encoder_layer(with_task, own.width, mlp)
        if own.width != width:
            learned += 2 * 2 * tokens * own.width * width
        memory += tokens
    if spec.has_text:
        own = model.text_encoder
        tokens = batch.input_ids.shape[1]
        layer = encoder_layer(tokens + int(own.task_embedding), own.width, own.mlp_width)
        learned += own.layers * layer
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
    return examples * (3 * learned + frozen)


def encoder_layer(tokens: int, width: int, mlp: int) -> float:
    """Forward FLOPs of self-attention and feed-forward."""
    return 2 * tokens * (4 * width**2 + 2 * width * mlp) + 2 * 2 * tokens**2 * width


def backbone_stages(backbone, height: int, width: int) -> Iterator[tuple[str, float, int]]:
    """(name, forward FLOPs of an image, places of the output) of the stem and the stages."""
    half = lambda size: (size + 1) // 2  # noqa: E731
    height, width = half(height), half(width)
    yield "conv1", 2 * height * width * 49 * 3 * backbone.width, height * width
    height, width = half(height), half(width)
    channels = backbone.width
    for stage, depth in enumerate(backbone.depths):
        inner, flops = backbone.width * 2**stage, 0.0
        for block in range(depth):
            places = height * width
            flops += 2 * places * channels * inner
            if block == 0 and stage > 0 and not (backbone.dilation and stage == 3):
                height, width = half(height), half(width)
                places = height * width
            flops += 2 * places * (9 * inner**2 + 4 * inner**2)
            if block == 0:
                flops += 2 * places * channels * 4 * inner
            channels = 4 * inner
        yield f"layer{stage + 1}", flops, height * width


def utilisation(flops: float, milliseconds: float, dtype: str) -> float | None:
    """Share of the peak of all devices; None where that is not known."""
    kind = jax.devices()[0].device_kind
    for name, peaks in PEAKS.items():
        peak = peaks[0 if dtype == "bfloat16" else 1]
        if name in kind and peak:
            return flops / (milliseconds / 1000) / (peak * jax.device_count())
    return None


def peak_memory() -> int:
    """Bytes: of the first device where it tells, else of this process (both sides together)."""
    told = jax.devices()[0].memory_stats() or {}
    unit = 1 if sys.platform == "darwin" else 1024
    return told.get("peak_bytes_in_use", unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def describe_machine() -> str:
    devices = jax.devices()
    return (
        f"{len(devices)} x {devices[0].device_kind} ({platform.machine()}), jax {jax.__version__}"
    )


def show_progress(row: dict[str, Any]) -> None:
    sides = {name: value["ms"] for name, value in row.items() if isinstance(value, dict)}
    print(f"{row['task']}:", *(f"{name} {ms:.1f} ms" for name, ms in sides.items()), flush=True)


def show(rows: list[dict[str, Any]], references: list[str]) -> None:
    """The table."""
    columns = ["task", "side", "examples/s", "ms/step", "input", "matching", "device"]
    columns += ["GFLOPs formula", "XLA", "MFU", "GB", "speed"]
    table = rich.table.Table(title="training steps, milliseconds")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number > 1 else "left")
    for row in rows:
        for name in ["ours", *references]:
            side = row[name]
            own = name == "ours"
            table.add_row(
                row["task"] if own else "",
                name,
                f"{side['examples_per_second']:.2f}",
                *(f"{side[part]:.1f}" for part in ("ms", "ms_input", "ms_matching", "ms_device")),
                f"{row['flops_formula'] / 1e9:.0f}" if own else "",
                f"{row['flops_xla'] / 1e9:.0f}" if own else "",
                "-" if side["mfu"] is None else f"{side['mfu']:.1%}",
                f"{row['peak_memory_bytes'] / 1e9:.1f}" if own else "",
                "" if own else f"ours is {side['ms'] / row['ours']['ms']:.2f} x",
            )
    rich.print(table)
    for row in rows:
        if "ms_matching_on_device" in row:
            print(
                f"{row['task']}: the device waits {row['ours']['ms_matching']:.1f} ms a step for "
                f"the host's matching; the solver on the device takes "
                f"{row['ms_matching_on_device']:.1f} ms"
            )


if __name__ == "__main__":
    main()
