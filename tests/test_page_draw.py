"""Draw a digit: what is drawn, what the network sees of it, and what several models say, as it stands on the screen."""

import asyncio
import base64
import io
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.numpy
from PIL import Image, ImageDraw
from playwright.sync_api import Browser, Locator, Page, Route, expect

from core.jobs.job import Status
from tests.browser import Visit, beside, visiting
from tests.conftest import Server
from tests.staged import SHAPES, Api

SEVEN = [(0.27, 0.25), (0.74, 0.24), (0.46, 0.84)]
ONE = [(0.52, 0.2), (0.48, 0.8)]
NO_MODELS: dict[str, Any] = {"models": [], "aliases": {}, "next": None}


@pytest.fixture
def visit(api: Api, server: Server, trained_job: str, browser: Browser) -> Iterator[Visit]:
    """A server with a model that was really trained. (The other API is staged before there is a browser.)"""
    with visiting(browser, server.url) as visit:
        yield visit


@pytest.fixture
def staged(api: Api, browser: Browser) -> Iterator[Visit]:
    """A server where models are put, not trained."""
    with visiting(browser, api.url) as visit:
        yield visit


def model_that_says(api: Api, digit: int) -> str:
    """A job whose model says this of everything, at 73%: e^3.2 against nine times e^0."""
    weights = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    weights["fc.bias"][digit] = 3.2
    return beside(asyncio.to_thread(api.finished_job, weights=safetensors.numpy.save(weights)))


def paper(page: Page) -> Locator:
    return page.get_by_role("application", name="Paper to draw on")


def draw(page: Page, points: list[tuple[float, float]]) -> None:
    """With the mouse, as a hand does: in many small moves."""
    box = paper(page).bounding_box()
    assert box
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=12)
    page.mouse.up()


def headline(page: Page, model: str) -> Locator:
    return page.locator(f".guess[data-model='{model}'] .says")


def greys(page: Page, selector: str) -> npt.NDArray[Any]:
    """The pixels of a canvas after what is asked for is painted, as grey values."""
    url = page.evaluate(
        """(selector) => new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(() =>
            resolve(document.querySelector(selector).toDataURL()))))""",
        selector,
    )
    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as image:
        return np.asarray(image.convert("L"), dtype=int)


