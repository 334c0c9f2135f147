"""Model files: recorded outputs, losses, matches, gradients and detections against ours."""

import functools
import json
import pathlib
import re
from collections.abc import Callable, Generator, Mapping

import jax
import numpy as np

from unit_jax.interop import mmf
from unit_jax.outputs.objects import metrics
from unit_jax.tasks import TaskSpec
from unit_jax.tools.parity import recipe
from unit_jax.tools.parity.cases import Case, build_case, make_batch, recorded_inputs
from unit_jax.tools.parity.compute import Results, Sides, exact_sides, run_case
from unit_jax.tools.parity.report import STRUCTURAL_ZERO, Table, tolerance_of

KEPT = (1, 5, 20)  # large cases hold only every n-th query of some outputs


def precision(data: Mapping[str, np.ndarray]) -> str:
    """The precision that the file's model ran in."""
    kinds = {data[key].dtype.name for key in data if re.fullmatch("[^/]+/out/.*", key)}
    return "float32" if "float32" in kinds else "float64"


def check_model(path: pathlib.Path, data: Mapping[str, np.ndarray]) -> Generator[Table]:
    """Tables of one model file; one in float64 wants x64 enabled."""
    meta = json.loads(str(data["meta"]))
    dtype = precision(data)
    truth = Truth(path, data, dtype)
    alone = bool(meta.get("unpadded"))
    for padded in (False, True) if alone else (True,):
        build = functools.partial(build_case, meta, mask_padding=alone, per_image=alone)
        case = build(dtype)
        title = f"{path.stem}: "
        if padded:
            yield check_names(path, data, case)
        elif alone:
            title += "image by image, "
        for dataset in datasets_of(data):
            spec = case.settings.tasks[mmf.TASKS[dataset]]
            inputs = recorded_inputs(data, dataset)
            count = len(inputs.get("images", inputs.get("input_ids", ())))
            rows = [slice(None)] if padded else [slice(i, i + 1) for i in range(count)]
            batches = [make_batch(spec, inputs, row) for row in rows]
            with_middle = any(key.startswith(f"{dataset}/mid/") for key in data)
            with_gradients = f"{dataset}/grad_norm" in data
            results = run_case(case, spec, batches, with_middle, with_gradients)
            table = Table(title + dataset, dtype)
            sides = functools.partial(exact_sides, build, batches)
            compare(table, spec, dataset, data, truth, results, sides)
            yield table


def datasets_of(data: Mapping[str, np.ndarray]) -> list[str]:
    """The data sets that a file records, in its order."""
    return list(dict.fromkeys(key.split("/")[0] for key in data if "/in/" in key))


class Truth:
    """The recorded arrays, in float64 where the file or its `_f64` sibling has that."""

    def __init__(self, path: pathlib.Path, data: Mapping[str, np.ndarray], dtype: str):
        sibling = path.with_name(path.stem + "_f64.npz")
        self._double = data if dtype == "float64" else {}
        if dtype == "float32" and sibling.exists():
            self._double = np.load(sibling)
        self._data = data

    def __call__(self, key: str) -> np.ndarray:
        return self._find(key)[0]

    def dtype(self, key: str) -> str:
        """The precision of the run that the array is from."""
        return self._find(key)[1]

    def _find(self, key: str) -> tuple[np.ndarray, str]:
        dataset, rest = key.split("/", 1)
        for source, name in ((self._data, f"{dataset}/f64/{rest}"), (self._double, key)):
            if name in source and source[name].shape == self._data[key].shape:
                return source[name], "float64"
        return self._data[key], "float32"


