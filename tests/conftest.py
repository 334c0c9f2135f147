"""Eight simulated CPU devices and one compile cache for the whole suite."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import jax  # noqa: E402  (the flags above must come first)
import pytest  # noqa: E402

CACHE = pathlib.Path(__file__).parent.parent / ".jax_cache"
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(CACHE)  # for commands that tests start


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Frees programs after each file: hundreds alive at once crash XLA's CPU backend."""
    yield
    jax.clear_caches()
