"""How much memory a process and its devices use."""

import os
import pathlib

import jax


def in_use() -> dict[str, float]:
    """Bytes, where they are known: `host_memory` of this process without the files that it has
    mapped, `device_memory_peak` of its fullest device."""
    sizes = {}
    try:
        resident, shared = map(int, pathlib.Path("/proc/self/statm").read_text().split()[1:3])
        sizes["host_memory"] = float((resident - shared) * os.sysconf("SC_PAGE_SIZE"))
    except OSError:  # not Linux
        pass
    peaks = [
        (device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()
    ]
    if any(peaks):
        sizes["device_memory_peak"] = float(max(filter(None, peaks)))
    return sizes
