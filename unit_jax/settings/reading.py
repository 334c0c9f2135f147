"""From a nested config to Settings, with everything that is wrong in one message."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from unit_jax import fields, own_data
from unit_jax import tasks as tasks_lib
from unit_jax.settings.groups import BY_SIZE, Settings, TextEncoderSettings
from unit_jax.settings.misfits import misfits


def from_config(config: Mapping | Settings, problems: Sequence[str] = ()) -> Settings:
    """Turns a nested config (ml_collections.ConfigDict or dict) into Settings.

    `config.tasks` maps a task name to its sampling `ratio` and to overrides of its TaskSpec.
    Everything else that the config leaves out takes its default.

    Args:
      problems: what is known to be wrong already.

    Raises:
      ValueError: one message that lists everything that is wrong, with its place and remedy.
    """
    if isinstance(config, Settings):
        return config
    reader = fields.Reader(Settings)
    reader.problems += problems
    config = fields.plain(config)
    specs, ratios = _tasks(_with_own(config.pop("tasks", {}), config, reader), reader)
    settings = reader.read(Settings, config, "config", dict(tasks=specs, ratios=ratios))
    for places, problem in misfits(settings):
        if not reader.wrong & {f"config.{place}" for place in places}:
            reader.problems.append(problem)
    _raise(reader.problems)
    return settings


def only(settings: Settings, tasks: str) -> Settings:
    """The settings of a run with some of its tasks.

    Args:
      tasks: names, joined by commas; "" = all.

    Raises:
      ValueError: one is none of the config's.
    """
    wanted = [name for name in tasks.split(",") if name]
    for name in wanted:
        if name not in settings.tasks:
            near = fields.did_you_mean(name, settings.tasks)
            raise ValueError(
                f"--tasks={tasks}: {name!r} is none of this config's tasks{near} "
                f"({', '.join(settings.tasks)})"
            )
    kept = [name for name in settings.tasks if name in wanted or not wanted]
    return dataclasses.replace(
        settings,
        tasks={name: settings.tasks[name] for name in kept},
        ratios={name: settings.ratios[name] for name in kept},
    )


def build(cls: type, values: Mapping, where: str = "config") -> Any:
    """Builds one of the settings classes from a nested mapping; defaults where it says nothing.

    Raises:
      ValueError: unknown, mistyped or impossible values, all in one message.
    """
    reader = fields.Reader()
    built = reader.read(cls, fields.plain(values), where)
    _raise(reader.problems)
    return built


def from_saved(saved: Mapping[str, Any]) -> Settings:
    """The settings that a checkpoint's metadata hold, made by this version or another.

    Settings that came later take their defaults; what this version does not know is left out.

    Raises:
      ValueError: a value is none that this version can use.
    """
    known = fields.known(Settings, fields.plain(saved))
    ratios = known.pop("ratios", {})
    known["tasks"] = tasks = {}
    for name, spec in fields.plain(saved.get("tasks", {})).items():
        ratio = ratios.get(name, 1.0)
        tasks[name] = dataclasses.asdict(tasks_lib.from_saved(name, spec))
        tasks[name]["ratio"] = "size" if ratio == BY_SIZE else ratio
        del tasks[name]["name"]
    return from_config(known)


def defaults() -> dict[str, Any]:
    """All settings at their defaults, as a nested dict that a config may change; no tasks."""
    config = dataclasses.asdict(Settings())
    del config["ratios"]
    return config


def update(config: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Puts nested values into a nested config, in place; what `changes` leaves out stays.

    A key with a dot goes as it is; `report.paper` is one value.
    """
    for key, value in changes.items():
        if isinstance(value, Mapping) and isinstance(config.get(key), dict) and key != "paper":
            update(config[key], value)
        else:
            config[key] = fields.plain(value)


def names(cls: type, which: str) -> tuple[str, ...]:
    """Dotted names of the settings below a class that are `which` ("free" or "local")."""
    return tuple(
        name
        for name, (_, field) in fields.leaves(cls).items()
        if getattr(fields.about(field), which)
    )


def _raise(problems: Sequence[str]) -> None:
    if len(problems) == 1:
        raise ValueError(problems[0])
    if problems:
        raise ValueError("the config has problems:\n  " + "\n  ".join(problems))


def _with_own(selected: Any, config: Mapping[str, Any], reader: fields.Reader) -> Any:
    """The selected tasks and those of `config.data.own`, which need no entry of their own."""
    own = _at(config, "data.own", {})
    wrong = own_data.problems(own)
    reader.problems += wrong
    if wrong or not own or not isinstance(selected, Mapping):
        return selected
    longest = _at(config, "model.text_encoder.max_positions", TextEncoderSettings.max_positions)
    longest = longest if isinstance(longest, int) else TextEncoderSettings.max_positions
    for name in own:
        if name in tasks_lib.PUBLISHED:
            reader.problem(
                f"config.data.own.{name}", "a published data set has this name; choose another one"
            )
    # Rows of the task embeddings follow the order: an entry in `tasks` should change none.
    tasks = {name: value for name, value in selected.items() if name not in own}
    for name, options in own.items():
        given = selected.get(name, {})
        defaults = own_data.task(options, longest, given) if isinstance(given, Mapping) else {}
        tasks[name] = {**defaults, **given} if defaults else given
    return tasks


def _at(config: Any, name: str, default: Any) -> Any:
    """The value at a dotted name, where the config gives one."""
    for part in name.split("."):
        config = config.get(part) if isinstance(config, Mapping) else None
    return default if config is None else config


def _tasks(
    selected: Any, reader: fields.Reader
) -> tuple[dict[str, tasks_lib.TaskSpec], dict[str, float]]:
    """The selected tasks and their ratios, in the table's order (ConfigDict sorts its keys)."""
    specs, ratios = {}, {}
    if not isinstance(selected, Mapping) or not selected:
        reader.problem("config.tasks", "no task is selected")
        return specs, ratios
    before = len(reader.problems)
    for name in sorted(selected, key=list(dict.fromkeys([*tasks_lib.PUBLISHED, *selected])).index):
        where = f"config.tasks.{name}"
        if not isinstance(selected[name], Mapping):
            reader.problem(where, f"expected a group of settings, got {selected[name]!r}")
            continue
        overrides = dict(selected[name])
        ratio = overrides.pop("ratio", 1.0)
        if ratio == "size":
            ratios[name] = BY_SIZE
        else:
            ratios[name] = reader.convert(float, ratio, f"{where}.ratio", fields.About(low=0))
        taken = [spec.index for spec in specs.values()]
        spec = tasks_lib.read(name, overrides, taken, reader)
        if spec is not None:
            specs[name] = spec
    if len(reader.problems) == before and not any(ratios.values()):
        reader.problem("config.tasks", "no task has a ratio above 0")
    return specs, ratios
