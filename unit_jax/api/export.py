"""From a `Model` to programs that run without this package: serialised StableHLO per task.

Everything from the decoded picture on is in a program: Pillow's resize, normalising, the network,
probabilities, boxes in pixels of the picture given. The number of examples, the canvas that
pictures lie on and the length of texts are symbolic; CPU, CUDA and TPU share one artefact.
"""

import dataclasses
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import PIL
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from unit_jax import exported, outputs
from unit_jax.api import resize
from unit_jax.api.model import Model
from unit_jax.batch import Batch
from unit_jax.data import batching
from unit_jax.interop import weights as weights_lib
from unit_jax.models import flat
from unit_jax.tasks import TaskSpec

PLATFORMS = ("cpu", "cuda", "tpu")


@dataclasses.dataclass(frozen=True)
class Exported:
    """One file that was written.

    Attributes:
      task, file, size: whose, its name, and its bytes.
      seconds: what making it took.
    """

    task: str
    file: str
    size: int
    seconds: float


def export(
    model: Model,
    folder: str | os.PathLike,
    tasks: Iterable[str] | None = None,
    *,
    platforms: Sequence[str] = PLATFORMS,
    weights_inside: bool = False,
) -> list[Exported]:
    """Writes a folder that `unit_jax.load_exported` reads.

    Args:
      tasks: which; None = all.
      platforms: what the programs are lowered for.
      weights_inside: in every program, instead of once in weights.npz.

    Raises:
      ValueError: no such task, or the folder holds something else.
    """
    folder = Path(folder)
    chosen = [model.spec(task) for task in tasks or model.tasks]
    if folder.exists() and not (folder / exported.MANIFEST).exists() and any(folder.iterdir()):
        raise ValueError(f"{folder}: holds other files; give a new folder")
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(dir=folder.absolute().parent, prefix=f".{folder.name}."))
    try:
        done = _write(model, place, chosen, platforms, weights_inside)
        os.chmod(place, 0o755)  # a temporary folder is its maker's alone
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(place, folder)
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
    return done


def _write(
    model: Model,
    folder: Path,
    chosen: Sequence[TaskSpec],
    platforms: Sequence[str],
    weights_inside: bool,
) -> list[Exported]:
    weights = jax.device_get({**model.params, **model.statistics})
    done, entries = [], {}
    for spec in chosen:
        entry = _entry(model, spec)
        for program in entry["programs"]:
            start = time.perf_counter()
            function, arguments = _program(model, spec, program["padded_to"])
            constants = () if weights_inside else (_shapes(weights),)
            if weights_inside:
                function = _with_weights(function, weights)
            made = jax.export.export(jax.jit(function), platforms=platforms)(*constants, *arguments)
            content = made.serialize()
            (folder / program["file"]).write_bytes(content)
            spent = time.perf_counter() - start
            done.append(Exported(spec.name, program["file"], len(content), spent))
        entries[spec.name] = entry
    done.append(_write_draw(folder, platforms))
    if not weights_inside:
        np.savez(folder / exported.WEIGHTS, **weights)
    manifest = {
        "format": exported.FORMAT,
        "made_from": model.source,
        "jax": jax.__version__,
        "pillow": PIL.__version__,
        "platforms": list(platforms),
        "weights": "inside" if weights_inside else exported.WEIGHTS,
        "vocabulary": list(model.vocabulary),
        "tasks": entries,
    }
    path = folder / exported.MANIFEST
    path.write_text(json.dumps(manifest, ensure_ascii=False, indent=1), encoding="utf-8")
    return done


def _entry(model: Model, spec: TaskSpec) -> dict[str, Any]:
    names = model.names(spec.name)
    entry: dict[str, Any] = {
        "inputs": list(spec.inputs),
        "output": spec.output,
        "labels": list(names.labels),
        "attributes": list(names.attributes) if spec.num_attributes else [],
        "arguments": [],
    }
    padded = [None]
    if spec.has_image:
        rule = {
            "short_side": model.data.eval_short_side,
            "max_side": model.data.eval_max_side,
            "floor": spec.transforms == "resize",
        }
        entry |= {"resize": rule}
        entry["arguments"] += ["pictures", "sizes"]
        padded = [tuple(bucket) for bucket in batching.sort_buckets(model.data.buckets)]
    if spec.has_text:
        lengths = [spec.max_tokens]
        if not spec.has_image:
            lengths = [n for (n,) in batching.text_buckets(spec.max_tokens, model.data)]
        entry |= {"max_tokens": spec.max_tokens, "token_lengths": lengths}
        entry["arguments"] += ["input_ids", "token_mask", "segment_ids"]
    entry["programs"] = [
        {
            "file": f"{spec.name}{'' if size is None else f'-{size[0]}x{size[1]}'}.stablehlo",
            "padded_to": size,
        }
        for size in padded
    ]
    return entry


