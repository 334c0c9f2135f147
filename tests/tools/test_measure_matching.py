"""The tool that measures where the assignment is best solved."""

import numpy as np
import pytest

from tests.tools.test_benchmark import step_arguments
from unit_jax.outputs.objects import matching
from unit_jax.tools import measure_matching

ARGUMENTS = step_arguments("--tasks=coco", "--batch=8", "--repeats=1")


def test_three_ways_agree_and_are_timed(capsys):
    measure_matching.main(ARGUMENTS)
    heading, *rows = (line.split() for line in capsys.readouterr().out.splitlines())
    assert heading[0] == "coco"
    assert [row[0] for row in rows] == ["split", "callback", "device"]
    assert [len(row) for row in rows] == [4, 3, 3]  # only the split tells how long it waits
    assert all(float(value) > 0 for row in rows for value in row[1:])


def test_another_match_is_told(monkeypatch):
    def crossed(costs, object_mask):
        return matching.match(-np.asarray(costs), np.asarray(object_mask))

    monkeypatch.setattr(measure_matching, "_match", crossed)
    with pytest.raises(SystemExit, match="coco: the losses differ"):
        measure_matching.main(ARGUMENTS)


def test_tasks_without_detection_are_refused():
    with pytest.raises(SystemExit, match="none of these is detection"):
        measure_matching.main(step_arguments("--tasks=sst2"))
