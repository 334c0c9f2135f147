"""UniT: one transformer for eight vision and language data sets, in JAX.

`unit_jax.load("demo")` gives a trained model at once; importing this package imports nothing else.
"""

__version__ = "0.1.0"
__all__ = ["load", "load_exported"]


def __getattr__(name: str):
    if name == "load":
        from unit_jax.api.load import load

        return load
    if name == "load_exported":
        from unit_jax.exported import load_exported

        return load_exported
    raise AttributeError(f"module 'unit_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
