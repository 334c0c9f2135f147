"""Pictures of answers, drawn with Pillow alone."""

import colorsys
import textwrap
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

INK, MUTED, PAPER, BAR, TRACK = "#1f2430", "#7a8294", "#ffffff", "#2f6fde", "#e8ebf1"
LEAST_WIDTH = 480  # of a drawing; small pictures are enlarged to it
Box = tuple[Sequence[float], str, int]


def color(label_id: int) -> tuple[int, int, int]:
    """A colour per class; the golden angle keeps neighbours apart."""
    red, green, blue = colorsys.hsv_to_rgb((label_id * 0.618034) % 1, 0.78, 0.74)
    return round(255 * red), round(255 * green), round(255 * blue)


def enlarged(pixels: UInt8[np.ndarray, "height width 3"], width: int = 0) -> Image.Image:
    """The picture, `width` pixels wide (0 = its own width, but at least 480)."""
    image = Image.fromarray(pixels)
    target = width or max(image.width, LEAST_WIDTH)
    if target == image.width:
        return image
    height = max(1, round(image.height * target / image.width))
    return image.resize((target, height), Image.Resampling.BICUBIC)


def boxes(
    pixels: UInt8[np.ndarray, "height width 3"], detections: Sequence[Box], width: int = 0
) -> Image.Image:
    """The picture with labelled boxes.

    Args:
      detections: (box xyxy in pixels of the picture, text, class number), the most certain first.
    """
    image = enlarged(pixels, width)
    scale = image.width / pixels.shape[1]
    line = max(2, round(image.width / 240))
    font = _font(image.width / 40)
    draw = ImageDraw.Draw(image)
    for box, _, label_id in reversed(detections):
        x0, y0, x1, y1 = _inside(box, scale, image)
        draw.rectangle((x0, y0, x1, y1), outline=color(label_id), width=line)
    # Names over boxes, the most certain ones on top, and off one another where there is room.
    taken: list[tuple[float, float, float, float]] = []
    for box, text, label_id in detections:
        x0, y0, _, y1 = _inside(box, scale, image)
        left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
        w, h = right - left + 8, bottom - top + 6
        x = max(0, min(x0, image.width - w))
        places = [y0 - h + line / 2, y0, y1 - h, y1, *(y0 + k * h for k in range(1, 6))]
        places = [y for y in places if 0 <= y <= image.height - h] or [max(0, y0)]
        free = [y for y in places if not any(_overlap((x, y, x + w, y + h), t) for t in taken)]
        y = (free or places)[0]
        taken.append((x, y, x + w, y + h))
        draw.rectangle((x, y, x + w, y + h), fill=color(label_id))
        draw.text((x + 4 - left, y + 3 - top), text, fill="white", font=font)
    return image


def answers(
    pixels: UInt8[np.ndarray, "height width 3"] | None,
    texts: Sequence[str],
    bars: Sequence[tuple[str, float]],
    width: int = 0,
) -> Image.Image:
    """Picture, texts, and a bar from 0 to 1 per answer, from top to bottom."""
    image = enlarged(pixels, width) if pixels is not None else None
    width = image.width if image else width or LEAST_WIDTH
    size = _text_size(width)
    font, margin, step = _font(size), round(size), round(1.7 * size)
    lines = [line for text in texts for line in _wrapped(text, font, width - 2 * margin)]
    top = image.height if image else 0
    height = top + 2 * margin + round(1.35 * size) * len(lines) + step * len(bars)
    sheet = Image.new("RGB", (width, height), PAPER)
    if image:
        sheet.paste(image, (0, 0))
    draw, y = ImageDraw.Draw(sheet), top + margin * 0.7
    for line in lines:
        draw.text((margin, y), line, fill=INK, font=font)
        y += round(1.35 * size)
    y += margin * 0.5
    names = max((draw.textlength(name, font=font) for name, _ in bars), default=0)
    start = margin + min(names, 0.45 * width) + margin / 2
    end = width - margin - draw.textlength("0.00", font=font) - margin / 2
    for name, score in bars:
        draw.text((margin, y), _cut(name, font, start - 1.5 * margin), fill=INK, font=font)
        low, high = y + 0.25 * size, y + 1.05 * size
        draw.rounded_rectangle((start, low, end, high), radius=size / 4, fill=TRACK)
        reach = start + (end - start) * min(max(score, 0), 1)
        if reach - start >= 1:
            draw.rounded_rectangle((start, low, reach, high), radius=size / 4, fill=BAR)
        draw.text((end + margin / 2, y), f"{score:.2f}", fill=MUTED, font=font)
        y += step
    return sheet


