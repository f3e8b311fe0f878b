"""Runs and curves on one page: what is drawn, what the table says, and what the address remembers."""

import csv
import io
import re
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

from core.jobs.job import Status
from core.jobs.work import Claim, WorkStore
from core.spec import JobSpec
from tests.browser import Visit, beside, visiting
from tests.conftest import eventually
from tests.staged import Api, api_without_worker, begun, ended, falling

OPTIMIZERS = ("sgd", "momentum", "adagrad", "rmsprop", "adam")
RATES = (0.1, 0.01, 0.001)
HOSTILE = "<img src=x onerror='window.hacked = 1'>"
RULES = {
    "settled": "no other rule holds",
    "rising_again": "the smoothed loss rises",
    "still_falling": "the loss is still",
}
ONLINE = "dispatchEvent(new Event('online'))"  # as a browser does, so that nobody waits for the next poll
FORMULA = '=cmd|"calc"'

# Of each line that is drawn: its run, its colour and dashes, how many pieces it has, and where it ends on the screen.
LINES = """
    [...document.querySelectorAll(".plot .scatterlayer .trace")].map((trace) => {
        const pieces = trace.querySelectorAll("path.js-line"); // as many as there are gaps, and one
        const line = pieces[0];
        const style = getComputedStyle(line);
        return {
            run: [...trace.classList].find((name) => name.startsWith("trace") && name !== "trace").slice(5),
            colour: style.stroke,
            dash: style.strokeDasharray,
            opacity: Number(getComputedStyle(trace).opacity),
            pieces: pieces.length,
            width: line.getBBox().width,
        };
    })
"""


@dataclass(frozen=True)
class Staged:
    api: Api
    runs: dict[tuple[str, float], str]  # (optimizer, rate) -> id: the lesson's fifteen, ended


def spec_of(optimizer: str = "adam", rate: float | dict[str, Any] = 0.001, **more: Any) -> JobSpec:
    return JobSpec.model_validate({"optimizer": optimizer, "learning_rate": rate, "epochs": 1} | more)


async def lesson(api: Api) -> dict[tuple[str, float], str]:
    async with WorkStore.connect(api.settings.store_url) as store:
        return {
            (optimizer, rate): await ended(store, api.settings, spec_of(optimizer, rate), seed=seed)
            for seed, (optimizer, rate) in enumerate((o, r) for o in OPTIMIZERS for r in RATES)
        }


@pytest.fixture(scope="module")
def staged(api: Api) -> Staged:
    return Staged(api, beside(lesson(api)))


@pytest.fixture
def visit(staged: Staged, browser: Browser) -> Iterator[Visit]:
    with visiting(browser, staged.api.url, accept_downloads=True) as visit:
        yield visit


def is_inside(inner: Locator, outer: Locator) -> bool:
    expect(inner).to_be_visible()
    one, other = inner.bounding_box(), outer.bounding_box()
    assert one
    assert other
    is_wide = other["x"] <= one["x"] and one["x"] + one["width"] <= other["x"] + other["width"]
    return is_wide and other["y"] <= one["y"] and one["y"] + one["height"] <= other["y"] + other["height"]


def in_store(api: Api, use: Any) -> Any:
    """What `use(store)` gives, a coroutine that runs beside the browser."""

    async def connected() -> Any:
        async with WorkStore.connect(api.settings.store_url) as store:
            made: Coroutine[Any, Any, Any] = use(store)
            return await made

    return beside(connected())


def finished(api: Api, **spec: Any) -> str:
    return str(in_store(api, lambda store: ended(store, api.settings, spec_of(**spec))))


def row(page: Page, job_id: str) -> Locator:
    return page.locator(f'tr[data-id="{job_id}"]')


def lines(page: Page) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = page.evaluate(LINES)
    return found


def drawn(page: Page, count: int) -> list[dict[str, Any]]:
    """The lines, once there are so many."""
    expect(page.locator(".plot .scatterlayer .trace")).to_have_count(count)
    return lines(page)


def marks(page: Page, axis: str = "x") -> list[str]:
    """What is written along an axis, in order."""
    return sorted(page.locator(f".plot .{axis}tick text").all_text_contents(), key=float)


