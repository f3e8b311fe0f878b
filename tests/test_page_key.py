"""The page of a server that requires keys: it asks for one, takes no wrong one, and everything then goes with it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from core.settings import Settings
from tests.browser import Visit, visiting
from tests.test_auth import api_process, await_answer, finished_job, on_redis


@dataclass(frozen=True)
class Keyed:
    url: str
    key: str
    job_id: str


@pytest.fixture(scope="module")
def keyed(redis_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    """An API that requires keys, the key of its only owner, and a job of theirs."""
    db, home = f"{redis_settings.store_url}?db=5", tmp_path_factory.mktemp("keyed")
    key = on_redis(db, lambda keys, _: keys.create("ann", admin=False))[1]
    job = finished_job(db, home, "ann", 0.9)
    with api_process(home / "api.log", home=str(home), redis_url=db) as (_, url):
        await_answer(url)
        yield Keyed(url, key, job.id)


@pytest.fixture
def visit(keyed: Keyed, browser: Browser) -> Iterator[Visit]:
    with visiting(browser, keyed.url, accept_downloads=True) as visit:
        visit.allowed.append("Failed to load resource")  # the 401 that makes it ask
        yield visit


def enter(visit: Visit, key: str) -> None:
    dialog = visit.page.get_by_role("dialog")
    dialog.get_by_label("Key").fill(key)
    dialog.get_by_role("button", name="Enter").click()


def test_it_asks_for_a_key_and_shows_the_owners_runs(visit: Visit, keyed: Keyed) -> None:
    page = visit.open()
    enter(visit, keyed.key)
    expect(page.locator(f'tr[data-id="{keyed.job_id}"]')).to_be_visible()
    expect(page.locator(".banner")).to_be_hidden()
    page.reload()
    expect(page.locator(f'tr[data-id="{keyed.job_id}"]')).to_be_visible()
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert keyed.key not in page.url
    assert keyed.key not in page.evaluate("JSON.stringify(localStorage)")


def test_a_wrong_key_is_told_and_asked_for_again(visit: Visit, keyed: Keyed) -> None:
    page = visit.open()
    enter(visit, "dsc_wrong")
    expect(page.get_by_role("dialog")).to_contain_text("not known here")
    enter(visit, "schlüssel")  # no header can carry it
    expect(page.get_by_role("dialog")).to_be_visible()
    enter(visit, keyed.key)
    expect(page.locator(f'tr[data-id="{keyed.job_id}"]')).to_be_visible()


def test_who_closes_the_dialog_can_be_asked_again(visit: Visit, keyed: Keyed) -> None:
    page = visit.open()
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    page.locator(".banner").get_by_role("button", name="Enter a key").click()
    enter(visit, keyed.key)
    expect(page.locator(f'tr[data-id="{keyed.job_id}"]')).to_be_visible()


def test_a_download_goes_with_the_key(visit: Visit, keyed: Keyed, tmp_path: Path) -> None:
    page = visit.open(f"run/{keyed.job_id}")
    enter(visit, keyed.key)
    with page.expect_download() as told:
        page.get_by_role("button", name="model.safetensors").click()
    told.value.save_as(tmp_path / "weights")
    assert (tmp_path / "weights").stat().st_size > 0
