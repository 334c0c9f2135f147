"""Checkpoint files: every layout PyTorch writes, damaged files, and writing.

`tests/reference/torch_files/` was written by PyTorch 2.13 (`torch.save` of one content in
the zip and in the legacy format); the expected values are spelled out here.
"""

import collections
import io
import json
import pickle
import random
import struct
import tarfile
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from tests import REFERENCE_FILES
from tests.interop.pickles import (
    write_zip,
)
from unit_jax.interop import torch_files

DATA = REFERENCE_FILES / "torch_files"
GOLDEN = ["checkpoint_zip.pth", "checkpoint_legacy.pth"]


def expected_weights() -> dict[str, np.ndarray]:
    weights = {}
    for dtype in ("float64", "float32", "float16", ml_dtypes.bfloat16):
        weights[f"dtype.{np.dtype(dtype).name}"] = (np.arange(6).reshape(2, 3) / 4 - 0.5).astype(
            dtype
        )
    for dtype in ("int64", "int32", "int16", "int8", "uint8"):
        weights[f"dtype.{dtype}"] = np.arange(6).reshape(2, 3).astype(dtype)
    base = np.arange(24, dtype=np.float32)
    return weights | {
        "dtype.bool": np.array([True, False, True]),
        "view.base": base,
        "view.offset": base[5:9],
        "view.transposed": base.reshape(4, 6).T,
        "view.every_third": base[1::3],
        "view.expanded": np.repeat(np.arange(3, dtype=np.float32)[:, None], 4, axis=1),
        "scalar": np.array(7),
        "empty": np.zeros((0, 3), np.float32),
        "parameter": np.ones((2, 2), np.float32),
        "alias": weights["dtype.float32"],
    }


def assert_same(actual: dict, expected: dict):
    assert list(actual) == list(expected)
    for name, array in expected.items():
        assert actual[name].dtype == array.dtype, name
        assert actual[name].shape == array.shape, name
        assert actual[name].tobytes() == array.tobytes(), name


# ---- what PyTorch wrote


@pytest.mark.parametrize("name", GOLDEN)
def test_reads_every_dtype_view_and_stride(name):
    weights = torch_files.load_state_dict(DATA / name)
    assert_same(weights, expected_weights())
    assert np.shares_memory(weights["view.base"], weights["view.transposed"])


@pytest.mark.parametrize("name", GOLDEN)
def test_reads_what_stands_beside_the_weights(name):
    content = torch_files.read(DATA / name)
    assert content["args"] == {"lr": 1e-4, "backbone": "resnet50", "masks": False}
    assert content["optimizer"]["param_groups"] == [
        {"lr": 1e-4, "betas": (0.9, 0.999), "params": [0]}
    ]
    np.testing.assert_array_equal(content["optimizer"]["state"][0]["exp_avg"], np.full((2, 3), 0.5))
    assert (content["epoch"], content["best"], content["seen"]) == (299, 0.5, {1, 2})
    assert (content["device"], content["size"]) == ("cpu", (2, 3))
    np.testing.assert_array_equal(content["curve"], [0.0, 1.0, 2.0])


def test_reads_untyped_storages():
    weights = torch_files.load_state_dict(DATA / "untyped_storage.pt")
    np.testing.assert_array_equal(weights["uint16"], np.arange(3, dtype=np.uint16))
    assert weights["float8"].dtype == ml_dtypes.float8_e4m3fn
    np.testing.assert_array_equal(weights["float8"].astype(np.float32), [0.5, 1, -2])


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_reads_the_checkpoint_of_a_tar(tmp_path, mode):
    with tarfile.open(tmp_path / "model.tar", mode) as archive:
        archive.add(DATA / "checkpoint_zip.pth", "../unit/unit.pth")  # its folders are not used
        archive.addfile(tarfile.TarInfo("config.yaml"))
    assert_same(torch_files.load_state_dict(tmp_path / "model.tar"), expected_weights())
    assert [file.name for file in tmp_path.iterdir()] == ["model.tar"]


