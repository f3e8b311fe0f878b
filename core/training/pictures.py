"""What people send as an image, as the network sees it: float32 [28, 28], 0 to 1, light ink on a dark ground."""

import base64
import binascii
import io
import re
import struct
import zlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError

from core.errors import FieldProblem, InvalidRequest, MalformedJson
from core.training import ink

Floats = npt.NDArray[np.float32]

SIZE = 28
_MAX_PIXELS = 16_000_000
MOST_PIXELS = 32_000_000  # of all pictures of a request: unpacking takes some 15 bytes and 60 ns a pixel
_BROKEN = (  # what Pillow raises for files that are damaged one way or another
    ArithmeticError,
    AssertionError,
    EOFError,
    LookupError,
    OSError,
    SyntaxError,
    TypeError,
    UnidentifiedImageError,
    ValueError,
    binascii.Error,
    struct.error,
    zlib.error,
)
_MAX_PICTURE_BYTES = 2_000_000
_VISIBLE = 0.1  # of full ink
_SIDE = 280  # pixels: what is longer is made smaller before anything is looked for in it
_DATA_URL = re.compile("data:image/(png|jpeg);base64,")
_ORIENTATION = ExifTags.Base.Orientation
_TURNS: dict[Any, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How what a picture shows is put into 28x28: its longer side becomes `box`; its mass or its box is centred."""

    box: int
    by_mass: bool


class Budget:
    """How many pixels the pictures of one request may have together."""

    def __init__(self, pixels: int = MOST_PIXELS) -> None:
        self._left = pixels

    def take(self, pixels: int, pointer: str) -> None:
        """Raises InvalidRequest at the picture that is too much."""
        self._left -= pixels
        if self._left < 0:
            raise InvalidRequest(FieldProblem(pointer, f"the pictures of a request have at most {MOST_PIXELS} pixels"))


FITS = {  # as the pictures of each data set were made
    "mnist": Fit(box=20, by_mass=True),
    "fashion-mnist": Fit(box=28, by_mass=False),  # Xiao, Rasul, Vollgraf 2017, section 2; without their sharpening
}


def prepare(
    image: Any, *, pointer: str, brightest: int = 1, fit: Fit = FITS["mnist"], budget: Budget | None = None
) -> Floats:
    """One image of a request as float32 [28, 28]: a 28x28 list, a flat list of 784, or a PNG or JPEG (bytes or base64).

    List values lie between 0 and `brightest`: 1, or 255 for bytes, which are divided by 256 as in training. A picture is
    fitted as `fit` says, a list never, and takes its pixels from the budget. Raises InvalidRequest at `pointer`.
    """
    if isinstance(image, str | bytes):
        return _from_picture(image, pointer, fit, budget or Budget())
    return from_lists([(pointer, image)], brightest)[0]


def from_lists(images: Sequence[tuple[str, Any]], brightest: int) -> Floats:
    """Lists with their pointers, as `prepare` has each: float32 [N, 28, 28]. In few calls, because most requests are lists."""
    numbers = array("d")
    for pointer, image in images:
        try:
            numbers.fromlist(_numbers(image, pointer))
        except OverflowError:
            raise _too_large(pointer) from None
    pixels = np.frombuffer(numbers).reshape(-1, SIZE, SIZE)
    if not (pixels.min() >= 0 and pixels.max() <= brightest):
        raise _out_of_range(images, pixels, brightest)
    return (pixels if brightest == 1 else pixels / 256).astype(np.float32)


def _numbers(image: Any, pointer: str) -> list[int | float]:
    rows = image if isinstance(image, list) and len(image) == SIZE else [image]
    width = SIZE * SIZE // len(rows)
    is_whole = {list}.issuperset(map(type, rows)) and {width}.issuperset(map(len, rows))
    numbers = list(chain.from_iterable(rows)) if is_whole else []
    if not numbers or not {int, float}.issuperset(map(type, numbers)):
        raise InvalidRequest(
            FieldProblem(pointer, "an image is a 28x28 list of numbers, a list of 784, or a base64 PNG or JPEG")
        )
    return numbers


def _out_of_range(images: Sequence[tuple[str, Any]], pixels: npt.NDArray[np.float64], brightest: int) -> InvalidRequest:
    """What is wrong with the first of them that has a number out of range, or one that is none."""
    first = int(np.argmin(((pixels >= 0) & (pixels <= brightest)).all(axis=(1, 2))))
    pointer = images[first][0]
    if not np.isfinite(pixels[first]).all():
        return _too_large(pointer)
    hint = "" if brightest > 1 else ' (say "range": 255 for bytes)'
    return InvalidRequest(FieldProblem(pointer, f"values lie between 0 and {brightest}{hint}"))


def _too_large(pointer: str) -> MalformedJson:
    return MalformedJson(FieldProblem(pointer, "a number is too large"))  # the quick parser lets it pass


def _from_picture(picture: str | bytes, pointer: str, fit: Fit, budget: Budget) -> Floats:
    """A drawing or a photograph: turned upright, grey, its ink found, light on dark, fitted and centred."""
    kind = "a PNG or JPEG" if isinstance(picture, bytes) else "a base64 PNG or JPEG"
    try:
        content = picture if isinstance(picture, bytes) else _decoded(picture)
        if len(content) > _MAX_PICTURE_BYTES:
            raise InvalidRequest(FieldProblem(pointer, f"a picture has at most {_MAX_PICTURE_BYTES} bytes"))
        opened = Image.open(io.BytesIO(content), formats=("PNG", "JPEG"))
        if opened.width * opened.height > _MAX_PIXELS:
            raise InvalidRequest(FieldProblem(pointer, f"a picture has at most {_MAX_PIXELS} pixels"))
        budget.take(opened.width * opened.height, pointer)
        grey = _grey(opened)
    except Image.DecompressionBombError:
        raise InvalidRequest(FieldProblem(pointer, f"a picture has at most {_MAX_PIXELS} pixels")) from None
    except _BROKEN as error:
        raise InvalidRequest(FieldProblem(pointer, f"not {kind}")) from error
    shades = np.asarray(grey, np.float32)
    found = ink.found(shades) if fit.by_mass else _thing(shades)
    image = None if found is None else _centred(found, fit)
    if image is None:
        raise InvalidRequest(FieldProblem(pointer, "the picture is empty"))
    return image


def _decoded(text: str) -> bytes:
    """Base64, or the data URL that a canvas gives."""
    prefix = _DATA_URL.match(text)
    return base64.b64decode(text[prefix.end() :] if prefix else text, validate=True)


def _grey(opened: Image.Image) -> Image.Image:
    """As a person sees it, in 256 shades, no longer than `_SIDE`: upright, and on a ground on which it can be seen."""
    opened.draft("L", (_SIDE, _SIDE))
    turn = _TURNS.get(opened.getexif().get(_ORIENTATION))
    if opened.mode.startswith(("I", "F")):  # 16 bits a shade, which Pillow would cut off at 255
        opened = Image.fromarray((np.asarray(opened).astype(np.uint32) >> 8).astype(np.uint8))
    if opened.has_transparency_data:
        opened = _on_its_ground(opened.convert("RGBA"))
    grey = opened.convert("L")
    factor = -(-max(grey.size) // _SIDE)
    smaller = grey.reduce(factor) if factor > 1 else grey
    return smaller.transpose(turn) if turn is not None else smaller


def _on_its_ground(picture: Image.Image) -> Image.Image:
    """Flattened onto white; light ink alone, which would vanish there, onto black."""
    shades = np.asarray(picture.convert("RGB").convert("L"))[np.asarray(picture.getchannel("A")) > 127]
    is_light_ink = shades.size > 0 and np.ptp(shades) < 64 and shades.mean() > 127
    flat = Image.new("RGBA", picture.size, "black" if is_light_ink else "white")
    flat.alpha_composite(picture)
    return flat


def _thing(shades: Floats) -> Floats | None:
    """A thing that may fill the picture, in its own shades, light on a dark ground: the ground is what the edge shows."""
    edge = np.concatenate([shades[0], shades[-1], shades[:, 0], shades[:, -1]])
    light = 255 - shades if np.median(edge) > 127 else shades
    rows, columns = (np.flatnonzero((light > 25).any(axis)) for axis in (1, 0))
    return light[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] / np.float32(255) if len(rows) else None


def _centred(found: Floats, fit: Fit) -> Floats | None:
    """Fit it into the box, keeping its shape, and put its centre (of mass) where the data set has it.

    Values are 256ths, as those that were trained on. None where so little lies so far apart that nothing of it is left.
    """
    height, width = (max(1, round(side * fit.box / max(found.shape))) for side in found.shape)
    scaled = Image.fromarray(found).resize((width, height), Image.Resampling.LANCZOS)
    small = np.clip(np.asarray(scaled), 0, 1)
    if small.max() < _VISIBLE:
        return None
    top, left = (SIZE - height) // 2, (SIZE - width) // 2
    if fit.by_mass:
        small = small / small.max()  # a thin line grows faint when it becomes small
        rows, columns = np.indices(small.shape)
        total = float(small.sum())
        middle = SIZE / 2  # so in all of MNIST: the mass is within half a pixel of pixel 14
        top = round(middle - float((rows * small).sum()) / total)
        left = round(middle - float((columns * small).sum()) / total)
        top, left = min(max(top, 0), SIZE - height), min(max(left, 0), SIZE - width)
    image = np.zeros((SIZE, SIZE), np.float32)
    image[top : top + height, left : left + width] = np.round(small * 255) / 256
    return image


def seen(image: Floats) -> bytes:
    """What the network sees, as a PNG of 28x28 greys: value x 256, as bytes are; between two greys the nearer, at most 255."""
    greys = np.minimum(np.round(image * 256), 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(greys).save(buffer, "PNG")
    return buffer.getvalue()
