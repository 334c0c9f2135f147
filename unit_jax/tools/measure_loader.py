"""Measures how many images a second the loader prepares, and where the time goes.

unit-jax measure-loader [--workers 0,1,2] [--images 512]

The pictures are made up: 640 x 480 pixels with the detail of photographs, JPEG of COCO's usual
size, resized to 1066 x 800 as in evaluation. Processor time leaves out what other work on the
machine takes; images a second by the clock do not.
"""

import argparse
import importlib.util
import io
import json
import multiprocessing
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable

import numpy as np
import rich
import rich.table
from PIL import Image

from unit_jax import run as run_lib
from unit_jax import settings as settings_lib
from unit_jax.configs import unit
from unit_jax.data import batching, loader, prepare, transforms
from unit_jax.data.prepared import PreparedData

WIDTH, HEIGHT = 640, 480
BUCKET = (800, 1088)
BATCH = 8
DISTINCT = 32  # pictures; more files repeat them


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--workers", default="0,1,2", help="numbers of worker processes to try")
    parser.add_argument("--images", type=int, default=512, help="images to read")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = make_data(pathlib.Path(folder), options.images)
        show("processor time of a stage, one image", ["stage", "ms", "share"], stages(data))
        show("decoders", ["decoder", "ms", "pixels"], decoders(data.split("coco", "val").image(0)))
        rates = [
            (str(number), *(f"{rate:.0f}" for rate in images_per_second(data, number)))
            for number in map(int, options.workers.split(","))
        ]
    columns = ["worker processes", "images/s by the clock", "images per second of processor time"]
    show("the whole loader", columns, rates)


def show(title: str, columns: list[str], rows: Iterable[tuple[str, ...]]) -> None:
    """Prints a table."""
    table = rich.table.Table(title=title)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    rich.print(table)


def photograph(seed: int) -> bytes:
    """A JPEG whose detail falls off with frequency as a photograph's does."""
    rng = np.random.default_rng(seed)
    pixels = np.full((HEIGHT, WIDTH, 3), 128.0)
    for scale in (2, 4, 8, 16, 32, 64):
        noise = rng.normal(size=(3, HEIGHT // scale, WIDTH // scale)) * 4.5 * scale**0.8
        layers = [Image.fromarray(layer.astype(np.float32)) for layer in noise]
        smooth = [layer.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC) for layer in layers]
        pixels += np.stack([np.asarray(layer) for layer in smooth], -1)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def make_data(folder: pathlib.Path, count: int) -> PreparedData:
    """Pictures as COCO's validation split, prepared (training has one)."""
    pictures = [photograph(seed) for seed in range(DISTINCT)]
    for split, ids in (("train", [0]), ("val", range(1, count + 1))):
        images = folder / "source" / "coco" / f"{split}2017"
        images.mkdir(parents=True)
        listed = []
        for number in ids:
            name = f"{number:012d}.jpg"
            (images / name).write_bytes(pictures[number % DISTINCT])
            listed.append({"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT})
        content = {"images": listed, "annotations": [], "categories": [{"id": 1, "name": "none"}]}
        path = folder / "source" / prepare.Coco.annotations[split]
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))
    settings = prepare.Settings(allow_partial=True, progress=False)
    prepare.prepare(folder / "source", folder / "data", ["coco"], settings)
    return PreparedData(folder / "data", ["coco"])


def milliseconds(run: Callable[[int], object], count: int = 64) -> float:
    """Median processor time of run(0), run(1), ... on this thread."""
    times = []
    for number in range(count):
        start = time.thread_time()
        run(number)
        times.append(time.thread_time() - start)
    return 1000 * statistics.median(times)


def stages(data: PreparedData) -> list[tuple[str, str, str]]:
    """(stage, ms, share) of what happens to one image, in this order."""
    split = data.split("coco", "val")
    count = min(64, len(split))
    settings = settings_lib.from_config(unit.values()).data
    height, width = split.sizes
    plan = transforms.plan("detr", height[:count], width[:count], settings)
    encoded = [split.image(row) for row in range(count)]
    pixels = transforms.decode(encoded[0])
    resized, _ = transforms.apply(pixels, plan, 0)
    batch, _ = batching.pad_images([resized] * BATCH, BUCKET)
    shared = np.zeros_like(batch)
    times = {
        "read from ArrayRecord": milliseconds(lambda row: split.image(row), count),
        "decode": milliseconds(lambda row: transforms.decode(encoded[row]), count),
        "resize": milliseconds(lambda row: transforms.apply(pixels, plan, row), count),
        "pad into the batch": milliseconds(
            lambda _: batching.pad_images([resized] * BATCH, BUCKET), count
        )
        / BATCH,
        # Workers hand a batch over in shared memory: one copy there.
        "copy to the parent": milliseconds(lambda _: np.copyto(shared, batch), count) / BATCH,
    }
    total = sum(times.values())
    rows = [(name, f"{ms:.2f}", f"{ms / total:.0%}") for name, ms in times.items()]
    rows.append(("normalise", "0", "on the device"))
    return [*rows, ("all", f"{total:.2f}", f"{1000 / total:.0f} images/s per core")]


def decoders(encoded: bytes) -> list[tuple[str, str, str]]:
    """(decoder, ms, agreement with Pillow's pixels) of the decoders that are installed."""
    known: dict[str, Callable[[bytes], np.ndarray]] = {"Pillow (used)": transforms.decode}
    if importlib.util.find_spec("simplejpeg"):
        import simplejpeg

        known["simplejpeg"] = simplejpeg.decode_jpeg
    if importlib.util.find_spec("cv2"):
        import cv2

        flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        known["OpenCV"] = lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    truth = transforms.decode(encoded).astype(int)
    rows = []
    for name, decode in known.items():
        off = np.abs(decode(encoded) - truth).max()
        took = milliseconds(lambda _, decode=decode: decode(encoded))
        rows.append((name, f"{took:.2f}", f"off by up to {off}" if off else "the same"))
    return rows


def images_per_second(data: PreparedData, workers: int) -> tuple[float, float]:
    """Images a second by the clock, and by the processor time of all processes.

    Starting the processes takes long and is not counted.
    """
    values = unit.values()
    values["tasks"] = {"coco": values["tasks"]["coco"]}
    values["train"].update(eval_batch_size=BATCH)
    values["data"].update(num_workers=workers, num_threads=1, prefetch=2)
    settings = run_lib.with_label_counts(settings_lib.from_config(values), data)
    with loader.eval_batches(settings, data, "coco") as batches:
        next(batches)
        start, busy = time.perf_counter(), processor_seconds()
        count = sum(batch.size for batch in batches)
        return count / (time.perf_counter() - start), count / (processor_seconds() - busy)


def processor_seconds() -> float:
    """Processor time of this process and (on Linux) of its living children, in seconds."""
    total = time.process_time()
    for child in multiprocessing.active_children():
        stat = pathlib.Path(f"/proc/{child.pid}/stat")
        if stat.exists():
            user, system = stat.read_text().rpartition(")")[2].split()[11:13]
            total += (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    return total


if __name__ == "__main__":
    main()
