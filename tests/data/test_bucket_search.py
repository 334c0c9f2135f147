"""The search for shapes against trying all of them; the tool that prints them."""

import itertools

import numpy as np
import pytest

from configs import demo, unit
from unit_jax.data import batching, bucket_search
from unit_jax.tools import choose_buckets


def best_by_trying_all(sizes, weights, count: int, multiple: int) -> float:
    """The least padded share, over all sets of shapes on the grid."""
    sides = [range(multiple, side + multiple, multiple) for side in sizes.max(0)]
    shares = []
    for shapes in itertools.combinations(itertools.product(*sides), count):
        if (batching.choose_bucket(sizes, batching.sort_buckets(shapes)) >= 0).all():
            shares.append(bucket_search.padded_share(sizes, weights, shapes))
    return min(shares)


@pytest.mark.parametrize("seed", range(6))
def test_as_good_as_trying_all(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 24, (12, 2))
    weights = rng.uniform(0.1, 1, 12)
    found = bucket_search.search(sizes, weights, 3, 6, seed)
    assert len(found) <= 3 and all(side % 6 == 0 for shape in found for side in shape)
    expected = best_by_trying_all(sizes, weights, 3, 6)
    assert bucket_search.padded_share(sizes, weights, found) == pytest.approx(expected, abs=1e-6)
    again = bucket_search.search(sizes, weights, 3, 6, seed)
    assert again == found


def test_lengths_of_texts():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 60, (40, 1))
    weights = np.ones(40)
    found = bucket_search.search(lengths, weights, 3, 4)
    expected = best_by_trying_all(lengths, weights, 3, 4)
    assert bucket_search.padded_share(lengths, weights, found) == pytest.approx(expected, abs=1e-6)


def test_what_may_occur_is_held_but_gets_no_shape_of_its_own():
    sizes = np.asarray([(30, 40), (40, 30), (64, 64)])
    found = bucket_search.search(sizes, np.asarray([1.0, 1.0, 0.0]), 3, 16)
    assert found == ((32, 48), (48, 32), (64, 64))
    assert bucket_search.search(sizes, np.asarray([1.0, 1.0, 0.0]), 1, 16) == ((64, 64),)
    assert bucket_search.search(sizes[:2], np.ones(2), 5, 16) == ((32, 48), (48, 32))


def test_impossible_searches_are_errors():
    with pytest.raises(ValueError, match="there are no sizes"):
        bucket_search.search(np.zeros((0, 2), int), np.zeros(0), 3, 16)
    with pytest.raises(ValueError, match=r"no bucket holds \[5, 9\]"):
        bucket_search.padded_share(np.asarray([(5, 9)]), np.ones(1), ((8, 8),))


def test_padded_share_counts_by_weight():
    sizes = np.asarray([(4, 4), (2, 8)])
    share = bucket_search.padded_share(sizes, np.asarray([3.0, 1.0]), ((4, 5), (4, 8)))
    assert share == pytest.approx(1 - (3 * 16 + 16) / (3 * 20 + 32))


def test_the_papers_shapes_are_what_the_tool_finds(capsys):
    """And they keep the promise: at most 12 % padded pixels in the mixture's training."""
    assert choose_buckets.main(["--counts=8", "--text_counts=3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    config, found = [line for line in lines if line.startswith("  buckets=")]
    assert found == config == f"  buckets={unit.values()['data']['buckets']}"
    row = next(line for line in lines if line.startswith("8 shapes, the config")).split()
    assert float(row[4].rstrip("%")) <= 12


@pytest.mark.parametrize(("aim", "column", "share"), [("coco", 1, 21), ("evaluation", 5, 3)])
def test_shapes_for_one_aim(aim, column, share, capsys):
    assert choose_buckets.main([f"--aim={aim}", "--counts=8", "--text_counts=2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    row = next(line for line in lines if line.startswith("8 shapes, searched")).split()
    assert float(row[3 + column].rstrip("%")) <= share


def test_sizes_of_ones_own(tmp_path, capsys):
    path = tmp_path / "sizes.txt"
    path.write_text("# width height\n80 60 3\n60 80  # portrait\n\n64 64 2\n")
    arguments = ["--config=configs/demo.py", f"--sizes={path}", "--counts=1,2", "--text_counts=1"]
    assert choose_buckets.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "2 shapes, the config" in printed and "  buckets=((80, 80),)" in printed
    assert printed.count("  buckets=((64, 80), (80, 64))\n") == 2  # the config's are found as well
    assert demo.values()["data"]["buckets"] == ((64, 80), (80, 64))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("640 x 480\n", ":1: expected WIDTH HEIGHT"),
        ("640 480\n640 0 3\n", ":2: expected"),
        ("", "no sizes"),
    ],
)
def test_files_without_sizes_are_errors(tmp_path, capsys, content, message):
    path = tmp_path / "sizes.txt"
    path.write_text(content)
    assert choose_buckets.main([f"--sizes={path}"]) == 1
    assert message in capsys.readouterr().err
    assert choose_buckets.main([f"--sizes={tmp_path / 'none'}"]) == 1
    assert "no such file" in capsys.readouterr().err
    assert choose_buckets.main(["--config=configs/none.py"]) == 1
    assert "no such file" in capsys.readouterr().err
    assert choose_buckets.main(["--aim=night"]) == 1
    assert "--aim: night is none of mixture, coco" in capsys.readouterr().err
