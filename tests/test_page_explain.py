"""Explain: the valley's rules against Paddle's own, and what is drawn and said of them."""

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import paddle
import pytest
from paddle import Tensor
from playwright.sync_api import Browser, Locator, Page, expect

from core.catalogue import LESSON_OPTIMIZERS
from core.spec import JobSpec
from core.training.optimizers import new_optimizer
from tests.browser import Visit, visiting
from tests.staged import Api

SURFACES: dict[str, Callable[[Tensor], Tensor]] = {
    "valley": lambda w: (w[0] ** 2 + 25 * w[1] ** 2) / 2,
    "curved": lambda w: ((1 - w[0]) ** 2 + 10 * (w[1] - w[0] ** 2) ** 2) / 2,
    "saddle": lambda w: (w[0] ** 2 - 1) ** 2 / 4 + 4 * w[1] ** 2,
}
IMPORT = """const base = document.querySelector("script[type=module]").src.replace("main.js", "");
            const valley = await import(`${base}valley.js`);"""
PIXEL = """(map, [x, y]) => {
    const at = [Math.round(x * devicePixelRatio), Math.round(y * devicePixelRatio)];
    const [r, g, b] = map.getContext("2d").getImageData(...at, 1, 1).data;
    return `#${[r, g, b].map((each) => each.toString(16).padStart(2, "0")).join("")}`;
}"""
MARKS = {"sgd": "#5a3fb0", "momentum": "#c04a00", "adagrad": "#00714f", "rmsprop": "#a5317a", "adam": "#0062a3"}
FRAMES = (
    "new Promise((done) => { let n = 10; const next = () => (n-- ? requestAnimationFrame(next) : done()); next(); })"
)


@pytest.fixture
def visit(api: Api, browser: Browser) -> Iterator[Visit]:
    """Where nothing moves by itself: all steps are shown at once. (The API is staged before there is a browser.)"""
    with visiting(browser, api.url, reduced_motion="reduce") as visit:
        yield visit


def descend(page: Page, optimizer: str, **settings: Any) -> dict[str, Any]:
    found: dict[str, Any] = page.evaluate(
        f"async ([name, settings]) => {{ {IMPORT} return valley.descend(name, settings); }}", [optimizer, settings]
    )
    return found


def row(page: Page, optimizer: str) -> Locator:
    return page.locator(f"tr[data-optimizer={optimizer}]")


def place(page: Page, optimizer: str) -> tuple[float, float]:
    x, y = row(page, optimizer).locator(".place").inner_text().split(", ")
    return float(x), float(y)


def set_rate(page: Page, rate: float) -> None:
    page.get_by_label("learning rate").fill(f"{math.log10(rate):.2f}")


def at_step(ways: dict[str, dict[str, Any]], what: str, step: int) -> list[tuple[str, Any]]:
    return [(name, way[what][step]) for name, way in ways.items()]


@pytest.mark.parametrize("optimizer", LESSON_OPTIMIZERS)
def test_its_steps_are_those_of_paddle(visit: Visit, optimizer: str) -> None:
    """Paddle finds its gradients itself, on each surface; 60 steps in float64 there and here."""
    start, rate = [-1.2, 0.7], 0.02
    page = visit.open("explain")
    for surface, height in SURFACES.items():
        ours = descend(page, optimizer, surface=surface, start=start, rate=rate, momentum=0.9)
        weights = paddle.create_parameter([2], "float64")
        weights.set_value(np.array(start))
        paddles = new_optimizer(JobSpec.model_validate({"optimizer": optimizer, "learning_rate": rate}), [weights])
        for step in range(60):
            loss = height(weights)
            assert ours["losses"][step] == pytest.approx(float(loss), rel=1e-4, abs=1e-9), (surface, step)
            assert ours["places"][step] == pytest.approx(weights.numpy(), rel=1e-5, abs=1e-6), (surface, step)
            loss.backward()
            paddles.step()
            paddles.clear_grad()


def test_noise_is_the_same_for_all_and_as_large_as_it_says(visit: Visit) -> None:
    settings = {"surface": "valley", "start": [-2.5, 0.9], "rate": 0.01, "momentum": 0.9, "isNoisy": True}
    page = visit.open("explain")
    places = np.array(descend(page, "sgd", **settings)["places"])
    noise = -np.diff(places, axis=0) / 0.01 - places[:-1] * [1, 25]
    assert noise.mean(axis=0) == pytest.approx([0, 0], abs=4 * 2 / math.sqrt(300))
    assert noise.std(axis=0) == pytest.approx([2, 2], rel=0.15)
    assert abs(np.corrcoef(noise.T)[0, 1]) < 0.2
    assert descend(page, "momentum", **settings)["places"][1] == places[1].tolist()