def width(page: Page, job_id: str) -> float:
    """How far a run's line reaches, in pixels; 0 when it is not drawn."""
    return sum(line["width"] for line in lines(page) if line["run"] == job_id)


def query(page: Page) -> dict[str, str]:
    fragment = urlsplit(page.url).fragment
    return {name: values[0] for name, values in parse_qs(urlsplit(fragment).query).items()}


def zoom(page: Page, start: float, end: float) -> None:
    """Drag over a share of the plot's width; the whole of its height stays."""
    before = marks(page)
    box = page.locator(".plot .nsewdrag").bounding_box()
    assert box
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + start * box["width"], y)
    page.mouse.down()
    page.mouse.move(box["x"] + end * box["width"], y, steps=5)
    page.mouse.up()
    eventually(lambda: marks(page) != before)


# --- curves ------------------------------------------------------------------------------------------------------------


def test_a_tick_shows_the_curve_in_the_colour_of_its_rate_and_the_dashes_of_its_optimizer(
    visit: Visit, staged: Staged
) -> None:
    page = visit.open("?on=none")
    expect(page.locator(".plot")).to_be_hidden()  # it has no axes of its own to show
    assert is_inside(page.get_by_text("Tick runs in the table"), page.locator(".plot-frame"))
    first, second = staged.runs["sgd", 0.1], staged.runs["adam", 0.01]
    row(page, first).get_by_role("checkbox").check()
    (solid,) = drawn(page, 1)
    assert solid["run"] == first
    assert solid["dash"] == "none"
    row(page, second).get_by_role("checkbox").check()
    found = {line["run"]: line for line in drawn(page, 2)}
    assert found[second]["dash"] == "5px, 4px"
    assert found[second]["colour"] != found[first]["colour"]
    for job_id, line in found.items():
        swatch = row(page, job_id).locator(".swatch line")
        assert swatch.evaluate("(line) => getComputedStyle(line).stroke") == line["colour"]
    row(page, first).get_by_role("checkbox").uncheck()
    assert [line["run"] for line in drawn(page, 1)] == [second]


def test_runs_of_one_rate_share_a_colour_and_the_legend_says_what_it_means(visit: Visit, staged: Staged) -> None:
    page = visit.open(f"?on={staged.runs['sgd', 0.1]},{staged.runs['adam', 0.1]}")
    one, other = drawn(page, 2)
    assert one["colour"] == other["colour"]
    assert one["dash"] != other["dash"]
    legend = page.locator(".legend")
    expect(legend).to_contain_text("colour = rate0.1")
    expect(legend).to_contain_text("dashes = optimizersgdadam")


def test_without_a_choice_those_that_go_on_and_the_newest_are_ticked(visit: Visit, staged: Staged) -> None:
    page = visit.open()
    drawn(page, 8)
    expect(page.locator("tbody input:checked")).to_have_count(8)
    going_on = staged.api.jobs[Status.RUNNING]
    expect(row(page, going_on).get_by_role("checkbox")).to_be_checked()
    assert "on" not in query(page)


def test_a_run_is_emphasised_from_its_row_and_from_its_curve(visit: Visit, staged: Staged) -> None:
    first, second = staged.runs["sgd", 0.001], staged.runs["adam", 0.1]
    page = visit.open(f"?on={first},{second}")
    drawn(page, 2)
    row(page, first).hover()
    expect(page.locator(".trace.is-on")).to_have_class(re.compile(f"trace{first}"))
    expect(page.locator(".trace.is-back .lines")).to_have_css("opacity", "0.18")
    box = page.locator(".plot .nsewdrag").bounding_box()
    assert box
    for share in (0.5, 0.51):  # low: the faster one
        page.mouse.move(box["x"] + share * box["width"], box["y"] + box["height"] - 4)
    expect(row(page, second)).to_have_class("is-on")
    expect(page.locator(".readout tr.is-on")).to_contain_text("adam 0.1")
    expect(page.locator(".readout tr")).to_have_count(2)


