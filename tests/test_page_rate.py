"""The view of a learning-rate range test: its curve while it grows, and the rate that it suggests."""

import re
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from playwright.sync_api import Browser, Route, expect

from core.jobs.job import JobError, Status
from core.jobs.work import WorkStore
from core.spec import JobSpec
from tests.browser import Visit, beside, visiting
from tests.conftest import Server
from tests.staged import Api, train

# before any browser: it runs a loop of its own in this thread, for which an open browser leaves no room
pytestmark = pytest.mark.usefixtures("api")

REFUSED = "Failed to load resource"  # the browser logs each answer that refuses something


@pytest.fixture
def visit(api: Api, browser: Browser) -> Iterator[Visit]:
    with visiting(browser, api.url) as visit:
        yield visit


def begun(api: Api) -> Any:
    """A range test that waits for a worker."""
    return httpx2.post(f"{api.url}/lr-range-tests", json={"optimizer": "adam"}, trust_env=False).json()


def test_a_range_test_draws_its_curve_and_marks_the_rate_to_train_with(browser: Browser, server: Server) -> None:
    with visiting(browser, server.url) as visit:
        page = visit.open("new?do=rate&optimizer=momentum")
        page.locator("summary", has_text="More settings").click()
        page.get_by_label("First rate").fill("0.001")
        page.get_by_label("Last rate").fill("1000000")  # steep: it has blown up after a third of its steps
        page.get_by_role("button", name="Find a rate").click()
        page.wait_for_url(re.compile("#/rate/job_"))
        answer = page.locator(".rate-answer")
        expect(answer).to_be_visible(timeout=60_000)
        test = httpx2.get(f"{server.url}/lr-range-tests/{page.url.rpartition('/')[2]}", trust_env=False).json()
        suggestion = test["suggestion"]
        expect(answer).to_contain_text(suggestion["sentence"]["en"])
        expect(page.locator(".rate-plot .shapelayer path")).to_have_count(
            sum(suggestion[mark] is not None for mark in ("rate", "steepest_rate", "least_rate", "blown_up_rate"))
        )
        assert page.locator(".rate-plot .scatterlayer .trace").count() == 2
        drawn = page.evaluate("document.querySelector('.rate-plot').data.map(({ x, y }) => [x.length, y.length])")
        assert drawn == [[len(test["curve"]["rate"])] * 2] * 2
        expect(page.locator(".rate-plot .annotation-text").first).to_contain_text("suggested")
        place = page.evaluate(_WHERE_THE_LINE_STANDS)
        assert place["line"] == pytest.approx(place["rate"], abs=1.5)
        rows = page.locator(".rate-marks tbody tr")
        assert rows.first.locator("td").first.inner_text() == f"{suggestion['rate']:.2g}"
        use = page.get_by_role("link", name=f"Train with {suggestion['rate']:.2g}")
        use.click()
        expect(page.locator("input[name=own-rate]")).to_have_value(f"{suggestion['rate']:.2g}")
        expect(page.get_by_role("radio", exact=True, name="momentum")).to_be_checked()
        page.go_back()
        page.get_by_role("button", name="中文").click()
        expect(page.locator(".rate-answer")).to_contain_text(suggestion["sentence"]["zh"])


_WHERE_THE_LINE_STANDS = """() => {
    const plot = document.querySelector(".rate-plot");
    const box = plot.querySelector(".shapelayer path").getBoundingClientRect();
    const { xaxis } = plot._fullLayout;
    const left = plot.getBoundingClientRect().left + xaxis._offset;
    return { line: box.left + box.width / 2, rate: left + xaxis.c2p(plot.layout.shapes[0].x0) };
}"""


def test_a_range_test_that_waits_says_so_and_can_be_cancelled(visit: Visit, api: Api) -> None:
    test = begun(api)
    page = visit.open(f"rate/{test['id']}")
    expect(page.get_by_role("main").get_by_role("status").first).to_contain_text("waits for a worker")
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator(".rate-head .chip")).to_have_text("cancelled")
    assert httpx2.get(f"{api.url}/jobs/{test['id']}", trust_env=False).json()["status"] == "cancelled"
    expect(page.get_by_role("link", name="Test again")).to_be_visible()


def test_a_curve_grows_while_the_page_looks_on_and_a_failure_is_told(visit: Visit, api: Api) -> None:
    spec = JobSpec.model_validate(
        {"optimizer": "sgd", "learning_rate": {"schedule": "range_test"}, "epochs": 1, "log_every": 1}
    )

    async def begin() -> Any:
        async with WorkStore.connect(api.settings.store_url) as store:
            return await train(store, await store.submit(spec), points=20)

    async def fail(claim: Any) -> None:
        async with WorkStore.connect(api.settings.store_url) as store:
            error = JobError(code="internal", message="<i>the disk is full</i>", step=19)
            await store.finish(claim, Status.FAILED, error=error)

    claim = beside(begin())
    page = visit.open(f"rate/{claim.job_id}")
    expect(page.locator("main progress")).to_be_visible()
    expect(page.locator(".rate-plot .scatterlayer .trace")).to_have_count(2, timeout=20_000)
    beside(fail(claim))
    expect(page.locator("main .error:visible")).to_contain_text("<i>the disk is full</i>")
    expect(page.locator(".rate-answer")).to_have_count(0)
    expect(page.locator("main progress")).to_have_count(0)


def test_a_range_test_is_shown_again_when_the_server_is_back(visit: Visit, api: Api) -> None:
    visit.allowed.append(REFUSED)
    test = begun(api)
    looks: list[Route] = []

    def lose_the_second(route: Route) -> None:
        looks.append(route)
        if len(looks) == 1:
            route.continue_()
        else:
            route.abort()

    visit.page.route("**/lr-range-tests/*", lose_the_second, times=2)
    page = visit.open(f"rate/{test['id']}")
    told = page.get_by_role("main").get_by_role("status").first
    expect(told).to_contain_text("cannot be reached")
    page.evaluate("dispatchEvent(new Event('online'))")
    expect(told).to_contain_text("waits for a worker")


def test_a_range_test_that_is_not_here_is_said_not_to_be(visit: Visit) -> None:
    visit.allowed.append(REFUSED)
    page = visit.open("rate/job_00000000000000000000000000000000")
    expect(page.locator("main .error:visible")).to_contain_text("no range test with this id")
