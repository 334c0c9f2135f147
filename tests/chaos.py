"""Kills a tiny run again and again, at random moments of all its phases, and compares what it ends
with to a run that nobody disturbed: `make chaos`, or `python -m tests.chaos --kills 30`.

Equal to the bit: parameters, statistics, optimiser's state; equal: every line of metrics.jsonl but
for what depends on the clock, TensorBoard, the report. Prints a table of the kills.
"""

import argparse
import collections
import contextlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np

from tests import ROOT, tiny
from tests.training import test_board
from unit_jax.data import prepared

TASKS = ("coco", "vqa2", "qqp")
STEPS = 12
PHASES = ("starting", "compiling", "training", "saving", "evaluating", "reporting")
VOLATILE = ("time", "train/examples_per_second", "train/compilations", "train/recompilations",
            "train/coco/matching_ms", "train/host_memory")  # fmt: skip


def get_config(data_dir: str) -> dict:
    """The config of the runs."""
    config = tiny.values(pathlib.Path(data_dir), TASKS, steps=STEPS)
    config["train"].update(checkpoint_every=4, eval_every=6, log_every=1)
    config["report"]["blind_check"] = False
    return config


def start(
    data_dir: pathlib.Path, workdir: pathlib.Path, log: pathlib.Path, *flags: str
) -> subprocess.Popen:
    command = [
        sys.executable, "-m", "unit_jax.main", f"--config=tests/chaos.py:{data_dir}",
        f"--workdir={workdir}", *flags,
    ]  # fmt: skip
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    with open(log, "a") as out:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=out)


def phase(workdir: pathlib.Path) -> str:
    """What status.json says; "importing" before this process wrote one."""
    try:
        return json.loads((workdir / "status.json").read_text())["state"]
    except (OSError, ValueError, KeyError):
        return "importing"


def kill_once(
    data_dir: pathlib.Path,
    workdir: pathlib.Path,
    log: pathlib.Path,
    rng: random.Random,
    wanted: str,
) -> tuple[str, int | None]:
    """Starts the run and kills it when it is in a phase, or a random while later.

    Returns:
      (phase it was in, its exit code; that of a run that ended before is not -SIGKILL).
    """
    (workdir / "status.json").unlink(missing_ok=True)  # the id of the run is not compared
    process = start(data_dir, workdir, log)
    number = signal.SIGTERM if rng.random() < 0.15 else signal.SIGKILL
    if wanted == "importing":
        time.sleep(rng.uniform(0.1, 3))
    while wanted != "importing" and process.poll() is None and phase(workdir) != wanted:
        time.sleep(0.002)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(rng.choice((0, 0.01, 0.1, 0.3, 1.0)))
    seen = phase(workdir)
    if process.poll() is None:
        process.send_signal(number)
    return f"{seen}, {number.name}", process.wait()


def state_of(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    """All arrays of the last checkpoint, read without the code that wrote them."""
    import jax
    import orbax.checkpoint as ocp

    found = {}
    for item in ("model", "optimizer"):
        path = workdir / "checkpoints" / str(STEPS) / item
        tree = ocp.StandardCheckpointer().restore(path.absolute())
        for name, leaf in jax.tree_util.tree_leaves_with_path(tree):
            found[f"{item}{jax.tree_util.keystr(name)}"] = np.asarray(leaf)
    return found


def lines_of(workdir: pathlib.Path) -> list[dict]:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in VOLATILE} for line in lines]


def differences(whole: pathlib.Path, killed: pathlib.Path) -> list[str]:
    """In what a run that was killed differs from one that was not."""
    found = []
    wanted, state = state_of(whole), state_of(killed)
    if wanted.keys() != state.keys():
        found.append("other arrays")
    found += [
        name
        for name in wanted.keys() & state.keys()
        if wanted[name].tobytes() != state[name].tobytes()
    ]
    if lines_of(whole) != lines_of(killed):
        found.append("metrics.jsonl")
    lines = [json.loads(line) for line in (killed / "metrics.jsonl").read_text().splitlines()]
    if test_board.read(killed / "tensorboard") != test_board.wanted(lines):
        found.append("TensorBoard")
    for name in ("report.json", "report.md"):
        if (whole / name).read_bytes() != (killed / name).read_bytes():
            found.append(name)
    if not (killed / "predictions.png").exists():
        found.append("predictions.png")
    return found