def test_a_seven_drawn_with_the_mouse_is_a_seven_in_pixels_bars_and_words(visit: Visit) -> None:
    page = visit.open("draw")
    expect(headline(page, "best")).to_have_text("–")
    with page.expect_response(lambda answer: "/predict" in answer.url) as first:
        draw(page, SEVEN)
    assert first.value.ok
    expect(headline(page, "best")).to_have_text("7")
    expect(page.locator(".bars .best th")).to_have_text("7")
    expect(page.locator("p[aria-live=polite]").first).to_contain_text("best: 7, ")

    drawn = greys(page, "canvas.paper")
    side = len(drawn)
    assert drawn[round(0.245 * side), side // 2] < 30, "ink on the bar of the 7"
    assert drawn[round(0.7 * side), round(0.8 * side)] == 255, "paper beside it"
    seen = greys(page, "canvas.seen")
    assert seen.shape == (28, 28)
    assert seen.max() > 200
    assert seen[:4].max() == 0, "its mass is in the middle, so there is room above"
    assert page.locator("canvas.seen").evaluate("(it) => getComputedStyle(it).imageRendering") == "pixelated"


def test_bars_are_as_long_as_their_probabilities(visit: Visit) -> None:
    page = visit.open("draw")
    page.emulate_media(reduced_motion="reduce")
    with page.expect_response(lambda answer: "/predict" in answer.url) as asked:
        page.get_by_role("button", name="4", exact=True).click()
    [told] = asked.value.json()["predictions"]
    expect(headline(page, "best")).to_have_text("4")
    widths = page.locator(".bars .bar").evaluate_all("(bars) => bars.map((bar) => bar.getBoundingClientRect().width)")
    track = page.locator(".bars .track").first.evaluate("(it) => it.clientWidth")
    assert widths == pytest.approx([share * track for share in told["probabilities"]], abs=0.6)
    shown = page.locator(".bars td.number").all_text_contents()
    assert shown == [f"{share * 100:.1f}%" for share in told["probabilities"]]


def test_each_example_is_told_right(visit: Visit) -> None:
    page = visit.open("draw")
    for digit in "0123456789":
        page.get_by_role("button", name=digit, exact=True).click()
        expect(headline(page, "best")).to_have_text(digit)


def test_models_stand_side_by_side_and_the_one_that_differs_is_seen(staged: Visit, api: Api) -> None:
    seven, other, one = model_that_says(api, 7), model_that_says(api, 7), model_that_says(api, 1)
    page = staged.open(f"draw?models={seven},{other}")
    page.get_by_role("button", name="4", exact=True).click()
    expect(page.locator(".agreement")).to_have_text("They agree: 7")
    page.get_by_label("Add a model to compare").select_option(one)
    expect(page).not_to_have_url(re.compile(one))  # the arrow keys go over what can be chosen
    page.get_by_role("button", name="Add", exact=True).press("Enter")
    expect(page.get_by_label("Add a model to compare")).to_be_focused()
    expect(page).to_have_url(f"{staged.url}/#/draw?models={seven},{other},{one}")
    expect(page.locator(".agreement")).to_have_text("They disagree: 7 / 1")
    columns = page.locator(".guess")
    expect(columns).to_have_count(3)
    expect(page.locator(".guess.differs")).to_have_attribute("data-model", one)
    boxes = [box for box in (columns.nth(n).bounding_box() for n in range(3)) if box]
    assert len({box["y"] for box in boxes}) == 1
    assert all(left["x"] + left["width"] < right["x"] for left, right in pairwise(boxes))
    expect(columns.nth(0).locator(".best .number")).to_have_text("73.2%")
    page.reload()
    expect(columns).to_have_count(3)
    for model in (other, one):
        column = page.locator(f".guess[data-model={model}]")
        column.get_by_role("button", name="Remove").click()
    expect(columns).to_have_count(1)
    expect(columns.get_by_role("button", name="Remove")).to_have_count(0)
    expect(page).to_have_url(f"{staged.url}/#/draw?models={seven}")


def test_answers_to_different_drawings_are_not_compared(visit: Visit, trained_job: str) -> None:
    page = visit.open(f"draw?models={trained_job},best")
    page.get_by_role("button", name="4", exact=True).click()
    expect(page.locator(".agreement")).to_have_text("They agree: 4")
    held: list[Route] = []
    page.route(
        "**/predict*", lambda it: held.append(it) if '"best"' in (it.request.post_data or "") else it.continue_()
    )
    page.get_by_role("button", name="7", exact=True).click()
    expect(headline(page, trained_job)).to_have_text("7")
    expect(headline(page, "best")).to_have_text("4")
    expect(page.locator(".agreement")).to_have_text("They agree: 4")
    held.pop().continue_()
    expect(page.locator(".agreement")).to_have_text("They agree: 7")


def test_undo_takes_back_a_stroke_and_clear_all_of_them(visit: Visit) -> None:
    page = visit.open("draw")
    draw(page, SEVEN)
    one = (greys(page, "canvas.paper") < 128).sum()
    draw(page, [(0.3, 0.55), (0.8, 0.55)])
    assert (greys(page, "canvas.paper") < 128).sum() > 1.2 * one
    page.get_by_role("button", name="Undo").click()
    assert (greys(page, "canvas.paper") < 128).sum() == one
    page.get_by_role("button", name="Clear").click()
    assert greys(page, "canvas.paper").min() == 255
    expect(headline(page, "best")).to_have_text("–")
    assert greys(page, "canvas.seen").max() == 0
    page.get_by_role("button", name="Undo").click()
    expect(headline(page, "best")).to_have_text("7")


def test_a_one_is_drawn_with_the_keys_alone(visit: Visit) -> None:
    page = visit.open("draw")
    paper(page).focus()
    for _ in range(15):
        page.keyboard.press("ArrowUp")
    page.keyboard.press("Space")
    expect(page.locator("p[aria-live=polite]").first).to_have_text("Pen down")
    for _ in range(30):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("Space")
    page.keyboard.press("ArrowRight")
    expect(headline(page, "best")).to_have_text("1")
    page.evaluate("document.activeElement.blur()")  # the pen itself is not on the paper any more
    rows, columns = np.nonzero(greys(page, "canvas.paper") < 128)
    side = len(greys(page, "canvas.paper"))
    assert (rows.min() / side, rows.max() / side) == pytest.approx((0.16, 0.84), abs=0.01)
    assert (columns.min() / side, columns.max() / side) == pytest.approx((0.46, 0.54), abs=0.01)


def test_a_finger_draws_and_does_not_scroll(browser: Browser, server: Server, trained_job: str) -> None:
    phone = {"viewport": {"width": 390, "height": 640}, "has_touch": True, "is_mobile": True}
    with visiting(browser, server.url, **phone) as visit:
        page = visit.open("draw")
        box = paper(page).bounding_box()
        assert box
        touch = visit.context.new_cdp_session(page)
        places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in SEVEN]
        between = [
            (x0 + (x1 - x0) * n / 10, y0 + (y1 - y0) * n / 10)
            for (x0, y0), (x1, y1) in pairwise(places)
            for n in range(11)
        ]
        for number, (x, y) in enumerate(between):
            kind = "touchMove" if number else "touchStart"
            touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}]})
        touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        expect(headline(page, "best")).to_have_text("7")
        assert page.evaluate("scrollY") == 0
        assert page.evaluate("document.documentElement.scrollHeight > innerHeight"), "there is where to scroll to"
        assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_a_picture_goes_the_same_way(visit: Visit) -> None:
    page = visit.open("draw")
    picture = Image.new("L", (300, 200), 235)
    pen = ImageDraw.Draw(picture)
    pen.line([(110, 40), (190, 40), (140, 170)], fill=40, width=16, joint="curve")
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG")
    page.locator("#draw-file").set_input_files(
        {"name": "seven.jpg", "mimeType": "image/jpeg", "buffer": buffer.getvalue()}
    )
    expect(headline(page, "best")).to_have_text("7")
    page.locator("#draw-file").set_input_files({"name": "seven.jpg", "mimeType": "image/jpeg", "buffer": b"no"})
    expect(page.get_by_role("alert")).to_have_text("seven.jpg cannot be read as a picture: take a PNG or a JPEG.")
    expect(headline(page, "best")).to_have_text("7")


