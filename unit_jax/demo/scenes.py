"""The demo world: what exists in it, how a scene is drawn at random, how it is rendered.

A scene is a picture of one to three things (a shape in a colour, a size and a texture) on a pale
background. Every fact about the world is a constant of this module; texts (`texts.py`, `pairs.py`)
and files (`world.py`, `glue.py`) follow from the scenes.
"""

import dataclasses
import functools
import math
import random
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
# Saturated and far apart, so that a small network separates them early: (colour, texture accent).
COLORS: Mapping[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "red": ((222, 38, 42), (255, 186, 180)),
    "green": ((30, 158, 62), (176, 238, 176)),
    "blue": ((36, 82, 222), (176, 208, 255)),
    "yellow": ((250, 208, 18), (176, 124, 0)),
    "purple": ((150, 44, 190), (232, 186, 250)),
    "black": ((26, 26, 30), (172, 172, 176)),
}
# Side of the square that a thing fills, as a share of the picture's short side.
SIZES: Mapping[str, tuple[float, float]] = {"small": (0.34, 0.42), "big": (0.54, 0.68)}
TEXTURES = ("plain", "striped", "dotted")
BACKGROUNDS = ("flat", "gradient", "clouds", "grain")

# How often pictures show them: a long tail, as photographs have. Were all equally frequent, a
# small model would take thousands of updates more to learn what is and what is not in a picture.
COLOR_SHARES = dict(zip(COLORS, (0.44, 0.22, 0.12, 0.09, 0.07, 0.06), strict=True))
SHAPE_SHARES = dict(zip(SHAPES, (0.44, 0.22, 0.12, 0.09, 0.07, 0.06), strict=True))

# The training splits never show or mention these (colour, shape) pairs; in the other splits a
# share `UNSEEN_SHARE` of the things are such pairs. Each colour and each shape occurs once.
HELD_OUT = tuple(zip(COLORS, SHAPES[2:] + SHAPES[:2], strict=True))
UNSEEN_SHARE = 0.1

LONG_SIDES = (84, 112)
ASPECT_RATIOS = (4 / 3, 4 / 3, 3 / 2, 1.0, 3 / 4, 2 / 3)  # width / height, most often landscape
NUM_THINGS = (1, 1, 1, 1, 2, 2, 2, 3)
MAX_COVER = 0.2  # largest share of the smaller of two boxes that the other may cover
CURTAIN = (0.30, 0.38)  # width of the curtain as a share of the long side
CURTAIN_GREY = 104

_SUPERSAMPLING = 8


@dataclasses.dataclass(frozen=True)
class Thing:
    """One drawn object.

    Attributes:
      shape, color, size, texture: words of the world.
      left, top, side: the square of pixels it is drawn in.
      angle: rotation in radians.
    """

    shape: str
    color: str
    size: str
    texture: str
    left: int
    top: int
    side: int
    angle: float


@functools.cache
def pair_shares(unseen_share: float) -> Mapping[tuple[str, str], float]:
    """How likely a thing of a picture is to have each colour and shape; they sum to 1."""
    shares = {(c, s): COLOR_SHARES[c] * SHAPE_SHARES[s] for c in COLORS for s in SHAPES}
    unseen = sum(shares[pair] for pair in HELD_OUT)
    factors = {True: unseen_share / unseen, False: (1 - unseen_share) / (1 - unseen)}
    return {pair: share * factors[pair in HELD_OUT] for pair, share in shares.items()}


@dataclasses.dataclass(frozen=True)
class Scene:
    """One picture before it is rendered.

    Attributes:
      width, height: in pixels.
      things: from back to front; together they are all that can be seen.
      curtain: (left, top, right, bottom) in pixels of a grey curtain that may hide anything.
      crowd: many tiny things of one shape, annotated as one region, never asked about.
      background: one of BACKGROUNDS.
      seed: of the background's colours and noise.
    """

    width: int
    height: int
    things: tuple[Thing, ...]
    curtain: tuple[int, int, int, int] | None
    crowd: tuple[Thing, ...]
    background: str
    seed: int


