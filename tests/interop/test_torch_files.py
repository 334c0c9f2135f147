"""Checkpoint files: every layout PyTorch writes, hostile pickles, damaged files, and writing.

`tests/reference/torch_files/` was written by PyTorch 2.13 (`torch.save` of one content in
the zip and in the legacy format); the expected values are spelled out here.
"""

import collections
import io
import json
import os
import pickle
import random
import struct
import subprocess
import tarfile
import time
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from tests import REFERENCE_FILES
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


# ---- hostile pickles


class Call:
    """Pickles to a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def write_zip(path: Path, program: bytes):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/data/0", np.arange(4, dtype=np.float32).tobytes())


def write_legacy(path: Path, program: bytes):
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    head = (pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, system))
    path.write_bytes(b"".join(head) + program + pickle.dumps([], 2))


def write_tar(path: Path, program: bytes):
    inner = path.with_suffix(".inner")
    write_zip(inner, program)
    with tarfile.open(path, "w:gz") as archive:
        archive.add(inner, "unit.pth")


def write_plain(path: Path, program: bytes):
    path.write_bytes(program)


@pytest.mark.parametrize("write", [write_zip, write_legacy, write_tar, write_plain])
def test_a_pickle_that_runs_a_command_is_refused(tmp_path, write):
    mark = tmp_path / "executed"
    attack = {"weight": 1, "x": Call(os.system, f"touch {mark}")}
    write(tmp_path / "bad.pth", pickle.dumps(attack, 2))
    with pytest.raises(ValueError, match=r"bad\.pth.*os\.system.*nothing was executed"):
        torch_files.load_state_dict(tmp_path / "bad.pth")
    assert not mark.exists()


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "attack, named",
    [
        (Call(eval, "1"), "builtins.eval"),
        (Call(subprocess.Popen, ["true"]), ".Popen"),
        (Call(getattr, "x", "join"), "builtins.getattr"),
        (collections.OrderedDict(x=Call(exec, "1")), "builtins.exec"),
        (np.array([Call(os.getcwd)], dtype=object), "dtype 'O8'"),
        (Path("x"), "PosixPath"),
    ],
)
def test_refuses_at_every_protocol_by_name(tmp_path, protocol, attack, named):
    write_zip(tmp_path / "bad.pth", pickle.dumps({"x": attack}, protocol))
    with pytest.raises(torch_files.Refused) as error:
        torch_files.read(tmp_path / "bad.pth")
    # Protocol 0 and 1 rebuild objects through copyreg, which is as good a reason to refuse.
    assert named in str(error.value) or "copyreg._reconstructor" in str(error.value)


@pytest.mark.parametrize(
    "program, message",
    [
        (b"(S'true'\nios\nsystem\n.", "INST"),
        (b"\x82\x01.", "EXT1"),
        (b"cbuiltins\ndict\n)R.", "calls builtins.dict"),
        (b"c_codecs\nencode\n(S'a'\nS'zlib'\ntR.", "codec 'zlib'"),
        (b"ccollections\nOrderedDict\n}S'x'\nK\x01sb.", "attributes for a _Name"),
        (b"]K\x01\x85Rp0\n.", "expected a _Name"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n(K\x00K\x00(K\x02t(K\x01ttR.", "expected a ndarray"),
    ],
)
def test_refuses_hand_made_programs(tmp_path, program, message):
    write_zip(tmp_path / "bad.pth", program)
    with pytest.raises(ValueError, match=message):
        torch_files.read(tmp_path / "bad.pth")


def nested(levels: int, empty: bytes = b"]", grow: bytes = b"](%s%se") -> bytes:
    """Pushes a container that holds the next twice, and so on: 2**levels, in some bytes each."""
    program = empty + b"q\x00"
    for level in range(levels):
        get = b"h" + bytes([level])
        program += b"0" + grow % (get, get) + b"q" + bytes([level + 1])
    return program


TUPLES = nested(40, b")", b"%s%s\x86")
BOMBS = {
    "as the content": nested(40) + b".",
    "as a key": b"}" + nested(40) + b"K\x01s.",
    "tuples as a key": b"}" + TUPLES + b"K\x01s.",
    "tuples in a set": b"\x8f(" + TUPLES + b"\x90.",
    "for an unknown reference": nested(40) + b"Q.",
    "in an unknown reference": nested(40) + b"\x85Q.",
    "for a name": nested(40) + nested(40) + b"\x93.",
    "as a function": nested(40) + b")R.",
    "for a device": b"ctorch\ndevice\n" + nested(40) + b"\x85R.",
    "for a dict": b"ccollections\nOrderedDict\n" + nested(40) + b"\x85R.",
    "for a set": b"cbuiltins\nset\n" + TUPLES + b"\x85R.",
    "for a tensor": b"ctorch._utils\n_rebuild_tensor_v2\n(" + nested(40) + b"K\x00))tR.",
    "as a dtype": b"cnumpy\ndtype\n" + nested(40) + b"\x85R.",
    "as a state": b"cnumpy\ndtype\nX\x02\x00\x00\x00f4\x85R" + nested(40) + b"b.",
    "dicts": nested(40, b"}", b"}(K\x01%sK\x02%su") + b".",
    "in itself": b"]q\x00h\x00a.",
    "deep": b"]" * 10_000 + b"a" * 9_999 + b".",
    "copied again and again": b"K\x01K\x02\x86q\x010(" + b"h\x01" * 5000 + b"lq\x00"
    + b"ccollections\nOrderedDict\nh\x00\x85R" * 500 + b".",
}  # fmt: skip


@pytest.mark.parametrize("program", BOMBS.values(), ids=BOMBS)
def test_a_small_pickle_cannot_ask_for_endless_work(tmp_path, program):
    write_zip(tmp_path / "bomb.pth", program)
    started = time.process_time()
    reason = "hold each other|holds itself|a key|operations|expected a"
    with pytest.raises(ValueError, match=rf"bomb\.pth: .*({reason})") as error:
        torch_files.read(tmp_path / "bomb.pth")
    assert time.process_time() - started < 5
    assert len(str(error.value)) < 500 and "\n" not in str(error.value)


def test_what_is_shared_a_few_times_is_read(tmp_path):
    write_zip(tmp_path / "a.pth", nested(6) + b".")
    assert str(torch_files.read(tmp_path / "a.pth")).count("[]") == 2**6


def test_files_that_unfold_to_many_times_their_size_are_refused(tmp_path):
    megabytes = torch_files._ALWAYS_UNFOLDED // 2**20 + 1
    with zipfile.ZipFile(tmp_path / "zip.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", tensor_program(megabytes * 2**18, 0, (1,), (1,)))
        archive.writestr("archive/data/0", bytes(megabytes * 2**20))
    (tmp_path / "unit.pth").write_bytes(bytes(megabytes * 2**20))
    with tarfile.open(tmp_path / "tar.pth", "w:gz") as archive:
        archive.add(tmp_path / "unit.pth", "unit.pth")
    for name in ("zip.pth", "tar.pth"):
        with pytest.raises(torch_files.Refused, match=f"{name}: refused: it unfolds to many times"):
            torch_files.read(tmp_path / name)
    write_zip(tmp_path / "expanded.pth", tensor_program(4, 0, (10**12,), (0,)))
    with pytest.raises(torch_files.Refused, match="1,000,000,000,000 items on a storage of 4"):
        torch_files.read(tmp_path / "expanded.pth")


def test_a_damaged_files_error_is_one_line_of_bounded_length(tmp_path):
    long = "\n".join(["x" * 3000] * 3)
    header = json.dumps({long: {"dtype": "F32", "shape": [2], "data_offsets": [0, 12]}}).encode()
    path = tmp_path / "bad.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(12))
    with pytest.raises(ValueError, match="damaged or not a checkpoint") as error:
        torch_files.read(path)
    assert len(str(error.value)) < 400 + len(str(path)) and "\n" not in str(error.value)


def tensor_program(size: int, offset: int, shape: tuple, stride: tuple, key: str = "0") -> bytes:
    """A pickle with one tensor over a storage that claims `size` floats."""
    put = [pickle.dumps(x, 2)[2:-1] for x in ("storage", key, "cpu", size, offset, shape, stride)]
    storage = b"(" + put[0] + b"ctorch\nFloatStorage\n" + b"".join(put[1:4]) + b"tQ"
    return (
        b"\x80\x02}"
        + pickle.dumps("w", 2)[2:-1]
        + b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + b"".join(put[4:])
        + b"\x89NtRs."
    )


def test_views_inside_the_storage_are_read(tmp_path):
    write_zip(tmp_path / "a.pth", tensor_program(4, 1, (2,), (2,)))
    np.testing.assert_array_equal(torch_files.load_state_dict(tmp_path / "a.pth")["w"], [1.0, 3.0])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((4, 1, (2,), (3,)), "beyond its storage"),
        ((4, 0, (5,), (1,)), "beyond its storage"),
        ((4, 10**15, (1,), (1,)), "beyond its storage"),
        ((4, -1, (1,), (1,)), "impossible shape"),
        ((4, 3, (2,), (-1,)), "impossible shape"),
        ((4, 0, (2, 2), (1,)), "impossible shape"),
        ((5, 0, (4,), (1,)), "has 16 bytes, not 5 float32"),
        ((4, 0, (4,), (1,), "../version"), "lacks"),
    ],
)
def test_views_outside_the_storage_are_refused(tmp_path, arguments, message):
    write_zip(tmp_path / "bad.pth", tensor_program(*arguments))
    with pytest.raises(ValueError, match=message):
        torch_files.read(tmp_path / "bad.pth")


def test_a_legacy_file_cannot_ask_for_more_memory_than_it_has_bytes(tmp_path):
    write_legacy(tmp_path / "bad.pth", tensor_program(10**13, 0, (1,), (1,)))
    with pytest.raises(ValueError, match="does not fit into the file"):
        torch_files.read(tmp_path / "bad.pth")


# ---- damaged files


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
