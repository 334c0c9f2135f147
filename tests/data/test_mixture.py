"""The plan of a run: pure, complete, full batches, in the ratios asked for."""

import collections
import dataclasses
import pickle
import time

import numpy as np
import pytest

from configs import unit
from unit_jax import settings as settings_lib
from unit_jax.data import batching, mixture, transforms
from unit_jax.data.mixture import Examples, Mixture

BATCH = 8
KINDS = dict(coco="detection", vqa2="vision_language", qnli="language")


def make_settings(ratios=None, batch_size=BATCH, seed=3, **data):
    values = unit.values()
    values["seed"] = seed
    ratios = ratios or dict(coco=0.5, vqa2=0.3, qnli=0.2)
    values["tasks"] = {name: dict(ratio=ratio) for name, ratio in ratios.items()}
    values["train"]["batch_size"] = batch_size
    values["train"]["eval_batch_size"] = batch_size
    values["data"].update(data)
    return settings_lib.from_config(values)


def images(count: int, seed: int = 0) -> Examples:
    """Sizes as COCO has them."""
    usual = np.asarray([(480, 640), (640, 480), (427, 640), (640, 427), (375, 500), (612, 612)])
    chosen = usual[np.random.default_rng(seed).choice(6, count, p=[0.3, 0.15, 0.2, 0.1, 0.15, 0.1])]
    return Examples(count, *chosen.T.astype(np.int32))


def texts(count: int, seed: int = 0) -> Examples:
    """Lengths as pairs of sentences have them; some are longer than the task allows."""
    lengths = np.random.default_rng(seed).lognormal(np.log(40), 0.6, count).astype(np.int32)
    return Examples(count, tokens=lengths)


def make_examples(coco=403, vqa2=150, qnli=37) -> dict[str, Examples]:
    return dict(
        coco=images(coco),
        vqa2=images(vqa2, 1),
        qnli=texts(qnli),
    )


def same(a: mixture.StepPlan, b: mixture.StepPlan) -> bool:
    return (a.task, a.bucket, a.rows.tolist(), a.seeds.tolist()) == (
        b.task,
        b.bucket,
        b.rows.tolist(),
        b.seeds.tolist(),
    )


def test_skipped_steps_are_left_out_and_later_ones_move_up():
    examples = make_examples()
    whole = Mixture(make_settings(), examples)
    some = Mixture(make_settings(skip=((3, 4), (8, 8))), examples)
    kept = [0, 1, 4, 5, 6, 8, 9, 10]  # steps of the log less one
    assert all(same(some.plan(i), whole.plan(k)) for i, k in enumerate(kept))
    assert [some.task(i) for i in range(8)] == [whole.task(k) for k in kept]


def test_a_step_depends_on_seed_and_number_alone():
    examples = make_examples()
    forward = Mixture(make_settings(), examples)
    plans = [forward.plan(k) for k in range(300)]
    # Another process, that starts elsewhere, jumps about, was pickled, lists tasks differently,
    # runs longer.
    reordered = make_settings(dict(qnli=0.2, vqa2=0.3, coco=0.5))
    longer = dataclasses.replace(reordered.train, steps=10)
    other = Mixture(dataclasses.replace(reordered, train=longer), examples)
    order = np.random.default_rng(0).permutation(300)
    for i, k in enumerate(order):
        assert same(other.plan(int(k)), plans[k])
        assert other.task(int(k)) == plans[k].task
        if i == 150:
            other = pickle.loads(pickle.dumps(other))
    changed = Mixture(make_settings(seed=4), examples)
    assert not all(same(changed.plan(k), plans[k]) for k in range(10))


def test_another_task_in_the_mixture_leaves_a_tasks_order_alone():
    examples = make_examples()
    both = Mixture(make_settings(), examples)
    alone = Mixture(make_settings(dict(coco=1.0)), examples)
    of_coco = [plan for plan in (both.plan(k) for k in range(100)) if plan.task == "coco"]
    assert all(same(plan, alone.plan(n)) for n, plan in enumerate(of_coco))


