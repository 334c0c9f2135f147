"""UniT: one transformer for eight vision and language datasets, in JAX."""

__version__ = "0.1.0"