def test_the_curl_line_asks_the_same_and_the_drawing_is_saved_as_png(visit: Visit) -> None:
    page = visit.open("draw?models=it's")
    visit.allowed.append("404")
    draw(page, SEVEN)
    page.get_by_text("The same as curl").click()
    expect(page.locator(".request code")).to_have_text(
        f"curl -X POST '{visit.url}/predict?debug=true' \\ -F 'image=@digit.png' \\ -F 'model=it'\\''s' \\ -F 'top_k=3'"
    )
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save PNG").click()
    assert saved.value.suggested_filename == "digit.png"
    with Image.open(saved.value.path()) as image:
        assert image.size == (280, 280)
        assert image.convert("L").getpixel((140, 69)) == 17


def test_while_one_request_is_on_its_way_no_other_is_sent_and_the_newest_drawing_is_asked_last(visit: Visit) -> None:
    held: list[Route] = []
    visit.page.route("**/predict*", lambda route: held.append(route))
    page = visit.open("draw")
    with page.expect_request("**/predict*"):
        draw(page, ONE)
    page.get_by_role("button", name="Clear").click()
    draw(page, SEVEN)
    assert len(held) == 1
    with page.expect_request("**/predict*"):
        held.pop().continue_()
    expect(headline(page, "best")).not_to_have_text("7")
    held.pop().continue_()
    expect(headline(page, "best")).to_have_text("7")
    assert held == []