class Chooser(random.Random):
    """Random choices of (colour, shape) pairs, seeded by name.

    Args:
      key: any text; equal texts give equal choices on every machine.
      unseen_share: probability that a choice falls on the held-out pair, where one is open.
    """

    def __init__(self, key: str, unseen_share: float = 0.0):
        super().__init__(key)
        self.unseen_share = unseen_share
        self.shares = pair_shares(unseen_share)

    def __new__(cls, key: str, unseen_share: float = 0.0):
        # random.Random's own takes at most one argument.
        return super().__new__(cls)

    def chance(self, probability: float) -> bool:
        return self.random() < probability

    def color(self, shape: str, exclude: Iterable[str] = ()) -> str:
        """A colour for `shape`, none of `exclude`."""
        held_out = next(c for c, s in HELD_OUT if s == shape)
        return self._pick([c for c in COLORS if c not in set(exclude)], held_out)

    def shape(self, color: str, exclude: Iterable[str] = ()) -> str:
        """A shape for `color`, none of `exclude`."""
        held_out = next(s for c, s in HELD_OUT if c == color)
        return self._pick([s for s in SHAPES if s not in set(exclude)], held_out)

    def thing(self) -> tuple[str, str]:
        """A colour and a shape as pictures show them."""
        return self.choices(tuple(self.shares), tuple(self.shares.values()))[0]

    def pair(self) -> tuple[str, str]:
        """A colour and a shape, each as likely as the others."""
        shape = self.choice(SHAPES)
        return self.color(shape), shape

    def _pick(self, options: Sequence[str], held_out: str) -> str:
        seen = [option for option in options if option != held_out]
        if held_out in options and self.chance(self.unseen_share):
            return held_out
        return self.choice(seen)


def draw_scene(
    chooser: Chooser, *, curtain: bool = False, crowd: bool = False, empty: bool = False
) -> Scene:
    """Draws a scene at random.

    Args:
      chooser: source of every random choice.
      curtain: a curtain hangs at one end of the picture.
      crowd: a cluster of tiny things lies among the others.
      empty: there is nothing but background.

    Returns:
      A Scene. Boxes overlap by at most MAX_COVER of the smaller one.
    """
    long_side = chooser.randint(*LONG_SIDES)
    ratio = chooser.choice(ASPECT_RATIOS) * chooser.uniform(0.95, 1.05)
    width, height = (
        (long_side, round(long_side / ratio))
        if ratio > 1
        else (round(long_side * ratio), long_side)
    )
    left, top, right, bottom = 0, 0, width, height
    curtain_box = None
    if curtain:
        share = chooser.uniform(*CURTAIN)
        start = chooser.chance(0.5)
        if width >= height:
            edge = round(width * share)
            curtain_box = (0, 0, edge, height) if start else (width - edge, 0, width, height)
            left, right = (edge, width) if start else (0, width - edge)
        else:
            edge = round(height * share)
            curtain_box = (0, 0, width, edge) if start else (0, height - edge, width, height)
            top, bottom = (edge, height) if start else (0, height - edge)
    room = (left, top, right, bottom)
    short_side = min(right - left, bottom - top)

    taken: list[tuple[int, int, int]] = []
    tiny: list[Thing] = []
    if crowd:
        spot = _place(chooser, room, round(0.45 * short_side), taken)
        assert spot is not None  # nothing is taken yet
        tiny = _draw_crowd(chooser, *spot)
        taken.append(spot)
    things: list[Thing] = []
    for _ in range(0 if empty else chooser.choice(NUM_THINGS)):
        color, shape = chooser.thing()
        size = chooser.choice(tuple(SIZES))
        side = round(short_side * chooser.uniform(*SIZES[size]))
        spot = _place(chooser, room, side, taken)
        if spot is None:
            continue
        taken.append(spot)
        things.append(
            Thing(shape, color, size, chooser.choice(TEXTURES), *spot, chooser.uniform(-0.25, 0.25))
        )
    return Scene(
        width=width,
        height=height,
        things=tuple(things),
        curtain=curtain_box,
        crowd=tuple(tiny),
        background=chooser.choice(BACKGROUNDS),
        seed=chooser.getrandbits(32),
    )


