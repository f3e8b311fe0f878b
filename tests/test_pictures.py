"""Pictures as people send them: whatever their size, ground or file, the network sees a digit as in MNIST, or a clear no."""

import base64
import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from client.client import Client
from core.errors import InvalidRequest
from core.training.datasets import Dataset
from core.training.pictures import FITS, Budget, prepare, seen
from core.training.predictor import Floats, Predictor
from tests.conftest import Server
from tests.redrawn import FAITHFUL, REDRAWN

DIGITS = 200  # bench/pictures.py takes 1,000


@pytest.fixture(scope="module")
def predictor(server: Server, trained_job: str) -> Predictor:
    """The lesson's network after one epoch with Adam."""
    with Client(server.url) as client:
        return Predictor.from_safetensors(client.jobs.get(trained_job).model(format="safetensors"))


def right(predictor: Predictor, images: Floats, mnist: Dataset) -> int:
    return int((predictor.probabilities(images).argmax(axis=1) == mnist.test.labels[: len(images)]).sum())


@pytest.mark.parametrize("name", FAITHFUL)
def test_redrawn_digits_are_told_as_well_as_the_arrays(name: str, mnist: Dataset, predictor: Predictor) -> None:
    """Within one percentage point, on the first test digits."""
    digits, random = mnist.test.images[:DIGITS], np.random.default_rng(0)
    drawn = [prepare(REDRAWN[name](digit, random), pointer="/image") for digit in digits]
    plain = right(predictor, (digits / 256).astype(np.float32), mnist)
    assert right(predictor, np.stack(drawn), mnist) >= plain - DIGITS // 100


def test_a_digit_of_mnist_as_a_picture_is_seen_where_it_is_in_mnist(mnist: Dataset) -> None:
    digits, random = mnist.test.images[:50], np.random.default_rng(0)
    drawn = np.stack([prepare(REDRAWN["as it is, 28x28"](digit, random), pointer="/image") for digit in digits])
    off = np.abs(drawn - digits / 256).mean(axis=(1, 2))
    assert (off < 0.004).sum() >= 47  # the faintest of its edge is taken for paper, which may move it by a pixel


# --- lists -------------------------------------------------------------------------------------------------------------


def test_lists_are_taken_square_and_flat() -> None:
    square = prepare([[0.5] * 28] * 28, pointer="/image")
    assert np.array_equal(square, prepare([0.5] * 784, pointer="/image"))
    assert prepare([[255] * 28] * 28, pointer="/image", brightest=255).max() == np.float32(255 / 256)


@pytest.mark.parametrize(
    "image",
    [
        [],
        [[0.0] * 28] * 27,
        [[0.0] * 27] * 28,
        [[0.0] * 28] * 27 + [[0.0] * 27],
        [0.0] * 783,
        [float("nan")] * 784,
        [float("inf")] * 784,
        [-0.1] * 784,
        [2] * 784,
        [10**400] * 784,
        ["0"] * 784,
        [True] * 784,
        [None] * 784,
        [[[[0.0]]]] * 784,
        {"0": 1},
        7,
        None,
        "",
        "not base64!",
        base64.b64encode(b"\x89PNG\r\n\x1a\n broken").decode(),
        base64.b64encode(b"GIF89a").decode(),
    ],
)
def test_what_is_no_image_is_refused_with_its_place(image: object) -> None:
    with pytest.raises(InvalidRequest) as caught:
        prepare(image, pointer="/images/3")
    assert caught.value.problems[0].pointer == "/images/3"


def picture(pixels: np.ndarray, format: str = "PNG") -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, format)
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
@pytest.mark.parametrize("inverted", [False, True])
def test_a_drawing_is_fitted_and_centred(format: str, inverted: bool) -> None:
    drawing = np.zeros((280, 200), np.uint8)
    drawing[20:120, 30:60] = 255  # a tall stroke, far from the middle
    image = prepare(picture(255 - drawing if inverted else drawing, format), pointer="/image")
    rows, columns = np.nonzero(image > 0.5)
    assert image.shape == (28, 28)
    assert 18 <= rows.max() - rows.min() + 1 <= 21
    assert 5 <= columns.max() - columns.min() + 1 <= 8
    assert abs(rows.mean() - 14) < 1
    assert abs(columns.mean() - 14) < 1


