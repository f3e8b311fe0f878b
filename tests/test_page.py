"""The page's frame: its files, its policy, its languages, what it does when the server is away or wants a key."""

import gzip
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from hatchling.builders.wheel import WheelBuilder
from playwright.sync_api import Browser, expect

from tests.browser import Visit, visiting
from tests.conftest import ROOT
from tests.staged import Api

WEB = ROOT / "web"
KEY = re.compile(r'^  "([^"]+)":', re.MULTILINE)


@pytest.fixture
def visit(api: Api, browser: Browser) -> Iterator[Visit]:  # in this order: see `beside`
    with visiting(browser, api.url) as visit:
        yield visit


def keys_of(name: str) -> list[str]:
    return KEY.findall((WEB / name).read_text())


def get(url: str, **headers: str) -> httpx2.Response:
    return httpx2.get(url, headers=headers, trust_env=False)


def test_the_page_is_asked_for_again_and_its_files_never(api: Api) -> None:
    page = get(api.url)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert get(api.url, **{"If-None-Match": page.headers["etag"]}).status_code == 304
    named = re.findall(r'(?:src|href|content)="(/page/[^"]+)"', page.text)
    files = {path.name for path in WEB.iterdir() if path.suffix != ".html"}
    assert sorted(Path(path).name for path in named) == sorted(files | {"plotly.min.js"})  # each once, all at once
    for path in named:
        answer = get(f"{api.url}{path}")
        assert answer.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert answer.headers["content-encoding"] == "gzip"


def test_a_file_is_whole_for_clients_that_take_no_gzip(api: Api) -> None:
    path = re.search(r'src="(/page/[^"]+/main.js)"', get(api.url).text)
    assert path
    for wish in ("identity", "gzip;q=0", "br, gzip; q=0.0", "xgzip"):
        plain = get(f"{api.url}{path[1]}", **{"Accept-Encoding": wish})
        assert "content-encoding" not in plain.headers, wish
        assert plain.content == (WEB / "main.js").read_bytes()
    for wish in ("gzip", "br, GZIP;q=0.5", "gzip;q=1.0, br"):
        assert get(f"{api.url}{path[1]}", **{"Accept-Encoding": wish}).headers["content-encoding"] == "gzip", wish


def test_a_file_of_another_version_is_not_there(api: Api) -> None:
    answer = get(f"{api.url}/page/0123456789abcdef/main.js")
    assert answer.status_code == 404
    assert "load the page again" in answer.json()["detail"]


def test_the_policy_allows_nothing_inline_and_nothing_from_elsewhere(api: Api) -> None:
    policy = get(api.url).headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "script-src 'self';" in policy
    assert "http" not in policy


def test_both_languages_have_the_same_words_in_the_same_order() -> None:
    english, chinese = keys_of("en.js"), keys_of("zh.js")
    assert english == chinese
    assert len(english) == len(set(english)) > 30


def test_every_word_the_page_asks_for_is_there() -> None:
    known = set(keys_of("en.js"))
    stems = {key.rpartition(".")[0] for key in known}  # forms of a number, and keys that are put together
    for path in WEB.glob("*.js"):
        for key in re.findall(r'\bt\("([^"]+)"', path.read_text()):
            assert key in known or key in stems, (path.name, key)


def test_every_word_that_is_there_is_asked_for() -> None:
    code = "".join(path.read_text() for path in WEB.glob("*.js") if path.name not in ("en.js", "zh.js"))
    put_together = set(re.findall(r'[`"]([\w.]+\.)\$\{', code))
    for key in keys_of("en.js"):
        stem = key.rpartition(".")[0]
        assert f'"{key}"' in code or f'"{stem}"' in code or any(key.startswith(start) for start in put_together), key


def test_the_language_can_be_switched_and_is_remembered(visit: Visit) -> None:
    page = visit.open()
    expect(page.get_by_role("link", name="Draw a digit")).to_be_visible()
    page.get_by_role("button", name="中文").click()
    expect(page.get_by_role("link", name="手写识别")).to_be_visible()
    assert page.evaluate("document.documentElement.lang") == "zh-CN"
    page.reload()
    expect(page.get_by_role("link", name="手写识别")).to_be_visible()


