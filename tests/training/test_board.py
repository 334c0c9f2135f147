"""TensorBoard holds what metrics.jsonl holds, wherever a run was killed; read by our own reader."""

import struct

import pytest
from tensorboardX.proto import event_pb2

from unit_jax.training import board


def read(folder) -> list[tuple[str, int, float]]:
    """(tag, step, value) of all event files of a folder: the TFRecord framing, taken apart here."""
    points = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = event_pb2.Event.FromString(data[12 : 12 + length])
            points += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
            data = data[16 + length :]
    return points


def wanted(lines: list[dict]) -> list[tuple[str, int, float]]:
    return [
        (name, line["step"], pytest.approx(value, rel=1e-6))
        for line in lines
        for name, value in line.items()
        if name not in ("step", "time") and value is not None
    ]


def lines(steps) -> list[dict]:
    return [{"step": n, "time": 1e9 + n, "train/a/loss": n / 3, "a/AP": None} for n in steps]


def test_what_is_added_is_there_at_once(tmp_path):
    written = board.Board(tmp_path, lines(range(3)))
    for line in lines(range(3, 5)):
        written.add(line)
        assert read(tmp_path) == wanted(lines(range(line["step"] + 1)))
    # Not closed: the process was killed. The next session drops what came after its checkpoint,
    # and has what was not yet written here.
    again = board.Board(tmp_path, lines((0, 1, 7)))
    assert read(tmp_path) == wanted(lines((0, 1, 7)))
    assert len(list(tmp_path.iterdir())) == 1
    again.close()
    written.close()


def test_a_session_killed_before_its_file_was_whole_leaves_the_old_one(tmp_path, monkeypatch):
    board.Board(tmp_path, lines(range(3))).close()

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(board.os, "replace", killed)
        board.Board(tmp_path, lines(range(4)))
    assert read(tmp_path) == wanted(lines(range(3)))
    board.Board(tmp_path, lines(range(4))).close()
    assert read(tmp_path) == wanted(lines(range(4))) and len(list(tmp_path.iterdir())) == 1