def test_the_table_and_the_marks_on_the_map_are_where_the_rules_lead(visit: Visit) -> None:
    page = visit.open("explain?surface=curved&rate=0.03&optimizers=sgd,momentum,adagrad,rmsprop,adam")
    page.get_by_label("Step", exact=True).fill("120")
    expect(page.get_by_text("step 120 of 300")).to_be_visible()
    start = {"surface": "curved", "start": [-1.1, 0.9], "rate": 0.03, "momentum": 0.9}
    ways = {name: descend(page, name, **start) for name in LESSON_OPTIMIZERS}
    page_map = page.get_by_role("application")
    width, height = page_map.evaluate("(it) => [it.clientWidth, it.clientHeight]")
    assert width == pytest.approx(2 * height, abs=2)
    for name, way in ways.items():
        x, y = way["places"][120]
        assert place(page, name) == pytest.approx((x, y), abs=6e-4)
    on_map = {n: ((x + 2) / 4 * width, (1.5 - y) / 2 * height) for n, (x, y) in at_step(ways, "places", 120)}
    plot = page.locator("canvas.plot")
    wide, high = plot.evaluate("(it) => [it.clientWidth, it.clientHeight]")
    powers = {name: min(4.0, max(-8.0, math.log10(loss))) for name, loss in at_step(ways, "losses", 120)}
    on_plot = {n: (46 + 0.4 * (wide - 56), 10 + (4 - power) / 12 * (high - 44)) for n, power in powers.items()}
    for canvas, pixels in ((page_map, on_map), (plot, on_plot)):
        assert {name: canvas.evaluate(PIXEL, pixel) for name, pixel in pixels.items()} == MARKS
    best = min(ways, key=lambda name: ways[name]["losses"][120])
    expect(page.locator(".outcome")).to_contain_text(
        f"After 120 steps {row(page, best).locator('label').inner_text()} is lowest"
    )
    row(page, "adam").get_by_role("checkbox").uncheck()
    expect(row(page, "adam").locator(".place")).to_have_text("–")
    expect(page).to_have_url(re.compile("optimizers=sgd,momentum,adagrad,rmsprop$"))


def test_above_two_over_the_curvature_sgd_diverges_and_it_is_said(visit: Visit) -> None:
    page = visit.open("explain")
    expect(page.locator(".limit")).to_contain_text("Above 2 / 25 = 0.08,")
    set_rate(page, 0.079)
    expect(page.locator(".knob output").first).to_have_text("0.079")
    expect(row(page, "sgd")).to_contain_text("at step")
    set_rate(page, 0.085)
    expect(row(page, "sgd")).to_contain_text("diverged at 31")
    expect(page.locator(".outcome")).to_have_text("SGD diverged at step 31.")
    expect(page).to_have_url(re.compile(r"explain\?rate=0.085$"))
    page.get_by_role("button", name="0.01", exact=True).click()
    expect(row(page, "sgd")).to_contain_text("not yet")


def test_the_tour_sets_everything_and_leads_to_real_trainings(visit: Visit) -> None:
    page = visit.open("explain")
    real = page.get_by_role("link", name=re.compile("real digits|Run the lesson"))
    shown = [("0.01", ["sgd"], "#/new?optimizer=sgd&rate=0.01"), ("0.085", ["sgd"], "#/new?optimizer=sgd&rate=0.1")]
    shown.append(("0.01", ["sgd", "momentum"], "#/new?optimizer=momentum&rate=0.01"))
    shown.append(("0.1", ["adagrad", "rmsprop"], "#/new?optimizer=rmsprop&rate=0.001"))
    shown.append(("0.01", list(LESSON_OPTIMIZERS), "#/new?do=lesson"))
    for number, (rate, optimizers, link) in enumerate(shown, 1):
        expect(page.locator(".tour li button[aria-current=step]")).to_contain_text(str(number))
        expect(page.locator(".knob output").first).to_have_text(rate)
        for name in LESSON_OPTIMIZERS:
            expect(row(page, name).get_by_role("checkbox")).to_be_checked(checked=name in optimizers)
        expect(real).to_have_attribute("href", link)
        if number < 5:
            page.get_by_role("button", name="Next", exact=True).click()
            expect(page.locator("#tour-title")).to_be_focused()
    expect(page.get_by_role("button", name="Saddle", exact=True)).to_have_attribute("aria-pressed", "true")
    page.reload()
    expect(real).to_have_attribute("href", "#/new?do=lesson")