def test_a_tar_with_two_checkpoints_is_an_error(tmp_path):
    with tarfile.open(tmp_path / "model.tar.gz", "w:gz") as archive:
        for name in GOLDEN:
            archive.add(DATA / name, name)
    with pytest.raises(ValueError, match=r"model\.tar\.gz.*one checkpoint.*checkpoint_legacy\.pth"):
        torch_files.read(tmp_path / "model.tar.gz")


# ---- damaged files


def test_a_damaged_files_error_is_one_line_of_bounded_length(tmp_path):
    long = "\n".join(["x" * 3000] * 3)
    header = json.dumps({long: {"dtype": "F32", "shape": [2], "data_offsets": [0, 12]}}).encode()
    path = tmp_path / "bad.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(12))
    with pytest.raises(ValueError, match="damaged or not a checkpoint") as error:
        torch_files.read(path)
    assert len(str(error.value)) < 400 + len(str(path)) and "\n" not in str(error.value)


@pytest.fixture
def safetensors_file(tmp_path):
    path = tmp_path / "good.safetensors"
    torch_files.save_safetensors(path, expected_weights(), {"format": "pt"})
    return path


def damaged(tmp_path: Path, content: bytes, suffix: str):
    path = tmp_path / f"damaged{suffix}"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", [*GOLDEN, "safetensors", "tar"])
