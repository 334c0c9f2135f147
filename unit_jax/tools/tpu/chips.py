"""What the makers publish of their chips, and how XLA's compiler calls slices of TPUs."""

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip.

    Attributes:
      name: as in a topology, "v5e" of "v5e:2x4".
      hbm_bytes: memory that the compiler lets programs have.
      bandwidth: of this memory, bytes/s.
      peak_flops: dense bfloat16, FLOP/s.
      clock: Hz, what a cycle of the compiler's estimates is.
      options: what `get_topology_desc` must be told beside the name.
    """

    name: str
    hbm_bytes: int
    bandwidth: float
    peak_flops: float
    clock: float
    options: tuple[tuple[str, str], ...] = ()


GIB = 2**30
# Bandwidths and peaks: cloud.google.com/tpu/docs (v4, v5e, v5p, v6e). Memory: what XLA's error
# messages name as available (libtpu 0.0.42.1), which is less than what is built in.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", int(30.5 * GIB), 1228e9, 275e12, 1.05e9, (("chip_config_name", "megacore"),)),
        Chip("v5e", int(15.75 * GIB), 819e9, 197e12, 1.5e9),
        Chip("v5p", int(95.74 * GIB), 2765e9, 459e12, 1.75e9),
        Chip("v6e", int(31.25 * GIB), 1640e9, 918e12, 1.75e9),
        # No TPU: for --estimate alone.
        Chip("h100", 80 * 10**9, 3350e9, 989e12, math.nan),
    )
}


def chip_of(topology: str) -> Chip:
    """The chip of a topology such as "v5e:2x4".

    Raises:
      ValueError: the table does not have it, or no shape is given.
    """
    name, _, shape = topology.partition(":")
    if name not in CHIPS or not shape:
        raise ValueError(
            f"--topology {topology}: write CHIP:SHAPE with a chip of {', '.join(CHIPS)}, "
            "such as v5e:2x4, v5p:2x2x2, v6e:2x4 or v4:2x2x1 (h100:8 for --estimate)"
        )
    return CHIPS[name]
