"""A real browser for the tests of the page: Debian's chromium, driven by Playwright, which downloads none.

`python -m tests.browser` installs it where it is missing and that is allowed (root on Debian); `make test` does so.
"""

import asyncio
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit

from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

T = TypeVar("T")

NAMES = ("chromium", "chromium-browser", "google-chrome")
HOW = "the page's tests need a browser: `apt-get install chromium`, or name one in DESCENT_CHROMIUM"
FONTS = "fonts-wqy-microhei"  # Chinese characters, for screenshots
_INSTALL_LIMIT_S = 600
_LIMIT_MS = 15_000  # for anything a test waits for

# Told by the page itself, because some of it never reaches the console.
_TELL_VIOLATIONS = """
    window.complaints = [];
    addEventListener("securitypolicyviolation", (event) =>
        window.complaints.push(`CSP: ${event.violatedDirective} ${event.blockedURI} ${event.sample}`));
"""


def chromium() -> str | None:
    named = os.environ.get("DESCENT_CHROMIUM")
    return next((path for name in ([named] if named else NAMES) if (path := shutil.which(name))), None)


def install(*packages: str) -> None:
    """Install Debian's packages, where this is root and there is an apt-get; say what is to be done otherwise."""
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        sys.stderr.write(f"{HOW}\n")
        return
    quiet = ["apt-get", "-qq", "-o", "Acquire::Retries=3", "-o", "DPkg::Lock::Timeout=120"]
    env = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in ([*quiet, "update"], [*quiet, "install", "--yes", "--no-install-recommends", *packages]):
        try:
            subprocess.run(command, env=env, stdout=subprocess.DEVNULL, timeout=_INSTALL_LIMIT_S, check=True)
        except subprocess.SubprocessError as error:
            sys.stderr.write(f"{error}\n{HOW}\n")
            return


@contextmanager
def browsing() -> Iterator[Browser]:
    """A browser, closed afterwards. While it is open this thread has a running event loop: see `beside`."""
    expect.set_options(timeout=15_000)  # as long as everything else is waited for (`visiting`)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium(),
            args=["--no-sandbox"] if os.geteuid() == 0 else [],  # its sandbox refuses to run as root
        )
        yield browser
        browser.close()


def beside(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in a thread of its own, because this one has a loop as long as the browser is open."""
    found: list[T] = []
    thread = threading.Thread(target=lambda: found.append(asyncio.run(coroutine)))
    thread.start()
    thread.join(60)
    assert found, "it did not end, or raised"
    return found[0]


@dataclass
class Visit:
    """A page of a context of its own, and all that it must not do."""

    page: Page
    context: BrowserContext
    url: str
    complaints: list[str] = field(default_factory=list)
    allowed: list[str] = field(default_factory=list)  # parts of complaints that a test expects

    def open(self, where: str = "") -> Page:
        """The page at a place in it: `new`, `run/job_...`, `?chart=grid`."""
        self.page.goto(f"{self.url}/#/{where}")
        return self.page

    def unexpected(self) -> list[str]:
        told: list[str] = self.page.evaluate("globalThis.complaints ?? []") if not self.page.is_closed() else []
        return [each for each in [*self.complaints, *told] if not any(part in each for part in self.allowed)]


@contextmanager
def visiting(browser: Browser, url: str, **options: Any) -> Iterator[Visit]:
    """A visit that fails when the page logs an error, breaks its own policy, or asks another host."""
    context = browser.new_context(**{"locale": "en-US", "viewport": {"width": 1280, "height": 900}} | options)
    context.set_default_timeout(_LIMIT_MS)
    expect.set_options(timeout=_LIMIT_MS)
    context.add_init_script(_TELL_VIOLATIONS)
    visit = Visit(context.new_page(), context, url)
    page = visit.page
    page.on("console", lambda it: visit.complaints.append(f"console: {it.text}") if it.type == "error" else None)
    page.on("pageerror", lambda it: visit.complaints.append(f"error: {it}"))
    page.on("request", lambda it: visit.complaints.append(f"asked {it.url}") if _is_foreign(it.url, url) else None)
    try:
        yield visit
        assert not (unexpected := visit.unexpected()), unexpected
    finally:
        context.close()


def _is_foreign(asked: str, own: str) -> bool:
    parts = urlsplit(asked)
    return parts.scheme in ("http", "https", "ws", "wss") and parts.netloc != urlsplit(own).netloc


if __name__ == "__main__":
    wanted = ["chromium"] if chromium() is None else []
    if "--fonts" in sys.argv[1:]:
        wanted.append(FONTS)
    if wanted:
        install(*wanted)