def test_clothes_fill_the_frame_and_are_centred_by_their_box() -> None:
    drawing = np.full((300, 200), 255)
    drawing[40:240, 20:60] = 0  # a sleeve on the left of a body: the mass is not in the middle
    drawing[40:240, 60:120] = 200
    image = prepare(picture(drawing), pointer="/image", fit=FITS["fashion-mnist"])
    rows, columns = np.nonzero(image > 0.1)
    assert (rows.min(), rows.max()) == (0, 27)
    assert (columns.min(), columns.max()) == (7, 20)  # 200 x 100 becomes 28 x 14, in the middle
    digit = prepare(picture(drawing), pointer="/image", fit=FITS["mnist"])
    assert np.nonzero(digit > 0.1)[0].min() == 4


def test_an_empty_picture_is_refused() -> None:
    for shade in (0, 255):
        with pytest.raises(InvalidRequest, match="empty"):
            prepare(picture(np.full((50, 50), shade)), pointer="/image")


def test_a_picture_bomb_is_not_unpacked() -> None:
    with pytest.raises(InvalidRequest, match="pixels"):
        prepare(picture(np.zeros((6000, 6000))), pointer="/image")
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    checksum = struct.pack(">I", zlib.crc32(b"IHDR" + header))
    small = base64.b64decode(picture(np.zeros((8, 8))))
    bomb = small[:12] + b"IHDR" + header + checksum + small[33:]  # a small picture that claims to be a huge one
    with pytest.raises(InvalidRequest, match="pixels"):
        prepare(base64.b64encode(bomb).decode(), pointer="/image")


def test_two_dots_far_apart_are_no_digit() -> None:
    dots = np.full((1000, 1000), 255)
    dots[0, 0] = dots[999, 999] = 0
    with pytest.raises(InvalidRequest, match="empty"):
        prepare(picture(dots), pointer="/image")


def test_the_pictures_of_a_request_have_a_budget_together() -> None:
    ink = np.zeros((28, 28))
    ink[10:18, 10:18] = 255
    small, budget = picture(ink), Budget(2 * 28 * 28)
    for pointer in ("/images/0", "/images/1"):
        prepare(small, pointer=pointer, budget=budget)
    prepare([0.5] * 784, pointer="/images/2", budget=budget)  # a list is none
    with pytest.raises(InvalidRequest, match="/images/3: the pictures of a request"):
        prepare(small, pointer="/images/3", budget=budget)


# --- files -------------------------------------------------------------------------------------------------------------


def file_of(drawn: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    drawn.save(buffer, format, **options)
    return buffer.getvalue()


def stroke() -> Image.Image:
    """A dark L on white, which tells how it is turned."""
    page = Image.new("L", (60, 40), 255)
    page.paste(0, (20, 8, 25, 32))
    page.paste(0, (20, 27, 40, 32))
    return page


def as_16_bits(drawn: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(drawn).astype(np.uint16) * 257)


def turned(drawn: Image.Image) -> bytes:
    """As a phone held upright saves it: lying, with a note how to turn it."""
    note = Image.Exif()
    note[0x0112] = 6
    return file_of(drawn.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=95, exif=note)


def as_ycck(drawn: Image.Image) -> bytes:
    content = bytearray(file_of(drawn.convert("CMYK"), "JPEG", quality=95))
    content[content.index(b"Adobe") + 11] = 2  # the same numbers, said to be YCCK: other shades, the same shape
    return bytes(content)


FILES = {
    **{f"PNG, {mode}": file_of(stroke().convert(mode)) for mode in ("1", "L", "LA", "P", "RGB", "RGBA")},
    **{f"JPEG, {mode}": file_of(stroke().convert(mode), "JPEG", quality=95) for mode in ("L", "RGB", "CMYK")},
    "PNG, 16 bits": file_of(as_16_bits(stroke())),
    "PNG, 16 bits, faint": file_of(Image.fromarray(20_000 + np.asarray(stroke()).astype(np.uint16) * 100)),
    "PNG, one shade transparent": file_of(stroke(), transparency=255),
    "PNG, one colour transparent": file_of(stroke().convert("RGB"), transparency=(255, 255, 255)),
    "PNG, palette with transparency": file_of(stroke().convert("P"), transparency=255),
    "PNG, two shades, one transparent": file_of(stroke().convert("1"), transparency=1),
    "PNG, moving": file_of(stroke(), save_all=True, append_images=[Image.new("L", (60, 40), 9)]),
    "JPEG, YCCK": as_ycck(stroke()),
    "JPEG, progressive": file_of(stroke(), "JPEG", quality=95, progressive=True),
    "JPEG, turned": turned(stroke()),
}


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_shows_the_same(name: str) -> None:
    image = prepare(FILES[name], pointer="/image")
    assert np.abs(image - prepare(file_of(stroke()), pointer="/image")).max() < 0.1
    rows, columns = np.nonzero(image > 0.5)
    assert (image[rows.max() - 1] > 0.5).sum() > 12  # the foot of the L is below
    assert (image[:, columns.min() + 1] > 0.5).sum() > 16


def test_an_interlaced_png_is_read() -> None:
    """Adam7, by hand, of 1x1: Pillow does not write any."""
    content = bytearray(file_of(Image.new("L", (1, 1), 0)))
    content[28] = 1
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    with pytest.raises(InvalidRequest, match="empty"):  # read, that is
        prepare(bytes(content), pointer="/image")


def test_bytes_base64_and_a_data_url_are_the_same() -> None:
    content = file_of(stroke())
    text = base64.b64encode(content).decode()
    images = [prepare(image, pointer="/image") for image in (content, text, f"data:image/png;base64,{text}")]
    assert all(np.array_equal(image, images[0]) for image in images)
    for prefix in ("data:image/webp;base64,", "data:text/plain;base64,", "data:image/png,", "x"):
        with pytest.raises(InvalidRequest, match="not a base64 PNG or JPEG"):
            prepare(prefix + text, pointer="/image")


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (1, 300), (300, 1), (3, 500)])
def test_the_smallest_and_thinnest_pictures_are_seen_or_empty(size: tuple[int, int]) -> None:
    blank = Image.new("L", size, 255)
    with pytest.raises(InvalidRequest, match="empty"):
        prepare(file_of(blank), pointer="/image")
    blank.putpixel((0, 0), 0)
    if size != (1, 1):
        assert prepare(file_of(blank), pointer="/image").max() > 0.9


