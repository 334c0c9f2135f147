"""Batches from a small data set in memory: what is in them, and that nothing changes them."""

import dataclasses
import io
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image

from configs import unit
from tests import ROOT
from unit_jax import settings as settings_lib
from unit_jax.batch import Batch
from unit_jax.data import loader, text, transforms
from unit_jax.data.prepared import Split
from unit_jax.outputs.base import Names

BATCH = 4
STEPS = 60
HALVES = np.split(np.arange(BATCH), 2)  # of a batch, as two processes read it
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefgh"]
ANSWERS = ["<unk>", "a", "b", "c"]
TASKS = dict(coco=0.3, visual_genome=0.2, vqa2=0.2, snli_ve=0.1, mnli=0.1, sst2=0.1)


def picture(row: int) -> Image.Image:
    rng = np.random.default_rng(row)
    height, width = [(40, 56), (56, 40), (48, 48), (30, 60)][row % 4]
    coarse = rng.integers(0, 256, (5, 7, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


class FakeSplit:
    """What loader reads of a prepared split, made up from row numbers."""

    sizes, places = Split.sizes, Split.places

    def __init__(self, task: str, name: str, count: int, broken: int = -1):
        self.task, self.name, self.count, self.broken = task, name, count, broken
        self.labelled = name != "test"
        self.image_row = self.height = self.width = self.num_objects = self.num_tokens = None
        if task in ("coco", "visual_genome", "vqa2", "snli_ve"):
            self.image_row = np.arange(count) % 9
            sizes = [picture(row).size for row in self.image_row]
            self.width, self.height = np.asarray(sizes, np.int32).T
        if task in ("coco", "visual_genome"):
            self.num_objects = np.asarray([i % 4 for i in range(count)], np.int32)
        if task in ("mnli", "sst2"):
            texts = [(self[row]["text"], self[row]["text_b"]) for row in range(count)]
            lengths = [2 + len(a.split()) + bool(b) + len(b.split()) for a, b in texts]
            self.num_tokens = np.asarray(lengths, np.int32)

    def __len__(self):
        return self.count

    def __getitem__(self, row):
        rng = np.random.default_rng(row)
        words = [" ".join(rng.choice(list("abcdefghz"), rng.integers(1, 9))) for _ in range(2)]
        unlabelled = self.name == "test"
        if self.num_objects is not None:
            n = self.num_objects[row]
            size = np.asarray([self.width[row], self.height[row]])
            corner = rng.uniform(0, 0.5, (n + 1, 2)) * size
            sides = rng.uniform(0.2, 0.4, (n + 1, 2)) * size
            return dict(
                height=self.height[row],
                width=self.width[row],
                objects=dict(
                    boxes_xywh=np.concatenate([corner, sides], -1).astype(np.float32),
                    category_ids=np.arange(1, n + 2, dtype=np.int32),
                    iscrowd=np.arange(n + 1) == n,
                    attributes=np.tile(np.arange(n + 1, dtype=np.int32)[:, None], 16),
                ),
            )
        if self.task == "vqa2":
            answers = [] if unlabelled else [*"aab", "zz"]
            return dict(text=words[0], text_b="", answers=answers)
        label = -1 if unlabelled else row % 2
        if self.task == "snli_ve":
            return dict(text=words[0], text_b="", label=label)
        return dict(text=words[0], text_b=words[1] if self.task == "mnli" else "", label=label)

    def image(self, row):
        if multiprocessing.parent_process() and jax.config.jax_platforms != "cpu":
            raise RuntimeError("a worker process could take hold of an accelerator")
        if row == self.broken:
            return b"no image"
        buffer = io.BytesIO()
        picture(int(self.image_row[row])).save(buffer, format="PNG")
        return buffer.getvalue()


class FakeData:
    def __init__(self, folder, broken=-1, words=WORDS):
        self.vocabulary_path = os.fspath(folder / "vocab.txt")
        (folder / "vocab.txt").write_text("\n".join(words))
        self.broken = broken

    def split(self, task, name):
        return FakeSplit(task, name, dict(train=23, val=10, test=5)[name], self.broken)

    def names(self, task):
        return Names(tuple(ANSWERS))


def make_settings(**changes):
    values = unit.values()
    labels = dict(coco=8, visual_genome=8, vqa2=len(ANSWERS), snli_ve=3, mnli=3, sst2=2)
    tokens = dict(vqa2=8, snli_ve=8, mnli=12, sst2=12)
    values["tasks"] = {
        name: dict(
            ratio=ratio,
            num_labels=labels[name],
            **(dict(max_tokens=tokens[name]) if name in tokens else {}),
        )
        for name, ratio in TASKS.items()
    }
    values["train"].update(batch_size=BATCH, eval_batch_size=BATCH, steps=STEPS)
    values["data"].update(
        train_short_sides=(24, 32),
        train_max_side=48,
        crop_short_sides=(30, 36),
        crop_min=16,
        crop_max=30,
        eval_short_side=32,
        eval_max_side=56,
        buckets=((32, 48), (48, 32), (32, 64), (48, 48)),
        text_buckets=(6, 9),
        max_objects=5,
        num_workers=0,
        num_threads=2,
        prefetch=3,
    )
    values["data"].update(changes)
    return settings_lib.from_config(values)


@pytest.fixture
def data(tmp_path):
    return FakeData(tmp_path)


def read(settings, data, count, start=0, **processes) -> list[Batch]:
    with loader.train_batches(settings, data, start, **processes) as batches:
        return [next(batches) for _ in range(count)]


def assert_equal(a: Batch, b: Batch):
    assert jax.tree.structure(a) == jax.tree.structure(b)  # the task too
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def test_batches_hold_what_their_task_needs(data):
    settings = make_settings()
    seen, text_lengths = {}, {}
    for batch in read(settings, data, STEPS):
        spec = settings.tasks[batch.task]
        seen[batch.task] = seen.get(batch.task, 0) + 1
        assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(batch))
        assert batch.index.shape == (BATCH,) and batch.index.dtype == np.int32
        assert (batch.images is not None) == spec.has_image == (batch.image_sizes is not None)
        assert (batch.input_ids is not None) == spec.has_text
        if spec.has_image:
            assert batch.images.dtype == np.uint8
            assert batch.images.shape[1:3] in settings.data.buckets
            assert (batch.image_sizes <= batch.images.shape[1:3]).all()
        if spec.has_text:
            lengths = {spec.max_tokens} if spec.has_image else {6, 9, spec.max_tokens}
            assert batch.input_ids.shape[0] == BATCH and batch.input_ids.shape[1] in lengths
            assert batch.token_mask.sum(1).max() <= batch.input_ids.shape[1]
            text_lengths.setdefault(batch.task, set()).add(batch.input_ids.shape[1])
        targets = batch.targets
        if spec.output == "objects":
            assert targets.boxes_cxcywh.shape == (BATCH, 5, 4)
            assert (targets.attributes is not None) == (batch.task == "visual_genome")
            real = targets.boxes_cxcywh[targets.object_mask]
            assert ((real > 0) & (real <= 1)).all()
            assert not targets.boxes_cxcywh[~targets.object_mask].any()
        elif spec.output == "scores":
            assert targets.answer_scores.shape == (BATCH, 4)
        else:
            assert targets.labels.shape == (BATCH,)
    assert set(seen) == set(TASKS)
    assert text_lengths["mnli"] | text_lengths["sst2"] == {6, 9, 12}


def test_examples_are_their_records(data):
    """Every field of every example, built anew one by one."""
    settings = make_settings()
    tokenizer = text.Tokenizer(data.vocabulary_path)
    for task, spec in settings.tasks.items():
        split = data.split(task, "val")
        with loader.eval_batches(settings, data, task) as batches:
            for batch in batches:
                for i, row in enumerate(batch.index):
                    if row < 0:
                        continue
                    record = split[row]
                    if spec.has_image:
                        image = picture(int(split.image_row[row]))
                        size = tuple(
                            transforms.resized_size(
                                image.height, image.width, 32, 56, floor=spec.has_text
                            ).tolist()
                        )
                        image = np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR))
                        assert tuple(batch.image_sizes[i]) == size
                        whole = batch.images[i].astype(int)
                        np.testing.assert_array_equal(whole[: size[0], : size[1]], image)
                        assert whole.sum() == image.astype(int).sum()
                    if spec.has_text:
                        first, second = record["text"], record["text_b"]
                        ((ids, start),) = tokenizer.encode([first], [second], spec.max_tokens)
                        n = len(ids)
                        assert batch.input_ids[i, :n].tolist() == ids.tolist()
                        assert batch.token_mask[i].sum() == n and batch.token_mask[i, :n].all()
                        assert batch.segment_ids[i].sum() == n - start
                    if spec.output == "objects":
                        n = split.num_objects[row]  # the record's last one is a crowd
                        assert batch.targets.object_mask[i].sum() == n
                        x, y, w, h = record["objects"]["boxes_xywh"][:n].T
                        boxes = np.stack([x + w / 2, y + h / 2, w, h], -1)
                        boxes = boxes / np.tile([split.width[row], split.height[row]], 2)
                        np.testing.assert_allclose(
                            batch.targets.boxes_cxcywh[i, :n], boxes, atol=1e-6
                        )
                        assert batch.targets.labels[i, :n].tolist() == list(range(1, n + 1))
                    elif spec.output == "scores":
                        scores = [0, 1, 0.6, 0]  # ten annotators say a 6, b 2, zz 2 times
                        np.testing.assert_allclose(
                            batch.targets.answer_scores[i], scores, atol=1e-6
                        )
                    else:
                        assert batch.targets.labels[i] == record["label"]


