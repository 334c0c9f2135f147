"""Classification losses against their definitions in float64 NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_expit, log_softmax

from configs.unit import values
from unit_jax import outputs as rooms
from unit_jax import settings as settings_lib
from unit_jax.batch import Outputs
from unit_jax.outputs.labels.room import LabelTargets, ScoreTargets
from unit_jax.tasks import PUBLISHED

SETTINGS = settings_lib.build(settings_lib.LossSettings, values()["loss"])


def loss(logits, targets, task):
    return jax.jit(
        lambda x, t: rooms.room(PUBLISHED[task]).loss(Outputs(None, x), t, None, SETTINGS)
    )(logits, targets)


def test_cross_entropy_of_every_layer():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(2, 5, 3)) * 4, rng.integers(0, 3, 5)
    with jax.enable_x64(True):
        total, terms = loss(jnp.asarray(logits), LabelTargets(labels=jnp.asarray(labels)), "mnli")
    wanted = {
        f"loss_{layer}": -np.mean([log_softmax(logits[layer, i])[labels[i]] for i in range(5)])
        for layer in range(2)
    }
    assert set(terms) == set(wanted)
    for name in wanted:
        np.testing.assert_allclose(terms[name], wanted[name], rtol=1e-13)
    np.testing.assert_allclose(total, sum(wanted.values()), rtol=1e-13)


def test_soft_answers_are_summed_over_answers():
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(1, 4, 9)) * 3
    scores = rng.choice([0, 0.3, 0.6, 0.9, 1.0], (4, 9))
    elementwise = -(scores * log_expit(logits) + (1 - scores) * log_expit(-logits))
    with jax.enable_x64(True):
        targets = ScoreTargets(answer_scores=jnp.asarray(scores))
        total, terms = loss(jnp.asarray(logits), targets, "vqa2")
    np.testing.assert_allclose(total, elementwise.mean() * 9, rtol=1e-13)
    assert list(terms) == ["loss_0"]


def test_extreme_logits_stay_finite():
    logits = jnp.asarray([[[200.0, -200.0, 0.0]]])
    scores = ScoreTargets(answer_scores=jnp.asarray([[0.0, 1.0, 0.5]]))
    value, gradient = jax.value_and_grad(lambda x: loss(x, scores, "vqa2")[0])(logits)
    np.testing.assert_allclose(value, 400 + np.log(2), rtol=1e-6)
    np.testing.assert_allclose(gradient, [[[1, -1, 0]]], atol=1e-6)


def test_half_precision_logits_give_a_float32_loss():
    logits = jnp.ones((1, 2, 2), jnp.bfloat16)
    total, _ = loss(logits, LabelTargets(labels=jnp.asarray([0, 1])), "sst2")
    assert total.dtype == jnp.float32
    np.testing.assert_allclose(total, np.log(2), rtol=1e-6)


def test_batch_and_per_image_normalisation_agree():
    rng = np.random.default_rng(2)
    outputs = Outputs(None, jnp.asarray(rng.normal(size=(1, 6, 2)), jnp.float32))
    targets = LabelTargets(labels=jnp.asarray(rng.integers(0, 2, 6)))
    totals = [
        rooms.room(PUBLISHED["qqp"]).loss(
            outputs, targets, None, dataclasses.replace(SETTINGS, normalisation=normalisation)
        )[0]
        for normalisation in ("batch", "per_image")
    ]
    assert totals[0] == totals[1]


def test_scores_for_another_answer_list_are_refused():
    with pytest.raises(ValueError, match="another answer list"):
        loss(jnp.zeros((1, 2, 5)), ScoreTargets(answer_scores=jnp.zeros((2, 4))), "vqa2")
