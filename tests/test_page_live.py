"""What the page holds of the runs: none is lost, none is shown as it was, and a curve grows whatever becomes of the stream."""

from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import httpx2
import pytest
from playwright.sync_api import Browser, Locator, Page, Route, expect

from core.jobs.job import Status
from core.jobs.work import Claim, WorkStore
from core.spec import JobSpec
from tests.browser import Visit, beside, visiting
from tests.conftest import eventually
from tests.staged import BACKEND, EPOCH, SPEC, Api, begun, ended, falling, published

Use = Callable[[WorkStore], Coroutine[Any, Any, Any]]

SHORT = JobSpec.model_validate({"optimizer": "adam", "learning_rate": 0.001, "epochs": 2, "batch_size": 500})
REFUSED = "Failed to load resource"
ONLINE = "dispatchEvent(new Event('online'))"  # as a browser does, so that nobody waits for the next poll
HIDDEN = """
    Object.defineProperty(document, "hidden", { value: %s, configurable: true });
    document.dispatchEvent(new Event("visibilitychange"));
"""


@pytest.fixture
def visit(api: Api, browser: Browser) -> Iterator[Visit]:
    with visiting(browser, api.url) as visit:
        yield visit


def in_store(api: Api, use: Use) -> Any:
    """What `use(store)` gives, a coroutine that runs beside the browser."""

    async def connected() -> Any:
        async with WorkStore.connect(api.settings.store_url) as store:
            return await use(store)

    return beside(connected())


def waiting(api: Api, count: int) -> list[str]:
    """So many new runs that wait."""

    async def submit(store: WorkStore) -> list[str]:
        return [(await store.submit(SPEC)).id for _ in range(count)]

    found: list[str] = in_store(api, submit)
    return found


def training(api: Api) -> Claim:
    claim: Claim = in_store(api, lambda store: begun(store, SHORT))
    return claim


def finished(api: Api, *, seed: int = 0) -> str:
    return str(in_store(api, lambda store: ended(store, api.settings, SHORT, seed=seed)))


def tell(api: Api, claim: Claim, start: int, end: int) -> None:
    """The worker tells some of a run's points."""
    points = falling(claim.spec)[start:end]
    in_store(api, lambda store: store.append(claim, points, steps_done=points[-1]["step"] + 1, images_per_s=1.0))


def trained_more(api: Api, job_id: str) -> Claim:
    """A run that has ended is extended, and a worker has begun with it."""
    answer = httpx2.post(f"{api.url}/jobs/{job_id}/resume", json={"epochs": 2}, trust_env=False)
    assert answer.raise_for_status().json()["status"] == "queued"

    async def begin(store: WorkStore) -> Claim:
        claim = await store.claim(job_id, worker="host:1", lease_s=3600)
        assert claim
        await store.begin(claim, BACKEND, resumed_from=None)
        return claim

    claim: Claim = in_store(api, begin)
    return claim


def finish(api: Api, claim: Claim) -> None:
    async def end(store: WorkStore) -> None:
        for epoch in range(claim.spec.epochs):
            await store.end_epoch(claim, EPOCH | {"epoch": epoch})
        result = {"valid_accuracy": 0.9, "test_accuracy": 0.9, "final_loss": 0.1, "seconds": 9.0}
        files = published(api.settings, claim, b"weights")
        await store.finish(claim, Status.SUCCEEDED, result=result, files=files)

    in_store(api, end)


def gone(api: Api, job_id: str) -> None:
    """Another client cancels a run, unless it has ended, and deletes it at once."""

    async def delete(store: WorkStore) -> None:
        await store.cancel(job_id)
        await store.delete(job_id)

    in_store(api, delete)


def row(page: Page, job_id: str) -> Locator:
    return page.locator(f'tr[data-id="{job_id}"]')


def verdict(page: Page, job_id: str) -> Locator:
    return row(page, job_id).locator(".c-verdict .chip")


def drawn(page: Page) -> int:
    """How many points the curve of a run's page has."""
    return int(page.evaluate("document.querySelector('.run-plot')?.data?.[0].x.length ?? 0"))


def wait_for_points(page: Page, count: int) -> None:
    eventually(lambda: drawn(page) == count, what=f"a curve of {count} points")


# --- which runs there are ----------------------------------------------------------------------------------------------


def test_a_run_that_trains_has_its_row_though_more_than_a_page_of_runs_came_after_it(visit: Visit, api: Api) -> None:
    claim = training(api)
    waiting(api, 150)
    visit.page.route("**/events?*", lambda route: route.fulfill(status=503, json={}))
    visit.allowed.append(REFUSED)
    page = visit.open()
    expect(row(page, claim.job_id)).to_contain_text("running")
    finish(api, claim)
    page.evaluate(ONLINE)  # no list has it now
    expect(row(page, claim.job_id)).to_contain_text("succeeded")


def test_runs_that_came_while_nobody_asked_all_have_their_rows(visit: Visit, api: Api) -> None:
    page = visit.open()
    expect(page.locator("tbody tr[data-id]").first).to_be_visible()
    came = waiting(api, 150)
    page.evaluate(ONLINE)
    expect(row(page, came[-1])).to_have_count(1)
    assert page.evaluate("(ids) => ids.filter((id) => !document.querySelector(`tr[data-id=${id}]`))", came) == []


