"""Runs what `unit-jax export` wrote, with JAX (and NumPy and flatbuffers, which it needs) alone.

    model = unit_jax.load_exported("folder")
    model.predict("vqa2", image=pixels, text="what is it?")

A folder holds `manifest.json` (tasks, names, vocabulary), `weights.npz`, and serialised StableHLO:
a program per task and padded size. A program takes whole pictures, uint8 RGB in the top-left
corners of a canvas, and their sizes; resizing, normalising and turning boxes into pixels of the
picture are in it. Texts become token ids in this file. This file and `wordpiece.py` are all that
is needed of unit_jax; paths and encoded pictures need Pillow too.
"""

import bisect
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from unit_jax.wordpiece import WordPiece

FORMAT = 1
# Sides of the canvases that pictures are put on: few, as each pair is compiled once.
SIDES = (64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384)
MANIFEST, WEIGHTS, DRAW = "manifest.json", "weights.npz", "draw.stablehlo"


def load_exported(path: str | os.PathLike) -> "ExportedModel":
    """The programs in a folder.

    Raises:
      ValueError: it holds no export, or one of another format.
    """
    return ExportedModel(pathlib.Path(path))


class ExportedModel:
    """Programs of one model, by task.

    Attributes:
      manifest: what the folder tells about itself.
    """

    def __init__(self, folder: pathlib.Path):
        try:
            self.manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            known = self.manifest["format"] == FORMAT
        except (OSError, ValueError, KeyError, TypeError):
            raise ValueError(
                f"{folder}: no {MANIFEST} of `unit-jax export` in it; give the folder it wrote"
            ) from None
        if not known:
            raise ValueError(f"{folder}: format {self.manifest['format']}, this reads {FORMAT}")
        self._folder = folder
        self._weights: Any = None
        self._programs: dict[str, Any] = {}
        vocabulary = self.manifest["vocabulary"]
        self._wordpiece = WordPiece(vocabulary) if vocabulary else None

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that were exported."""
        return tuple(self.manifest["tasks"])

    def labels(self, task: str) -> tuple[str, ...]:
        """Names of a task's labels, by number."""
        return tuple(self._task(task)["labels"])

    def predict(
        self,
        task: str,
        image: Any = None,
        text: str | Sequence[str] | None = None,
        text_b: str | Sequence[str] | None = None,
        *,
        threshold: float = 0.5,
        top: int | None = None,
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """What a task's program says of one example, or of lists of them.

        Args:
          image: uint8 array (height, width, 3), path, encoded bytes, or a list of these.
          text, text_b: one text each, or lists.
          threshold: least score of detections.
          top: at most so many detections (None = 100) or answers (None = all).

        Returns:
          {"detections": [{"label", "score", "box_xyxy"}, ...]}, or {"answers": [{"label",
          "score"}, ...]}, best first; a list of these for lists.
        """
        entry = self._task(task)
        given: dict[str, Any] = {"image": image, "text": text, "text_b": text_b}
        many = {name for name, value in given.items() if isinstance(value, (list, tuple))}
        lengths = {len(given[name]) for name in many}
        if len(lengths) > 1:
            raise ValueError(f"{task}: lists of different lengths, {sorted(lengths)}")
        count = lengths.pop() if many else 1
        rows = {n: list(v) if n in many else [v] * count for n, v in given.items()}
        for name in entry["inputs"]:
            if any(value is None for value in rows[name]):
                raise ValueError(f"{task} needs {name}")
        results = self._run(task, entry, rows, count, threshold, top)
        return results if many else results[0]

    def raw(self, task: str, **arrays: np.ndarray) -> dict[str, np.ndarray]:
        """The output arrays of a task's program, by name.

        Args:
          arrays: its inputs as the manifest lists them: `pictures`, `sizes`, `input_ids`,
            `token_mask`, `segment_ids`.
        """
        entry = self._task(task)
        program = self._pick(entry, arrays.get("sizes"))
        ordered = [arrays[name] for name in entry["arguments"]]
        return jax.device_get(self._call(program, *ordered))

    def draw(self, image: Any, result: dict[str, Any], task: str) -> np.ndarray:
        """The picture with the frames of a result's detections on it, uint8 (height, width, 3)."""
        pixels = _pixels(image)
        canvas, _ = _on_canvas([pixels])
        numbers = {name: number for number, name in enumerate(self.labels(task))}
        detections = result["detections"]
        boxes = np.asarray([one["box_xyxy"] for one in detections], np.float32).reshape(1, -1, 4)
        labels = np.asarray([[numbers[one["label"]] for one in detections]], np.int32)
        labels = labels.reshape(1, -1)
        if not len(detections):
            return pixels
        drawn = self._load(DRAW)(canvas, boxes, labels)
        return np.asarray(drawn)[0, : pixels.shape[0], : pixels.shape[1]]

    # ---- Inside ----------------------------------------------------------------------------------

    def _task(self, task: str) -> dict[str, Any]:
        if task not in self.manifest["tasks"]:
            raise ValueError(f"no task {task!r} was exported, but {', '.join(self.tasks)}")
        return self.manifest["tasks"][task]

    def _run(self, task, entry, rows, count, threshold, top) -> list[dict[str, Any]]:
        pictures = sizes = tokens = None
        keys: list[tuple] = [()] * count
        if "image" in entry["inputs"]:
            pictures = [_pixels(image) for image in rows["image"]]
            sizes = np.asarray([p.shape[:2] for p in pictures], np.int32)
            keys = [
                (_canvas_of(p.shape), self._pick(entry, sizes[i : i + 1])["file"])
                for i, p in enumerate(pictures)
            ]
        if "text" in entry["inputs"]:
            if self._wordpiece is None:
                raise ValueError(f"{task}: the export came without a vocabulary")
            encode = self._wordpiece.encode
            tokens = [
                encode(a, b or "", entry["max_tokens"])
                for a, b in zip(rows["text"], rows["text_b"], strict=True)
            ]
        results: list[dict[str, Any]] = [{}] * count
        for key in dict.fromkeys(keys):
            chosen = [i for i in range(count) if keys[i] == key]
            # Powers of two, so that few sizes of batches are compiled.
            padded = chosen + [chosen[0]] * ((1 << (len(chosen) - 1).bit_length()) - len(chosen))
            arrays: dict[str, np.ndarray] = {}
            if pictures:
                arrays["pictures"], arrays["sizes"] = _on_canvas([pictures[i] for i in padded])
            if tokens:
                arrays |= _padded([tokens[i] for i in padded], entry)
            answers = self.raw(task, **arrays)
            for row, i in enumerate(chosen):
                of_row = {name: values[row] for name, values in answers.items()}
                results[i] = self._named(entry, of_row, threshold, top)
        return results

    def _named(self, entry, answer, threshold: float, top: int | None) -> dict[str, Any]:
        names, scores = entry["labels"], answer["scores"]
        if "boxes_xyxy" in answer:
            order = np.argsort(-scores, kind="stable")
            order = order[scores[order] >= threshold][: 100 if top is None else top]
            detections = []
            for k in order:
                one = {
                    "label": names[int(answer["labels"][k])],
                    "score": float(scores[k]),
                    "box_xyxy": [float(x) for x in answer["boxes_xyxy"][k]],
                }
                if entry["attributes"] and "attr_labels" in answer:
                    one["attribute"] = entry["attributes"][int(answer["attr_labels"][k])]
                detections.append(one)
            return {"detections": detections}
        best = int(answer["labels"])
        order = np.lexsort((np.arange(len(scores)) != best, -scores))
        order = order[scores[order] >= 0][:top]
        return {"answers": [{"label": names[int(k)], "score": float(scores[k])} for k in order]}

    def _pick(self, entry: dict[str, Any], sizes: np.ndarray | None) -> dict[str, Any]:
        """The program whose padded size holds the resized pictures."""
        programs = entry["programs"]
        if sizes is None:
            return programs[0]
        wanted = np.asarray([_resized_size(*map(int, s), entry["resize"]) for s in sizes])
        for program in programs:
            if (wanted <= np.asarray(program["padded_to"])).all():
                return program
        height, width = sizes[np.argmax(wanted.max(1))]
        raise ValueError(f"a picture of {height} x {width} pixels is too narrow for this export")

    def _call(self, program: dict[str, Any], *arrays: np.ndarray) -> Any:
        function = self._load(program["file"])
        if self.manifest["weights"] == "inside":
            return function(*arrays)
        if self._weights is None:
            with np.load(self._folder / WEIGHTS) as stored:
                self._weights = jax.device_put({name: stored[name] for name in stored.files})
        return function(self._weights, *arrays)

    def _load(self, file: str) -> Any:
        if file not in self._programs:
            try:
                content = bytearray((self._folder / file).read_bytes())
                self._programs[file] = jax.jit(jax.export.deserialize(content).call)
            except ImportError as error:
                raise ImportError("JAX reads exports with flatbuffers: pip install flatbuffers"
                                  ) from error  # fmt: skip
            except OSError as error:
                raise ValueError(f"{self._folder / file}: cannot be read ({error})") from None
        return self._programs[file]


def _pixels(image: Any) -> np.ndarray:
    if isinstance(image, (str, os.PathLike, bytes)):
        import io

        from PIL import Image, ImageOps  # paths and encoded pictures only

        with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
            image = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"a picture is uint8 (height, width, 3), not {image.dtype} {image.shape}")
    return image


