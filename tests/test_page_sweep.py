"""A sweep on the page: its card, the grid of optimizers by rates, and the parallel axes."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx2
import pytest
from playwright.sync_api import Browser, expect

from core.jobs.job import Status
from core.jobs.work import WorkStore
from tests.browser import Visit, beside, visiting
from tests.staged import BACKEND, EPOCH, Api, falling

# What came of each pair: the better, the stronger is its cell. One run goes on.
ACCURACY = {("sgd", 0.1): 0.97, ("sgd", 0.001): 0.5, ("adam", 0.1): 0.1135, ("adam", 0.001): 0.99}
SPEC = {"optimizers": ["sgd", "adam"], "learning_rates": [0.1, 0.001], "epochs": 1, "batch_size": 1000, "name": "four"}


@dataclass(frozen=True)
class Sweep:
    api: Api
    id: str
    jobs: dict[tuple[str, float], str]


def post(api: Api, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    answer = httpx2.post(f"{api.url}{path}", json=body, trust_env=False).raise_for_status()
    found: dict[str, Any] = answer.json()
    return found


def sweep_of(api: Api) -> Sweep:
    made = post(api, "/sweeps", SPEC)
    return Sweep(api, made["id"], {(j["optimizer"]["name"], j["learning_rate"]): j["job_id"] for j in made["jobs"]})


async def finish(api: Api, jobs: dict[tuple[str, float], str]) -> None:
    async with WorkStore.connect(api.settings.store_url) as store:
        for (name, rate), job_id in jobs.items():
            claim = await store.claim(job_id, worker="host:1", lease_s=3600)
            assert claim
            await store.begin(claim, BACKEND, resumed_from=None)
            points, accuracy = falling(claim.spec), ACCURACY[name, rate]
            await store.append(claim, points, steps_done=50, images_per_s=15_000.0)
            await store.end_epoch(claim, EPOCH | {"valid_accuracy": accuracy})
            result = {"test_accuracy": accuracy, "final_loss": points[-1]["loss"], "seconds": 3.0 + rate}
            await store.finish(claim, Status.SUCCEEDED, result=result, files={})


@pytest.fixture(scope="module")
def sweep(api: Api) -> Sweep:
    made = sweep_of(api)
    beside(finish(api, made.jobs))
    return made


@pytest.fixture
def visit(sweep: Sweep, browser: Browser) -> Iterator[Visit]:
    with visiting(browser, sweep.api.url) as visit:
        yield visit


def test_the_card_says_what_came_of_the_sweep(visit: Visit, sweep: Sweep) -> None:
    card = visit.open(f"?sweep={sweep.id}").locator("section.sweep")
    expect(card.get_by_role("heading", name="four")).to_be_visible()
    expect(card).to_contain_text("4 of 4 runs have ended")
    expect(card).to_contain_text("adam 0.001 (99.00%) and sgd 0.1 (97.00%)")  # what may be noise
    card.get_by_text("By configuration").click()
    expect(card.locator("tbody tr").first).to_contain_text("adam 0.001")
    assert card.locator("tbody td:nth-child(2)").all_inner_texts() == ["99.00%", "97.00%", "50.00%", "11.35%"]
    expect(card.get_by_role("button", name="Cancel the sweep")).to_have_count(0)


def test_a_sweep_that_goes_on_can_be_cancelled_from_its_card(api: Api, browser: Browser) -> None:
    going = sweep_of(api)
    with visiting(browser, api.url) as visit:
        card = visit.open(f"?sweep={going.id}").locator("section.sweep")
        expect(card).to_contain_text("0 of 4 runs have ended")
        button = card.get_by_role("button")
        button.focus()
        button.press("Enter")
        expect(button).to_have_text("Press again to cancel all that is not done")
        button.press("Enter")
        expect(card).to_contain_text("4 of 4 runs have ended")
        expect(card).to_contain_text("cancelled")


def test_who_is_in_the_card_stays_there_while_it_is_followed(api: Api, browser: Browser) -> None:
    going = sweep_of(api)
    with visiting(browser, api.url) as visit:
        card = visit.open(f"?sweep={going.id}").locator("section.sweep")
        summary = card.get_by_text("By configuration")
        expect(summary).to_be_visible()
        summary.focus()
        beside(finish(api, dict([next(iter(going.jobs.items()))])))
        expect(card).to_contain_text("1 of 4 runs have ended")
        expect(summary).to_be_focused()
        post(api, f"/sweeps/{going.id}/cancel")


def test_a_sweep_that_is_gone_is_told(visit: Visit, sweep: Sweep) -> None:
    visit.allowed.append("Failed to load resource")
    card = visit.open(f"?sweep=sweep_{'0' * 32}").locator("section.sweep")
    expect(card).to_contain_text("There is no such sweep")


def test_the_grid_is_a_table_whose_cells_are_the_stronger_the_better(visit: Visit, sweep: Sweep) -> None:
    page = visit.open(f"?sweep={sweep.id}&chart=grid")
    expect(page.locator(".grid .cell")).to_have_count(4)
    assert page.locator(".grid thead th").all_inner_texts() == ["0.1", "0.001"]
    assert page.locator(".grid tbody th").all_inner_texts() == ["sgd", "adam"]  # as the lesson has them
    cells = {text.split("\n")[0]: float(share) for text, share in page.locator(".grid .cell").evaluate_all(
        "(cells) => cells.map((cell) => [cell.innerText, cell.dataset.share])")}  # fmt: skip
    assert list(cells) == ["97.00%", "50.00%", "11.35%", "99.00%"]
    assert sorted(cells, key=lambda cell: cells[cell]) == ["11.35%", "50.00%", "97.00%", "99.00%"]
    assert (min(cells.values()), max(cells.values())) == (0, 1)
    grounds = page.locator(".grid .cell").evaluate_all(
        "(cells) => cells.map((c) => getComputedStyle(c).backgroundColor)"
    )
    assert len(set(grounds)) == 4

    page.locator(".grid select").select_option("training time")
    expect(page.locator(".grid .cell").first).to_contain_text("3.1 s")
    expect(page.locator(".grid select")).to_be_focused()
    page.reload()  # the address says what is shown
    expect(page.locator(".grid .cell").first).to_contain_text("3.1 s")


@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
def test_a_phone_shows_the_whole_card_and_three_rates_beside_each_other(
    api: Api, browser: Browser, locale: str
) -> None:
    lesson = post(api, "/sweeps", {"epochs": 1})
    with visiting(browser, api.url, locale=locale, viewport={"width": 390, "height": 844}) as visit:
        page = visit.open(f"?sweep={lesson['id']}&chart=grid")
        page.locator("section.sweep summary").click()
        expect(page.locator("section.sweep tbody tr")).to_have_count(15)
        expect(page.locator(".grid .cell")).to_have_count(15)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        hidden = "(scroll) => scroll.scrollWidth - scroll.clientWidth"
        assert page.locator(".grid .scroll").evaluate(hidden) <= 0
    post(api, f"/sweeps/{lesson['id']}/cancel")


def test_a_cell_averages_only_runs_that_differ_in_their_seed_alone(api: Api, browser: Browser) -> None:
    settings = [{"seed": 0}, {"seed": 1}, {"seed": 0, "batch_size": 500}]
    jobs = [
        post(api, "/jobs", {"optimizer": "adam", "learning_rate": 0.1, "name": "cell", **more}) for more in settings
    ]
    beside(finish(api, {("adam", 0.1): jobs[0]["id"]}))
    with visiting(browser, api.url) as visit:
        cell = visit.open("?chart=grid&q=cell").locator(".grid .cell")
        expect(cell).to_have_count(1)
        expect(cell).to_contain_text("11.35")
        expect(cell).to_contain_text("1 of 2 runs · best of 2 settings")
        beside(finish(api, {("adam", 0.001): jobs[2]["id"]}))  # as good as that pair is
        expect(cell).to_contain_text("99.00")
        post(api, f"/jobs/{jobs[1]['id']}/cancel")


def test_a_cell_ticks_its_runs(visit: Visit, sweep: Sweep) -> None:
    page = visit.open(f"?sweep={sweep.id}&chart=grid&on={sweep.jobs['sgd', 0.1]}")
    page.locator(".grid .cell", has_text="99.00%").click()
    box = page.locator(f'tr[data-id="{sweep.jobs["adam", 0.001]}"] input[type=checkbox]')
    expect(box).to_be_checked()


def test_the_parallel_axes_have_a_line_for_each_run_through_what_came_of_it(visit: Visit, sweep: Sweep) -> None:
    page = visit.open(f"?sweep={sweep.id}&chart=parallel")
    expect(page.locator(".parallel .run")).to_have_count(4)
    assert page.locator(".parallel .name").all_text_contents() == [
        "optimizer", "learning rate", "last loss", "training time", "test accuracy",
    ]  # fmt: skip
    ends = page.locator(".parallel .run").evaluate_all(
        """(lines) => Object.fromEntries(lines.map((line) =>
            [line.getAttribute("aria-label"), line.getPointAtLength(line.getTotalLength()).y]))"""
    )
    assert sorted(ends, key=lambda run: -ends[run]) == [
        "adam 0.1",
        "sgd 0.001",
        "sgd 0.1",
        "adam 0.001",
    ]  # up is better
    assert (ends["adam 0.1"], ends["adam 0.001"]) == (320, 44)
    colours = page.locator(".parallel .run").evaluate_all("(lines) => lines.map((line) => line.getAttribute('stroke'))")
    assert len(set(colours)) == 2  # two rates


def test_dragging_along_an_axis_keeps_the_runs_that_pass_there(visit: Visit, sweep: Sweep) -> None:
    page = visit.open(f"?sweep={sweep.id}&chart=parallel")
    accuracy = page.locator(".parallel .handle").last
    accuracy.scroll_into_view_if_needed()
    box = accuracy.bounding_box()
    assert box
    x, top = box["x"] + box["width"] / 2, box["y"]
    page.mouse.move(x, top + 2)
    page.mouse.down()
    page.mouse.move(x, top + box["height"] * 0.5, steps=4)
    page.mouse.up()
    faint = page.locator(".parallel .run.left-out")
    expect(faint).to_have_count(2)
    assert set(faint.evaluate_all("(lines) => lines.map((line) => line.getAttribute('aria-label'))")) == {
        "adam 0.1", "sgd 0.001",
    }  # fmt: skip
    page.reload()
    expect(faint).to_have_count(2)
    accuracy.scroll_into_view_if_needed()
    box = accuracy.bounding_box()
    assert box
    page.mouse.click(x, box["y"] + 4)
    expect(faint).to_have_count(0)
    assert "kept" not in page.url