def test_what_the_tour_tells_is_so(visit: Visit) -> None:
    page = visit.open("explain?tour=2&rate=0.07")
    expect(row(page, "sgd")).to_contain_text("at step 56")
    page.get_by_role("button", name="Next", exact=True).click()
    expect(row(page, "momentum")).to_contain_text("at step 82")
    expect(row(page, "sgd")).to_contain_text("not yet")
    page.get_by_label("momentum", exact=True).fill("0")
    assert place(page, "momentum") == place(page, "sgd")
    page.get_by_role("button", name=re.compile("4.*each direction")).click()
    expect(row(page, "rmsprop")).to_contain_text("at step")
    expect(row(page, "adagrad")).to_contain_text("not yet")
    page.get_by_role("button", name=re.compile("5.*saddle")).click()
    assert abs(place(page, "sgd")[0]) < 0.3
    assert place(page, "adam")[0] == pytest.approx(1, abs=0.01)


def test_nothing_moves_by_itself_where_that_is_not_wanted(visit: Visit) -> None:
    page = visit.open("explain")
    expect(page.get_by_text("step 300 of 300")).to_be_visible()
    page.get_by_role("button", name="Restart").click()
    page.evaluate(FRAMES)
    expect(page.get_by_text("step 0 of 300")).to_be_visible()
    page.get_by_role("button", name="One step").click()
    expect(page.get_by_text("step 1 of 300")).to_be_visible()


def test_it_plays_pauses_and_stops_when_it_is_left(api: Api, browser: Browser) -> None:
    with visiting(browser, api.url) as visit:
        visit.context.add_init_script(
            "const real = requestAnimationFrame; window.asked = 0;"
            "window.requestAnimationFrame = (act) => (window.asked++, real(act));"
        )
        page = visit.open("explain")
        page.get_by_label("Speed").select_option("10")
        page.wait_for_function("Number(document.querySelector('input[aria-label=Step]').value) > 2")
        page.get_by_role("button", name="Pause").click()
        count = page.locator(".count").inner_text()
        page.evaluate(FRAMES)
        assert page.locator(".count").inner_text() == count
        page.get_by_role("button", name="Play").click()
        page.goto(f"{visit.url}/#/new")
        expect(page.locator("main[data-view=new]")).to_be_visible()
        page.evaluate(FRAMES)
        before = page.evaluate("asked")
        page.evaluate(FRAMES)
        assert page.evaluate("asked") - before == 10, "only those of the test"


def test_the_start_is_moved_with_the_keys_and_with_the_pointer(visit: Visit) -> None:
    page = visit.open("explain")
    page.get_by_label("Step", exact=True).fill("0")
    page_map = page.get_by_role("application", name="Narrow valley, start at -2.5, 0.9")
    page_map.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    assert place(page, "sgd") == (-2.4, 0.8)
    expect(page).to_have_url(re.compile(r"start=-2.4,0.8$"))
    moved = page.get_by_role("application", name="Narrow valley, start at -2.4, 0.8")
    box = moved.bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] * 0.2, box["y"] + box["height"] * 0.2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.75, box["y"] + box["height"] * 0.25, steps=5)
    page.mouse.up()
    assert place(page, "sgd") == pytest.approx((1.5, 0.75), abs=0.02)


def test_a_link_shows_the_same_and_nonsense_in_it_is_left_out(visit: Visit) -> None:
    page = visit.open("explain?tour=9&surface=toString&rate=1e9&momentum=x&start=1&optimizers=adam,<b>")
    expect(page.locator(".knob output").first).to_have_text("0.01")
    expect(row(page, "adam").get_by_role("checkbox")).to_be_checked()
    expect(page.get_by_role("button", name="Narrow valley")).to_have_attribute("aria-pressed", "true")
    page.get_by_label("Noisy gradients").check()
    page.get_by_role("button", name="Curved valley").click()
    said = row(page, "adam").inner_text()
    page.reload()
    expect(page.get_by_label("Noisy gradients")).to_be_checked()
    assert row(page, "adam").inner_text() == said


@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
def test_it_fits_a_phone_in_both_languages(api: Api, browser: Browser, locale: str) -> None:
    phone = {"viewport": {"width": 390, "height": 844}, "locale": locale, "color_scheme": "dark"}
    with visiting(browser, api.url, reduced_motion="reduce", **phone) as visit:
        page = visit.open("explain?tour=5")
        expect(page.get_by_role("heading", level=1)).to_have_text("Explain" if locale == "en-US" else "原理演示")
        expect(row(page, "adam")).to_contain_text("134")
        assert page.evaluate("document.documentElement.scrollWidth") == 390
