"""Tolerances, and tables of what is compared."""

import dataclasses
import re
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """How far a float32 result may be off: the largest of what is given.

    Attributes:
      absolute: in units of the quantity.
      relative: of the largest reference value; of gradients and movements, of the tensor's norm.
      gap: times the reference's own difference between float32 and float64, where recorded.
    """

    absolute: float = 0.0
    relative: float = 0.0
    gap: float = 10.0


# The quantity's first match decides.
TOLERANCES = {
    r"post/boxes": Tolerance(absolute=5e-3),  # pixels
    r"out/.*|mid/.*|post/.*": Tolerance(absolute=1e-5),
    r"loss/.*|loss_raw/.*|total": Tolerance(relative=1e-5),
    r"grad_(norm|probe)": Tolerance(relative=2e-3, gap=0.0),
    r"grad_zero": Tolerance(relative=1e-6, gap=0.0),  # zero by structure; of the total norm
    r"train/loss": Tolerance(relative=1e-4, gap=0.0),
    r"train/grad_norm": Tolerance(relative=2e-3, gap=0.0),
    r"train/lr": Tolerance(relative=1e-7, gap=0.0),
    r"train/move_norm": Tolerance(relative=1e-3),
    r"processing/pixels": Tolerance(absolute=1.0),  # of 255
    r"processing/.*": Tolerance(absolute=1e-6, relative=1e-6),
}
FLOAT64 = Tolerance(relative=1e-9, gap=0.0)  # of every quantity, in float64
# A recorded gradient below this share of the total norm counts as zero by structure.
STRUCTURAL_ZERO = {"float64": 1e-9, "float32": 1e-6}


def tolerance_of(quantity: str, dtype: str) -> Tolerance:
    """The tolerance of a quantity in the precision it was computed in."""
    if dtype == "float64":
        return FLOAT64
    return next(allowed for key, allowed in TOLERANCES.items() if re.fullmatch(key, quantity))


@dataclasses.dataclass
class Row:
    """The worst of what is compared under one quantity."""

    quantity: str
    absolute: float = 0.0
    relative: float = 0.0
    ratio: float = 0.0  # error / tolerance
    tolerance: float = 0.0  # where the ratio is worst
    compared: int = 0
    problem: str = ""
    note: str = ""

    @property
    def ok(self) -> bool:
        return self.compared > 0 and not self.problem and self.ratio <= 1


class Table:
    """Rows of one data set, printed as they stand."""

    def __init__(self, title: str, dtype: str):
        self.title, self.dtype = title, dtype
        self.rows: dict[str, Row] = {}

    def row(self, quantity: str) -> Row:
        return self.rows.setdefault(quantity, Row(quantity))

    def close(
        self,
        quantity: str,
        ours: Any,
        reference: Any,
        *,
        gap: float = 0.0,
        scale: float | None = None,
    ) -> None:
        """Compares numbers by the quantity's tolerance.

        Args:
          gap: the reference's own difference between float32 and float64.
          scale: what relative tolerances refer to; default the largest reference value.
        """
        row = self.row(quantity)
        ours, reference = np.asarray(ours, np.float64), np.asarray(reference, np.float64)
        row.compared += 1
        if ours.shape != reference.shape:
            row.problem = f"shape {ours.shape}, reference {reference.shape}"
            return
        if not ours.size:
            return
        scale = np.abs(reference).max() if scale is None else scale
        allowed = tolerance_of(quantity, self.dtype)
        limit = max(allowed.absolute, allowed.relative * scale, allowed.gap * gap)
        error = np.nan_to_num(np.abs(ours - reference), nan=np.inf).max()
        ratio = error / limit if limit else (np.inf if error else 0.0)
        row.absolute = max(row.absolute, error)
        row.relative = max(row.relative, error / scale if scale else (np.inf if error else 0.0))
        if ratio >= row.ratio:
            row.ratio, row.tolerance = ratio, limit

    def equal(self, quantity: str, ours: Any, reference: Any, what: str = "") -> None:
        """Compares things that must be the same."""
        row = self.row(quantity)
        row.compared += 1
        ours, reference = np.asarray(ours), np.asarray(reference)
        if ours.shape != reference.shape or not (ours == reference).all():
            row.problem = row.problem or f"differs {what}".strip()

    def equal_means(
        self, quantity: str, ours: Any, reference: Any, count: int, what: str = ""
    ) -> None:
        """Compares means of `count` whole numbers by their sums, as precisions round the means
        differently."""
        self.equal(quantity, np.rint(count * ours), np.rint(count * reference), what)

    def print(self) -> None:
        print(f"\n{self.title} ({self.dtype})")
        print(f"  {'quantity':<28}{'max abs':>10}{'max rel':>10}{'tolerance':>11}{'ratio':>8}")
        for row in self.rows.values():
            numbers = "".join(f"{x:>{n}.1e}" for x, n in ((row.absolute, 10), (row.relative, 10)))
            if row.tolerance or row.ratio:
                numbers += f"{row.tolerance:>11.1e}{row.ratio:>8.3f}"
            else:
                numbers += f"{'equal':>11}{'':>8}"
            verdict = "ok" if row.ok else f"FAIL {row.problem}"
            print(f"  {row.quantity:<28}{numbers}  {verdict} {row.note}".rstrip(), flush=True)