def test_a_smoothed_curve_has_its_raw_one_below_it(visit: Visit, staged: Staged) -> None:
    job_id = staged.runs["adam", 0.01]
    page = visit.open(f"?on={job_id}")
    drawn(page, 1)
    page.get_by_label("smoothing").fill("0.9")
    raw, smooth = drawn(page, 2)
    assert (raw["run"], smooth["run"]) == (f"raw-{job_id}", job_id)
    assert (raw["opacity"], smooth["opacity"]) == (0.3, 1)
    assert raw["colour"] == smooth["colour"]
    assert query(page)["smooth"] == "0.9"
    page.get_by_label("smoothing").fill("0")
    drawn(page, 1)


def test_the_axes_can_be_others_and_guessing_has_its_line(visit: Visit, staged: Staged) -> None:
    page = visit.open(f"?on={staged.runs['adam', 0.01]}")
    drawn(page, 1)
    guess = page.locator(".plot .shapelayer path")
    expect(guess).to_have_count(1)
    expect(page.locator(".plot .annotation")).to_have_text("ln 10 = guessing")
    one, two = (page.locator(".plot .ytick text", has_text=re.compile(f"^{mark}$")).bounding_box() for mark in "12")
    line = guess.bounding_box()
    assert one
    assert two
    assert line
    assert line["y"] < two["y"] < one["y"]  # a little above 2
    assert float(marks(page)[-1]) > 400
    page.get_by_role("button", name="epochs").click()
    expect(page.locator(".plot .xtitle")).to_have_text("epoch")
    expect(page.locator(".plot .xtick text").last).to_have_text(re.compile(r"^0\.[89]"))
    page.get_by_role("button", name="accuracy", exact=True).click()
    expect(page.locator(".plot .ytitle")).to_have_text("accuracy")
    expect(guess).to_have_count(0)
    expect(page.get_by_label("log y")).to_be_disabled()
    assert query(page) == {"on": staged.runs["adam", 0.01], "x": "epoch", "y": "accuracy"}


def test_a_loss_that_is_not_finite_leaves_a_gap(visit: Visit, staged: Staged) -> None:
    async def broken(store: WorkStore) -> str:
        claim = await begun(store, spec_of())
        points = falling(claim.spec)
        points[20] |= {"loss": None, "nonfinite": "inf"}
        await store.append(claim, points, steps_done=500, images_per_s=1.0)
        await store.cancel(claim.job_id)
        await store.stop(claim)
        return claim.job_id

    page = visit.open(f"?on={in_store(staged.api, broken)}")
    (line,) = drawn(page, 1)
    assert line["pieces"] == 2


def test_of_very_many_points_it_says_how_many_it_shows_and_saves_all(visit: Visit, staged: Staged) -> None:
    job_id = finished(staged.api, epochs=12, log_every=1, name="long")
    page = visit.open(f"?on={job_id}")
    drawn(page, 1)
    expect(page.locator(".notes")).to_contain_text("long is sampled: 5,000 of 6,000 points")
    assert len(saved_csv(page)) == 6000


def test_a_live_curve_grows_and_what_is_zoomed_stays(visit: Visit, staged: Staged) -> None:
    claim: Claim = in_store(staged.api, lambda store: begun(store, spec_of(rate=0.01)))
    points = falling(claim.spec)
    page = visit.open(f"?on={claim.job_id},{staged.runs['sgd', 0.1]}")
    in_store(staged.api, lambda store: store.append(claim, points[:20], steps_done=191, images_per_s=1.0))
    eventually(lambda: width(page, claim.job_id) > 0)
    zoom(page, 0.2, 0.9)
    before, zoomed = width(page, claim.job_id), marks(page)
    seen = query(page)["zx"]
    expect(row(page, claim.job_id).get_by_role("progressbar")).to_have_attribute("aria-label", "38%")
    in_store(staged.api, lambda store: store.append(claim, points[20:40], steps_done=391, images_per_s=1.0))
    eventually(lambda: width(page, claim.job_id) > before + 100)
    assert marks(page) == zoomed
    assert query(page)["zx"] == seen
    expect(row(page, claim.job_id).get_by_role("progressbar")).to_have_attribute("aria-label", "78%")
    box = page.locator(".plot .nsewdrag").bounding_box()
    assert box
    page.mouse.dblclick(box["x"] + 200, box["y"] + 100)
    eventually(lambda: marks(page) != zoomed)
    assert "zx" not in query(page)
    in_store(staged.api, lambda store: store.cancel(claim.job_id))
    in_store(staged.api, lambda store: store.stop(claim))