def test_resuming_reads_on(data):
    settings = make_settings()
    whole = read(settings, data, 20)
    for batch, again in zip(whole[7:], read(settings, data, 13, start=7), strict=True):
        assert_equal(batch, again)
    with loader.train_batches(settings, data, STEPS - 2) as batches:
        assert len(batches) == 2 and len(list(batches)) == 2
    with loader.train_batches(settings, data, STEPS) as batches:
        assert list(batches) == []


def check_resume(data, position: int, saved: int, resumed: int):
    """Reads up to a position with some workers and on with others: as one run without workers."""
    whole = read(make_settings(), data, position + 3)
    parts = read(make_settings(num_workers=saved), data, position)
    parts += read(make_settings(num_workers=resumed), data, 3, start=position)
    for batch, other in zip(whole, parts, strict=True):
        assert_equal(batch, other)


@pytest.mark.parametrize(("position", "saved", "resumed"), [(7, 0, 2), (13, 2, 1), (22, 1, 0)])
def test_resuming_with_another_number_of_workers(data, position, saved, resumed):
    check_resume(data, position, saved, resumed)


@pytest.mark.slow
@pytest.mark.parametrize("case", range(20))
def test_resuming_anywhere_with_any_number_of_workers(data, case):
    rng = np.random.default_rng(case)
    check_resume(data, int(rng.integers(1, STEPS - 3)), *divmod(case % 9, 3))