def test_truncated_files_are_refused(tmp_path, name, safetensors_file):
    if name == "tar":
        source = tmp_path / "whole.tar.gz"
        with tarfile.open(source, "w:gz") as archive:
            archive.add(DATA / GOLDEN[1], "unit.pth")
    else:
        source = safetensors_file if name == "safetensors" else DATA / name
    content = source.read_bytes()
    for length in {0, 1, 5, len(content) - 1, *range(9, len(content), len(content) // 40)}:
        path = damaged(tmp_path, content[:length], source.suffix)
        with pytest.raises(ValueError, match=f"{path.name}: damaged or not a checkpoint"):
            torch_files.load_state_dict(path)


def test_no_bit_flip_in_a_zip_changes_a_weight(tmp_path):
    content = (DATA / GOLDEN[0]).read_bytes()
    generator, refused = random.Random(0), 0
    for _ in range(400):
        changed = bytearray(content)
        changed[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        path = damaged(tmp_path, changed, ".pth")
        try:
            assert_same(torch_files.load_state_dict(path), expected_weights())
        except ValueError as error:
            assert "damaged.pth" in str(error)
            refused += 1
    assert refused > 100  # the rest fell on alignment padding and unused header fields


@pytest.mark.parametrize("kind", ["legacy", "safetensors"])
def test_bit_flips_end_in_a_clear_error_where_there_is_no_checksum(
    tmp_path, kind, safetensors_file
):
    source = safetensors_file if kind == "safetensors" else DATA / GOLDEN[1]
    content = source.read_bytes()
    generator, refused = random.Random(0), 0
    for _ in range(400):
        changed = bytearray(content)
        changed[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        try:
            torch_files.load_state_dict(damaged(tmp_path, changed, source.suffix))
        except ValueError as error:
            assert "damaged" in str(error)
            refused += 1
    assert refused > 100


@pytest.mark.parametrize(
    "entry, message",
    [
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 12]}, "do not fit its shape"),
        ({"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}, "cut off"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}, "cut off or do not fit"),
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "no tensor owns"),
        ({"dtype": "Q7", "shape": [2], "data_offsets": [0, 8]}, "Q7"),
    ],
)
def test_safetensors_headers_are_checked(tmp_path, entry, message):
    header = repr({"w": entry}).replace("'", '"').encode()
    path = tmp_path / "bad.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(12))
    with pytest.raises(ValueError, match=message):
        torch_files.read(path)


def test_other_files_are_refused_by_name(tmp_path):
    for name, content in {
        "a.pth": b"",
        "b.pth": b"version https://git",
        "c.pth": b"PK\3\4",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name):
            torch_files.read(tmp_path / name)
    with pytest.raises(ValueError, match="no such file"):
        torch_files.read(tmp_path / "d.pth")
    write_zip(tmp_path / "e.pth", pickle.dumps({"epoch": 3}, 2))
    with pytest.raises(ValueError, match=r"e\.pth: not a state dict.*epoch"):
        torch_files.load_state_dict(tmp_path / "e.pth")


# ---- writing


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_what_is_written_is_read_back_to_the_bit(tmp_path, suffix):
    path, weights = tmp_path / f"out{suffix}", expected_weights()
    save = torch_files.save_pth if suffix == ".pth" else torch_files.save_safetensors
    save(path, weights)
    actual = torch_files.load_state_dict(path)
    assert_same({name: actual[name] for name in weights}, weights)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_shared_arrays_are_written_once(tmp_path):
    array = np.ones((100, 100), np.float32)
    torch_files.save_pth(tmp_path / "a.pth", {"a": array, "b": array})
    assert (tmp_path / "a.pth").stat().st_size < 1.1 * array.nbytes
    weights = torch_files.load_state_dict(tmp_path / "a.pth")
    assert np.shares_memory(weights["a"], weights["b"])


@pytest.mark.parametrize("save", [torch_files.save_pth, torch_files.save_safetensors])
def test_a_failed_write_leaves_the_old_file(tmp_path, save, monkeypatch):
    path = tmp_path / "out"
    path.write_text("old")
    with pytest.raises(ValueError, match=r"no such dtype: b \(<U4\)"):
        save(path, {"a": np.ones(3, np.float32), "b": np.array(["text"])})

    def full(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(zipfile.ZipFile, "writestr", full)
    monkeypatch.setattr(safetensors.numpy, "save_file", full)
    with pytest.raises(OSError, match="no space"):
        save(path, {"a": np.ones(3, np.float32)})
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_pytorch_reads_what_is_written(tmp_path):
    torch = pytest.importorskip("torch")
    torch_files.save_pth(tmp_path / "out.pth", expected_weights())
    content = torch.load(tmp_path / "out.pth", weights_only=True)
    golden = torch.load(DATA / GOLDEN[0], weights_only=False)["model"]
    assert isinstance(content, collections.OrderedDict) and list(content) == list(golden)
    for name, tensor in golden.items():
        assert content[name].dtype == tensor.dtype and torch.equal(content[name], tensor), name


def test_the_written_program_is_a_pickle(tmp_path):
    """Python's own unpickler, with stand-ins for PyTorch, finds the same shapes and storages."""
    torch_files.save_pth(tmp_path / "out.pth", expected_weights())

    class Unpickler(pickle.Unpickler):
        def find_class(self, module, name):
            if module == "collections":
                return super().find_class(module, name)
            return lambda *arguments: (f"{module}.{name}", *arguments)

        def persistent_load(self, identity):
            kind, storage, key, device, size = identity
            return kind, storage()[0], key, device, size

    with zipfile.ZipFile(tmp_path / "out.pth") as archive:
        content = Unpickler(io.BytesIO(archive.read("out/data.pkl"))).load()
        storage = archive.read("out/data/" + content["dtype.float16"][1][2])
    assert content["dtype.float16"] == (
        "torch._utils._rebuild_tensor_v2",
        ("storage", "torch.HalfStorage", content["dtype.float16"][1][2], "cpu", 6),
        0,
        (2, 3),
        (3, 1),
        False,
        collections.OrderedDict(),
    )
    assert storage == expected_weights()["dtype.float16"].tobytes()


@pytest.mark.parametrize("mark", [b"\x80", b"PK"])
def test_a_safetensors_header_of_any_length(mark, tmp_path):
    """The file begins with the header's length, which may look like a pickle's or a zip's mark."""
    path = tmp_path / "x.safetensors"
    for extra in (*range(0, 512, 8), *range(19_000, 19_400, 8)):  # headers are padded to 8 bytes
        torch_files.save_safetensors(path, {"a": np.ones(3, np.float32)}, {"t": "x" * extra})
        if path.read_bytes().startswith(mark):
            break
    else:
        pytest.fail(f"no header's length begins with {mark!r}")
    assert torch_files.load_state_dict(path)["a"].tolist() == [1, 1, 1]
