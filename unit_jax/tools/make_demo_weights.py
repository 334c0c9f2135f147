"""Makes the weights that come with the package from a finished demo run.

unit-jax demo-weights --workdir runs/demo --data_dir runs/demo/data
unit-jax demo-weights --workdir runs/demo-start/textures --part backbone

Writes unit_jax/demo/weights/demo.safetensors (16 bits, with names, vocabulary, settings and figures
in its header), a model card beside it, and a few pictures to try it on. The figures are those of
the run's report.json. --part writes demo-backbone.safetensors or demo-text-encoder.safetensors, the
ResNet or the text encoder alone, from which the demo starts.
"""

import argparse
import dataclasses
import itertools
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unit_jax.interop.weights import Weights

LIMIT = 5_000_000  # bytes; it lies in the repository


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--workdir", default="runs/demo", help="a finished demo run")
    add("--data_dir", default="", help="its prepared data, if its checkpoints lack names")
    add("--part", choices=("backbone", "text_encoder"), help="only this (make demo-start)")
    add("--output", default="", help="folder to write to; default: that of the package")
    options = parser.parse_args(arguments)
    try:
        workdir = Path(options.workdir)
        if options.part:
            print(make_part(options.part, workdir, options.output))
        else:
            print(make(workdir, options.data_dir, options.output))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def make(workdir: Path, data_dir: str = "", output: str = "") -> str:
    """Writes weights and card; returns a line about them.

    Raises:
      ValueError: the run is not finished, lacks names, or its weights are too large.
    """
    from unit_jax.api import card
    from unit_jax.interop import sources, weights

    model = weights.read(workdir, data_dir)
    lacking = [task for task in model.metadata["settings"]["tasks"] if task not in model.names]
    if lacking or not model.vocabulary:
        raise ValueError(f"{workdir}: it has no names of {', '.join(lacking)}; give --data_dir")
    path, told = _write(model, workdir, sources.DEMO, "make demo && make demo-weights", output)
    shipped = weights.read(path)
    text = card.write(weights.renamed(shipped, "demo"), "UniT, demo weights")
    (path.parent / "README.md").write_text(text, encoding="utf-8")
    draw_pictures(path.parent.parent / "pictures")
    return told


def make_part(part: str, workdir: Path, output: str = "") -> str:
    """Writes a part of a finished run's model; returns a line about it.

    Args:
      part: "backbone" or "text_encoder".

    Raises:
      ValueError: the run is not finished.
    """
    from unit_jax.interop import sources, weights

    model = weights.read(workdir)
    arrays = {name: a for name, a in model.arrays.items() if name.startswith(f"{part}.")}
    model = dataclasses.replace(model, arrays=arrays)
    return _write(model, workdir, sources.DEMO_PARTS[part], "make demo-start", output)[1]


def _write(
    model: "Weights", workdir: Path, name: str, made_by: str, output: str
) -> tuple[Path, str]:
    """Writes the file NAME of a finished run's weights; returns it and a line about it."""
    from unit_jax.interop import sources, weights
    from unit_jax.runtime import checkpoint_folder

    steps = model.metadata["settings"]["train"]["steps"]
    _, step = checkpoint_folder.locate(workdir)
    if step < steps:
        raise ValueError(f"{workdir}: at step {step} of {steps}; let the run finish")
    metadata = described(model, step, figures(workdir)) | {"made_by": made_by}
    path = Path(output or sources.demo_file().parent) / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    weights.write_safetensors(path, model.arrays, metadata, "float16")
    size = path.stat().st_size
    if size > LIMIT:
        path.unlink()
        raise ValueError(f"{path}: {size:,} bytes, more than {LIMIT:,}; make the model smaller")
    return path, f"{path}: {size:,} bytes, step {step}"


def draw_pictures(folder: Path, count: int = 6) -> None:
    """Scenes that no split holds, for people to try the model on."""
    from PIL import Image

    from unit_jax.demo import scenes, world

    folder.mkdir(parents=True, exist_ok=True)
    settings = world.DemoSettings(seed=6_633)  # five shapes, five colours
    for number, (_, scene) in enumerate(
        itertools.islice(world.coco_scenes(settings, "val"), count), start=1
    ):
        Image.fromarray(scenes.render(scene)).save(folder / f"scene-{number}.png", optimize=True)


def described(model: Any, step: int, rows: list[dict]) -> dict[str, Any]:
    """The metadata to ship: what the checkpoint tells, without folders of the machine it was
    made on, with names and figures."""
    from unit_jax.interop import weights

    def name(value: object) -> object:
        return Path(value).name if isinstance(value, str) else value

    metadata = json.loads(json.dumps(model.metadata))
    metadata["settings"]["data"]["data_dir"] = ""
    started = metadata["settings"]["init_from"]
    metadata["settings"]["init_from"] = {part: name(value) for part, value in started.items()}
    metadata["names"] = weights.as_json(model.names, model.vocabulary)
    return metadata | {
        "step": step,
        "figures": rows,
        "figures_split": "val",
    }


def figures(workdir: Path) -> list[dict]:
    """The rows of the run's report.

    Raises:
      ValueError: there is none.
    """
    path = workdir / "report.json"
    if not path.is_file():
        raise ValueError(f"{path} is missing; let the run finish")
    rows = json.loads(path.read_text())
    return [{key: row[key] for key in ("task", "metric", "value", "baseline")} for row in rows]


if __name__ == "__main__":
    sys.exit(main())