def test_the_address_shows_the_same_again(visit: Visit, staged: Staged) -> None:
    page = visit.open(f"?on={staged.runs['sgd', 0.1]}&x=epoch&optimizer=adam&sort=loss")
    row(page, staged.runs["adam", 0.1]).get_by_role("checkbox").check()
    page.get_by_label("smoothing").fill("0.8")
    drawn(page, 4)
    zoom(page, 0.1, 0.5)
    before = (marks(page), [line["run"] for line in lines(page)], rows(page), query(page))
    page.reload()
    drawn(page, 4)
    assert (marks(page), [line["run"] for line in lines(page)], rows(page), query(page)) == before
    expect(page.get_by_label("smoothing")).to_have_value("0.8")
    assert len(rows(page)) < 15


def test_the_link_names_the_runs_that_were_ticked_by_themselves(visit: Visit, staged: Staged) -> None:
    visit.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = visit.open()
    ids = [line["run"] for line in drawn(page, 8)]
    page.get_by_role("button", name="Copy link").click()
    expect(page.get_by_text("Copied.")).to_be_visible()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == page.url
    assert query(page)["on"].split(",") == ids


def test_a_range_test_is_not_ticked_among_others_by_itself(visit: Visit, staged: Staged) -> None:
    sweeps_rate = {"schedule": "range_test", "start": 1e-5, "end": 10.0}
    tested = finished(staged.api, rate=sweeps_rate, batch_size=500, log_every=1)
    page = visit.open()
    drawn(page, 8)
    expect(row(page, tested).get_by_role("checkbox")).not_to_be_checked()
    row(page, tested).get_by_role("checkbox").check()
    drawn(page, 9)


def test_a_run_that_is_gone_is_told_and_the_others_are_shown(visit: Visit, staged: Staged) -> None:
    gone = f"job_{'0' * 32}"
    visit.allowed.append("Failed to load resource")  # its 404
    page = visit.open(f"?on={gone},{staged.runs['sgd', 0.1]}")
    drawn(page, 1)
    expect(page.locator(".notes")).to_have_text("1 run of this link is not there any more.")


def test_a_curve_that_is_refused_for_now_is_drawn_later(visit: Visit, staged: Staged) -> None:
    visit.allowed.append("429")
    busy = {"status": 429, "headers": {"Retry-After": "1"}, "body": '{"code": "rate-limited"}'}
    visit.context.route("**/loss?*", lambda route: route.fulfill(**busy))
    with visit.page.expect_response("**/loss?*"):
        page = visit.open(f"?on={staged.runs['adam', 0.1]},{staged.runs['sgd', 0.1]}")
    expect(page.locator(".notes")).to_have_text("Reading 2 curves…")
    visit.context.unroute("**/loss?*")
    drawn(page, 2)
    expect(page.locator(".notes")).to_have_text("")


def test_the_chart_comes_when_plotly_can_be_loaded_after_all(visit: Visit, staged: Staged) -> None:
    visit.allowed.extend(["Failed to load resource", "preload"])
    visit.context.route("**/plotly.min.js", lambda route: route.abort())
    page = visit.open(f"?on={staged.runs['adam', 0.1]}")
    problem = page.locator(".curves > [role=alert]")
    expect(problem).to_be_visible()
    visit.context.unroute("**/plotly.min.js")
    row(page, staged.runs["sgd", 0.1]).get_by_role("checkbox").check()
    drawn(page, 2)
    expect(problem).to_be_hidden()


def test_what_cannot_be_exported_is_told_in_the_readers_language(staged: Staged, browser: Browser) -> None:
    with visiting(browser, staged.api.url, locale="zh-CN") as visit:
        visit.allowed.append("Failed to load resource")
        page = visit.open(f"?on={staged.runs['adam', 0.1]}")
        drawn(page, 1)
        visit.context.set_offline(True)
        page.get_by_role("button", name="CSV").click()
        expect(page.locator(".runs-chart .failed")).to_have_text("无法连接服务器。")


