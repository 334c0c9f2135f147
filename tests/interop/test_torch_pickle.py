"""Hostile pickles: nothing is called, no endless work is done, no view leaves its storage."""

import collections
import os
import pickle
import subprocess
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.interop.pickles import (
    Call,
    tensor_program,
    write_legacy,
    write_plain,
    write_tar,
    write_zip,
)
from unit_jax.interop import torch_files


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
