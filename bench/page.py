"""The page with 200 runs in the store, and with 20 that go on: how soon it is there, what it takes of a core; two tables.

`.venv/bin/python bench/page.py` (about 2 minutes). A private API without a worker; the runs are put into its database. Debian's
chromium, without a window, on the same machine: what it draws it draws with the CPU.
"""

import argparse
import asyncio
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from playwright.sync_api import Browser, CDPSession

from bench import measure
from bench.servers import descent
from core.jobs.work import Claim, WorkStore
from core.settings import Settings
from core.spec import JobSpec
from tests.browser import browsing
from tests.staged import begun, ended, falling

RUNS = 200
LIVE = 20
PUSHES_PER_S = 4
OPTIMIZERS = ("sgd", "momentum", "adagrad", "rmsprop", "adam")
RATES = (0.1, 0.01, 0.001)

# Looks once a frame what is there, and notes when it first was, in ms after the navigation began.
WATCH = """
    window.seen = {};
    const rows = () => document.querySelectorAll(".runs-table tbody tr").length;
    const there = {
        rows: () => rows() > 0,
        sparklines: () => rows() > 0 && document.querySelectorAll(".sparkline path").length >= rows(),
        curve: () => document.querySelector(".plot .scatterlayer .trace path.js-line"),
    };
    const look = () => {
        for (const [name, is] of Object.entries(there)) if (!(name in seen) && is()) seen[name] = performance.now();
        requestAnimationFrame(look);
    };
    requestAnimationFrame(look);
"""
# The ms between frames while the table scrolls from its top to its end and back.
SCROLL = """() => new Promise((resolve) => {
    const table = document.querySelector(".runs-table");
    const gaps = [];
    let [before, step] = [performance.now(), 60];
    const next = (now) => {
        gaps.push(now - before);
        before = now;
        if (table.scrollTop + table.clientHeight >= table.scrollHeight - 1) step = -60;
        table.scrollTop += step;
        gaps.length < 120 ? requestAnimationFrame(next) : resolve(gaps.slice(1));
    };
    requestAnimationFrame(next);
})"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=10)
    asked = parser.parse_args()
    print(measure.heading(f"The page: {RUNS} runs in the store, {LIVE} that go on"))
    with descent(finished) as server, browsing() as browser:
        rounds = [opened(browser, server.url) for _ in range(asked.rounds)]
    head = ["", "median", "range"]
    print(measure.table(head, [line(name, [each[name] for each in rounds]) for name in rounds[0]]))
    print()
    with growing() as (url, push), browsing() as browser:
        push.start()
        rows = watched(browser, url, asked.seconds)
    print(measure.table([f"{LIVE} live runs, {PUSHES_PER_S} pushes a second to each", "share of a core"], rows))


def line(name: str, values: list[float]) -> list[str]:
    return [name, f"{statistics.median(values):,.0f} ms", f"{min(values):,.0f}-{max(values):,.0f}"]


def spec_of(number: int, **more: Any) -> JobSpec:
    optimizer, rate = OPTIMIZERS[number % len(OPTIMIZERS)], RATES[number // len(OPTIMIZERS) % len(RATES)]
    return JobSpec.model_validate({"optimizer": optimizer, "learning_rate": rate} | more)


async def finished(settings: Settings) -> None:
    """Runs that have ended, with the lesson's five epochs."""
    async with WorkStore.connect(settings.store_url) as store:
        for number in range(RUNS):
            await ended(store, settings, spec_of(number), seed=number)


def opened(browser: Browser, url: str) -> dict[str, float]:
    """From the navigation of a new visitor, whose browser has nothing in its cache, in ms."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.add_init_script(WATCH)
    page = context.new_page()
    page.goto(f"{url}/")
    page.wait_for_function("() => Object.keys(window.seen).length === 3")
    seen = page.evaluate("window.seen")
    while page.get_by_role("button", name="Older runs").is_visible():
        page.get_by_role("button", name="Older runs").click()
        page.wait_for_function(f"() => document.querySelectorAll('.runs-table tbody tr').length === {RUNS}")
    gaps = page.evaluate(SCROLL)
    context.close()
    return {
        "rows in the table": seen["rows"],
        "every row with its sparkline": seen["sparklines"],
        "the ticked curves drawn": seen["curve"],
        f"a frame, scrolling {RUNS} rows: median": statistics.median(gaps),
        f"a frame, scrolling {RUNS} rows: longest of 120": max(gaps),
    }


@contextmanager
def growing() -> Iterator[tuple[str, threading.Thread]]:
    """An API with live runs of 250 points, and a thread that makes all of them grow until the block ends."""
    kept: list[Settings] = []
    stop = threading.Event()

    async def fill(settings: Settings) -> None:
        kept.append(settings)

    thread = threading.Thread(target=lambda: asyncio.run(_grow(kept[0], stop)))
    with descent(fill) as server:
        try:
            yield server.url, thread
        finally:
            stop.set()
            thread.join()


async def _grow(settings: Settings, stop: threading.Event) -> None:
    async with WorkStore.connect(settings.store_url) as store:
        claims = [await begun(store, spec_of(number, log_every=1)) for number in range(LIVE)]
        points = [falling(claim.spec, seed=seed) for seed, claim in enumerate(claims)]
        for claim, own in zip(claims, points, strict=True):
            await _push(store, claim, own[:250])
        for at in range(250, len(points[0]), 5):
            if stop.is_set():
                return
            began = time.perf_counter()
            for claim, own in zip(claims, points, strict=True):
                await _push(store, claim, own[at : at + 5])
            await asyncio.sleep(max(0, 1 / PUSHES_PER_S - (time.perf_counter() - began)))


async def _push(store: WorkStore, claim: Claim, points: list[dict[str, Any]]) -> None:
    await store.append(claim, points, steps_done=points[-1]["step"] + 1, images_per_s=15_000.0)


def watched(browser: Browser, url: str, seconds: int) -> list[list[str]]:
    """What the page takes while all curves are drawn and grow: its main thread, and all processes of the browser."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(f"{url}/")
    page.wait_for_function(f"() => document.querySelectorAll('tbody tr').length === {LIVE}")
    page.get_by_role("button", name="Tick all").click()
    page.wait_for_function(f"() => document.querySelectorAll('.plot .scatterlayer .trace').length === {LIVE}")
    page.wait_for_timeout(3000)  # the first drawing is not what is measured
    of_page, of_browser = page.context.new_cdp_session(page), browser.new_browser_cdp_session()
    of_page.send("Performance.enable")
    before, began = _busy(of_page, of_browser), time.perf_counter()
    page.wait_for_timeout(seconds * 1000)
    after, took = _busy(of_page, of_browser), time.perf_counter() - began
    return [[name, f"{(after[name] - before[name]) / took:.2f}"] for name in before]


def _busy(of_page: CDPSession, of_browser: CDPSession) -> dict[str, float]:
    """Seconds so far."""
    metrics = {each["name"]: each["value"] for each in of_page.send("Performance.getMetrics")["metrics"]}
    whole = of_browser.send("SystemInfo.getProcessInfo")["processInfo"]
    return {
        "the page's main thread (TaskDuration)": metrics["TaskDuration"],
        "all processes of the browser": sum(each["cpuTime"] for each in whole),
    }


if __name__ == "__main__":
    main()