def test_what_is_spoken_is_of_the_whole_drawing(visit: Visit) -> None:
    sure = iter([0.61, *[0.98] * 100])

    def answer(route: Route) -> None:
        said = route.fetch().json()
        said["predictions"][0] |= {"class": 7, "confidence": next(sure)}
        route.fulfill(json=said)

    visit.page.route("**/predict*", answer)
    page = visit.open("draw")
    spoken = page.locator("p[aria-live=polite]").first
    draw(page, SEVEN[:2])
    expect(spoken).to_contain_text("best: 7, ")
    draw(page, SEVEN[1:])
    expect(spoken).to_have_text("best: 7, 98%")


def test_without_a_model_it_says_what_to_do_and_goes_on_when_there_is_one(staged: Visit, api: Api) -> None:
    staged.page.route("**/models?*", lambda route: route.fulfill(json=NO_MODELS))
    page = staged.open("draw")
    expect(page.get_by_role("heading", name="There is no model yet")).to_be_visible()
    expect(page.get_by_role("link", name="Train the first model")).to_have_attribute("href", "#/new")
    draw(page, SEVEN)
    page.unroute("**/models?*")
    model_that_says(api, 3)  # news of a run that has left a model: now the page looks again
    expect(headline(page, "best")).to_have_text("0", timeout=20_000)  # a staged one, of nothing but noughts
    expect(page.locator(".bars .best .number")).to_have_text("10.0%")


def test_a_refusal_is_said_in_words_and_the_drawing_stays(staged: Visit, api: Api) -> None:
    staged.allowed.append("409")
    page = staged.open(f"draw?models={api.jobs[Status.RUNNING]},best")
    draw(page, SEVEN)
    columns = page.locator(".guess")
    expect(columns.nth(0).locator(".error")).to_have_text(
        "This run has left no model to ask: it has not ended yet, or ended without one."
    )
    expect(columns.nth(1).locator(".error")).to_be_hidden()
    expect(columns.nth(1).locator(".foot")).to_contain_text("Answered in")
    assert greys(page, "canvas.paper").min() < 30


def test_an_outage_is_said_and_asked_again_afterwards(visit: Visit) -> None:
    visit.allowed.append("Failed to load resource")
    page = visit.open("draw")
    expect(headline(page, "best")).to_be_visible()
    visit.context.set_offline(True)
    draw(page, SEVEN)
    expect(page.locator(".guess .error")).to_contain_text("Your drawing stays")
    visit.context.set_offline(False)
    expect(headline(page, "best")).to_have_text("7")
    expect(page.locator(".guess .error")).to_be_hidden()


def test_a_drawing_survives_the_change_of_language_and_clothes_are_named_in_chinese(visit: Visit) -> None:
    page = visit.open("draw")
    draw(page, SEVEN)
    ink = (greys(page, "canvas.paper") < 128).sum()
    page.get_by_role("button", name="中文").click()
    expect(page.get_by_role("heading", name="识别结果")).to_be_visible()
    expect(headline(page, "best")).to_have_text("7")
    assert (greys(page, "canvas.paper") < 128).sum() == ink
    visit.allowed.append("404")  # there may be no such model here; its classes are known all the same
    visit.open("draw?models=best:fashion-mnist")
    expect(page.locator(".bars th").first).to_have_text("T恤/上衣")
    visit.open("draw?models=nobody")
    expect(page.locator(".guess .error")).to_have_text("没有这个模型，请另选一个。")
