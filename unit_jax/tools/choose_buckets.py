"""Chooses the shapes that images and texts are padded to, and shows what padding they cost.

unit-jax choose-buckets [--config configs/unit.py] [--sizes FILE | --data_dir DIR]

Sizes come from a file with a line "width height count" per image size (default: a sample of
COCO's, coco_sizes.txt beside this file, for every task), or from prepared data (of each task its
own). They go through the resizing of the config, with augmentation where the task has one. Shapes
are searched for the mixture's training steps, by sampling ratio, or for --aim. The table shows the
share of padded pixels there, on each task alone and in evaluation, and how many programs get
compiled.

Text lengths come from prepared data, or from a rough likeness of GLUE's. Three ways to pad are
compared: all to the task's maximum, each batch to the bucket of its longest, and batches of one
bucket (what training does).
"""

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Mapping, Sequence

import numpy as np

from unit_jax import config_files, outputs
from unit_jax.data import batching, bucket_search, counters, mixture, transforms
from unit_jax.data.batching import Bucket
from unit_jax.data.mixture import Examples
from unit_jax.data.prepared import PreparedData
from unit_jax.settings import Settings
from unit_jax.tasks import TaskSpec

SIZES = pathlib.Path(__file__).with_name("coco_sizes.txt")
_TOKENS = 8  # text lengths are multiples of it
DRAWS = 20_000  # examples drawn per task: the shares are then good to about 0.1 %
# GLUE's lengths in WordPieces by median and spread of a lognormal distribution, from memory.
GLUE_LENGTHS = {"qnli": (46, 0.45), "mnli": (36, 0.5), "qqp": (28, 0.4), "sst2": (10, 0.65)}

Splits = Mapping[str, Examples]  # by task


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config", default="configs/unit.py", help="config file, with :variants (%(default)s)")
    add("--sizes", type=pathlib.Path, default=SIZES, help="image sizes (%(default)s)")
    add("--data_dir", help="prepared data whose sizes and lengths to take instead")
    add("--aim", default="mixture", help="search for these steps: mixture, a task or evaluation")
    add("--counts", default="8,12,16", help="numbers of image shapes to search for (%(default)s)")
    add("--text_counts", default="2,3,4", help="numbers of text lengths, likewise (%(default)s)")
    add("--seed", type=int, default=0, help="of the draws and the search (%(default)s)")
    options = parser.parse_args(arguments)
    try:
        settings = config_files.read(options.config)
        if options.data_dir:
            train, val = prepared_examples(settings, options.data_dir)
        else:
            train = val = typical_examples(settings, read_sizes(options.sizes), options.seed)
        counts, text_counts = (
            tuple(map(int, text.split(","))) for text in (options.counts, options.text_counts)
        )
        if any(spec.has_image for spec in settings.tasks.values()):
            images = Images(settings, train, val, options.seed)
            print_images(images, options.aim, counts, options.seed)
        if any(not spec.has_image for spec in settings.tasks.values()):
            print_texts(settings, train, text_counts, options.seed)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def read_sizes(path: pathlib.Path) -> np.ndarray:
    """[sizes, 3]: width, height and count of each line; text after # is a comment.

    Raises:
      ValueError: no such file, or a line that does not hold two or three positive numbers.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    rows = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        words = line.partition("#")[0].split()
        if words:
            if len(words) not in (2, 3) or not all(w.isdecimal() and int(w) for w in words):
                raise ValueError(f"{path}:{number}: expected WIDTH HEIGHT [COUNT], got {line!r}")
            rows.append([*map(int, words), 1][:3])
    if not rows:
        raise ValueError(f"{path} holds no sizes")
    return np.asarray(rows)


def typical_examples(settings: Settings, sizes: np.ndarray, seed: int) -> Splits:
    """`DRAWS` examples a task: images of the given sizes, texts of GLUE-like lengths."""
    width, height, count = sizes.T
    # Evenly spread over the counts, so that no share of a size is left to chance.
    image = np.searchsorted(np.cumsum(count), (np.arange(DRAWS) + 0.5) * count.sum() / DRAWS)
    rng = np.random.default_rng(seed)
    examples = {}
    for name, spec in settings.tasks.items():
        if spec.has_image:
            examples[name] = Examples(DRAWS, height[image], width[image])
        else:
            median, spread = GLUE_LENGTHS.get(name, GLUE_LENGTHS["mnli"])
            lengths = rng.lognormal(np.log(median), spread, DRAWS)
            examples[name] = Examples(DRAWS, tokens=np.maximum(lengths, 3).astype(np.int64))
    return examples


def prepared_examples(settings: Settings, data_dir: str) -> tuple[Splits, Splits]:
    """All examples of the training and the validation splits."""
    data = PreparedData(data_dir, settings.tasks)
    parts = []
    for name in ("train", "val"):
        splits = {task: data.split(task, name) for task in settings.tasks}
        parts.append(
            {t: Examples(len(s), s.height, s.width, s.num_tokens) for t, s in splits.items()}
        )
    return parts[0], parts[1]


class Images:
    """Image sizes after the transforms.

    Attributes:
      train, val: final (height, width) of each task's examples.
      mixture: those of training steps, and how often each occurs.
      possible: all that training and evaluation can meet.
    """

    def __init__(self, settings: Settings, train: Splits, val: Splits, seed: int):
        self.settings = settings
        self.specs = [spec for spec in settings.tasks.values() if spec.has_image]
        self.train, self.val, possible, weights = {}, {}, [], []
        for spec in self.specs:
            name = spec.name
            seeds = counters.mix(seed, name, np.arange(train[name].count))
            self.train[name] = mixture.padded_sizes(spec, train[name], settings.data, seeds)
            self.val[name] = mixture.padded_sizes(spec, val[name], settings.data)
            weights.append(np.full(train[name].count, settings.ratios[name] / train[name].count))
            for examples, training in ((train[name], True), (val[name], False)):
                sizes = examples.sizes
                possible.append(
                    transforms.possible_sizes(spec.transforms, *sizes, settings.data, training)
                )
        self.mixture = np.concatenate(list(self.train.values())), np.concatenate(weights)
        self.possible = np.concatenate(possible)

    def aims(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Sizes and how often each occurs: in the mixture, in each task's training, evaluating."""
        every = {**self.train, "evaluation": np.concatenate(list(self.val.values()))}
        alone = {name: (sizes, np.ones(len(sizes))) for name, sizes in every.items()}
        return {"mixture": self.mixture, **alone}

    def search(self, aim: str, count: int, seed: int) -> tuple[Bucket, ...]:
        """The shapes that pad least there; they hold everything else too.

        Raises:
          ValueError: there is no such aim.
        """
        if aim not in self.aims():
            raise ValueError(f"--aim: {aim} is none of {', '.join(self.aims())}")
        sizes, weights = self.aims()[aim]
        stride = 16 if self.settings.model.backbone.dilation else 32
        nothing = np.zeros(len(self.possible))
        return bucket_search.search(
            np.concatenate([sizes, self.possible]),
            np.concatenate([weights, nothing]),
            count,
            stride,
            seed,
        )

    def shares(self, buckets: Sequence[Bucket]) -> list[float]:
        """Padded share of every aim."""
        return [bucket_search.padded_share(*aim, buckets) for aim in self.aims().values()]

    def programs(self, buckets: Sequence[Bucket]) -> int:
        """Programs that training compiles: two for each shape of a detection task, else one."""
        buckets = batching.sort_buckets(buckets)
        return sum(
            (2 if outputs.room(spec).matches else 1)
            * len(np.unique(batching.choose_bucket(self.train[spec.name], buckets)))
            for spec in self.specs
        )