def _program(model: Model, spec: TaskSpec, padded_to: tuple[int, int] | None):
    """program(weights, *arrays) and the symbolic shapes of the arrays."""
    settings, tasks, _ = weights_lib.settings_of(model.metadata, model.source)
    settings = dataclasses.replace(settings, attention="plain")  # no kernel of one platform
    graph, params, _ = flat.abstract(lambda: outputs.build(settings, tasks, rngs=nnx.Rngs(0)))
    symbolic_text = spec.has_text and not spec.has_image
    constraints = [f"t <= {spec.max_tokens}", "t >= 1"] if symbolic_text else []
    b, h, w, t = jax.export.symbolic_shape("b, h, w, t", constraints=constraints)
    arguments: list[jax.ShapeDtypeStruct] = []
    if spec.has_image:
        arguments += [_shape((b, h, w, 3), np.uint8), _shape((b, 2), np.int32)]
    if spec.has_text:
        tokens = (b, t if symbolic_text else spec.max_tokens)
        arguments += [_shape(tokens, d) for d in (np.int32, np.bool_, np.int32)]
    tall_first = int(PIL.__version__.split(".")[0]) >= 13

    def program(weights: dict[str, Array], *arrays: Array) -> dict[str, Array]:
        rest, fields, sizes = list(arrays), {}, None
        if spec.has_image and padded_to is not None:
            pictures, sizes = rest.pop(0), rest.pop(0)
            new = resize.target_sizes(
                sizes,
                model.data.eval_short_side,
                model.data.eval_max_side,
                spec.transforms == "resize",
            )
            fields["images"] = resize.resize(pictures, sizes, new, padded_to, tall_first)
            fields["image_sizes"] = new
        if spec.has_text:
            fields |= zip(("input_ids", "token_mask", "segment_ids"), rest, strict=True)
        unit = flat.merge(
            graph,
            {name: x for name, x in weights.items() if name in params},
            {name: x for name, x in weights.items() if name not in params},
        )
        answers = unit(Batch(task=spec.name, **fields))
        answer = outputs.room(spec).shown(answers, unit.heads[spec.name])
        if sizes is not None and "boxes_cxcywh" in answer:
            answer["boxes_xyxy"] = to_pixels(answer.pop("boxes_cxcywh"), sizes)
        return answer

    return program, arguments


def to_pixels(
    boxes_cxcywh: Float[Array, "batch queries 4"], sizes: Int[Array, "batch 2"]
) -> Float[Array, "batch queries 4"]:
    """(x0, y0, x1, y1) in pixels of pictures of these (height, width)."""
    centres, halves = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:] / 2
    scale = sizes[:, None, jnp.asarray([1, 0, 1, 0])].astype(boxes_cxcywh.dtype)
    return jnp.concatenate([centres - halves, centres + halves], -1) * scale


def draw_frames(
    pictures: UInt8[Array, "batch height width 3"],
    boxes_xyxy: Float[Array, "batch objects 4"],
    labels: Int[Array, "batch objects"],
) -> UInt8[Array, "batch height width 3"]:
    """Frames on pictures, one colour per class, the first ones on top."""
    height, width = pictures.shape[1:3]
    y = jnp.arange(height, dtype=jnp.float32)[None, :, None]
    x = jnp.arange(width, dtype=jnp.float32)[None, None, :]
    line = 2.0

    def paint(step: Array, painted: Array) -> Array:
        number = boxes_xyxy.shape[1] - 1 - step
        x0, y0, x1, y1 = (boxes_xyxy[:, number, i, None, None] for i in range(4))
        inside = (x >= x0 - line) & (x <= x1 + line) & (y >= y0 - line) & (y <= y1 + line)
        within = (x > x0) & (x < x1) & (y > y0) & (y < y1)
        hue = (labels[:, number] * jnp.float32(0.618034)) % 1
        wheel = jnp.abs((hue[:, None] * 6 + jnp.asarray([0.0, 4.0, 2.0])) % 6 - 3) - 1
        color = (255 * (0.15 + 0.6 * jnp.clip(wheel, 0, 1))).astype(jnp.uint8)
        return jnp.where((inside & ~within)[..., None], color[:, None, None], painted)

    return jax.lax.fori_loop(0, boxes_xyxy.shape[1], paint, pictures)


def _write_draw(folder: Path, platforms: Sequence[str]) -> Exported:
    start = time.perf_counter()
    b, h, w, n = jax.export.symbolic_shape("b, h, w, n")
    made = jax.export.export(jax.jit(draw_frames), platforms=platforms)(
        _shape((b, h, w, 3), np.uint8), _shape((b, n, 4), np.float32), _shape((b, n), np.int32)
    )
    content = made.serialize()
    (folder / exported.DRAW).write_bytes(content)
    return Exported("(frames)", exported.DRAW, len(content), time.perf_counter() - start)


def _with_weights(function, weights: dict[str, np.ndarray]):
    return lambda *arrays: function({k: jnp.asarray(v) for k, v in weights.items()}, *arrays)


def _shape(shape: tuple, dtype) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def _shapes(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
