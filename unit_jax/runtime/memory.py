"""How much memory a process and its devices use."""

import os
import pathlib

import jax


def in_use() -> dict[str, float]:
    """Bytes: `host_memory` of this process, `device_memory_peak` of its fullest device, where they
    are known."""
    found = {}
    try:
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
        found["host_memory"] = float(pages * os.sysconf("SC_PAGE_SIZE"))
    except OSError:  # not Linux
        pass
    peaks = [
        (device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()
    ]
    if any(peaks):
        found["device_memory_peak"] = float(max(filter(None, peaks)))
    return found
