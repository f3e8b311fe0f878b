"""POST /predict with a form and with `debug`: the same answers as for JSON, the same strictness."""

import base64
import io
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image

from client.client import Client
from core.jobs.job import Status
from core.training.datasets import Dataset
from core.training.pictures import prepare
from tests.conftest import Server
from tests.redrawn import CANVAS, png, strokes
from tests.staged import Api
from tests.test_api import is_problem

Part = tuple[str, Any]


def drawing(left: int = 100) -> bytes:
    page = Image.new("L", (CANVAS, CANVAS), 255)
    page.paste(0, (left, 40, left + 30, 240))
    return png(page)


SEVEN = ("seven.png", drawing(), "image/png")


def text(content: str | bytes) -> tuple[None, str | bytes]:
    return None, content


def post(api: Api, *parts: Part, query: str = "") -> httpx2.Response:
    """A form: files as (name, content, type), texts as (None, content)."""
    model = [] if any(name == "model" for name, _ in parts) else [("model", text(api.jobs[Status.SUCCEEDED]))]
    return httpx2.post(f"{api.url}/predict{query}", files=[*parts, *model], timeout=30, trust_env=False)


def without_time(answer: httpx2.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    return {name: value for name, value in answer.json().items() if name != "latency_ms"}


def test_a_form_is_answered_as_the_same_json(api: Api) -> None:
    images = [base64.b64encode(drawing(left)).decode() for left in (20, 200)]
    fields = {"model": api.jobs[Status.SUCCEEDED], "top_k": 2}
    for body, names in (({"image": images[0]}, ["image"]), ({"images": images}, ["image"] * 2)):
        as_json = httpx2.post(f"{api.url}/predict?debug=true", json=body | fields, timeout=30, trust_env=False)
        files = [(name, ("x.png", drawing(left))) for name, left in zip(names, (20, 200), strict=False)]
        as_form = post(api, *files, ("top_k", text("2")), query="?debug=true")
        assert without_time(as_form) == without_time(as_json)
        assert [len(each["top_k"]) for each in as_form.json()["predictions"]] == [2] * len(names)


def test_pictures_may_be_called_image_or_images(api: Api) -> None:
    for names in (("images",), ("image", "image"), ("images", "images"), ("image", "images")):
        answer = post(api, *((name, SEVEN) for name in names))
        assert len(without_time(answer)["predictions"]) == len(names)
    as_text = post(api, ("image", text("data:image/png;base64," + base64.b64encode(drawing()).decode())))
    assert as_text.status_code == 200


REFUSED: dict[str, tuple[list[Part], str]] = {
    "nothing": ([], ""),
    "an unknown field": ([("image", SEVEN), ("modle", text("best"))], "/modle"),
    "a field twice": ([("image", SEVEN), ("top_k", text("1")), ("top_k", text("1"))], "/top_k"),
    "a model twice": ([("image", SEVEN), ("model", text("best")), ("model", text("best"))], "/model"),
    "a file as the model": ([("image", SEVEN), ("model", SEVEN)], "/model"),
    "a word as a number": ([("image", SEVEN), ("top_k", text("three"))], "/top_k"),
    "a fraction": ([("image", SEVEN), ("top_k", text("1.5"))], "/top_k"),
    "too large a number": ([("image", SEVEN), ("top_k", text("9" * 5000))], "/top_k"),
    "11 best": ([("image", SEVEN), ("top_k", text("11"))], "/top_k"),
    "a range of 7": ([("image", SEVEN), ("range", text("7"))], "/range"),
    "no Unicode": ([("image", SEVEN), ("model", text(b"\xff\xfe"))], "/model"),
    "an empty file": ([("image", ("", b""))], "/image"),
    "a text named PNG": ([("image", ("seven.png", b"seven", "image/png"))], "/image"),
    "the second of three": ([("image", SEVEN), ("image", ("x", b"x")), ("image", SEVEN)], "/images/1"),
    "257 files": ([("image", SEVEN)] * 257, "/images"),
    "1000 files": ([("image", ("x", b"x"))] * 1000, ""),
    "a file of 3 MB": ([("image", ("x.png", b"\x89PNG" + bytes(3_000_000)))], "/image"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_form_that_makes_no_sense_is_refused_where_it_makes_none(api: Api, name: str) -> None:
    parts, pointer = REFUSED[name]
    problem = is_problem(post(api, *parts), 422, "validation-error")
    assert problem["errors"][0]["pointer"] == pointer
    if name == "an unknown field":
        assert problem["errors"][0]["did_you_mean"] == "model"


WHOLE = b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nbest\r\n--x--\r\n'


@pytest.mark.parametrize(
    ("body", "boundary"),
    [
        (b"", "; boundary=x"), (b"{}", "; boundary=x"), (WHOLE, ""), (WHOLE, "; boundary=y"), (WHOLE, "; boundary="),
        (WHOLE[:-6], "; boundary=x"), (WHOLE[:30], "; boundary=x"), (WHOLE.replace(b"name", b"nome"), "; boundary=x"),
        (WHOLE.replace(b"form-data", b"attachment"), "; boundary=x"), (bytes(100_000), "; boundary=x"),
        (WHOLE.replace(b"\r\n\r\n", b"\r\nContent-Transfer-Encoding: base64\r\n\r\n"), "; boundary=x"),
        (WHOLE, "; boundary=" + "x" * 5000),
    ],
)  # fmt: skip
def test_what_is_no_whole_form_is_malformed(api: Api, body: bytes, boundary: str) -> None:
    headers = {"Content-Type": f"multipart/form-data{boundary}"}
    answer = httpx2.post(f"{api.url}/predict", content=body, headers=headers, timeout=30, trust_env=False)
    is_problem(answer, 400, "malformed-form")


def test_forms_have_the_limit_of_other_bodies_and_one_route(api: Api) -> None:
    is_problem(post(api, *[("image", ("x.png", bytes(1_900_000)))] * 5), 413, "too-large")
    other = httpx2.post(f"{api.url}/jobs", files={"image": SEVEN}, timeout=30, trust_env=False)
    is_problem(other, 415, "unsupported-media-type")


def test_debug_shows_what_the_network_saw(api: Api) -> None:
    grey = [[n / 256 for n in range(28)]] * 28
    body = {"model": api.jobs[Status.SUCCEEDED], "images": [grey, base64.b64encode(drawing()).decode()]}
    url = f"{api.url}/predict"
    shown = httpx2.post(f"{url}?debug=true", json=body, timeout=30, trust_env=False).json()["predictions"]
    for each, image in zip(shown, body["images"], strict=True):
        picture = Image.open(io.BytesIO(base64.b64decode(each["seen"])))
        assert np.array_equal(np.asarray(picture, np.float32) / 256, prepare(image, pointer="/image"))
    plain = httpx2.post(url, json=body, timeout=30, trust_env=False).json()["predictions"]
    assert all("seen" not in each for each in plain)
    wrong = httpx2.post(f"{url}?debug=perhaps", json=body, timeout=30, trust_env=False)
    assert is_problem(wrong, 422)["errors"][0]["pointer"] == "?debug"


def test_drawn_digits_are_predicted_over_http(server: Server, trained_job: str, mnist: Dataset) -> None:
    """As arrays, and drawn as strokes: as bytes, as files by their paths, as a form."""
    digits, labels = mnist.test.images[:40], mnist.test.labels[:40]
    drawn = [png(strokes(digit, brush=20)) for digit in digits]
    with Client(server.url) as client:
        answers = [client.predict(images, model=trained_job, range=255) for images in (digits.tolist(), drawn)]
    files = [("image", ("x.png", content)) for content in drawn]
    form = httpx2.post(f"{server.url}/predict", files=[*files, ("model", text(trained_job))], timeout=60)
    for answer in (*answers, form.json()):
        told = [each["digit"] for each in answer["predictions"]]
        assert (np.array(told) == labels).sum() >= 38
    assert form.json()["predictions"] == answers[1]["predictions"]


def test_the_client_takes_paths_bytes_and_arrays(api: Api, tmp_path: Any) -> None:
    file = tmp_path / "one.png"
    file.write_bytes(drawing())
    with Client(api.url, trust_env=False) as client:
        model = api.jobs[Status.SUCCEEDED]
        answer = client.predict([file, drawing(), [0.0] * 784, np.zeros((28, 28))], model=model, debug=True)
        assert [len(each["probabilities"]) for each in answer["predictions"]] == [10] * 4
        assert answer["predictions"][0]["seen"] == answer["predictions"][1]["seen"]