def check_names(path: pathlib.Path, data: Mapping[str, np.ndarray], case: Case) -> Table:
    """Our parameters against the reference's lists of parameters and of saved tensors."""
    table = Table(f"{path.stem}: names", case.model.dtype)
    weights = {**case.params, **case.statistics}
    state = mmf.export_state(weights, case.settings.loss.no_object_weight)
    recorded = {name: tuple(shape) for name, shape, *_ in json.loads(str(data["state_dict"]))}
    ours = {name: array.shape for name, array in state.items()}
    different = sorted(set(recorded.items()) ^ set(ours.items()))
    table.equal("state_dict entries", len(ours), len(recorded))
    table.equal("state_dict names, shapes", len(different), 0, str(different[:3]))
    parameters = {name: tuple(shape) for name, shape, _ in json.loads(str(data["params"]))}
    mine = {name: array.shape for name, array in mmf.to_mmf(case.params).items()}
    different = sorted(set(parameters.items()) ^ set(mine.items()))
    table.equal("parameter names, shapes", len(different), 0, str(different[:3]))
    total = sum(array.size for array in case.params.values())
    table.equal("parameter count", total, case.meta.get("n_params", total), str(total))
    return table


def compare(
    table: Table,
    spec: TaskSpec,
    dataset: str,
    data: Mapping[str, np.ndarray],
    truth: Truth,
    results: Results,
    exact_sides: Callable[[], Sides],
) -> None:
    """Fills a table with everything the file records about a data set."""
    gaps = json.loads(str(data[f"{dataset}/f32_err"])) if f"{dataset}/f32_err" in data else {}
    keys = [key.removeprefix(f"{dataset}/") for key in data if key.startswith(f"{dataset}/")]
    for key in keys:
        what = key.split("/")[0]
        if what in ("in", "f64", "f32_err", "match_gap", "grad_norm", "grad_probe", "post"):
            continue
        reference, gap = truth(f"{dataset}/{key}"), gaps.get(key, 0.0)
        if what == "out":
            check_output(table, key, results, reference, gap)
        elif what == "match":
            _, layer, image = key.split("/")
            found = results.matches[int(layer), int(image)]
            pairs = {(int(q), t) for t, q in enumerate(found) if q >= 0}
            expected = {(int(q), int(t)) for q, t in reference.T}
            table.equal("match", pairs == expected, True, f"in layer {layer}, image {image}")
        elif what in ("loss", "loss_raw"):
            name = key.split("/")[1]
            ours = (results.terms if what == "loss" else results.raw).get(name, np.nan)
            quantity = f"{what}/{re.sub(r'_[0-9]+$', '', name)}"
            if "cardinality" in name:
                table.equal_means(quantity, ours, reference, results.outputs.logits.shape[1], name)
            else:
                table.close(quantity, ours, reference, gap=gap)
        elif key == "total":
            table.close("total", results.total, reference, gap=gap)
        elif what == "mid":
            ours = results.middle.get(key.split("/")[1])
            if ours is None:
                table.row(key).problem = "not computed"
            elif reference.dtype == bool:
                table.equal(key, ours, reference)
            else:
                table.close(key, ours, reference, gap=gap)
        else:
            table.row(key).problem = "an unknown quantity"
    recorded = {key.split("/")[1] for key in keys if key.startswith("loss/")}
    if recorded:
        table.equal("loss terms", sorted(results.terms) == sorted(recorded), True)
    if "post/orig_size" in keys:
        check_detections(table, spec, dataset, data, truth, results, gaps)
    if "grad_norm" in keys:
        check_gradients(table, data, dataset, truth, results, exact_sides)


def check_output(table: Table, key: str, results: Results, reference: np.ndarray, gap) -> None:
    """Compares one recorded output with ours."""
    outputs, *name = results.outputs, *key.split("/")[1:]
    layer = -1
    if name[0] == "aux":
        layer, name = int(name[1]), ["aux", *name[2:]]
    what = name[-1]
    if what == "top_class":
        return table.equal(key, outputs.logits[-1, ..., :-1].argmax(-1), reference)
    ours = {
        "hidden_states": lambda: outputs.hidden_states,
        "pred_logits": lambda: outputs.logits[layer],
        "pred_boxes": lambda: outputs.boxes[layer],
        "scores": lambda: outputs.logits[-1],
        "attr_logits": lambda: results.attribute_logits,
    }[what]()
    if what != "scores" and ours.ndim == reference.ndim:
        for step in KEPT:
            if len(range(0, ours.shape[-2], step)) == reference.shape[-2]:
                ours = ours[..., ::step, :]
                break
    table.close("/".join(["out", *name]), ours, reference, gap=gap)


