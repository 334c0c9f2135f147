"""Converts checkpoints: PyTorch files to ours, and ours back.

unit-jax convert --from mmf --input FILE.pth --config configs/unit.py --output DIR
unit-jax convert --to mmf --input DIR --output FILE.pth

--from mmf wants a whole UniT of the config's tasks, and maybe of others (a .pth, or the model
zoo's tar; the zoo's COCO model goes with configs/unit.py:coco,separate_decoders); --from detr fills
the backbone and --from bert the text encoder (a file, a folder or a hub name) of a fresh model. The
output is a working folder that --mode=eval and --mode=predict take as --checkpoint, and training as
config.init_from.model. --to mmf, detr and bert write the names of those files, --to safetensors
ours; the file's suffix (.pth or .safetensors) decides the format.
"""

import argparse
import contextlib
import dataclasses
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from unit_jax import outputs, paths
from unit_jax.data.prepared import PreparedData
from unit_jax.interop import bert, detr, init_from, mmf, sources, torch_files, weights
from unit_jax.models import flat
from unit_jax.runtime import checkpoint_folder, checkpoints
from unit_jax.settings import Settings
from unit_jax.tools import sized_settings


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    direction = parser.add_mutually_exclusive_group(required=True)
    direction.add_argument("--from", dest="source", choices=["mmf", "detr", "bert"])
    direction.add_argument("--to", dest="target", choices=["mmf", "safetensors", "detr", "bert"])
    add("--input", required=True, help="--from: the file; --to: a checkpoint folder of ours")
    add("--output", required=True, help="--from: a new folder; --to: .pth or .safetensors")
    add("--config", help="--from: settings file of the model, FILE.py[:variants]")
    add(
        "--bn_eps",
        type=float,
        help="--from: epsilon of the frozen batch norms the weights were trained with: 0 for the "
        "files of MMF's model zoo, 1e-5 for newer runs; default: the config's",
    )
    add(
        "--data_dir",
        help="--from: prepared data whose label and vocabulary counts the model has, as in "
        "training, and their names; default: the counts of the config, no names; --to safetensors: "
        "names that an old checkpoint lacks",
    )
    add(
        "--dtype",
        choices=["float32", "float16", "bfloat16"],
        default="float32",
        help="--to safetensors: of matrices; half the bytes, or all bits",
    )
    options = parser.parse_args(arguments)
    try:
        paths.check_local("--output", options.output)
        if options.source:
            if not options.config:
                parser.error("--from needs --config")
            settings = load_settings(options.config, options.bn_eps, options.data_dir)
            eps = f"epsilon of the frozen batch norms: {settings.model.backbone.bn_eps:g}"
            if options.bn_eps is None and options.source == "mmf":
                eps += " (the config's; the files of MMF's model zoo want --bn_eps=0)"
            print(f"{eps}, saved with the settings")
            import_checkpoint(
                options.source, options.input, settings, options.output, options.data_dir
            )
            print(how_to_use(options, settings))
        else:
            export_checkpoint(
                options.target, options.input, options.output, options.data_dir, options.dtype
            )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def import_checkpoint(
    source: str, path: str, settings: Settings, output: str, data_dir: str | None = None
) -> None:
    """Writes the working folder `output` from a PyTorch checkpoint, whole or not at all.

    Raises:
      ValueError: the file is damaged or does not fit the model of the settings (every missing,
        unexpected or mis-shaped entry in one message), or the output exists.
    """
    if os.path.lexists(output):
        raise ValueError(f"{output}: exists already; give a new folder")

    def model() -> tuple[flat.Flat, flat.Flat]:
        built = outputs.build(settings.model, settings.tasks, rngs=nnx.Rngs(settings.seed))
        return flat.split(built)[1:]

    params, statistics = jax.eval_shape(model)
    expected = {
        name: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)
        for name, leaf in {**params, **statistics}.items()
    }
    if source == "mmf":
        state = torch_files.load_state_dict(path)
        with sources.naming(path):
            arrays, skipped = mmf.import_tasks(state, expected)
        left = f"its tasks {', '.join(skipped)} left aside" if skipped else "none left over"
        print(f"{path}: {len(state)} entries read, {len(arrays)} arrays filled, {left}")
    else:
        fill = dict(detr=init_from.backbone_from_detector, bert=init_from.text_encoder_from_bert)
        # Zeros do to find what does not fit, before the time goes into a fresh model.
        arrays, report = fill[source](expected, path)
        made_params, made_statistics = jax.jit(model)()
        arrays = {**made_params, **made_statistics} | {name: arrays[name] for name in report.loaded}
        print(f"{report}\n  all else is fresh (seed {settings.seed})")
    groups = {
        group: {
            # No view of the file's array: those are strided.
            name: np.array(arrays[name], leaf.dtype, order="C")
            for name, leaf in leaves.items()
        }
        for group, leaves in (("params", params), ("statistics", statistics))
    }
    metadata: dict[str, Any] = {
        "settings": dataclasses.asdict(settings),
        "converted_from": source,
    }
    if data_dir:
        metadata["names"] = weights.described(PreparedData(data_dir, settings.tasks))
    write_checkpoint(output, groups, checkpoints.jsonable(metadata))
    print(f"wrote {output}: {len(expected)} arrays")


