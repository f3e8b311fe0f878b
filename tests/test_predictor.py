import base64
import io
import struct
import zlib

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from core.errors import ArtifactCorrupt, InvalidRequest, ModelUnsupported
from core.training.pictures import FITS, Budget, prepare
from core.training.predictor import Floats, Predictor


def random_weights(seed: int = 0) -> dict[str, Floats]:
    random = np.random.default_rng(seed)
    shapes = {"conv1": (20, 1, 5, 5), "conv2": (20, 20, 5, 5), "fc": (980, 10)}
    weights = {f"{name}.weight": random.normal(0, 0.2, shape) for name, shape in shapes.items()}
    weights |= {"conv1.bias": random.normal(size=20), "conv2.bias": random.normal(size=20), "fc.bias": np.zeros(10)}
    return {name: value.astype(np.float32) for name, value in weights.items()}


def test_it_gives_what_paddle_gives() -> None:
    import paddle

    from core.training.network import DigitNetwork

    weights = random_weights()
    network = DigitNetwork()
    network.set_state_dict(weights)
    images = np.random.default_rng(1).random((130, 28, 28), np.float32)
    expected = paddle.nn.functional.softmax(network(paddle.to_tensor(images[:, None]))).numpy()
    assert np.abs(Predictor(weights).probabilities(images) - expected).max() < 1e-5


def test_damaged_weights_are_refused() -> None:
    content = safetensors.numpy.save(random_weights())
    assert Predictor.from_safetensors(content)
    for damaged in (b"", content[:-1], content[: len(content) // 2], b"\x80\x04pickle"):
        with pytest.raises(ArtifactCorrupt):
            Predictor.from_safetensors(damaged)


def test_weights_of_another_network_are_told_from_damaged_ones() -> None:
    weights = random_weights()
    renamed = {name.replace("fc.", "head."): value for name, value in weights.items()}
    wider = weights | {"fc.bias": np.zeros(11, np.float32)}
    for others in ({}, renamed, wider):
        with pytest.raises(ModelUnsupported):
            Predictor.from_safetensors(safetensors.numpy.save(others))


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
    assert abs(rows.mean() - 13.5) < 1
    assert abs(columns.mean() - 13.5) < 1


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
