"""Plants faults one after the other and shows which test sees each: `make mutants`, or
`python -m tests.mutants [NAME ...]`.

A fault is a change of one piece of source text in a copy of the repository. Its tests must pass
without it and fail with it.
"""

import argparse
import dataclasses
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

from tests import ROOT


@dataclasses.dataclass(frozen=True)
class Fault:
    """One fault: in `file`, `old` (which stands there once) becomes `new`; `tests` must fail."""

    name: str
    file: str
    old: str
    new: str
    tests: str


BOXES, LOSS = "unit_jax/outputs/objects/boxes.py", "unit_jax/outputs/objects/loss.py"
MATCHING = "unit_jax/outputs/objects/matching.py"
OPTIMIZER = "unit_jax/training/optimizer.py"
FAULTS = [
    Fault("GIoU without the hull's empty part", BOXES, "_ratio(hull - union, hull)",
          "_ratio(hull - intersection, hull)", "tests/outputs/objects/test_boxes.py"),
    Fault("matcher: overlap costs", MATCHING, "- settings.giou_cost * overlaps",
          "+ settings.giou_cost * overlaps", "tests/outputs/objects/test_matching.py"),
    Fault("matcher: most expensive", MATCHING,
          "scipy.optimize.linear_sum_assignment(costs[layer, image][:, objects])",
          "scipy.optimize.linear_sum_assignment(-costs[layer, image][:, objects])",
          "tests/outputs/objects/test_matching.py"),
    Fault("GIoU loss upside down", LOSS, "jnp.where(matched, 1 - overlaps, 0)",
          "jnp.where(matched, overlaps, 0)", "tests/outputs/objects/test_loss.py"),
    Fault("no-object weight is 1", LOSS, "np.float32(settings.no_object_weight), 1)",
          "np.float32(1), 1)", "tests/outputs/objects/test_loss.py"),
    Fault("unmatched queries answer class 0", LOSS,
          "jnp.where(taken.any(axis=2), labels, classes - 1)",
          "jnp.where(taken.any(axis=2), labels, 0)", "tests/outputs/objects/test_loss.py"),
    Fault("attention sees padding", "unit_jax/models/attention.py",
          "bias = jnp.where(mask, 0, jnp.finfo(wide).min)",
          "bias = jnp.where(mask, 0, 0 * jnp.finfo(wide).min)", "tests/models/test_layers.py"),
    Fault("convolutions see padding", "unit_jax/models/resnet.py",
          "return jnp.where(valid_mask(sizes, *x.shape[1:3])[..., None], x, 0)",
          "return x", "tests/models/test_padding.py"),
    Fault("warm-up one step ahead", OPTIMIZER, "k / max(1, warmup), cosine",
          "(k + 1) / max(1, warmup), cosine", "tests/training/test_optimizer.py"),
    Fault("clipping to half", OPTIMIZER, "self.settings.clip_norm / (norm + 1e-6)",
          "0.5 * self.settings.clip_norm / (norm + 1e-6)", "tests/training/test_optimizer.py"),
    Fault("counts of updates", OPTIMIZER, "new_count = count + 1", "new_count = count + 2",
          "tests/training/test_optimizer.py"),
    Fault("decay of the old parameter", OPTIMIZER,
          "new = new - rate * settings.weight_decay * new",
          "new = new - rate * settings.weight_decay * param", "tests/training/test_optimizer.py"),
    Fault("gradients that are not finite are used", OPTIMIZER,
          "good = jnp.isfinite(norm) & usable", "good = jnp.asarray(True) & usable",
          "tests/training/test_optimizer.py"),
    Fault("soft scores are rounded", "unit_jax/outputs/labels/loss.py",
          "answer_scores * logits)", "answer_scores.round() * logits)",
          "tests/outputs/labels/test_loss.py"),
    Fault("label loss is a sum", "unit_jax/outputs/labels/loss.py", "losses.mean(-1)",
          "losses.sum(-1)", "tests/outputs/labels/test_loss.py"),
    Fault("truncation by halves", "unit_jax/data/text.py", "longer = min(surplus, abs(a - b))",
          "longer = min(surplus, 0)", "tests/data/test_text.py"),
    Fault("every epoch in one order", "unit_jax/data/mixture.py",
          'counters.mix(self._key, "order", epoch,', 'counters.mix(self._key, "order", 0,',
          "tests/data/test_mixture.py"),
    Fault("resuming one step late", "unit_jax/data/loader.py",
          "range(start_step, settings.train.steps)", "range(start_step + 1, settings.train.steps)",
          "tests/data/test_loader.py -k resuming_reads_on"),
    Fault("batches split over one axis only", "unit_jax/runtime/partitioning.py",
          'BATCH_AXES = ("data", "fsdp")', 'BATCH_AXES = ("data",)',
          "tests/runtime/test_partitioning.py"),
    Fault("digests of even factors", "unit_jax/runtime/digests.py",
          "random_raw(count) | np.uint64(1)", "random_raw(count) * np.uint64(2)",
          "tests/runtime/test_digests.py"),
    Fault("damage is not looked for", "unit_jax/runtime/checkpoints.py",
          "if wrong := digests.differences(saved.get(item, {}), found):", "if wrong := []:",
          "tests/runtime/test_checkpoints.py -k other_numbers"),
    Fault("another host's lock is ignored", "unit_jax/runtime/lock.py",
          'if holder.get("host") != own["host"]:\n        return True',
          'if holder.get("host") != own["host"]:\n        return False',
          "tests/runtime/test_lock.py -k another_host"),
    Fault("containers as keys", "unit_jax/interop/torch_pickle.py",
          "if not all(isinstance(part, _KEYS) for part in parts):", "if False:",
          "tests/interop/test_torch_pickle.py -k endless"),
    Fault("lines of a lost step stay", "unit_jax/training/run_log.py",
          'if line["step"] <= start]', 'if line["step"] <= start + 1]',
          "tests/training/test_run_log.py -k after_a_kill"),
]  # fmt: skip


