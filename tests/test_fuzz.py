"""Readers of files from strangers, on mutated inputs: a clear error or a reading, never a hang,
never memory without end. 50 inputs a reader in the suite, 500 in `make test-slow`.
"""

import io
import pathlib
import resource
import signal

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from tests import official_files as official
from tests.interop import test_torch_files
from unit_jax.data import transforms
from unit_jax.data.sources import base, coco, glue, images, snli_ve, vqa2
from unit_jax.interop import torch_files

SECONDS = 10  # for one input
MEMORY = 600 * 2**20  # more than a reader had before

# What is put in: numbers that overflow, nesting, half characters, tokens of the formats.
TOKENS = [
    b"\x00", b"\xff" * 8, b"\x7f" * 4, b"\x80", b"[" * 100_000, b'{"a":' * 50_000, b'"', b"\n",
    b"\\ud83d", b"\t", b"null", b"NaN", b"-1", b"1e999", b"9" * 400, b"9" * 5000, b"\xc3\x28",
    b"../../etc/passwd", b"(", b"R", b".", b"\xff\xd8\xff", b"PK\x03\x04",
    b"IHDR\x7f\xff\xff\xff\x7f\xff\xff\xff",
]  # fmt: skip
MUTATIONS = st.lists(
    st.tuples(
        st.sampled_from(("flip", "cut", "drop", "repeat", "insert", "overwrite")),
        st.floats(0, 1, exclude_max=True),
        st.floats(0, 1, exclude_max=True),
        st.sampled_from(TOKENS),
    ),
    min_size=1,
    max_size=6,
)


def mutate(content: bytes, mutations) -> bytes:
    data = bytearray(content)
    for kind, where, much, token in mutations:
        at = int(where * len(data))
        length = 1 + int(much * much * min(len(data) - at, 5000))
        if kind == "flip" and data:
            data[at] ^= 1 << int(much * 8)
        elif kind == "cut":
            del data[at:]
        elif kind == "drop":
            del data[at : at + length]
        elif kind == "repeat":
            data[at:at] = data[at : at + length] * 3
        elif kind == "insert":
            data[at:at] = token
        elif kind == "overwrite":
            data[at : at + len(token)] = token
    return bytes(data)


class Hangs(Exception):
    pass


def bounded(read) -> None:
    """Runs a reader: it returns, or raises ValueError with one line of bounded length."""

    def late(*_):
        raise Hangs(f"more than {SECONDS} s")

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    handler = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        read()
    except ValueError as error:
        assert 0 < len(str(error)) < 1000 and "\n" not in str(error), str(error)[:3000]
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert grown < MEMORY, f"{grown >> 20} MiB more"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Official files of all kinds, and weights in three formats."""
    root = official.write_world(tmp_path_factory.mktemp("fuzz") / "source")
    arrays = {"w": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.ones(4, np.float16)}
    torch_files.save_safetensors(root / "weights.safetensors", arrays)
    for name in test_torch_files.GOLDEN:
        (root / name).write_bytes((test_torch_files.DATA / name).read_bytes())
    return root


def weights(name: str):
    def read(root: pathlib.Path, content: bytes) -> None:
        path = root / f"mutated{pathlib.Path(name).suffix}"
        path.write_bytes(content)
        bounded(lambda: torch_files.load_state_dict(path))

    return name, read


def annotations(name: str, source: type, rows: int = 200):
    def read(root: pathlib.Path, content: bytes) -> None:
        original = (root / name).read_bytes()
        store = base.ImageIndex(
            {key: row for row, key in enumerate([*range(200), 111, 139, "77"])},
            np.full(rows + 3, 64, np.int32),
            np.full(rows + 3, 48, np.int32),
        )
        try:
            (root / name).write_bytes(content)
            bounded(lambda: source(root).read(store, base.Problems(source.name, 10_000)))
        finally:
            (root / name).write_bytes(original)

    return name, read


def pictures(name: str):
    def read(root: pathlib.Path, content: bytes) -> None:
        path = root / "mutated.jpg"
        path.write_bytes(content)

        def both() -> None:
            images.read_image(path)
            transforms.decode(content)

        def as_the_readers_do() -> None:
            try:
                both()
            except Exception as error:  # their callers take whatever Pillow raises for a fault
                raise ValueError(f"{type(error).__name__}: {error}"[:900]) from error

        bounded(as_the_readers_do)

    return name, read


READERS = {
    "zip": weights("checkpoint_zip.pth"),
    "legacy": weights("checkpoint_legacy.pth"),
    "safetensors": weights("weights.safetensors"),
    "coco": annotations("coco/annotations/instances_train2017.json", coco.Coco),
    "vqa2": annotations("vqa2/v2_OpenEnded_mscoco_train2014_questions.json", vqa2.Vqa2),
    "snli_ve": annotations("snli_ve/snli_ve_train.jsonl", snli_ve.SnliVe),
    "qqp": annotations("glue/QQP/train.tsv", glue.Qqp),
    "jpeg": pictures("coco/train2017/000000000009.jpg"),
}


def check(world, reader: str, count: int) -> None:
    name, read = READERS[reader]
    content = (world / name).read_bytes()

    @hypothesis.settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(MUTATIONS)
    def run(mutations):
        read(world, mutate(content, mutations))

    read(world, content)
    run()


@pytest.mark.parametrize("reader", READERS)
def test_mutated_inputs(world, reader):
    check(world, reader, 50)


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_many_mutated_inputs(world, reader):
    check(world, reader, 500)


def test_a_picture_that_unfolds_without_end_is_a_fault(world):
    """A few kilobytes that say they are 60,000 x 60,000 pixels."""
    buffer = io.BytesIO()
    official.PIL.Image.new("1", (20_000, 20_000)).save(buffer, "PNG")
    READERS["jpeg"][1](world, buffer.getvalue())
    with pytest.raises(ValueError, match=r"[0-9,]+ pixels"):
        (world / "bomb.png").write_bytes(buffer.getvalue())
        images.read_image(world / "bomb.png")
