"""Settings that are right by themselves and do not go together."""

import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any

from unit_jax import fields
from unit_jax import tasks as tasks_lib
from unit_jax.settings.groups import Settings


def misfits(settings: Settings) -> Iterator[tuple[tuple[str, ...], str]]:
    """What does not go together: (the settings that say so, a line about it)."""
    model, data = settings.model, settings.data
    for width, heads in (
        ("image_encoder.width", "heads"),
        ("decoder.width", "heads"),
        ("text_encoder.width", "text_encoder.heads"),
    ):
        wide, count = _get(model, width), _get(model, heads)
        if wide % count:
            yield (
                (f"model.{width}", f"model.{heads}"),
                f"config.model.{width}: {wide} does not split into config.model.{heads} = {count} "
                "heads; use a multiple of it",
            )
    if data.crop_min > data.crop_max:
        yield (
            ("data.crop_min", "data.crop_max"),
            f"config.data.crop_min: {data.crop_min} is more than config.data.crop_max = "
            f"{data.crop_max}",
        )
    if any(first > last for first, last in data.skip) or any(
        last >= first for (_, last), (first, _) in itertools.pairwise(data.skip)
    ):
        yield (
            ("data.skip",),
            f"config.data.skip: {data.skip} are not (first, last) steps in rising order",
        )
    specs = settings.tasks
    for index, count in Counter(spec.index for spec in specs.values()).items():
        if count > 1:
            same = [name for name, spec in specs.items() if spec.index == index]
            taken = {spec.index for spec in [*specs.values(), *tasks_lib.PUBLISHED.values()]}
            free = next(row for row in range(len(taken) + 1) if row not in taken)
            yield (
                tuple(f"tasks.{name}.index" for name in same),
                f"config.tasks.{same[-1]}.index: {' and '.join(same)} have the same row of the "
                f"task embeddings, {index}; give one of them another, such as {free}",
            )
    for name, spec in specs.items():
        for has, encoder in ((spec.has_image, "image_encoder"), (spec.has_text, "text_encoder")):
            own = getattr(model, encoder)
            if has and own.task_embedding and spec.index >= own.task_rows:
                yield (
                    (f"tasks.{name}.index", f"model.{encoder}.task_rows"),
                    f"config.tasks.{name}.index: {spec.index} is beyond the task embedding's "
                    f"{own.task_rows} rows (0 to {own.task_rows - 1}); use a lower one, or raise "
                    f"config.model.{encoder}.task_rows",
                )
        if spec.has_text and spec.max_tokens > model.text_encoder.max_positions:
            yield (
                (f"tasks.{name}.max_tokens", "model.text_encoder.max_positions"),
                f"config.tasks.{name}.max_tokens: {spec.max_tokens} is more than "
                f"config.model.text_encoder.max_positions = {model.text_encoder.max_positions}",
            )
    best = settings.train.best_metric
    if best:
        task, slash, metric = best.partition("/")
        if not slash or not metric:
            told = 'write "task/metric"'
        else:
            told = f"there is no task {task}{fields.did_you_mean(task, specs)}"
        if not metric or task not in specs:
            yield (
                ("train.best_metric",),
                f"config.train.best_metric: {best!r}: {told} (tasks: {', '.join(specs)})",
            )


def _get(group: Any, name: str) -> Any:
    for part in name.split("."):
        group = getattr(group, part)
    return group
