"""Every setting, and how a config becomes settings.

`groups.py` is the one place where a setting stands. Configs change some of them, flags some more
(`--config.train.steps=5`); `from_config` checks all and names everything that is wrong at once.
`docs/configuration.md` shows them as tables, with the settings of a task (`unit_jax/tasks.py`).
"""

from unit_jax.settings.groups import (
    BY_SIZE,
    BackboneSettings,
    DataSettings,
    DecoderSettings,
    DistributedSettings,
    ImageEncoderSettings,
    InitSettings,
    LossSettings,
    MeshSettings,
    ModelSettings,
    OptimizerSettings,
    ReportSettings,
    Settings,
    TextEncoderSettings,
    TrainSettings,
)
from unit_jax.settings.reading import build, defaults, from_config, from_saved, names, only, update

__all__ = [
    "BY_SIZE",
    "BackboneSettings",
    "DataSettings",
    "DecoderSettings",
    "DistributedSettings",
    "ImageEncoderSettings",
    "InitSettings",
    "LossSettings",
    "MeshSettings",
    "ModelSettings",
    "OptimizerSettings",
    "ReportSettings",
    "Settings",
    "TextEncoderSettings",
    "TrainSettings",
    "build",
    "defaults",
    "from_config",
    "from_saved",
    "names",
    "only",
    "update",
]