def how_to_use(options: argparse.Namespace, settings: Settings) -> str:
    """The commands that take what was converted, with the settings that it needs."""
    run = f"unit-jax --config={options.config}"
    if options.data_dir:
        run += f" --config.data.data_dir={options.data_dir}"
    if options.bn_eps is not None:
        run += f" --config.model.backbone.bn_eps={options.bn_eps:g}"
    other = [
        f" --config.init_from.{name}="
        for name in ("backbone", "text_encoder")
        if getattr(settings.init_from, name)
    ]
    return "\n".join(
        [
            f"evaluate:  {run} --mode=eval --checkpoint={options.output} --workdir=DIR",
            f"predict:   {run} --mode=predict --checkpoint={options.output} --workdir=DIR",
            f"fine-tune: {run} --config.init_from.model={options.output}{''.join(other)} "
            "--workdir=DIR",
        ]
    )


def export_checkpoint(
    target: str, path: str, output: str, data_dir: str | None = None, dtype: str = "float32"
) -> None:
    """Writes one file from one of our checkpoints, whole or not at all.

    Args:
      data_dir, dtype: of safetensors: prepared data with the names that an old checkpoint lacks,
        and what matrices are stored as.

    Raises:
      ValueError: there is no readable checkpoint, or the suffix names no format.
    """
    writers = {".pth": torch_files.save_pth, ".safetensors": torch_files.save_safetensors}
    suffix = Path(output).suffix
    if suffix not in writers or (target == "safetensors" and suffix == ".pth"):
        expected = ".safetensors" if target == "safetensors" else " or ".join(writers)
        raise ValueError(f"{output}: the name of the output should end in {expected}")
    model = weights.read(path, data_dir or "")
    arrays, metadata = model.arrays, dict(model.metadata)
    if target == "safetensors":
        metadata["names"] = weights.as_json(model.names, model.vocabulary)
        nameless = [task for task in metadata["settings"]["tasks"] if task not in model.names]
        if nameless:
            told = ", ".join(nameless)
            print(f"it has no names of the labels of {told}; --data_dir DIR would give them")
    elif target == "mmf":
        arrays = mmf.export_state(arrays, metadata["settings"]["loss"]["no_object_weight"])
    elif target == "detr":
        arrays = detr.export_weights(arrays)
    elif target == "bert":
        arrays = bert.export_weights(arrays)
    Path(output).absolute().parent.mkdir(parents=True, exist_ok=True)
    if target == "safetensors":
        weights.write_safetensors(output, arrays, metadata, dtype)
    else:
        writers[suffix](output, arrays)
    print(f"wrote {output}: {len(arrays)} entries")


def load_settings(config: str, bn_eps: float | None, data_dir: str | None) -> Settings:
    """The settings of FILE.py[:variants], with the epsilon and the counts that were asked for."""
    settings = sized_settings.load(config, data_dir)
    if bn_eps is None:
        return settings
    backbone = dataclasses.replace(settings.model.backbone, bn_eps=bn_eps)
    model = dataclasses.replace(settings.model, backbone=backbone)
    return dataclasses.replace(settings, model=model)


def write_checkpoint(output: str, model: Any, metadata: dict[str, Any]) -> None:
    """Writes step 0 of a new working folder under another name, then renames it."""
    target = Path(output).absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        folder = temporary / checkpoint_folder.FOLDER
        with contextlib.closing(checkpoints.Checkpoints(folder)) as saved:
            saved.save(0, model, metadata)
            saved.wait()
        os.chmod(temporary, 0o755)  # a temporary folder is its maker's alone
        os.rename(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


if __name__ == "__main__":
    sys.exit(main())