def test_the_tabs_name_what_they_show(visit: Visit) -> None:
    page = visit.open()
    page.get_by_role("tab").nth(1).click()
    panel = page.get_by_role("tabpanel", name=page.get_by_role("tab").nth(1).inner_text())
    expect(panel.locator(".grid")).to_be_visible()
    expect(page.get_by_role("tab").nth(1)).to_have_attribute("aria-controls", str(panel.get_attribute("id")))


def test_more_than_twenty_are_not_drawn_over_each_other(visit: Visit) -> None:
    page = visit.open("?on=none")
    page.get_by_role("button", name="Tick all").click()
    drawn(page, 20)
    ticked = page.locator("tbody input:checked").count()
    assert ticked > 20
    expect(page.locator(".notes")).to_contain_text(f"{ticked} are ticked; the first 20 are drawn")
    page.get_by_role("button", name="Tick none").click()
    drawn(page, 0)


def test_two_runs_are_compared_in_a_sentence_and_in_numbers(visit: Visit, staged: Staged) -> None:
    page = visit.open(f"?on={staged.runs['adam', 0.1]}")
    drawn(page, 1)
    expect(page.locator(".comparison")).to_be_hidden()
    row(page, staged.runs["sgd", 0.1]).get_by_role("checkbox").check()
    expect(page.locator(".comparison")).to_contain_text("cannot be told from one seed")
    page.get_by_text("The same as numbers").click()
    table = page.locator(".numbers table")
    expect(table.locator("tbody tr")).to_have_count(2)
    points = falling(spec_of("adam", 0.1), seed=OPTIMIZERS.index("adam") * 3)
    expect(table.locator("tbody tr").first).to_contain_text(f"adam 0.1{len(points)}2.310")


# --- files -------------------------------------------------------------------------------------------------------------


def saved_csv(page: Page) -> list[dict[str, str]]:
    with page.expect_download() as download:
        page.get_by_role("button", name="CSV").click()
    text = Path(download.value.path()).read_text("utf-8")
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_the_csv_has_every_point_and_no_name_is_a_formula(visit: Visit, staged: Staged) -> None:
    job_id = finished(staged.api, name=FORMULA)
    page = visit.open(f"?on={job_id}")
    drawn(page, 1)
    found = saved_csv(page)
    assert list(found[0]) == ["job_id", "label", "step", "epoch", "time_s", "loss"]
    assert {each["label"] for each in found} == {f"'{FORMULA}"}
    url = f"{staged.api.url}/jobs/{job_id}/loss"
    points = httpx2.get(url, trust_env=False).json()["points"]
    assert [(int(each["step"]), float(each["loss"])) for each in found] == [(p["step"], p["loss"]) for p in points]


def test_the_csv_is_of_what_is_drawn(visit: Visit, staged: Staged) -> None:
    job_id = staged.runs["adam", 0.01]
    page = visit.open(f"?on={job_id}&y=accuracy")
    drawn(page, 1)
    found = saved_csv(page)
    epochs = httpx2.get(f"{staged.api.url}/jobs/{job_id}/metrics", trust_env=False).json()["epochs"]
    assert [(int(each["epoch"]), float(each["valid_accuracy"]), float(each["train_loss"])) for each in found] == [
        (epoch["epoch"], epoch["valid_accuracy"], epoch["train_loss"]) for epoch in epochs
    ]


def test_the_picture_is_a_png_with_the_curves_in_it(visit: Visit, staged: Staged) -> None:
    page = visit.open(f"?on={staged.runs['sgd', 0.1]},{staged.runs['adam', 0.01]}")
    colours = [line["colour"] for line in drawn(page, 2)]
    with page.expect_download() as download:
        page.get_by_role("button", name="PNG", exact=True).click()
    picture = Image.open(download.value.path())
    assert picture.format == "PNG"
    assert picture.size == (1400, 800)
    seen = {colour for _, colour in picture.convert("RGB").getcolors(1 << 24) or []}
    for colour in colours:
        assert tuple(int(part) for part in re.findall(r"\d+", colour)[:3]) in seen


# --- the table ---------------------------------------------------------------------------------------------------------