def check_detections(
    table: Table, spec: TaskSpec, dataset: str, data, truth: Truth, results: Results, gaps
) -> None:
    """Detections of every image at its original size."""
    outputs = results.outputs
    best = metrics.best_of_queries(outputs.logits[-1], outputs.boxes[-1], results.attribute_logits)
    detections = metrics.post_process(jax.device_get(best), data[f"{dataset}/post/orig_size"])
    for key in data:
        if re.fullmatch(f"{dataset}/post/[0-9]+/.*", key):
            _, _, image, name = key.split("/")
            ours = detections[int(image)].get(name, np.nan)
            if name.endswith("labels"):
                table.equal(f"post/{name}", ours, data[key], f"in image {image}")
            else:
                gap = gaps.get(f"post/{image}/{name}", 0.0)
                table.close(f"post/{name}", ours, truth(key), gap=gap)


def check_gradients(
    table: Table,
    data: Mapping[str, np.ndarray],
    dataset: str,
    truth: Truth,
    results: Results,
    exact_sides: Callable[[], Sides],
) -> None:
    """Norm and probe of every tensor's gradient, and which tensors have none.

    Of the millions of ReLU inputs some lie nearer to zero than float32's error, and a single one
    on the wrong side can move a backbone's gradients by several times their tolerance: in
    variant_loss_on_all_layers one of 6 million put 19 tensors off by up to 4.9 times, and PyTorch,
    run on the same images, had three. So where tensors are off, all are compared once more with
    the uncertain ReLUs on the side they take in float64. If that was the cause the gradients then
    agree to rounding, a hundredth of the tolerance; wrong ones stay wrong. The table tells how many
    ReLUs and tensors it was.
    """
    tensors = [name for name, *_ in json.loads(str(data["params"]))]
    norms, probes = truth(f"{dataset}/grad_norm"), truth(f"{dataset}/grad_probe")
    grads = results.gradients
    wrong = [
        name for name, norm in zip(tensors, norms, strict=True) if np.isnan(norm) == (name in grads)
    ]
    table.equal("gradients reach", len(wrong), 0, f"at {wrong[:2]}")
    total = np.sqrt(np.nansum(norms**2))
    reference = {
        name: np.array([norm, probe])
        for name, norm, probe in zip(tensors, norms, probes, strict=True)
        if name in grads and not np.isnan(norm)
    }
    zero = STRUCTURAL_ZERO[truth.dtype(f"{dataset}/grad_norm")] * total
    zeros = [name for name, (norm, _) in reference.items() if norm < zero]
    ours_of = {name: norm_and_probe(name, grads[name]) for name in reference}
    if table.dtype == "float32":
        errors = {
            name: np.abs(ours_of[name] - reference[name]).max() / reference[name][0]
            for name in reference
            if name not in zeros
        }
        allowed = tolerance_of("grad_probe", table.dtype).relative
        off = [error / allowed for error in errors.values() if not error <= allowed]
        if off:
            sides = exact_sides()
            grads = results.gradients_at(sides)
            ours_of = {name: norm_and_probe(name, grads[name]) for name in reference}
            differ = sum((a != b).sum() for a, b in zip(results.sides, sides, strict=True))
            table.row("grad_probe").note = (
                f"({differ} of {sum(map(np.size, sides))} ReLUs put on float64's side; "
                f"before, {len(off)} tensors were off, by up to {max(off):.1f})"
            )
    for name, ours in ours_of.items():
        if name in zeros:
            table.close("grad_zero", ours, reference[name], scale=total)
        else:
            for key, x, y in zip(("norm", "probe"), ours, reference[name], strict=True):
                table.close(f"grad_{key}", x, y, scale=reference[name][0])


def norm_and_probe(name: str, grad: np.ndarray) -> np.ndarray:
    """A gradient's L2 norm, and its sum against the recipe's direction of that name."""
    grad = grad.astype(np.float64)
    return np.array(
        [np.linalg.norm(grad), (grad * recipe.normal("probe/" + name, grad.shape)).sum()]
    )