def test_processes_read_parts_of_the_same_batch(data):
    settings = make_settings()
    parts = [read(settings, data, 12, places=places) for places in HALVES]
    for whole, first, second in zip(read(settings, data, 12), *parts, strict=True):
        joined = jax.tree.map(lambda a, b: np.concatenate([a, b]), first, second)
        assert_equal(joined, whole)


def test_any_number_of_threads_and_workers_gives_the_same_batches(data, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "")  # workers must choose the CPU themselves
    expected = read(make_settings(num_threads=0, prefetch=1), data, 9, start=5)
    for changes in (dict(num_threads=3), dict(num_workers=1), dict(num_workers=2)):
        for batch, other in zip(
            expected, read(make_settings(**changes), data, 9, start=5), strict=True
        ):
            assert_equal(batch, other)


def test_evaluation_reads_every_example_once(data):
    settings = make_settings()
    for task in TASKS:
        for split, count in (("val", 10), ("test", 5)):
            with loader.eval_batches(settings, data, task, split) as batches:
                found = list(batches)
            index = np.concatenate([batch.index for batch in found])
            assert sorted(index[index >= 0].tolist()) == list(range(count))
            assert all((batch.targets is not None) == (split == "val") for batch in found)
            parts = []
            for places in HALVES:
                with loader.eval_batches(settings, data, task, split, places) as batches:
                    parts.append(list(batches))
            for whole, *halves in zip(found, *parts, strict=True):
                assert_equal(jax.tree.map(lambda a, b: np.concatenate([a, b]), *halves), whole)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_one_clear_error(tmp_path, monkeypatch, workers):
    data = FakeData(tmp_path, broken=3)
    monkeypatch.setattr(loader, "_WORTH_WORKERS", 1)
    with loader.eval_batches(make_settings(num_workers=workers), data, "coco") as batches:
        with pytest.raises(ValueError, match=r"image of example 3 of coco \(val\).*prepare"):
            list(batches)


