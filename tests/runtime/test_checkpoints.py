"""Checkpoints: what is kept, what is read back, and what is refused."""

import collections
import contextlib
import os
import re
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from unit_jax.runtime import checkpoint_folder, checkpoints, disk

# tensorstore warns of the reads that it gives up on.
pytestmark = pytest.mark.filterwarnings("ignore")


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


def test_a_model_of_fewer_tasks_reads_its_part(tmp_path):
    saved = checkpoints.Checkpoints(tmp_path / "checkpoints")
    saved.save(1, _model(3.0), {})
    saved.wait()
    part = _abstract(_model())
    del part["params"]["b.bias"]
    with pytest.raises(ValueError, match="unexpected: b.bias"):
        saved.restore(1, part)
    model, _ = saved.restore(1, part, partly=True)
    assert list(model["params"]) == ["a.kernel"] and list(model["statistics"]) == ["bn.mean"]
    np.testing.assert_array_equal(model["params"]["a.kernel"], _model(3.0)["params"]["a.kernel"])
    part["params"]["c.bias"] = part["statistics"]["bn.mean"]
    with pytest.raises(ValueError, match="missing: c.bias") as error:
        saved.restore(1, part, partly=True)
    assert "unexpected" not in str(error.value)
    saved.close()


def test_the_best_stays_across_a_resume_and_is_found(tmp_path):
    scores = {1: 0.2, 2: 0.9, 3: float("nan"), 4: 0.3, 5: 0.4, 6: None}
    for session in ((1, 2), (3, 4), (5, 6)):
        saved = checkpoints.Checkpoints(tmp_path / "checkpoints", 2, "a/AP")
        for step in session:
            metrics = None if scores[step] is None else {"a/AP": scores[step], "b/x": 1.0}
            saved.save(step, _model(step), {"n": step}, None, metrics)
        saved.close()
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == [2, 5, 6]
    assert checkpoint_folder.best_step(tmp_path, "a/AP") == 2
    with pytest.raises(ValueError, match=r"saved with a value of c/AP \(it has steps 2, 5, 6\)"):
        checkpoint_folder.best_step(tmp_path, "c/AP")
    with pytest.raises(ValueError, match="it has none"):
        checkpoint_folder.best_step(tmp_path / "nowhere", "a/AP")


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
    saved = checkpoints.Checkpoints(tmp_path / "checkpoints")
    for step in (2, 3):
        saved.save(step, _model(), {})
    saved.wait()
    saved.close()
    for path in (tmp_path / "checkpoints" / "3" / "model").rglob("*"):
        if path.is_file():
            path.write_bytes(b"not a checkpoint")
    broken = checkpoints.Checkpoints(tmp_path / "checkpoints")
    told = r"checkpoint .*/3 cannot be read \(.*\); others there: 2$"
    with pytest.raises(checkpoints.Damaged, match=told) as error:
        broken.restore(3, _abstract(_model()))
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
    broken.close()


MOMENTS = {"step": jnp.asarray(7), "mu": {"a.kernel": jnp.arange(6.0) / 3}}


def _saved(folder, steps=(2, 4, 6)) -> None:
    saved = checkpoints.Checkpoints(folder, max_to_keep=5)
    for step in steps:
        saved.save(step, _model(step), {"n": step, "rate": 0.1}, MOMENTS)
    saved.wait()
    saved.close()


def _newest_good(folder):
    """(step, model, optimizer, metadata), or the error."""
    again = checkpoints.Checkpoints(folder)
    try:
        step, (model, optimizer) = again.newest_good(
            lambda step: again.restore(step, _abstract(_model()), _abstract(MOMENTS))
        )
        return step, model, optimizer, again.metadata(step)
    finally:
        again.close()


