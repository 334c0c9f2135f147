"""Early stopping: the best evaluation, and when enough is enough."""

import json
import math

from etils import epath

from unit_jax.training import best as best_lib


def test_it_stops_after_so_many_evaluations_without_a_better_one():
    best = best_lib.Best("a/AP", patience=2)
    history = [0.1, 0.3, 0.3, 0.2]
    better = [best.add(10 * n, {"a/AP": value, "b/x": 1.0}) for n, value in enumerate(history)]
    assert better == [True, True, False, False]
    assert best.exhausted and best.step == 10 and best.value == 0.3
    assert best.add(40, {"a/AP": 0.31}) and not best.exhausted
    assert str(best) == "a/AP = 0.310 at step 40"


def test_without_patience_it_never_stops_and_a_missing_value_is_the_worst():
    best = best_lib.Best("a/AP")
    for step, value in enumerate([math.nan, None, math.nan]):
        best.add(step, {"a/AP": value})
    assert not best.exhausted and best.step == 0
    assert best.add(9, {"a/AP": 0.0}) and best.step == 9


def test_a_run_that_goes_on_remembers_its_log(tmp_path):
    records = [{"step": 5, "train/loss": 1.0}, {"step": 5, "a/AP": 0.5}, {"step": 10, "a/AP": None}]
    records += [{"step": 15, "a/AP": 0.4}, {"step": 20, "a/AP": 0.9}]
    text = "\n".join(map(json.dumps, records)) + '\n{"step": 2'
    (tmp_path / "metrics.jsonl").write_text(text)
    best = best_lib.Best("a/AP", patience=2)
    best_lib.recall(best, epath.Path(tmp_path), 15)
    assert best.step == 5 and best.exhausted
    best_lib.recall(best_lib.Best("a/AP"), epath.Path(tmp_path / "none"), 15)