def test_tasks_are_drawn_by_ratio():
    ratios = dict(coco=2.0, vqa2=1.0, qnli=0.0, sst2=5.0)
    examples = {**make_examples(), "sst2": Examples(11)}
    plan = Mixture(make_settings(ratios), examples)
    steps = 20_000
    counts = collections.Counter(plan.task(k) for k in range(steps))
    assert counts["qnli"] == 0
    for task, ratio in ratios.items():
        share = ratio / 8
        assert abs(counts[task] / steps - share) <= 4 * np.sqrt(share * (1 - share) / steps)
    # Independent draws: how often a task follows itself.
    tasks = [plan.task(k) for k in range(steps)]
    repeats = np.mean([a == b for a, b in zip(tasks, tasks[1:], strict=False)])
    assert abs(repeats - (4 + 1 + 25) / 64) < 0.015


def epochs(task: str, count: int, settings=None, examples=None):
    """Plans of the first epochs of a task on its own, epoch by epoch."""
    settings = settings or make_settings({task: 1.0})
    examples = examples or make_examples()
    plan = Mixture(settings, examples)
    order = plan._orders[0]
    order.batch(10_000)
    starts = order._starts
    return [[plan.plan(k) for k in range(starts[e], starts[e + 1])] for e in range(count)]


@pytest.mark.parametrize("task", KINDS)
def test_every_epoch_shows_every_example_in_full_batches(task):
    examples = make_examples()[task]
    for epoch in epochs(task, 3):
        assert all(len(plan.rows) == BATCH for plan in epoch)
        seen = collections.Counter(np.concatenate([plan.rows for plan in epoch]).tolist())
        assert set(seen) == set(range(examples.count))
        surplus = sum(seen.values()) - examples.count
        # At most one batch of each orientation (or of the texts) is filled up, and the examples
        # that do so are different ones: nobody is seen three times.
        assert surplus < BATCH * (1 if examples.height is None else 4)
        assert max(seen.values()) <= 2
        assert len(epoch) * BATCH == examples.count + surplus


@pytest.mark.parametrize("task", KINDS)
def test_every_example_fits_its_batchs_bucket(task):
    settings, examples = make_settings({task: 1.0}), make_examples()[task]
    spec = settings.tasks[task]
    buckets = mixture.buckets_of(spec, settings.data)
    moved = 0
    for epoch in epochs(task, 2):
        for plan in epoch:
            arrays = (examples.height, examples.width, examples.tokens)
            drawn = Examples(BATCH, *(None if a is None else a[plan.rows] for a in arrays))
            size = mixture.padded_sizes(spec, drawn, settings.data, plan.seeds)
            if spec.has_image:
                planned = (spec.transforms, drawn.height, drawn.width, settings.data, plan.seeds)
                np.testing.assert_array_equal(size, transforms.plan(*planned).size)
            assert plan.bucket in buckets
            assert (size <= plan.bucket).all()
            best = batching.choose_bucket(size, buckets)
            moved += sum(buckets[i] != plan.bucket for i in best)
    # Only rests of buckets lie in a larger one than needed.
    assert moved < len(buckets) * (BATCH - 1) * 2


def test_texts_are_padded_to_few_lengths_and_never_cut_below_the_tasks():
    settings = make_settings(dict(qnli=1.0), text_buckets=(32, 64, 200))
    assert mixture.buckets_of(settings.tasks["qnli"], settings.data) == ((32,), (64,), (128,))
    examples = Examples(4, tokens=np.asarray([5, 33, 64, 700]))
    sizes = mixture.padded_sizes(settings.tasks["qnli"], examples, settings.data)
    assert sizes.tolist() == [[5], [33], [64], [128]]
    # Lengths that are not known count as the longest.
    (plan,) = mixture.evaluation_plans(settings.tasks["qnli"], Examples(3), BATCH, settings.data)
    assert plan.bucket == (128,)


