"""A config's settings with the counts that only its data know."""

from unit_jax import config_files
from unit_jax.settings import Settings


def load(config: str, data_dir: str | None) -> Settings:
    """The settings of FILE.py[:variants], with the counts of the prepared data, if these are given.

    Raises:
      ValueError: no file of settings; or the size of the vocabulary is neither in it nor in data.
    """
    settings = config_files.read(config)
    if data_dir:
        from unit_jax import run as run_lib  # these need the libraries that read data
        from unit_jax.data.prepared import PreparedData

        data = PreparedData(data_dir, settings.tasks, vocabulary=settings.data.vocabulary)
        settings = run_lib.with_label_counts(settings, data)
    if not settings.model.text_encoder.vocab_size:
        raise ValueError(
            f"{config}: model.text_encoder.vocab_size is 0, that of the prepared data; "
            "give --data_dir too"
        )
    return settings
