"""A trained model in use: `unit_jax.load`, its answers, and programs that run without this code."""
