"""Pieces that rooms draw with: a picture, a caption under it, a card of text."""

import colorsys
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

from unit_jax.outputs.base import Described

INK, MUTED, RIGHT, WRONG, PAPER = "#1f2430", "#7a8294", "#1a8f5a", "#c8433a", "#f6f7f9"


def show_image(axes: Axes, image: np.ndarray) -> None:
    """The pixels, with axes in pixels of it."""
    axes.imshow(image, interpolation="bicubic", aspect="equal")
    axes.set_anchor("SW")  # captions below narrow pictures have the whole column
    axes.set(xlim=(-0.5, image.shape[1] - 0.5), ylim=(image.shape[0] - 0.5, -0.5))


def caption(axes: Axes, texts: Sequence[str], described: Described) -> None:
    """The texts and the verdict below a picture."""
    text = "\n".join(textwrap.fill(text, 34) for text in texts)
    lines = text.count("\n") + 1 if text else 0
    axes.annotate(
        text, (0, 0), (0, -4), xycoords="axes fraction", textcoords="offset points", size=8.5,
        color=INK, va="top", linespacing=1.25,
    )  # fmt: skip
    # A picture's column is too narrow for both labels on one line.
    verdict = _verdict(described, separator="\n    ")
    _write_verdict(axes, (0, 0), (0, -7 - 11.5 * lines), verdict, described.right, va="top")


def card(axes: Axes, texts: Sequence[str], described: Described) -> None:
    """The texts and the verdict on a card."""
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.add_patch(
        FancyBboxPatch(
            (0.01, 0.03), 0.98, 0.94, boxstyle="round,pad=0,rounding_size=0.03", linewidth=1.6,
            facecolor=PAPER, edgecolor=RIGHT if described.right else WRONG, mutation_aspect=2.4,
        )
    )  # fmt: skip
    filled = [textwrap.fill(text, 58) for text in texts]
    axes.text(0.04, 0.88, "\n".join(filled), size=9, color=INK, va="top", linespacing=1.4)
    verdict = _verdict(described, separator="   ")
    _write_verdict(axes, (0.04, 0.1), (0, 0), verdict, described.right, va="bottom")


def color(label: int) -> tuple[float, float, float]:
    """A colour per class; the golden angle keeps neighbours apart."""
    return colorsys.hsv_to_rgb((label * 0.618034) % 1, 0.75, 0.72)


def _verdict(described: Described, separator: str) -> str:
    if described.right:
        return f"✓ {described.said}"
    return f"✗ {described.said}{separator}(true: {described.truth})"


def _write_verdict(axes: Axes, place, offset, verdict: str, right: bool, va: str) -> None:
    """`place` in fractions of the axes, `offset` in points."""
    axes.annotate(
        verdict, place, offset, xycoords="axes fraction", textcoords="offset points", size=9,
        weight="bold", color=RIGHT if right else WRONG, va=va, linespacing=1.25,
    )  # fmt: skip