def rows(page: Page) -> list[str]:
    ids: list[str] = page.locator("tbody tr[data-id]").evaluate_all("(rows) => rows.map((row) => row.dataset.id)")
    return ids


def test_rows_are_sorted_by_a_click_and_filtered_by_words(visit: Visit, staged: Staged) -> None:
    page = visit.open("?on=none")
    expect(page.locator("tbody tr").first).to_be_visible()
    assert rows(page) == sorted(rows(page), reverse=True)
    page.get_by_role("button", name="last loss").click()
    head = page.get_by_role("columnheader", name="last loss")
    expect(head).to_have_attribute("aria-sort", "descending")
    losses = [float(text) for text in page.locator("td.c-loss").all_text_contents() if re.match(r"\d", text)]
    assert losses == sorted(losses, reverse=True)
    page.get_by_role("button", name="last loss").click()
    expect(head).to_have_attribute("aria-sort", "ascending")
    page.get_by_label("Search").fill("momentum")
    assert set(rows(page)) == {staged.runs["momentum", rate] for rate in RATES}
    page.get_by_label("Search").fill("")
    page.get_by_role("combobox", name="status").select_option("paused")
    assert rows(page) == [staged.api.jobs[Status.PAUSED]]
    assert query(page) == {"on": "none", "sort": "loss", "status": "paused"}


def test_a_row_says_what_became_of_its_run_and_by_which_rule(visit: Visit, staged: Staged) -> None:
    job_id = staged.runs["adam", 0.1]
    page = visit.open("?on=none")
    expect(row(page, job_id).locator(".c-accuracy")).to_have_text("75.00%")
    expect(row(page, job_id).locator(".c-test")).to_have_text("74.80%")
    expect(row(page, job_id).locator(".c-seconds")).to_have_text("3.1 s")
    expect(row(page, job_id).locator(".sparkline path")).to_have_attribute("d", re.compile("^M2.0 2.0L.*L86.0"))
    table = httpx2.get(f"{staged.api.url}/compare?jobs={job_id}", trust_env=False).json()["table"]
    verdict = table["runs"][0]["verdict"]
    chip = row(page, job_id).locator(".c-verdict .chip")
    chip.scroll_into_view_if_needed()
    chip.hover()
    tip = page.locator(".tip")
    expect(tip).to_contain_text(verdict["en"])
    rule = RULES[verdict["rule"]]
    expect(tip).to_contain_text(f"Rule: {rule}")
    page.mouse.move(0, 0)
    expect(tip).to_be_hidden()
    chip.focus()
    expect(tip).to_be_visible()
    assert rule in (chip.get_attribute("aria-description") or "")


def test_where_no_run_matches_the_filter_can_be_cleared(visit: Visit, staged: Staged) -> None:
    page = visit.open("?on=none&q=zzzz")
    expect(page.locator(".runs-nothing")).to_contain_text("No run matches.")
    page.get_by_role("button", name="Clear filter").click()
    expect(page.get_by_label("Search")).to_be_focused()
    expect(page.get_by_label("Search")).to_have_value("")
    expect(row(page, staged.runs["adam", 0.1])).to_be_attached()
    expect(page.locator(".runs-nothing")).to_be_hidden()
    assert query(page) == {"on": "none"}
    visit.allowed.append("Failed to load resource")  # its 404
    page = visit.open(f"?sweep=sweep_{'0' * 32}")
    expect(page.locator(".plot")).to_be_hidden()
    page.get_by_role("button", name="Clear filter").click()
    expect(row(page, staged.runs["adam", 0.1])).to_be_attached()


def test_a_tip_can_be_pointed_at_and_is_closed_by_escape(visit: Visit) -> None:
    page = visit.open("?on=none")
    chip = page.get_by_role("button", name="too slow").or_(page.get_by_role("button", name="good")).first
    chip.scroll_into_view_if_needed()
    chip.hover()
    tip = page.locator(".tip")
    tip.hover()
    expect(tip).to_be_visible()
    page.keyboard.press("Escape")
    expect(tip).to_be_hidden()
    page.get_by_role("button", name="best accuracy").focus()
    expect(tip).to_contain_text("validation images after any epoch")


