"""The loss on validation data equals the room's loss of the model, called by hand."""

import jax
import numpy as np
import pytest

from tests import tiny
from unit_jax import outputs
from unit_jax import run as run_lib
from unit_jax.data import loader
from unit_jax.evaluation import loss
from unit_jax.models import flat
from unit_jax.outputs.objects import matching


@pytest.mark.slow
def test_it_is_the_loss_of_the_model_as_it_predicts(tmp_path):
    tasks = ("coco", "qqp")
    config = tiny.values(tiny.make_data(tmp_path, tasks), tasks)
    config["train"]["eval_batch_size"] = 8  # 6 images are filled up, of 12 texts 4 come twice
    run = run_lib.open_run(config)
    model = run.fresh_model()
    found = loss.losses(run, loss.LossStep(run), model)
    unit = flat.merge(run.graph, *(jax.device_get(part) for part in model))
    for task in tasks:
        room, values = outputs.room(run.settings.tasks[task]), []
        with loader.eval_batches(run.settings, run.data, task) as batches:
            for batch in batches:
                answers, matches = unit(batch), None
                if room.matches:
                    costs = room.costs(answers, batch.targets, run.settings.loss)
                    matches = matching.match(np.asarray(costs), batch.targets.object_mask)
                total, _ = room.loss(
                    answers, batch.targets, unit.heads[task], run.settings.loss, matches
                )
                values.append((bool((batch.index >= 0).all()), float(total)))
        whole = [value for full, value in values if full] or [value for _, value in values]
        np.testing.assert_allclose(found[f"{task}/loss"], np.mean(whole), rtol=1e-4)