def prepared_alike(folder: pathlib.Path, rng: random.Random, kills: int) -> tuple[int, list[str]]:
    """Kills preparation some times, lets it end, and compares every record and image with those of
    one that nobody disturbed.

    Returns:
      How often it was killed, and what differs.
    """
    done, target = 0, folder / "prepared-again"
    command = [
        sys.executable, "-m", "unit_jax.tools.prepare_data", "--source", folder / "source",
        "--datasets", ",".join(TASKS), "--data_dir",
    ]  # fmt: skip
    quiet = dict(cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    since = time.monotonic()
    subprocess.run([*command, folder / "prepared"], check=True, **quiet)
    whole = time.monotonic() - since
    while done < kills:
        process = subprocess.Popen([*command, target], **quiet)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0.2, 1) * whole)
        if process.poll() is None:
            process.kill()
            done += 1
        elif target.exists():
            shutil.rmtree(target)
        process.wait()
    subprocess.run([*command, target], check=True, **quiet)
    wanted, found = (prepared.PreparedData(place, TASKS) for place in (folder / "data", target))
    prepared.verify(found)
    if wanted.content() != found.content():
        return done, ["manifest.json"]
    return done, [
        f"{task}, {split}"
        for task in TASKS
        for split in wanted.splits(task)
        if _content(wanted.split(task, split)) != _content(found.split(task, split))
    ]


def _content(split: prepared.Split) -> list:
    images = split.image if split.images is not None else lambda row: None
    return [(repr(split[row]), images(row)) for row in range(len(split))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=pathlib.Path, default=ROOT / "runs" / "chaos")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    folder, rng = arguments.folder, random.Random(arguments.seed)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    data_dir = tiny.make_data(folder, TASKS)
    table: collections.Counter[str] = collections.Counter()
    wrong: list[str] = []
    done, differ = prepared_alike(folder, rng, min(5, arguments.kills // 6))
    table["preparing, SIGKILL"] = done
    wrong += [f"prepared: {name}" for name in differ]
    print(f"preparing, killed {done} times: {differ or 'equal'}", flush=True)

    whole, log = folder / "whole", folder / "log.txt"
    assert start(data_dir, whole, log).wait() == 0, log.read_text()
    runs, wanted = 0, []
    while (kills := table.total()) < arguments.kills:
        workdir = folder / f"killed-{runs}"
        workdir.mkdir()
        for _ in range(8):
            wanted = wanted or rng.sample(("importing", *PHASES), k=len(PHASES) + 1)
            seen, code = kill_once(data_dir, workdir, log, rng, wanted.pop())
            if code != 0:
                table[seen] += 1
                print(f"{table.total()} of {arguments.kills}: {seen}, exit code {code}", flush=True)
            if code not in (0, -signal.SIGKILL, -signal.SIGTERM, 130, 143):
                wrong.append(f"exit code {code} in {workdir}")
        assert start(data_dir, workdir, log).wait() == 0, log.read_text()[-3000:]
        found = differences(whole, workdir)
        print(f"run {runs}, killed {table.total() - kills} times: {found or 'equal'}", flush=True)
        wrong += [f"run {runs}: {name}" for name in found]
        runs += 1
    print("\n| killed while | times |\n|---|---:|")
    for seen, count in sorted(table.items()):
        print(f"| {seen} | {count} |")
    verdict = "all ended equal" if not wrong else f"{len(wrong)} differences"
    print(f"| all, in {runs} runs | {table.total()}: {verdict} |")
    print(*wrong[:20], sep="\n")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