def _canvas_of(shape: Sequence[int]) -> tuple[int, int]:
    if max(shape[:2]) > SIDES[-1]:
        raise ValueError(f"a picture of {shape[0]} x {shape[1]} pixels is too large")
    height, width = (SIDES[bisect.bisect_left(SIDES, side)] for side in shape[:2])
    return height, width


def _on_canvas(pictures: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    canvas = np.max([_canvas_of(p.shape) for p in pictures], axis=0)
    padded = np.zeros((len(pictures), *canvas, 3), np.uint8)
    for target, picture in zip(padded, pictures, strict=True):
        target[: picture.shape[0], : picture.shape[1]] = picture
    return padded, np.asarray([p.shape[:2] for p in pictures], np.int32)


def _padded(tokens: Sequence[tuple[list[int], int]], entry: dict) -> dict[str, np.ndarray]:
    longest = max(len(ids) for ids, _ in tokens)
    width = next(length for length in entry["token_lengths"] if length >= longest)
    shape = (len(tokens), width)
    ids, mask, segments = (
        np.zeros(shape, np.int32),
        np.zeros(shape, bool),
        np.zeros(shape, np.int32),
    )
    for row, (numbers, first) in enumerate(tokens):
        ids[row, : len(numbers)] = numbers
        mask[row, : len(numbers)] = True
        segments[row, first : len(numbers)] = 1
    return {"input_ids": ids, "token_mask": mask, "segment_ids": segments}


def _resized_size(height: int, width: int, rule: dict[str, Any]) -> tuple[int, int]:
    """(height, width) that the program resizes to."""
    short, long, size = min(height, width), max(height, width), rule["short_side"]
    if rule["max_side"] and long * size > rule["max_side"] * short:
        exact = rule["max_side"] * short
        size = max(1, exact // long if rule["floor"] else round(exact / long))
    other = size * long // short
    return (other, size) if height > width else (size, other)