def test_a_blank_page_with_grain_is_empty() -> None:
    random = np.random.default_rng(0)
    paper = np.clip(random.normal(180, 6, (200, 200)), 0, 255).astype(np.uint8)
    for content in (file_of(Image.fromarray(paper)), file_of(Image.fromarray(paper), "JPEG", quality=40)):
        with pytest.raises(InvalidRequest, match="empty"):
            prepare(content, pointer="/image")


def test_a_frame_alone_is_drawn_and_one_around_a_digit_is_not() -> None:
    page = Image.new("L", (100, 100), 255)
    page.paste(0, (10, 10, 90, 90))
    page.paste(255, (14, 14, 86, 86))
    assert (prepare(file_of(page), pointer="/image") > 0.5)[:, 4].sum() > 15  # a square 0
    page.paste(0, (45, 30, 51, 70))
    assert np.nonzero(prepare(file_of(page), pointer="/image") > 0.3)[1].max() < 18  # a 1


@pytest.mark.parametrize("kind", ["cut", "changed"])
@pytest.mark.filterwarnings("ignore")  # Pillow's, about the damage
def test_damaged_files_are_read_or_refused(kind: str) -> None:
    random, contents = np.random.default_rng(0), list(FILES.values())
    refused = 0
    for n in range(400):
        content = bytearray(contents[n % len(contents)])
        if kind == "cut":
            del content[int(random.integers(0, len(content))) :]
        else:
            content[int(random.integers(0, len(content)))] ^= int(random.integers(1, 256))
        try:
            prepare(bytes(content), pointer="/images/7")
        except InvalidRequest as error:
            refused += 1
            assert error.problems[0].pointer == "/images/7"
    assert refused > 50


def test_a_palette_picture_without_its_palette_is_refused() -> None:
    content = bytearray(FILES["PNG, P"])
    start = content.index(b"PLTE")
    (length,) = struct.unpack(">I", content[start - 4 : start])
    content[start : start + 4] = b"plTE"  # a chunk that nobody knows, and may pass over
    content[start + 4 + length : start + 8 + length] = struct.pack(
        ">I", zlib.crc32(content[start : start + 4 + length])
    )
    with pytest.raises(InvalidRequest, match="not a PNG or JPEG"):
        prepare(bytes(content), pointer="/image")


def test_what_the_network_saw_is_shown_to_the_last_bit() -> None:
    image = prepare(file_of(stroke()), pointer="/image")
    shown = Image.open(io.BytesIO(seen(image)))
    assert (shown.size, shown.mode) == ((28, 28), "L")
    assert np.array_equal(np.asarray(shown, np.float32) / 256, image)
    numbers = [[0.0, 0.5, 1.0, 0.123] * 7] * 28
    greys = np.asarray(Image.open(io.BytesIO(seen(prepare(numbers, pointer="/image")))))
    assert greys[0, :4].tolist() == [0, 128, 255, 31]