def _files(step) -> list:
    return sorted(path for path in step.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    folder = tmp_path_factory.mktemp("three") / "checkpoints"
    _saved(folder)
    return folder


def _copy(three, tmp_path):
    return shutil.copytree(three, tmp_path / "checkpoints")


def test_the_newest_checkpoint_damaged_the_one_before_is_taken(three, tmp_path, capsys):
    """A file cut, files gone, the metadata or the optimizer's folder gone."""
    folder = _copy(three, tmp_path)
    for path in _files(folder / "6" / "model"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    step, model, _, metadata = _newest_good(folder)
    assert (step, metadata["n"]) == (4, 4)
    np.testing.assert_array_equal(model["params"]["a.kernel"], _model(4)["params"]["a.kernel"])
    aside = tmp_path / "damaged_checkpoints" / "6"
    assert _files(aside) and not (folder / "6").exists()
    told = capsys.readouterr().out
    assert told.startswith(f"checkpoint {folder}/6 cannot be read (")
    assert told.endswith(f"; it is kept as {aside}; going back to step 4\n")

    shutil.copytree(three / "6", folder / "6")
    shutil.rmtree(folder / "6" / "optimizer")
    shutil.rmtree(folder / "4" / "metadata")
    assert _newest_good(folder)[0] == 2
    assert {path.name for path in aside.parent.iterdir()} == {"6", "6-again", "4"}

    shutil.rmtree(folder / "2" / "model")
    with pytest.raises(checkpoints.Damaged, match="/2 cannot be read .* no other one can be read"):
        _newest_good(folder)
    assert (folder / "2").exists()


def _flip(path, rng) -> None:
    content = bytearray(path.read_bytes())
    content[rng.integers(len(content))] ^= 1 << rng.integers(8)
    path.write_bytes(content)


@pytest.mark.parametrize("flips", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_no_flipped_bit_is_loaded(three, tmp_path, flips):
    """In any file of the newest checkpoint: it is read as saved, or the one before is."""
    rng, went_back = np.random.default_rng(0), 0
    for number in range(flips):
        folder = shutil.copytree(three, tmp_path / str(number) / "checkpoints")
        files = [path for path in _files(folder / "6") if path.stat().st_size]
        sizes = np.array([path.stat().st_size for path in files], float)
        _flip(files[rng.choice(len(files), p=sizes / sizes.sum())], rng)
        step, model, optimizer, metadata = _newest_good(folder)
        went_back += step == 4
        assert metadata == {"n": step, "rate": 0.1}
        jax.tree.map(np.testing.assert_array_equal, model, _model(step))
        jax.tree.map(np.testing.assert_array_equal, optimizer, MOMENTS)
        shutil.rmtree(folder.parent)
    assert went_back > flips / 10


def test_other_numbers_in_a_readable_checkpoint_are_seen(three, tmp_path):
    """The digests themselves: arrays of another run under the metadata of this one."""
    folder = _copy(three, tmp_path)
    for item in ("model", "optimizer"):
        shutil.rmtree(folder / "6" / item)
        shutil.copytree(folder / "4" / item, folder / "6" / item)
    again = checkpoints.Checkpoints(folder)
    told = "1 of its arrays are not what was saved, such as params/a.kernel"
    with pytest.raises(checkpoints.Damaged, match=told):
        again.restore(6, _abstract(_model()))
    path = folder / "6" / "metadata" / "metadata"
    path.write_text(path.read_text().replace('"rate": 0.1', '"rate": 0.2'))
    with pytest.raises(checkpoints.Damaged, match="its metadata are not what was saved"):
        again.metadata(6)
    again.close()


def test_checkpoints_without_digests_are_read(three, tmp_path):
    folder = _copy(three, tmp_path)
    path = folder / "6" / "metadata" / "metadata"
    path.write_text('{"n": 6}')
    assert _newest_good(folder)[3] == {"n": 6}


def test_two_good_checkpoints_stay_whatever_is_asked(tmp_path):
    saved = checkpoints.Checkpoints(tmp_path, max_to_keep=1)
    seen = []
    for step in (1, 2, 3):
        saved.save(step, _model(step), {})
        seen.append(len(checkpoint_folder.whole_steps(tmp_path)))
        saved.wait()
    saved.close()
    assert seen[2] >= 2 and checkpoint_folder.whole_steps(tmp_path) == [2, 3]


def test_reading_touches_nothing_in_a_folder_where_a_run_is_at_work(three, tmp_path):
    """Also not what the run is just writing there."""
    folder = _copy(three, tmp_path)
    writing = folder / "8.orbax-checkpoint-tmp" / "model"
    writing.mkdir(parents=True)
    (writing / "half").write_bytes(b"x")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with contextlib.closing(checkpoints.Checkpoints(folder, read_only=True)) as reading:
        assert reading.latest_step() == 6 and reading.metadata(6)["n"] == 6
        reading.restore(6, _abstract(_model()), _abstract(MOMENTS))
        assert set(reading.shapes(6)) == {"params", "statistics"}
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_files_that_vanish_while_they_are_counted_are_passed_over(tmp_path, monkeypatch):
    """orbax removes what a killed run left half written in the background."""
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(bytes(10))
    stat = os.stat

    def vanishing(path, *rest, **options):
        if str(path).endswith("/a"):
            raise FileNotFoundError(path)
        return stat(path, *rest, **options)

    monkeypatch.setattr(disk.os, "stat", vanishing)
    assert disk.used(epath.Path(tmp_path)) == 10


def test_a_write_that_fails_is_one_line_that_names_what_is_safe(tmp_path, monkeypatch, capfd):
    """A limit on the size of files stands for a full disk."""
    saved = checkpoints.Checkpoints(tmp_path)
    saved.save(1, _model(), {})
    saved.wait()
    large = {"params": {"a": jnp.asarray(np.random.default_rng(0).standard_normal((400, 500)))}}
    large["statistics"] = {"b": jnp.zeros(3)}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    monkeypatch.setattr(disk, "free", lambda folder: 300_000)
    capfd.readouterr()
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        with pytest.raises(checkpoints.NotWritten) as error:
            saved.save(2, large, {})
            saved.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    missing = 400 * 500 * 4 + 12 + 2 * 4096 - 300_000
    assert str(error.value) == (
        f"a checkpoint could not be written to {tmp_path} (no space is left: 0.3 MB are free, "
        f"{missing / 1e6:.1f} MB too little for one); {tmp_path}/1 is safe; make room and start "
        "again"
    )
    assert error.value.exit_code == 4 and "Traceback" not in capfd.readouterr().err
    assert checkpoint_folder.whole_steps(epath.Path(tmp_path)) == [1]


def test_room_for_the_checkpoints_to_come(three, tmp_path, monkeypatch):
    state = {"x": jax.ShapeDtypeStruct((1000, 1000), jnp.float32)}
    saved = checkpoints.Checkpoints(tmp_path / "run" / "checkpoints")
    usage = collections.namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(16_100_000))
    saved.check_room(state, max_to_keep=2)
    told = (
        "has 16.1 MB free, 5 checkpoints (train.max_to_keep=3, the best, and one being written) of "
        "4.0 MB need 3.9 MB more"
    )
    with pytest.raises(ValueError, match=re.escape(told)):
        saved.check_room(state, max_to_keep=3)
    (tmp_path / "run" / "checkpoints" / "3").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "3" / "x").write_bytes(bytes(4_000_000))
    saved.check_room(state, max_to_keep=3)  # what is there already counts
    saved.close()


def test_locate(tmp_path):
    with pytest.raises(ValueError, match="no checkpoint at .*; give a working folder"):
        checkpoint_folder.locate(tmp_path)
    for step in (5, 12):
        (tmp_path / "run" / "checkpoints" / str(step) / "metadata").mkdir(parents=True)
    folder = epath.Path(tmp_path / "run" / "checkpoints")
    assert checkpoint_folder.locate(tmp_path / "run") == (folder, 12)
    assert checkpoint_folder.locate(folder) == (folder, 12)
    assert checkpoint_folder.locate(folder / "5") == (folder, 5)
    (tmp_path / "2024").mkdir()  # a working folder with a number for a name is no step
    with pytest.raises(ValueError, match="no checkpoint at .*/2024"):
        checkpoint_folder.locate(tmp_path / "2024")
    assert checkpoint_folder.exist(tmp_path / "run") and not checkpoint_folder.exist(
        tmp_path / "2024"
    )