def test_a_list_that_comes_late_takes_no_new_run_away(visit: Visit, api: Api) -> None:
    page = visit.open()
    expect(page.locator("tbody tr[data-id]").first).to_be_visible()
    held: list[Route] = []
    answers: list[Any] = []

    def hold(route: Route) -> None:
        answers.append(route.fetch())
        held.append(route)

    page.route("**/jobs?limit=100", hold, times=1)
    page.evaluate(ONLINE)
    eventually(lambda: page.evaluate("1") and held, what="the list's request")
    (job_id,) = waiting(api, 1)
    page.evaluate(f"location.hash = '#/run/{job_id}'")
    expect(page.locator("#status")).to_have_text("queued")
    with page.expect_response("**/jobs?limit=100"):
        held[0].fulfill(response=answers[0])
    in_store(api, lambda store: store.pause(job_id))
    expect(page.locator("#status")).to_have_text("paused")


def test_an_old_run_that_another_client_deletes_is_told_to_be_gone(visit: Visit, api: Api) -> None:
    (job_id,) = waiting(api, 1)
    waiting(api, 101)
    asked: list[str] = []
    visit.allowed.append(REFUSED)
    visit.page.on("request", lambda it: asked.append(it.url) if "/events?jobs" in it.url and job_id in it.url else None)
    page = visit.open(f"run/{job_id}")
    expect(page.locator("#status")).to_have_text("queued")
    eventually(lambda: page.evaluate("1") and asked, what="the stream")
    gone(api, job_id)
    page.evaluate(ONLINE)
    expect(page.get_by_text("There is no such run")).to_be_visible()
    before = len(asked)
    page.evaluate(ONLINE)
    with page.expect_response("**/jobs?limit=100"):
        page.evaluate(ONLINE)
    assert len(asked) == before  # the stream is not asked for it again


def test_a_run_that_was_deleted_leaves_the_others_their_verdicts(visit: Visit, api: Api) -> None:
    kept, lost = finished(api), finished(api, seed=1)
    waiting(api, 101)
    visit.allowed.append(REFUSED)
    page = visit.open()
    expect(page.locator("tbody tr[data-id]").first).to_be_visible()

    def delete(route: Route) -> None:
        if lost in route.request.url and not deleted:
            deleted.append(lost)
            gone(api, lost)
        route.continue_()

    deleted: list[str] = []
    page.route("**/compare?*", delete)
    page.get_by_role("button", name="older").click()
    expect(verdict(page, kept)).to_be_visible()
    expect(row(page, lost)).to_have_count(0)
    assert deleted


# --- their curves ------------------------------------------------------------------------------------------------------


def test_runs_that_are_paused_do_not_take_the_stream_from_the_one_that_trains(visit: Visit, api: Api) -> None:
    claim = training(api)
    tell(api, claim, 0, 2)

    async def pause(store: WorkStore) -> None:
        for _ in range(55):
            await store.pause((await store.submit(SPEC)).id)

    in_store(api, pause)
    page = visit.open(f"run/{claim.job_id}")
    wait_for_points(page, 2)
    tell(api, claim, 2, 6)
    wait_for_points(page, 6)


def test_without_the_stream_the_curve_grows_with_each_poll(visit: Visit, api: Api) -> None:
    claim = training(api)
    tell(api, claim, 0, 3)
    refused: list[Route] = []

    def refuse(route: Route) -> None:
        refused.append(route)
        route.fulfill(status=503, json={})

    visit.page.route("**/events?*", refuse)
    visit.allowed.append(REFUSED)
    page = visit.open(f"run/{claim.job_id}")
    wait_for_points(page, 3)
    eventually(lambda: page.evaluate("1") and refused, what="the refusal")
    tell(api, claim, 3, 8)
    page.evaluate(ONLINE)
    wait_for_points(page, 8)


def test_a_run_that_is_trained_more_is_drawn_to_its_new_end(visit: Visit, api: Api) -> None:
    job_id = finished(api)
    claim = trained_more(api, job_id)
    page = visit.open(f"run/{job_id}")
    old = len(falling(SHORT))
    wait_for_points(page, old)
    tell(api, claim, old, old + 1)  # told behind what the stream says of its first end
    wait_for_points(page, old + 1)
    visit.page.route("**/events?*", lambda route: route.fulfill(status=503, json={}))
    visit.allowed.append(REFUSED)
    page.evaluate(HIDDEN % "true")  # the stream is cut
    page.evaluate(HIDDEN % "false")
    tell(api, claim, old + 1, len(falling(claim.spec)))
    finish(api, claim)
    page.evaluate(ONLINE)
    expect(page.locator("#status")).to_have_text("succeeded")
    wait_for_points(page, len(falling(claim.spec)))


def test_a_run_that_is_trained_more_has_no_verdict_until_it_has_ended(visit: Visit, api: Api) -> None:
    job_id = finished(api)
    page = visit.open(f"?on={job_id}")
    expect(verdict(page, job_id)).to_be_visible()
    trained_more(api, job_id)
    page.evaluate(ONLINE)
    expect(row(page, job_id)).to_contain_text("running")
    expect(verdict(page, job_id)).to_have_count(0)