def _place(
    chooser: Chooser, room: tuple[int, int, int, int], side: int, taken: list[tuple[int, int, int]]
) -> tuple[int, int, int] | None:
    """Finds (left, top, side) inside `room` that hardly covers what is taken, or None."""
    left, top, right, bottom = room
    for _ in range(40):
        x = chooser.randint(left + 1, right - side - 1)
        y = chooser.randint(top + 1, bottom - side - 1)
        for other_x, other_y, other in taken:
            across = min(x + side, other_x + other) - max(x, other_x)
            down = min(y + side, other_y + other) - max(y, other_y)
            if across > 0 and down > 0 and across * down > MAX_COVER * min(side, other) ** 2:
                break
        else:
            return x, y, side
    return None


def _draw_crowd(chooser: Chooser, left: int, top: int, side: int) -> list[Thing]:
    """Nine tiny things of one shape on a loose grid that fills the square."""
    shape = chooser.choice(SHAPES)
    cell = side // 3
    tiny = max(4, round(0.8 * cell))
    return [
        Thing(
            shape,
            chooser.color(shape),
            "small",
            "plain",
            left + column * cell + chooser.randint(0, cell - tiny),
            top + row * cell + chooser.randint(0, cell - tiny),
            tiny,
            chooser.uniform(-0.25, 0.25),
        )
        for row in range(3)
        for column in range(3)
    ]


def outline(thing: Thing) -> Float[np.ndarray, "points 2"]:
    """The thing's outline, (x, y) in pixels of the picture; a ring's goes around its hole too."""
    points = _UNIT_OUTLINES[thing.shape]
    cos, sin = math.cos(thing.angle), math.sin(thing.angle)
    points = points @ np.array([[cos, sin], [-sin, cos]])
    # The square is filled whatever the rotation: the widest extent touches its border.
    outer = points[: len(points) // 2] if thing.shape == "ring" else points
    low, high = outer.min(0), outer.max(0)
    points = (points - (low + high) / 2) / (high - low).max()
    return points * thing.side + (thing.left + thing.side / 2, thing.top + thing.side / 2)


def _circle(radius: float, points: int = 40) -> np.ndarray:
    turn = np.linspace(0, 2 * math.pi, points)  # closed: the last point is the first
    return radius * np.stack([np.cos(turn), np.sin(turn)], axis=1)


def _star(points: int = 5, inner: float = 0.45) -> np.ndarray:
    turn = np.arange(2 * points) * math.pi / points - math.pi / 2
    radius = np.where(np.arange(2 * points) % 2, inner, 1.0)
    return radius[:, None] * np.stack([np.cos(turn), np.sin(turn)], axis=1)


_ARM = 0.34
_UNIT_OUTLINES: Mapping[str, np.ndarray] = {
    "circle": _circle(1.0),
    "square": np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], float),
    "triangle": np.array([(0, -1), (1, 0.75), (-1, 0.75)], float),
    "star": _star(),
    "cross": np.array(
        [(-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM)]
        + [(_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM)],
        float,
    ),
    "ring": np.concatenate([_circle(1.0), _circle(0.52)[::-1]]),
}


def thing_mask(thing: Thing, height: int, width: int) -> Bool[np.ndarray, "height width"]:
    """The pixels that the thing covers by more than half, as if nothing lay in front of it."""
    mask = np.zeros((height, width), bool)
    rows, columns = _patch(thing)
    mask[rows, columns] = _coverage(thing) > 0.5
    return mask


def _patch(thing: Thing) -> tuple[slice, slice]:
    return (
        slice(thing.top, thing.top + thing.side),
        slice(thing.left, thing.left + thing.side),
    )