def copy(to: pathlib.Path) -> None:
    """All files that git knows or would add."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    for name in listed.stdout.splitlines():
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_symlink() or (ROOT / name).is_file():
            shutil.copy(ROOT / name, to / name, follow_symlinks=False)
    if (ROOT / ".jax_cache").exists():
        (to / ".jax_cache").symlink_to(ROOT / ".jax_cache")


def failing(folder: pathlib.Path, tests: str) -> list[str] | None:
    """The tests that fail (the first of them); None if they cannot be run at all."""
    command = [sys.executable, "-m", "pytest", "-n0", "-x", "-q", "-p", "no:cacheprovider"]
    words = re.split(r"\s+", tests)
    run = subprocess.run(
        [*command, *words], cwd=folder, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(folder)},
    )  # fmt: skip
    if run.returncode == 0:
        return []
    names = re.findall(r"^FAILED (.+?)(?: - .*)?$", run.stdout, re.M)
    return names if run.returncode == 1 and names else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="faults to plant; default all")
    parser.add_argument("--list", action="store_true", help="show the names and end")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - {fault.name for fault in FAULTS}:
        parser.error(f"no fault is called {', '.join(sorted(unknown))}; see --list")
    faults = [fault for fault in FAULTS if not arguments.names or fault.name in arguments.names]
    if arguments.list:
        print(*(fault.name for fault in faults), sep="\n")
        return 0
    missed, sound = 0, {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        copy(folder)
        print("| fault | caught by |\n|---|---|", flush=True)
        for fault in faults:
            path = folder / fault.file
            source = path.read_text()
            if source.count(fault.old) != 1:
                caught = f"NOT PLANTED: the text stands {source.count(fault.old)} times in the file"
            else:
                if fault.tests not in sound:
                    sound[fault.tests] = failing(folder, fault.tests) == []
                path.write_text(source.replace(fault.old, fault.new))
                names = failing(folder, fault.tests)
                path.write_text(source)
                if not sound[fault.tests]:
                    caught = f"NOT JUDGED: {fault.tests} fails without it"
                else:
                    caught = f"`{names[0]}`" if names else "MISSED"
            missed += not caught.startswith("`")
            print(f"| {fault.name} | {caught} |", flush=True)
    print(f"\n{len(faults) - missed} of {len(faults)} faults were caught")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