def test_names_and_tags_are_text(visit: Visit, staged: Staged) -> None:
    job_id = finished(staged.api, name=HOSTILE, tags={HOSTILE: "<b>bold</b>"})
    page = visit.open(f"?on={job_id}")
    drawn(page, 1)
    expect(row(page, job_id).locator(".c-name")).to_contain_text(HOSTILE)
    expect(row(page, job_id).locator(".c-name .tag")).to_have_text(f"{HOSTILE}: <b>bold</b>")
    box = page.locator(".plot .nsewdrag").bounding_box()
    assert box
    for share in (0.3, 0.31):
        page.mouse.move(box["x"] + share * box["width"], box["y"] + box["height"] / 2)
    expect(page.locator(".readout")).to_contain_text(HOSTILE)
    page.get_by_text("The same as numbers").click()
    expect(page.locator(".numbers tbody th")).to_have_text(HOSTILE)
    assert page.locator("main img, main b").count() == 0
    assert page.evaluate("window.hacked") is None


def test_the_keyboard_alone_is_enough(visit: Visit, staged: Staged) -> None:
    visit.allowed.append("Failed to load resource")  # the run it ends at has weights that are none
    page = visit.open("?on=none&q=rmsprop&sort=rate")
    drawn(page, 0)
    tab = page.get_by_role("tab", name="Curves")
    tab.focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Grid")).to_be_focused()
    assert query(page)["chart"] == "grid"
    page.keyboard.press("ArrowLeft")
    expect(tab).to_be_focused()
    page.get_by_label("Search").focus()
    first = row(page, staged.runs["rmsprop", 0.001])
    for _ in range(30):
        page.keyboard.press("Tab")
        if first.get_by_role("checkbox").evaluate("(box) => box === document.activeElement"):
            break
    page.keyboard.press("Space")
    assert drawn(page, 1)[0]["run"] == staged.runs["rmsprop", 0.001]
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(f"#/run/{staged.runs['rmsprop', 0.001]}$"))


def test_the_other_tabs_draw_the_rows_and_tick_what_is_chosen(visit: Visit, staged: Staged) -> None:
    page = visit.open("?on=none&q=momentum&chart=parallel")
    expect(page.locator(".picture path.run")).to_have_count(3)
    page.get_by_role("tab", name="Grid").click()
    cells = page.locator(".picture button.cell")
    expect(cells).to_have_count(3)
    cells.last.click()
    expect(row(page, staged.runs["momentum", 0.001]).get_by_role("checkbox")).to_be_checked()
    expect(page.locator("tbody input:checked")).to_have_count(1)
    page.get_by_role("tab", name="Curves").click()
    assert [line["run"] for line in drawn(page, 1)] == [staged.runs["momentum", 0.001]]


def test_a_sweeps_runs_are_shown_alone_and_ticked(visit: Visit, staged: Staged) -> None:
    body = {"optimizers": ["sgd", "adam"], "learning_rates": [0.1, 0.01], "epochs": 1}
    sweep = httpx2.post(f"{staged.api.url}/sweeps", json=body, trust_env=False).json()["id"]
    page = visit.open(f"?sweep={sweep}")
    expect(page.locator("tbody tr[data-id]")).to_have_count(4)
    expect(page.locator("tbody input:checked")).to_have_count(4)
    expect(page.locator(".notes")).to_contain_text("4 of the ticked runs have no points yet.")
    page.get_by_role("link", name="All runs").click()
    expect(page.locator("tbody tr[data-id]")).not_to_have_count(4)


def test_no_column_is_cut_off_on_a_laptop(visit: Visit, staged: Staged) -> None:
    named = finished(staged.api, name="L" * 200, tags={"k" * 30: "v" * 40})
    body = {"optimizer": "adam"}
    tested = httpx2.post(f"{staged.api.url}/lr-range-tests", json=body, trust_env=False).json()["id"]
    page = visit.open()
    expect(row(page, tested).locator(".c-rate")).to_have_text("range test")
    expect(row(page, named).locator(".c-verdict .chip")).to_be_visible()
    for width in (1440, 1280, 1250, 1230, 1110):
        page.set_viewport_size({"width": width, "height": 800})
        hidden = page.locator(".runs-table").evaluate("(scroll) => scroll.scrollWidth - scroll.clientWidth")
        assert hidden <= 0, width
    page.get_by_role("button", name="中文").click()
    expect(row(page, tested).locator(".c-rate")).to_have_text("范围测试")
    row(page, tested).get_by_role("checkbox").check()
    expect(page.locator(".legend")).to_contain_text("范围测试")


