"""Eight simulated CPU devices and one compile cache for the whole suite."""

import importlib.metadata
import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile more than they compute: what XLA does for fast programs costs more than it gives.
FLAGS = [
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
]
if importlib.metadata.version("jaxlib").startswith("0.10."):  # later versions do not know it
    FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *FLAGS])

import jax  # noqa: E402  (the flags above must come first)
import pytest  # noqa: E402

if os.environ.get("UNIT_JAX_CHECK_TYPES"):
    from tests import annotations

    annotations.install()

CACHE = pathlib.Path(__file__).parent.parent / ".jax_cache"
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
# The same for commands that tests start.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(CACHE)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"


# A process of the suite takes whole files, these first.
LONGEST = (
    "test_sharding.py", "test_distributed.py", "test_step.py", "test_end_to_end.py",
    "test_own_output.py", "test_guards.py",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Frees programs after each file: hundreds alive at once crash XLA's CPU backend."""
    yield
    jax.clear_caches()