def _coverage(thing: Thing, *, edge: bool = False) -> Float[np.ndarray, "side side"]:
    """Share of each pixel of the thing's square that it (or the line around it) covers."""
    scale = _SUPERSAMPLING
    canvas = Image.new("L", (thing.side * scale, thing.side * scale))
    pen = ImageDraw.Draw(canvas)
    points = (outline(thing) - (thing.left, thing.top)) * scale - 0.5
    halves = np.split(points, 2) if thing.shape == "ring" else [points]
    for fill, part in zip((255, 0), halves, strict=False):
        corners = [tuple(point) for point in part.tolist()]
        if edge:
            pen.line(corners + corners[:2], fill=255, width=scale * 2, joint="curve")
        else:
            pen.polygon(corners, fill=fill)
    return np.asarray(canvas.reduce(scale), np.float32) / 255


def render(scene: Scene) -> UInt8[np.ndarray, "height width 3"]:
    """Paints the scene: background, things from back to front, curtain."""
    noise = np.random.default_rng(scene.seed)
    pixels = _background(scene, noise)
    for thing in (*scene.crowd, *scene.things):
        rows, columns = _patch(thing)
        coverage = _coverage(thing)[..., None]
        paint = _paint(thing, noise)
        line = _coverage(thing, edge=True)[..., None]
        paint = paint + line * (0.62 * np.asarray(COLORS[thing.color][0], np.float32) - paint)
        pixels[rows, columns] += coverage * (paint - pixels[rows, columns])
    if scene.curtain:
        left, top, right, bottom = scene.curtain
        pixels[top:bottom, left:right] = _curtain(right - left, bottom - top)
    return np.clip(pixels + 0.5, 0, 255).astype(np.uint8)


def _background(scene: Scene, noise: np.random.Generator) -> Float[np.ndarray, "height width 3"]:
    height, width = scene.height, scene.width

    def pale() -> np.ndarray:
        return noise.uniform(158, 240) + noise.uniform(-12, 12, 3)

    pixels = np.empty((height, width, 3), np.float32)
    pixels[:] = pale()
    if scene.background == "gradient":
        end = pale()
        slope = (
            np.linspace(0, 1, height)[:, None] if noise.random() < 0.5 else np.linspace(0, 1, width)
        )
        share = np.broadcast_to(slope, (height, width))[..., None]
        pixels += share * (end - pixels)
    elif scene.background == "clouds":
        coarse = Image.fromarray(noise.uniform(-26, 26, (6, 6)).astype(np.float32))
        pixels += np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))[..., None]
    elif scene.background == "grain":
        pixels += noise.normal(0, 7, (height, width, 1))
    return pixels


def _paint(thing: Thing, noise: np.random.Generator) -> Float[np.ndarray, "side side 3"]:
    """The thing's colour and texture over its square, with a slight shift of the colour."""
    color, accent = (np.asarray(rgb, np.float32) for rgb in COLORS[thing.color])
    color = color + noise.uniform(-10, 10, 3).astype(np.float32)
    pixels = np.broadcast_to(color, (thing.side, thing.side, 3))
    if thing.texture == "plain":
        return pixels
    y, x = np.mgrid[: thing.side, : thing.side].astype(np.float32)
    turn = 2 * np.pi / max(5.0, thing.side / 4.5)
    if thing.texture == "striped":
        wave = np.sin((x + y) * turn * 0.7)
        share = 0.5 + 0.5 * np.tanh(3 * wave)
    else:
        wave = np.cos((x - thing.side / 2) * turn) + np.cos((y - thing.side / 2) * turn)
        share = 0.5 + 0.5 * np.tanh(3 * (wave - 0.8))
    return pixels + share[..., None] * (accent - pixels)


def _curtain(width: int, height: int) -> Float[np.ndarray, "height width 3"]:
    """Grey cloth in folds that hang from the top, darker at its hem."""
    fold = np.cos(np.arange(width) * 2 * np.pi / 7)
    pixels = np.empty((height, width, 3), np.float32)
    pixels[:] = (CURTAIN_GREY + 26 * fold)[None, :, None]
    pixels[-2:] *= 0.6
    return pixels
