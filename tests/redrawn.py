"""MNIST digits as people send them: drawn anew at other sizes, on other grounds, in other files. Seeded, so always the same."""

import io
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageOps

Bytes = npt.NDArray[np.uint8]
Redraw = Callable[[Bytes, np.random.Generator], bytes]  # a digit, uint8 [28, 28], light on dark -> a picture file

_STEP = 5  # pixels between the points of a stroke
CANVAS = 280  # pixels, the usual square to draw a digit in with a finger or a mouse


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def jpeg(picture: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def scaled(digit: Bytes, side: int, how: Image.Resampling = Image.Resampling.BICUBIC) -> Image.Image:
    return Image.fromarray(digit).resize((side, side), how)


def dark_on_light(digit: Bytes, side: int = CANVAS) -> Image.Image:
    return ImageOps.invert(scaled(digit, side))


def at(picture: Image.Image, size: tuple[int, int], place: tuple[int, int], ground: int = 255) -> Image.Image:
    """The picture on a larger page."""
    page = Image.new("L", size, ground)
    page.paste(picture, place)
    return page


def somewhere(digit: Bytes, random: np.random.Generator, *, side: int, size: tuple[int, int]) -> Image.Image:
    left, top = random.integers(0, size[0] - side + 1), random.integers(0, size[1] - side + 1)
    return at(dark_on_light(digit, side), size, (int(left), int(top)))


def tight(digit: Bytes) -> Image.Image:
    """Cut to the ink, with no margin at all."""
    ink = Image.fromarray(digit)
    ink = ink.crop(ink.point(lambda value: 255 * (value > 64)).getbbox())
    return ImageOps.invert(ink.resize((ink.width * 10, ink.height * 10), Image.Resampling.BICUBIC))


def framed(digit: Bytes, *, margin: int, line: int) -> Image.Image:
    """A black line around a light page."""
    page = at(dark_on_light(digit, 200), (CANVAS, CANVAS), (40, 40))
    edge = CANVAS - 1 - margin
    ImageDraw.Draw(page).rectangle((margin, margin, edge, edge), outline=0, width=line)
    return page


def on_grey_paper(digit: Bytes, random: np.random.Generator, *, paper: int = 190, ink: int = 70) -> Bytes:
    """A pencil on paper that is not quite white, and grain."""
    share = np.asarray(scaled(digit, CANVAS), np.float32) / 255
    grain = random.normal(0, 4, share.shape)
    return np.clip(paper + (ink - paper) * share + grain, 0, 255).astype(np.uint8)


def photographed(digit: Bytes, random: np.random.Generator) -> Image.Image:
    """A pen on grey paper, lit from one side, a little out of focus."""
    down, across = np.mgrid[0:1:280j, 0:1:280j]
    paper = on_grey_paper(digit, random) * (0.65 + 0.35 * (down * 0.4 + across * 0.6))
    return Image.fromarray(paper.astype(np.uint8)).filter(ImageFilter.GaussianBlur(1.5))


def transparent(digit: Bytes, ink: tuple[int, int, int]) -> Image.Image:
    picture = Image.new("RGBA", (CANVAS, CANVAS), (*ink, 0))
    picture.putalpha(scaled(digit, CANVAS))
    return picture


def dusty(digit: Bytes, random: np.random.Generator) -> Image.Image:
    """Twenty specks of two pixels."""
    page = at(dark_on_light(digit, 200), (CANVAS, CANVAS), (40, 40))
    for left, top in random.integers(2, CANVAS - 4, (20, 2)).tolist():
        page.paste(40, (left, top, left + 2, top + 2))
    return page


def skeleton(ink: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The middle lines of what is drawn (Zhang and Suen 1984)."""
    ink = np.pad(ink, 1)
    while True:
        before = ink.sum()
        for first in (True, False):
            around = [np.roll(ink, shift, (0, 1)) for shift in _AROUND]
            north, _, east, _, south, _, west, _ = around
            rises = sum((~a & b).astype(np.int8) for a, b in zip(around, around[1:] + around[:1], strict=True))
            count = sum(a.astype(np.int8) for a in around)
            stays = (
                (north & east & south) | (east & south & west)
                if first
                else (north & east & west) | (north & south & west)
            )
            ink = ink & ~((count >= 2) & (count <= 6) & (rises == 1) & ~stays)
        if ink.sum() == before:
            return ink[1:-1, 1:-1]


_AROUND = ((1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1))  # clockwise from above


def strokes(digit: Bytes, *, brush: int, ground: int = 0, fills: bool = True) -> Image.Image:
    """The digit's middle lines, drawn on a canvas with a round brush, as a page for drawing would.

    Where the digit is bolder than the brush it is filled, so that loops that were closed stay closed.
    """
    ink = np.asarray(scaled(digit, CANVAS // _STEP)) > 110
    points = skeleton(ink)
    if fills:
        points |= np.asarray(Image.fromarray(ink).convert("L").filter(ImageFilter.MinFilter(brush // _STEP | 1))) > 0
    half = brush / 2
    canvas = Image.new("L", (CANVAS, CANVAS), ground)
    draw = ImageDraw.Draw(canvas)
    for y, x in np.argwhere(points).tolist():
        across, down = (x + 0.5) * _STEP, (y + 0.5) * _STEP
        draw.ellipse((across - half, down - half, across + half, down + half), fill=255 - ground)
    return canvas


REDRAWN: dict[str, Redraw] = {
    "as it is, 28x28": lambda digit, random: png(Image.fromarray(digit)),
    "20x20": lambda digit, random: png(scaled(digit, 20)),
    "100x100": lambda digit, random: png(scaled(digit, 100)),
    "600x600": lambda digit, random: png(scaled(digit, 600)),
    "100x100 with hard edges": lambda digit, random: png(scaled(digit, 112, Image.Resampling.NEAREST)),
    "dark on light": lambda digit, random: png(dark_on_light(digit)),
    "not square, off the middle": lambda digit, random: png(somewhere(digit, random, side=150, size=(400, 200))),
    "small on a large page": lambda digit, random: png(somewhere(digit, random, side=60, size=(500, 400))),
    "cut to the ink": lambda digit, random: png(tight(digit)),
    "in a frame": lambda digit, random: png(framed(digit, margin=12, line=3)),
    "in a frame at the edge": lambda digit, random: png(framed(digit, margin=0, line=4)),
    "JPEG of quality 20": lambda digit, random: jpeg(dark_on_light(digit), 20),
    "pencil on grey paper": lambda digit, random: png(Image.fromarray(on_grey_paper(digit, random))),
    "photographed, lit from a side": lambda digit, random: jpeg(photographed(digit, random), 60),
    "specks of dust": lambda digit, random: png(dusty(digit, random)),
    "dark ink, transparent": lambda digit, random: png(transparent(digit, (0, 0, 0))),
    "white ink, transparent": lambda digit, random: png(transparent(digit, (255, 255, 255))),
    "blue ink on yellow": lambda digit, random: png(
        ImageOps.colorize(scaled(digit, CANVAS), (250, 240, 120), (30, 40, 160))
    ),
    "strokes, brush of 20": lambda digit, random: png(strokes(digit, brush=20)),
    "strokes, brush of 12, dark on light": lambda digit, random: png(strokes(digit, brush=12, ground=255)),
    "middle lines alone, brush of 20": lambda digit, random: png(strokes(digit, brush=20, fills=False)),
    "middle lines alone, brush of 10": lambda digit, random: png(strokes(digit, brush=10, fills=False)),
    "middle lines alone, brush of 36": lambda digit, random: png(strokes(digit, brush=36, fills=False)),
}
LOSSY = (
    "20x20",
    "cut to the ink",
    *(name for name in REDRAWN if name.startswith("middle lines alone")),
)  # they lose some of it
FAITHFUL = tuple(name for name in REDRAWN if name not in LOSSY)