def test_neighbours_in_a_batch_are_drawn_anew_in_every_epoch():
    """Texts of one length: any two share a batch with the probability that chance gives."""
    settings = make_settings(dict(qnli=1.0), text_buckets=(32,))
    examples = Examples(96, tokens=np.repeat([20, 60], 48))
    together = np.zeros((96, 96))
    for epoch in epochs("qnli", 150, settings, dict(qnli=examples)):
        for plan in epoch:
            together[np.ix_(plan.rows, plan.rows)] += 1
    short, long = slice(0, 48), slice(48, 96)
    assert not together[short, long].any()
    for part in (short, long):
        pairs = together[part, part][np.triu_indices(48, 1)] / 150
        chance = (BATCH - 1) / 47
        assert abs(pairs.mean() - chance) < 1e-9
        assert pairs.std() < 1.3 * np.sqrt(chance * (1 - chance) / 150)


def test_epochs_differ_in_order_and_augmentation():
    first, second = epochs("coco", 2)
    seeds = [dict(zip(np.concatenate([p.rows for p in e]).tolist(),
                      np.concatenate([p.seeds for p in e]).tolist(), strict=True))
             for e in (first, second)]  # fmt: skip
    assert all(seeds[0][row] != seeds[1][row] for row in seeds[0])
    assert len(set(seeds[0].values())) == len(seeds[0])
    mates = [{frozenset(p.rows.tolist()) for p in e} for e in (first, second)]
    assert not mates[0] & mates[1]


def test_order_is_uniformly_random():
    """Texts: position of an example in its epoch, over many epochs, is uniform and unrelated to
    its position before."""
    settings, examples = make_settings(dict(qnli=1.0)), dict(qnli=Examples(64))
    places = []
    for epoch in epochs("qnli", 200, settings, examples):
        place = np.empty(64, int)
        for i, plan in enumerate(epoch):
            place[plan.rows] = i
        places.append(place)
    places = np.stack(places)  # [epochs, examples], values 0..7, each with probability 1/8
    counts = np.stack([np.bincount(column, minlength=8) for column in places.T])
    chi2 = (((counts - 25) ** 2) / 25).sum()
    assert 448 - 5 * np.sqrt(2 * 448) < chi2 < 448 + 5 * np.sqrt(2 * 448)  # 64 x 7 degrees
    correlation = np.corrcoef(places[:-1].ravel(), places[1:].ravel())[0, 1]
    assert abs(correlation) < 0.04
    together = np.mean([(a[:, None] == a[None])[np.triu_indices(64, 1)].mean() for a in places])
    assert abs(together - 7 / 63) < 1e-9  # any pair meets with the probability that size gives


def test_shapes_alternate_as_random_draws_do():
    examples = dict(vqa2=images(4000))
    (epoch,) = epochs("vqa2", 1, make_settings(dict(vqa2=1.0)), examples)
    shapes = [plan.bucket for plan in epoch]
    n, counts = len(shapes), np.asarray(list(collections.Counter(shapes).values()))
    changes = sum(a != b for a, b in zip(shapes, shapes[1:], strict=False))
    expected = (n - 1) * (1 - (counts * (counts - 1)).sum() / (n * (n - 1)))
    assert abs(changes - expected) < 4 * np.sqrt(n) / 2


@pytest.mark.parametrize("count", [1, 3, 8, 9])
def test_tiny_data_sets_repeat(count):
    examples = dict(coco=images(count), qnli=Examples(count))
    plan = Mixture(make_settings(dict(coco=1.0, qnli=1.0)), examples)
    for k in range(50):
        step = plan.plan(k)
        assert len(step.rows) == BATCH and 0 <= step.rows.min() and step.rows.max() < count
        if step.task == "qnli" and count <= BATCH:
            assert set(step.rows.tolist()) == set(range(count))


def test_large_data_sets_are_planned_quickly():
    count = 600_000
    examples = dict(coco=images(118_000), vqa2=images(count))
    plan = Mixture(make_settings(dict(coco=0.5, vqa2=0.5), batch_size=64), examples)
    start = time.process_time()
    plan.plan(100_000)  # some 25 epochs of one and 5 of the other in
    for k in range(100_001, 100_501):
        plan.plan(k)
    assert time.process_time() - start < 20


