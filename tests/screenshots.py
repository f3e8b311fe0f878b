"""`make screenshots`: the pictures of the page in docs/images, by a real browser, of a real server that trained the lesson."""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import httpx2
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from tests.browser import browsing, visiting
from tests.conftest import ROOT, eventually, serving

IMAGES = ROOT / "docs" / "images"
EPOCHS = 2  # of the lesson's five: its picture, in two minutes
SEVEN = [(90, 90), (230, 90), (150, 290)]  # on the paper, in pixels from its corner


def main() -> None:
    cache = Path(os.environ.get("DESCENT_CACHE", ROOT / ".descent" / "cache")).absolute()
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder), cache) as server:
        best = train(server.url)
        with browsing() as browser:
            for language, ending in (("en-US", ""), ("zh-CN", "-zh")):
                take(browser, server.url, best, ending, locale=language)


def train(url: str) -> str:
    """The lesson's fifteen runs; the id of the best."""
    with httpx2.Client(base_url=url, timeout=60, trust_env=False) as http:
        sweep = http.post("/sweeps", json={"epochs": EPOCHS}).raise_for_status().json()
        path = sweep["links"]["self"]
        eventually(lambda: http.get(path).json()["terminal"], within_s=900, what="the end of the lesson")
        return str(http.get(path).json()["table"]["best"]["job_id"])


def take(browser: Browser, url: str, best: str, ending: str, **options: Any) -> None:
    with visiting(browser, url, viewport={"width": 1280, "height": 960}, device_scale_factor=1.5, **options) as visit:
        page = visit.open()
        expect(page.locator(".scatterlayer .trace")).not_to_have_count(0)
        keep(page, f"page-runs{ending}")
        keep(visit.open(f"run/{best}"), f"page-run{ending}", full=True)
        page = visit.open("draw")
        draw(page)
        keep(page, f"page-draw{ending}")
        keep(visit.open("explain?surface=valley"), f"page-explain{ending}")


def draw(page: Page) -> None:
    box = page.locator("canvas").first.bounding_box()
    assert box
    (x, y), *rest = SEVEN
    page.mouse.move(box["x"] + x, box["y"] + y)
    page.mouse.down()
    for x, y in rest:
        page.mouse.move(box["x"] + x, box["y"] + y, steps=12)
    page.mouse.up()


def keep(page: Page, name: str, *, full: bool = False) -> None:
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(1500)  # for what moves to come to rest
    path = IMAGES / f"{name}.png"
    page.screenshot(path=path, full_page=full, animations="disabled")
    Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)  # a third of the size, and looks the same
    sys.stdout.write(f"docs/images/{name}.png\n")


if __name__ == "__main__":
    main()