def heat(
    pixels: UInt8[np.ndarray, "height width 3"],
    weights: Float[np.ndarray, "rows columns"],
    width: int = 0,
) -> Image.Image:
    """The picture, dark where the weights are small and warm where they are large."""
    image = enlarged(pixels, width)
    scaled = weights / max(float(weights.max()), 1e-12)
    grown = Image.fromarray((255 * scaled).astype(np.uint8)).resize(
        image.size, Image.Resampling.BICUBIC
    )
    share = np.asarray(grown, np.float32)[..., None] / 255
    base = np.asarray(image, np.float32)
    dark = 0.35 * base + 0.1 * base.mean(-1, keepdims=True)
    warm = 0.55 * base + 0.45 * np.asarray([255, 150, 20], np.float32)
    return Image.fromarray(np.clip(dark + share * (warm - dark), 0, 255).astype(np.uint8))


def words(texts: Sequence[str], weights: Sequence[float], width: int = LEAST_WIDTH) -> Image.Image:
    """Words on a line (or more), each on a ground as dark as its weight; negative ones red."""
    size = _text_size(width)
    font, margin, step = _font(size), round(size), round(2.1 * size)
    pad = round(size / 2)
    most = max((abs(w) for w in weights), default=0) or 1
    places, x, y = [], margin - pad, margin // 2
    for text in texts:
        length = round(font.getlength(text)) + 2 * pad
        if x + length > width - margin and x > margin:
            x, y = margin - pad, y + step
        places.append((x, y, length))
        x += length + 4
    sheet = Image.new("RGB", (width, y + step + margin // 2), PAPER)
    draw = ImageDraw.Draw(sheet)
    for text, weight, (x, y, length) in zip(texts, weights, places, strict=True):
        share = abs(weight) / most
        full = (47, 111, 222) if weight >= 0 else (200, 67, 58)
        ground = tuple(round(255 + share * 0.85 * (part - 255)) for part in full)
        end = (x + length, y + round(1.7 * size))
        draw.rounded_rectangle((x, y, *end), radius=size / 3, fill=ground)
        ink = "white" if share > 0.55 else INK
        draw.text((x + pad, y + 0.25 * size), text, fill=ink, font=font)
    return sheet


def caption(text: str, width: int, above: Image.Image | None = None) -> Image.Image:
    """A line that says what is shown, below a picture of that width or alone."""
    size = max(15, 0.8 * _text_size(width))
    font, margin = _font(size), round(_text_size(width))
    sheet = Image.new("RGB", (width, round(2 * size)), PAPER)
    ink = ImageDraw.Draw(sheet)
    ink.text((0 if above else margin, 0.4 * size), _cut(text, font, width), fill=MUTED, font=font)
    return stacked([above, sheet]) if above else sheet


def stacked(parts: Sequence[Image.Image]) -> Image.Image:
    """Pictures from top to bottom on white."""
    width = max(part.width for part in parts)
    sheet = Image.new("RGB", (width, sum(part.height for part in parts)), PAPER)
    y = 0
    for part in parts:
        sheet.paste(part, (0, y))
        y += part.height
    return sheet


def beside(parts: Sequence[Image.Image], gap: int = 8) -> Image.Image:
    """Pictures from left to right on white."""
    width = sum(part.width for part in parts) + gap * (len(parts) - 1)
    sheet = Image.new("RGB", (width, max(part.height for part in parts)), PAPER)
    x = 0
    for part in parts:
        sheet.paste(part, (x, 0))
        x += part.width + gap
    return sheet


def _text_size(width: int) -> float:
    """Of text on a sheet of that width, in pixels."""
    return max(14, min(width / 30, 22))


def _font(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(max(12, min(round(size), 40)))


def _inside(box: Sequence[float], scale: float, image: Image.Image) -> tuple[float, ...]:
    limits = (image.width - 1, image.height - 1) * 2
    x0, y0, x1, y1 = (min(max(scale * v, 0), top) for v, top in zip(box, limits, strict=True))
    return x0, y0, max(x0, x1), max(y0, y1)


def _overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _wrapped(text: str, font, width: float) -> list[str]:
    each = max(8, int(width / max(font.getlength("n"), 1)))
    return textwrap.wrap(text, each) or [""]


def _cut(text: str, font, width: float) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