def test_older_runs_are_asked_for(visit: Visit, staged: Staged) -> None:
    async def many(store: WorkStore) -> None:
        for _ in range(100):
            await store.submit(spec_of())

    in_store(staged.api, many)
    page = visit.open("?on=none")
    expect(page.locator("tbody tr[data-id]").nth(99)).to_be_attached()  # and those that go on, however old
    expect(row(page, staged.runs["sgd", 0.1])).to_have_count(0)
    expect(page.locator(".filter")).to_contain_text("without older ones")
    page.get_by_role("searchbox").fill(staged.runs["sgd", 0.1])
    expect(page.locator(".runs-nothing")).to_contain_text("No run that was read so far matches. Older ones are below.")
    page.get_by_role("button", name="Older runs").click()
    expect(row(page, staged.runs["sgd", 0.1])).to_be_attached()
    expect(page.get_by_role("button", name="Older runs")).to_be_hidden()
    expect(page.locator(".filter")).not_to_contain_text("without older ones")


# --- elsewhere ---------------------------------------------------------------------------------------------------------


def test_a_phone_has_the_whole_page_in_its_width(staged: Staged, browser: Browser) -> None:
    runs = {rate: finished(staged.api, optimizer="adagrad", rate=rate, name="phone") for rate in RATES}
    with visiting(browser, staged.api.url, viewport={"width": 390, "height": 844}) as visit:
        page = visit.open(f"?q=phone&on={runs[0.1]}")
        drawn(page, 1)
        for job_id in rows(page):
            assert all(
                is_inside(cell, row(page, job_id))
                for cell in row(page, job_id).locator(":scope > *").all()
                if cell.is_visible()
            )
        shown = row(page, runs[0.1])
        for cell, label in (
            ("loss", "last loss"),
            ("accuracy", "best accuracy"),
            ("test", "test"),
            ("seconds", "training"),
        ):
            expect(shown.locator(f".c-{cell}")).to_be_visible()
            told = shown.locator(f".c-{cell}").evaluate("(cell) => getComputedStyle(cell, '::before').content")
            assert told == f'"{label}"'
        expect(shown.locator(".sparkline")).to_be_visible()
        expect(page.locator(".runs-table thead")).to_be_hidden()
        page.get_by_label("Sort by").select_option("rate")
        assert rows(page) == [runs[rate] for rate in RATES]
        page.get_by_role("button", name="Turn the order round").click()
        assert rows(page) == [runs[rate] for rate in reversed(RATES)]
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_server_that_is_away_before_the_first_list_is_told(visit: Visit) -> None:
    visit.allowed.append("Failed to load resource")
    asked = re.compile("/(jobs|version)")
    visit.context.route(asked, lambda route: route.abort())
    page = visit.open()
    expect(page.locator(".before")).to_contain_text("cannot be reached")
    visit.context.unroute(asked)
    page.evaluate(ONLINE)
    expect(page.locator("tbody tr").first).to_be_visible()


def test_the_first_screen_says_what_this_is_and_what_to_do(browser: Browser, tmp_path: Path) -> None:
    with api_without_worker(tmp_path, is_empty=True) as api, visiting(browser, api.url) as visit:
        page = visit.open()
        expect(page.get_by_role("heading")).to_contain_text("Watch a network learn")
        ways = page.locator(".welcome a").evaluate_all("(links) => links.map((link) => link.getAttribute('href'))")
        assert ways == ["#/new?do=lesson", "#/new", "#/new?do=rate", "#/explain"]
        page.get_by_role("button", name="中文").click()
        expect(page.get_by_role("heading")).to_contain_text("观察神经网络如何学习")
        job_id = in_store(api, lambda store: begun(store, spec_of())).job_id
        page.evaluate(ONLINE)
        expect(row(page, job_id)).to_be_visible()
