"""Paths of parameters are public names: checkpoints, conversion and optimiser rules hold them."""

import re

from flax import nnx

from configs import unit
from tests import REFERENCE_FILES
from unit_jax import outputs, settings
from unit_jax.models import flat

PATHS = REFERENCE_FILES / "parameter_paths.txt"


def paths() -> list[str]:
    """Path and shape of all that the paper's model stores, layers of equal shapes in one line."""
    made = settings.from_config(unit.get_config("coco,visual_genome,vqa2,snli_ve"))
    _, params, statistics = flat.abstract(
        lambda: outputs.build(made.model, made.tasks, rngs=nnx.Rngs(0))
    )
    lines = (f"{path} {x.shape}" for path, x in {**params, **statistics}.items())
    return sorted({re.sub(r"\blayers\.\d+", "layers.*", line) for line in lines})


def test_paths_are_those_of_checkpoints_made_before():
    assert paths() == PATHS.read_text().splitlines()