def test_parts_of_processes_are_the_global_batch():
    plan = Mixture(make_settings(), make_examples()).plan(0)
    for count in (1, 2, 4, 8):
        parts = [plan.part(places) for places in np.split(np.arange(BATCH), count)]
        assert np.concatenate([p.rows for p in parts]).tolist() == plan.rows.tolist()
        assert np.concatenate([p.seeds for p in parts]).tolist() == plan.seeds.tolist()


@pytest.mark.parametrize("task", KINDS)
def test_evaluation_shows_every_example_once(task):
    settings, examples = make_settings(), make_examples()[task]
    plans = mixture.evaluation_plans(settings.tasks[task], examples, BATCH, settings.data)
    rows = np.concatenate([plan.rows for plan in plans])
    assert sorted(rows[rows >= 0].tolist()) == list(range(examples.count))
    assert all(len(plan.rows) == BATCH and plan.rows[0] >= 0 for plan in plans)
    assert all(plan.seeds is None and plan.task == task for plan in plans)
    shapes = [plan.bucket for plan in plans]
    assert set(shapes) <= set(mixture.buckets_of(settings.tasks[task], settings.data))
    # Grouped: a shape that was left does not come back.
    assert sum(a != b for a, b in zip(shapes, shapes[1:], strict=False)) == len(set(shapes)) - 1


def test_rests_of_buckets_move_up():
    buckets = ((10, 10), (10, 20), (20, 10), (30, 30))
    numbers = np.asarray([0] * 5 + [1] * 4 + [2] * 3 + [3] * 4)
    groups = mixture.group(numbers, 4, buckets)
    # Example 4 passes the second bucket, which it would only leave unfilled again.
    assert [g.tolist() for g in groups] == [
        [0, 1, 2, 3],
        [5, 6, 7, 8],
        [],
        [12, 13, 14, 15, 4, 9, 10, 11],
    ]
    # Nothing moves where no larger bucket is in use.
    groups = mixture.group(np.asarray([0, 0, 0, 1, 1]), 4, ((10, 20), (20, 10), (30, 30)))
    assert [g.tolist() for g in groups] == [[0, 1, 2], [3, 4], []]


def test_examples_are_repeated_as_often_as_asked():
    """In the mean over epochs, at least once in each, every copy with its own augmentation, and
    still a function of (seed, step) alone."""
    times = np.where(np.arange(40) < 10, 2.3, 1.0)
    examples = dataclasses.replace(images(40), times=times)
    seen, seeds = np.zeros(40), []
    planned = Mixture(make_settings(dict(coco=1.0)), dict(coco=examples))
    every = [planned._orders[0]._plan_epoch(epoch) for epoch in range(60)]
    for epoch in every:
        rows = np.concatenate([plan.rows for plan in epoch])
        drawn = np.unique(np.stack([rows, np.concatenate([plan.seeds for plan in epoch])]), axis=1)
        counts = np.bincount(drawn[0].astype(int), minlength=40)
        assert counts.min() >= 1 and counts[10:].max() == 1 and set(counts[:10]) <= {2, 3}
        seen += counts
        seeds += drawn[1].tolist()
    assert len(set(seeds)) == len(seeds)
    assert abs(seen[:10].mean() / 60 - 2.3) < 4 * np.sqrt(0.3 * 0.7 / 600)
    again = Mixture(make_settings(dict(coco=1.0)), dict(coco=examples))
    flat = [plan for epoch in every for plan in epoch]
    for k in (len(flat) - 1, 3, 50):
        assert same(again.plan(k), flat[k])
    ones = dataclasses.replace(images(40), times=np.ones(40))
    plain, once = (Mixture(make_settings(dict(coco=1.0)), dict(coco=x)) for x in (images(40), ones))
    assert all(same(plain.plan(k), once.plan(k)) for k in range(20))


def test_impossible_mixtures_are_errors():
    with pytest.raises(ValueError, match="no task has a ratio above 0"):
        Mixture(make_settings(dict(coco=0.0)), make_examples())
    with pytest.raises(ValueError, match="qnli: its training split is empty"):
        Mixture(make_settings(), make_examples(qnli=0))
