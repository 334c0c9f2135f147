"""What a user should know of a data set though nothing stops for it."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from unit_jax.data.own.declared import Declared
from unit_jax.data.own.records import Built


def warn(declared: Declared, built: Mapping[str, Built]) -> None:
    """Notes what a user should know though nothing stops for it: missing images, duplicates."""
    for split, problems in declared.problems.items():
        missing = problems.of("missing image")
        if missing:
            names = ", ".join(problem.detail.split(" is not in ")[0] for problem in missing[:3])
            more = ", ..." if len(missing) > 3 else ""
            declared.notes.append(
                f"{split}: {len(missing)} images are missing ({names}{more}); their examples are "
                "left out"
            )
        sizes = len(problems.of("image size"))
        if sizes > 0.5 * len(built.get(split, Built([], [], [], Counter())).records):
            declared.notes.append(
                f"{split}: {sizes} images have another size than the annotations say; are these "
                "the pictures that were annotated? Boxes are taken as pixels of the pictures"
            )
    train = {digest: example for digest, example in _by_digest(built["train"])}
    for split in ("val", "test"):
        if split not in built:
            continue
        both = [
            (example, train[digest])
            for digest, example in _by_digest(built[split])
            if digest in train
        ]
        if both:
            shown = ", ".join(f"{_name(a)} = {_name(b)}" for a, b in both[:3])
            more = ", ..." if len(both) > 3 else ""
            declared.notes.append(
                f"WARNING: {len(both)} of {split}'s {'images' if both[0][0].image else 'texts'} "
                f"are in train as well ({shown}{more}): its figures are too good"
            )


def _by_digest(rows: Built) -> Iterator[tuple[str, Any]]:
    yield from dict(zip(reversed(rows.digests), reversed(rows.examples), strict=True)).items()


def _name(example: Any) -> str:
    if example.image is not None:
        return "/".join(example.image.parts[-2:])
    return f"{example.text[:30]!r}"
