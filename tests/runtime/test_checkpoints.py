"""Checkpoints: what is kept, what is read back, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from unit_jax.runtime import checkpoints


def _model(scale: float = 1.0) -> dict:
    return {
        "params": {"a.kernel": scale * jnp.arange(6.0).reshape(2, 3), "b.bias": jnp.ones(4)},
        "statistics": {"bn.mean": jnp.zeros(3)},
    }


def _abstract(model: dict):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), model)


def test_round_trip_and_what_is_kept(tmp_path):
    folder = tmp_path / "checkpoints"
    saved = checkpoints.Checkpoints(folder, max_to_keep=2, best_metric="vqa2/vqa_accuracy")
    for step, score in ((1, 0.2), (2, 0.9), (3, None), (4, 0.3), (5, 0.4)):
        metrics = None if score is None else {"vqa2/vqa_accuracy": score}
        saved.save(step, _model(step), {"n": step}, {"mu": jnp.full(2, step)}, metrics)
    saved.wait()
    assert sorted(int(p.name) for p in epath.Path(folder).iterdir()) == [2, 4, 5]
    saved.close()

    again = checkpoints.Checkpoints(folder)
    assert again.latest_step() == 5 and again.metadata(2) == {"n": 2}
    model, optimizer = again.restore(
        5, _abstract(_model()), {"mu": jax.ShapeDtypeStruct((2,), jnp.float32)}
    )
    np.testing.assert_array_equal(model["params"]["a.kernel"], _model(5)["params"]["a.kernel"])
    np.testing.assert_array_equal(optimizer["mu"], [5, 5])
    again.close()


def test_a_checkpoint_that_does_not_fit_lists_every_difference(tmp_path):
    saved = checkpoints.Checkpoints(tmp_path)
    saved.save(7, _model(), {})
    saved.wait()
    wanted = _abstract(_model())
    wanted["params"]["b.bias"] = jax.ShapeDtypeStruct((5,), jnp.float32)
    wanted["params"]["c.bias"] = wanted["params"].pop("a.kernel")
    with pytest.raises(ValueError) as error:
        saved.restore(7, wanted)
    saved.close()
    for line in (
        "missing: c.bias",
        "unexpected: a.kernel",
        "b.bias: shape (4,), the model has (5,)",
    ):
        assert line in str(error.value)


def test_an_unreadable_checkpoint_is_named(tmp_path):
    saved = checkpoints.Checkpoints(tmp_path)
    saved.save(3, _model(), {})
    saved.wait()
    saved.close()
    for path in (tmp_path / "3" / "model").rglob("*"):
        if path.is_file():
            path.write_bytes(b"not a checkpoint")
    broken = checkpoints.Checkpoints(tmp_path)
    with pytest.raises(ValueError, match=r"checkpoint .*/3 cannot be read .* remove that folder"):
        broken.restore(3, _abstract(_model()))
    broken.close()


def test_locate(tmp_path):
    with pytest.raises(ValueError, match="no checkpoint at .*; give a working folder"):
        checkpoints.locate(tmp_path)
    for step in (5, 12):
        (tmp_path / "run" / "checkpoints" / str(step) / "metadata").mkdir(parents=True)
    folder = epath.Path(tmp_path / "run" / "checkpoints")
    assert checkpoints.locate(tmp_path / "run") == (folder, 12)
    assert checkpoints.locate(folder) == (folder, 12)
    assert checkpoints.locate(folder / "5") == (folder, 5)
    (tmp_path / "2024").mkdir()  # a working folder with a number for a name is no step
    with pytest.raises(ValueError, match="no checkpoint at .*/2024"):
        checkpoints.locate(tmp_path / "2024")
    assert checkpoints.exist(tmp_path / "run") and not checkpoints.exist(tmp_path / "2024")