def print_row(name: str, values: Sequence[str | float]) -> None:
    """One line of a table; numbers are shares."""
    cells = [value if isinstance(value, str) else f"{value:.1%}" for value in values]
    print(f"{name:<42}" + "".join(f"{cell:>14}" for cell in cells), flush=True)


def print_images(images: Images, aim: str, counts: Sequence[int], seed: int) -> None:
    """A row for the config's shapes and one for each count asked for."""
    print("Image shapes (height, width), and the share of padded pixels")
    print_row("", [*images.aims(), "programs"])
    for count in (None, *counts):
        buckets = images.search(aim, count, seed) if count else images.settings.data.buckets
        name = f"{len(buckets)} shapes, {'searched' if count else 'the config'}"
        print_row(name, [*images.shares(buckets), str(images.programs(buckets))])
        print(f"  buckets={batching.sort_buckets(buckets)}", flush=True)


def print_texts(settings: Settings, train: Splits, counts: Sequence[int], seed: int) -> None:
    """A row for each way to pad the texts of language tasks."""
    specs = [spec for spec in settings.tasks.values() if not spec.has_image]
    lengths = {
        spec.name: mixture.padded_sizes(spec, train[spec.name], settings.data) for spec in specs
    }
    longest = np.asarray([[spec.max_tokens] for spec in specs])
    sizes = np.concatenate([*lengths.values(), longest])
    weights = [np.full(len(x), settings.ratios[name] / len(x)) for name, x in lengths.items()]
    weights = np.concatenate([*weights, np.zeros(len(longest))])
    print("\nText lengths beside the task's maximum, and the share of padded tokens")
    print_row("", ["mixture", *lengths, "programs"])

    def row(name: str, text_buckets: tuple[int, ...], grouped: bool):
        own = dataclasses.replace(settings.data, text_buckets=text_buckets)
        padded = {s.name: padding(s, train[s.name], own, settings, grouped, seed) for s in specs}
        ratios = np.asarray([settings.ratios[s.name] for s in specs])
        real, whole = np.asarray(list(padded.values())).T
        programs = sum(len(mixture.buckets_of(spec, own)) for spec in specs)
        print_row(name, [1 - ratios @ real / (ratios @ whole), *(1 - real / whole), str(programs)])

    configured = settings.data.text_buckets
    row("none: all of the task's maximum", (), True)
    row(f"{configured}: that of a batch's longest", configured, False)
    row(f"{configured}: batches of one length, config", configured, True)
    for count in counts:
        chosen = bucket_search.search(sizes, weights, count, _TOKENS, seed)
        searched = tuple(length for (length,) in chosen if length < longest.max())
        row(f"{searched}: searched", searched, True)


def padding(
    spec: TaskSpec, examples: Examples, data, settings: Settings, grouped: bool, seed: int
) -> tuple[float, float]:
    """Mean tokens of an example, real and with padding.

    Args:
      grouped: a batch's texts are of one bucket; else drawn from all.
    """
    sizes, buckets = mixture.padded_sizes(spec, examples, data), mixture.buckets_of(spec, data)
    seen = sizes
    if not grouped:
        batch = settings.train.batch_size
        order = np.random.default_rng(seed).permutation(len(sizes))
        seen = sizes[order][: len(sizes) // batch * batch].reshape(-1, batch).max(1, keepdims=True)
    padded = np.asarray(buckets)[batching.choose_bucket(seen, buckets), 0]
    return float(sizes.mean()), float(padded.mean())


if __name__ == "__main__":
    sys.exit(main())