def test_a_chinese_browser_is_spoken_to_in_chinese(api: Api, browser: Browser) -> None:
    with visiting(browser, api.url, locale="zh-CN") as visit:
        expect(visit.open().get_by_role("link", name="手写识别")).to_be_visible()


def test_it_is_dark_where_the_system_is_and_can_be_turned(api: Api, browser: Browser) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    with visiting(browser, api.url, color_scheme="dark") as visit:
        page = visit.open()
        assert page.evaluate(ground) == "rgb(18, 24, 30)"
        page.locator("#theme").click()
        assert page.evaluate(ground) == "rgb(255, 255, 255)"
        page.reload()
        assert page.evaluate(ground) == "rgb(255, 255, 255)"


def test_it_follows_the_system_into_the_evening(api: Api, browser: Browser) -> None:
    with visiting(browser, api.url, color_scheme="light") as visit:
        page = visit.open()
        page.emulate_media(color_scheme="dark")
        expect(page.locator("body")).to_have_css("background-color", "rgb(18, 24, 30)")


@pytest.mark.parametrize("where", ["run/%", "constructor", "toString/x?on=%"])
def test_an_address_that_means_nothing_does_not_break_the_page(visit: Visit, where: str) -> None:
    visit.allowed.append("Failed to load resource")
    page = visit.open(where)
    page.get_by_role("link", name="Runs", exact=True).click()
    expect(page.locator("tr[data-id]")).not_to_have_count(0)


def test_who_switches_something_in_the_header_by_keyboard_stays_there(visit: Visit) -> None:
    page = visit.open()
    for name in ("theme", "language"):
        page.locator(f"#{name}").press("Enter")
        expect(page.locator(f"#{name}")).to_be_focused()


def test_a_server_that_is_away_is_told_and_so_is_its_return(visit: Visit) -> None:
    visit.allowed.append("Failed to load resource")  # the browser says so itself
    banner = visit.open().locator(".banner[role=status]")
    expect(banner).to_be_hidden()
    visit.context.set_offline(True)
    expect(banner).to_contain_text("cannot be reached")
    visit.context.set_offline(False)
    expect(banner).to_be_hidden()


def test_the_page_says_in_html_what_to_do_without_javascript(api: Api) -> None:
    said = re.search("<noscript>(.*?)</noscript>", get(api.url).text, re.DOTALL)
    assert said
    assert "/docs" in said[1]


def test_the_smoothed_curve_has_no_bias_and_the_sample_keeps_the_peaks(visit: Visit) -> None:
    page = visit.open()
    found = page.evaluate(
        """async () => {
            const base = document.querySelector("script[type=module]").src.replace("main.js", "");
            const { smoothed, shown } = await import(`${base}history.js`);
            const spiky = Array.from({ length: 20001 }, (_, n) => (n === 777 ? 9 : n === 5000 ? null : 1 + n / 1e6));
            return { flat: smoothed([2, 2, null, 2], 0.9), first: smoothed([3, 1], 0.5), kept: shown(spiky) };
        }"""
    )
    assert [round(value, 9) if value else None for value in found["flat"]] == [2, 2, None, 2]
    assert found["first"] == [3, pytest.approx(5 / 3)]
    assert len(found["kept"]) <= 5000
    assert {0, 777, 5000, 20000} <= set(found["kept"])
    assert found["kept"] == sorted(found["kept"])


def test_the_largest_file_is_small_when_it_travels(api: Api) -> None:
    path = re.search(r'content="(/page/[^"]+plotly.min.js)"', get(api.url).text)
    assert path
    with httpx2.stream("GET", f"{api.url}{path[1]}", trust_env=False) as answer:
        raw = b"".join(answer.iter_raw())
    assert len(raw) < 1_600_000
    assert gzip.decompress(raw).endswith(b"}));")


def test_the_page_is_in_the_wheel(tmp_path: Path) -> None:
    built = next(WheelBuilder(str(ROOT)).build(directory=str(tmp_path)))
    packed = set(zipfile.ZipFile(built).namelist())
    assert {f"web/{path.name}" for path in WEB.iterdir()} <= packed