def kill_workers() -> None:
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.SIGKILL)
        child.join()


def test_a_killed_workers_batch_is_made_again_once(data, capsys):
    """The batches are those of a run whose workers live; a second death over one is an error."""
    whole = read(make_settings(), data, 6)
    settings = make_settings(num_workers=1, prefetch=1)
    with loader.train_batches(settings, data) as batches:
        found = [next(batches)]
        kill_workers()
        found += [next(batches) for _ in range(5)]
        for batch, other in zip(whole, found, strict=True):
            assert_equal(batch, other)
        told = capsys.readouterr().err
        assert told.startswith("a worker process that prepares batches died (killed by SIGKILL); ")
        assert told.endswith(" is made again\n") and told.count("\n") == 1

        def dies():
            raise RuntimeError("Worker process was terminated unexpectedly with exit code -9. So")
            yield

        batches._open = dies
        kill_workers()
        with pytest.raises(ValueError, match="SIGKILL. a second time over batch .*num_workers=1"):
            for _ in range(4):
                next(batches)


def test_workers_yield_to_the_train_step_and_few_examples_need_none(data):
    settings = make_settings(num_workers=1)
    with loader.train_batches(settings, data) as batches:
        next(batches)
        (worker,) = multiprocessing.active_children()
        own = os.getpriority(os.PRIO_PROCESS, 0)
        assert os.getpriority(os.PRIO_PROCESS, worker.pid) == min(own + 10, 19)
    with loader.eval_batches(settings, data, "coco") as batches:
        next(batches)
        assert not multiprocessing.active_children()


def test_closing_ends_the_workers(data):
    with loader.train_batches(make_settings(num_workers=2), data) as batches:
        next(batches)
        children = multiprocessing.active_children()
        assert len(children) == 2
    assert not any(child.is_alive() for child in children)


KILLED = """
import multiprocessing, os, pathlib, signal, sys
from tests.data import test_loader as test
from unit_jax.data import loader

if __name__ == "__main__":
    data = test.FakeData(pathlib.Path(sys.argv[1]))
    batches = loader.train_batches(test.make_settings(num_workers=1), data)
    next(batches)
    print(multiprocessing.active_children()[0].pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_end_when_their_parent_is_killed(tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    # Not waiting for the output to end: the worker holds it too, as long as it lives.
    with open(tmp_path / "out", "w") as out:
        run = subprocess.run(
            [sys.executable, script, tmp_path], stdout=out, env={**os.environ, "PYTHONPATH": path}
        )
    assert run.returncode == -signal.SIGKILL
    worker = int((tmp_path / "out").read_text())
    deadline = time.time() + 20
    while is_running(worker):
        assert time.time() < deadline, "the worker outlived its parent"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = pathlib.Path(f"/proc/{pid}/stat")  # a container's first process may not reap it
    return not (stat.exists() and stat.read_text().split()[2] == "Z")


def test_misfits_are_listed_before_any_work(tmp_path):
    data = FakeData(tmp_path, words=[*WORDS, *map(str, range(31_000))])
    settings = make_settings(buckets=((32, 32),), max_objects=2)
    with pytest.raises(ValueError) as error:
        loader.train_batches(settings, data)
    message = str(error.value)
    for part in (
        "coco (train): ",
        "fit in no bucket",
        "vqa2 (train): ",
        "example 3 has 3; raise data.max_objects",
        "vocab.txt has 31012 tokens, model.text_encoder.vocab_size is 30522",
    ):
        assert part in message
    assert "sst2" not in message


def test_surplus_objects_are_cut_where_allowed(data):
    settings = make_settings(max_objects=2, truncate_objects=True)
    with loader.eval_batches(settings, data, "coco") as batches:
        for batch in batches:
            counts = np.minimum(batch.index % 4, 2)[batch.index >= 0]
            assert batch.targets.boxes_cxcywh.shape == (BATCH, 2, 4)
            assert batch.targets.object_mask.sum(-1)[batch.index >= 0].tolist() == counts.tolist()


def test_labels_outside_the_models_range_are_an_error(data):
    settings = make_settings()
    coco = dataclasses.replace(settings.tasks["coco"], num_labels=2)
    settings = dataclasses.replace(settings, tasks={**settings.tasks, "coco": coco})
    with loader.eval_batches(settings, data, "coco") as batches:
        with pytest.raises(ValueError, match="of coco .* known are 0 to 1"):
            list(batches)
