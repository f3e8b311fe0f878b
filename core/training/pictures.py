"""What people send as an image, as the network sees it: float32 [28, 28], 0 to 1, light ink on a dark ground."""

import base64
import binascii
import io
import struct
from array import array
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from core.errors import FieldProblem, InvalidRequest, MalformedJson

Floats = npt.NDArray[np.float32]

SIZE = 28
_MAX_PIXELS = 16_000_000
MOST_PIXELS = 32_000_000  # of all pictures of a request: unpacking takes some 15 bytes and 60 ns a pixel
_BROKEN = (
    binascii.Error,
    UnidentifiedImageError,
    OSError,
    SyntaxError,
    ValueError,
    IndexError,
    TypeError,
    struct.error,
)
_MAX_PICTURE_BYTES = 2_000_000


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
    """One image of a request as float32 [28, 28]: a 28x28 list, a flat list of 784, or a base64 PNG or JPEG.

    List values lie between 0 and `brightest`: 1, or 255 for bytes, which are divided by 256 as in training. A picture is
    fitted as `fit` says, a list never, and takes its pixels from the budget. Raises InvalidRequest at `pointer`.
    """
    if isinstance(image, str):
        return _from_picture(image, pointer, fit, budget or Budget())
    return _from_list(image, pointer, brightest)


def _from_list(image: Any, pointer: str, brightest: int) -> Floats:
    """One of the lists: checked and copied in few calls, because most requests are one."""
    rows = image if isinstance(image, list) and len(image) == SIZE else [image]
    width = SIZE * SIZE // len(rows)
    is_whole = {list}.issuperset(map(type, rows)) and {width}.issuperset(map(len, rows))
    numbers = list(chain.from_iterable(rows)) if is_whole else []
    if not numbers or not {int, float}.issuperset(map(type, numbers)):
        raise InvalidRequest(
            FieldProblem(pointer, "an image is a 28x28 list of numbers, a list of 784, or a base64 PNG or JPEG")
        )
    try:
        pixels = np.frombuffer(array("d", numbers))
    except OverflowError:
        pixels = np.full(SIZE * SIZE, np.inf)
    if not (pixels.min() >= 0 and pixels.max() <= brightest):  # neither holds of NaN
        if not np.isfinite(pixels).all():
            raise MalformedJson(FieldProblem(pointer, "a number is too large"))  # its parser lets it pass
        hint = "" if brightest > 1 else ' (say "range": 255 for bytes)'
        raise InvalidRequest(FieldProblem(pointer, f"values lie between 0 and {brightest}{hint}"))
    return (pixels / (256 if brightest > 1 else 1)).astype(np.float32).reshape(SIZE, SIZE)


def _from_picture(text: str, pointer: str, fit: Fit, budget: Budget) -> Floats:
    """A drawing or a photograph: flattened onto white, grey, light on dark, cropped, fitted and centred."""
    try:
        content = base64.b64decode(text, validate=True)
        if len(content) > _MAX_PICTURE_BYTES:
            raise InvalidRequest(FieldProblem(pointer, f"a picture has at most {_MAX_PICTURE_BYTES} bytes"))
        picture = Image.open(io.BytesIO(content), formats=("PNG", "JPEG"))
        if picture.width * picture.height > _MAX_PIXELS:
            raise InvalidRequest(FieldProblem(pointer, f"a picture has at most {_MAX_PIXELS} pixels"))
        budget.take(picture.width * picture.height, pointer)
        grey = _grey(picture)
    except Image.DecompressionBombError:
        raise InvalidRequest(FieldProblem(pointer, f"a picture has at most {_MAX_PIXELS} pixels")) from None
    except _BROKEN as error:
        raise InvalidRequest(FieldProblem(pointer, "not a base64 PNG or JPEG")) from error
    ink = grey.point(lambda value: 255 if value > 25 else 0).getbbox()
    image = _centred(grey.crop(ink), fit) if ink else None
    if image is None:
        raise InvalidRequest(FieldProblem(pointer, "the picture is empty"))
    return image


def _grey(picture: Image.Image) -> Image.Image:
    """Light ink on a dark ground: a picture with a light border is inverted."""
    flat = Image.new("RGBA", picture.size, "white")
    flat.alpha_composite(picture.convert("RGBA"))
    grey = flat.convert("L")
    pixels = np.asarray(grey)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return ImageOps.invert(grey) if np.median(border) > 127 else grey


def _centred(ink: Image.Image, fit: Fit) -> Floats | None:
    """Fit the ink into the box, keeping its shape, and put its centre (of mass) into the middle of 28x28.

    None where so little ink lies so far apart that nothing of it is left.
    """
    factor = fit.box / max(ink.size)
    width, height = (max(1, round(side * factor)) for side in ink.size)
    small = np.asarray(ink.resize((width, height), Image.Resampling.LANCZOS), np.float32) / 256
    rows, columns = np.indices(small.shape)
    total = float(small.sum())
    if not total:
        return None
    middle = (SIZE - 1) / 2
    top, left = (SIZE - height) // 2, (SIZE - width) // 2
    if fit.by_mass:
        top = round(middle - float((rows * small).sum() / total))
        left = round(middle - float((columns * small).sum() / total))
        top, left = min(max(top, 0), SIZE - height), min(max(left, 0), SIZE - width)
    image = np.zeros((SIZE, SIZE), np.float32)
    image[top : top + height, left : left + width] = small
    return image
