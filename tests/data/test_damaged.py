"""Damaged prepared data: one line that names file, record and remedy; found at start if asked."""

import pathlib
import pickle
import re
import shutil

import numpy as np
import pytest

from tests import tiny
from unit_jax import run
from unit_jax import settings as settings_lib
from unit_jax.data import loader, prepared
from unit_jax.data.prepared import PreparedData


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return tiny.make_data(tmp_path_factory.mktemp("demo"), ("snli_ve", "qqp"))


@pytest.fixture
def data_dir(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "data")


def flip(path: pathlib.Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)


def shard(data_dir, name: str, split: str) -> pathlib.Path:
    (path,) = (data_dir / name).rglob(f"{name}-{split}.array_record*")
    return path


def damage_a_record(path: pathlib.Path, records: prepared.Records) -> int:
    """Flips the first byte, of some hundred, without which a record cannot be read: its row."""
    for at in range(0, path.stat().st_size, 97):
        flip(path, at)
        fresh = pickle.loads(pickle.dumps(records))  # opened anew
        for row in range(len(records)):
            try:
                fresh[row]
            except ValueError:
                return row
        flip(path, at)
    raise AssertionError("no byte of the file matters")


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_flipped_byte_of_a_record_is_one_line(data_dir, workers):
    path = shard(data_dir, "qqp", "train")
    data = PreparedData(data_dir, ("qqp",))
    row = damage_a_record(path, data.split("qqp", "train").records)
    config = tiny.values(data_dir, ("qqp",), steps=60)
    config["data"].update(num_workers=workers)
    settings = run.with_label_counts(settings_lib.from_config(config), data)
    told = rf"^{re.escape(str(path))}: record {row} \(row {row} of train\) cannot be read .*hash"
    with pytest.raises(ValueError, match=told) as error:
        with loader.train_batches(settings, PreparedData(data_dir, ("qqp",))) as batches:
            list(batches)
    assert "\n" not in str(error.value) and "or prepare qqp again" in str(error.value)


def test_an_index_that_is_damaged_is_one_line(data_dir):
    path = next(data_dir.glob("qqp/*/index-val.npz"))
    flip(path, path.stat().st_size // 2)
    with pytest.raises(ValueError, match=r"index-val\.npz cannot be read .*prepare qqp again"):
        PreparedData(data_dir, ("qqp",)).split("qqp", "val")


def test_verifying_finds_every_damaged_file(data_dir):
    data = PreparedData(data_dir, ("snli_ve", "qqp"))
    assert prepared.verify(data) > 8
    damaged = [shard(data_dir, "qqp", "train"), shard(data_dir, "images_flickr30k", "images")]
    rng = np.random.default_rng(0)
    for path in damaged:
        flip(path, int(rng.integers(path.stat().st_size)))
    with pytest.raises(ValueError, match="--verify_data: the prepared data are damaged") as error:
        prepared.verify(data)
    lines = [line for line in str(error.value).splitlines() if "not the file" in line]
    assert sorted(lines) == sorted(
        f"  {path} is not the file that was prepared" for path in damaged
    )
    assert prepared.verify(PreparedData(data_dir, ())) == 0


def test_data_prepared_without_digests_say_so(data_dir):
    data = PreparedData(data_dir, ("qqp",))
    del data.manifest["datasets"]["qqp"]["digests"]
    with pytest.raises(ValueError, match="qqp was prepared without digests"):
        prepared.verify(data)
