"""Shows how a model and its optimiser lie on a mesh; no device and no data is needed.

unit-jax show-sharding --config configs/unit.py --mesh data=2,fsdp=4,tensor=1

A line per parameter: path, shape, the mesh axes that its dimensions are split over ("-" = whole)
and the bytes that one device holds of it; at the end the totals. The optimiser's moments are split
further, over all devices (`partitioning.share_spec`), and frozen parameters have none. Label counts
are the config's, or those of --data_dir.
"""

import argparse
import dataclasses
import math
import sys
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import PartitionSpec

from unit_jax import settings as settings_lib
from unit_jax.runtime import partitioning
from unit_jax.settings import MeshSettings, Settings
from unit_jax.tools import sized_settings
from unit_jax.training.state import abstract_run


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config", default="configs/unit.py", help="FILE.py[:variants] (%(default)s)")
    add("--mesh", default="", help="such as data=2,fsdp=4,tensor=1; default: the config's")
    add("--devices", type=int, help="how many; needed where the mesh has a -1 (default: 1)")
    add("--data_dir", help="prepared data that gives the label counts")
    options = parser.parse_args(argv)
    try:
        settings = sized_settings.load(options.config, options.data_dir)
        settings = dataclasses.replace(settings, mesh=read_mesh(options.mesh, settings.mesh))
        for line in layout(settings, options.devices):
            print(line)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def read_mesh(text: str, default: MeshSettings) -> MeshSettings:
    """`data=2,fsdp=4`: the axes that are not named are 1; "" is the config's mesh.

    Raises:
      ValueError: it is written otherwise.
    """
    if not text:
        return default
    sizes = dict.fromkeys(partitioning.AXES, 1)
    for part in text.split(","):
        axis, _, size = part.partition("=")
        if axis not in sizes or not size.lstrip("-").isdigit():
            raise ValueError(f"--mesh: {part!r}; write it like data=2,fsdp=4,tensor=1")
        sizes[axis] = int(size)
    return settings_lib.build(MeshSettings, sizes, "--mesh")


def layout(settings: Settings, devices: int | None = None) -> Iterator[str]:
    """The lines of the table."""
    given = [size for size in dataclasses.astuple(settings.mesh) if size != -1]
    mesh = partitioning.abstract_mesh(settings.mesh, devices or math.prod(given))
    _, state = abstract_run(settings, mesh)
    parts = {
        "parameters": state.params,
        "batch-norm statistics": state.statistics,
        "optimiser": state.optimizer,
    }
    params = state.params
    wide = max(map(len, params))
    yield f"mesh: {', '.join(f'{axis} {size}' for axis, size in mesh.shape.items())}"
    yield f"{'parameter':{wide}}  {'shape':18} {'split over':32} {'bytes per device':>16}"
    for path, leaf in params.items():
        shape, spec = " ".join(map(str, leaf.shape)), spec_text(leaf)
        yield f"{path:{wide}}  {shape:18} {spec:32} {bytes_per_device(leaf):16,}"
    yield ""
    yield f"{'total':{wide}}  {'bytes':>18} {'':32} {'bytes per device':>16} {'part':>8}"
    for name, tree in parts.items():
        leaves = jax.tree.leaves(tree)
        whole = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
        held = sum(map(bytes_per_device, leaves))
        yield f"{name:{wide}}  {whole:18,} {'':32} {held:16,} {held / whole:8.1%}"


def bytes_per_device(leaf: Any) -> int:
    """Bytes of an array that one device holds."""
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def spec_text(leaf: Any) -> str:
    """The mesh axes that split each dimension; - = none."""
    spec: PartitionSpec = leaf.sharding.spec
    parts = [*spec, *[None] * (len(leaf.shape) - len(spec))]
    return " ".join("-" if p is None else p if isinstance(p, str) else "*".join(p) for p in parts)


if __name__ == "__main__":
    sys.exit(main())
