"""One run's page: its curve and log as it trains, what can be asked of it in each state, and what came of it."""

import io
import json
import re
import shlex
from collections.abc import Iterator
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator, Page, expect

from client.client import Client
from core.jobs.job import Status
from tests.browser import Visit, visiting
from tests.conftest import Server, eventually
from tests.staged import Api

Json = dict[str, Any]

CURVE = ".run-plot .cartesianlayer .xy .trace path.js-line"


@pytest.fixture(scope="module", autouse=True)
def _servers(api: Api, server: Server) -> None:
    """Both are started before the browser, which has an event loop for itself."""


@pytest.fixture
def visit(api: Api, browser: Browser) -> Iterator[Visit]:
    """A page of the API without a worker."""
    with visiting(browser, api.url) as visit:
        yield visit


@pytest.fixture
def working(browser: Browser, server: Server) -> Iterator[Visit]:
    """A page of the server that trains."""
    with visiting(browser, server.url, accept_downloads=True) as visit:
        yield visit


@pytest.fixture
def trained(working: Visit, trained_job: str) -> Page:
    page = working.open(f"run/{trained_job}")
    expect(page.locator(".run-matrix")).to_be_visible()
    return page


@pytest.fixture
def http(api: Api) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=api.url, timeout=30, trust_env=False) as http:
        yield http


def submitted(http: httpx2.Client, **spec: Any) -> str:
    answer = http.post("/jobs", json={"optimizer": "adam", "learning_rate": 0.001} | spec).raise_for_status()
    return str(answer.json()["id"])


def cancelled(http: httpx2.Client, **spec: Any) -> str:
    job_id = submitted(http, **spec)
    assert http.post(f"/jobs/{job_id}/cancel").json()["status"] == "cancelled"
    return job_id


def get(url: str) -> Json:
    answer: Json = httpx2.get(url, timeout=60, trust_env=False).raise_for_status().json()
    return answer


def status(page: Page) -> Locator:
    return page.locator("#status")


def button(page: Page, name: str) -> Locator:
    return page.get_by_role("button", name=name, exact=True)


def width(page: Page) -> float:
    """Of the curve as it is drawn, in pixels."""
    return float(page.evaluate(f"document.querySelector('{CURVE}')?.getBoundingClientRect().width ?? 0"))


def wait_for_width(page: Page, least: float) -> None:
    eventually(lambda: width(page) > least, what="the curve's growth")


def points_drawn(page: Page) -> int:
    return int(page.evaluate("document.querySelector('.run-plot').data[0].x.length"))


def along(page: Page) -> list[float]:
    """The range of the axis below the curve."""
    found: list[float] = page.evaluate("[...document.querySelector('.run-plot').layout.xaxis.range]")
    return found


@pytest.fixture
def long_job(client: Client) -> Iterator[str]:
    job_id = str(client.jobs.submit(optimizer="momentum", learning_rate=0.01, epochs=200).id)
    yield job_id
    client.jobs.get(job_id).cancel()


# --- while it trains ---------------------------------------------------------------------------------------------------


def test_the_curve_grows_keeps_the_zoom_and_the_log_is_the_lessons(working: Visit, client: Client) -> None:
    job_id = str(client.jobs.submit(optimizer="momentum", learning_rate=0.01, epochs=2).id)
    page = working.open(f"run/{job_id}")
    expect(status(page)).to_have_text("running")
    wait_for_width(page, 10)
    before = width(page)
    wait_for_width(page, before + 40)
    expect(page.get_by_text("to go")).to_be_visible()

    box = page.locator(".run-plot .nsewdrag").first.bounding_box()
    assert box
    page.mouse.move(box["x"] + 5, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 60, steps=5)
    page.mouse.up()
    zoomed, count = along(page), points_drawn(page)
    assert zoomed[1] < 1000
    eventually(lambda: points_drawn(page) > count + 5, what="more points")
    assert along(page) == zoomed

    expect(status(page)).to_have_text("succeeded", timeout=60_000)
    expect(page.locator(".run-log")).to_contain_text("epoch: 1, validation accuracy")
    assert page.locator(".run-log").inner_text().splitlines() == lesson_log(client, working.url, job_id)
    eventually(lambda: points_drawn(page) == 101, what="all points")
    expect(page.get_by_role("table", name="Epochs").locator("tbody tr")).to_have_count(2)


def lesson_log(client: Client, url: str, job_id: str) -> list[str]:
    """As the lesson's program prints it, out of the API's points; and the accuracy of each epoch."""
    points = client.jobs.get(job_id).loss().points
    lines = []
    for epoch, end in enumerate(get(f"{url}/jobs/{job_id}/metrics")["epochs"]):
        lines += [
            f"epoch: {epoch}, batch: {point['batch']}, loss is: {np.float32(point['loss'])!s}"
            for point in points
            if point["epoch"] == epoch and point["batch"] % 200 == 0
        ]
        lines.append(f"epoch: {epoch}, validation accuracy is: {end['valid_accuracy']}")
    return lines


def test_pause_go_on_and_cancel_are_asked_for_and_the_page_follows(
    working: Visit, client: Client, long_job: str
) -> None:
    job_id, page = long_job, working.open(f"run/{long_job}")
    wait_for_width(page, 1)
    button(page, "Pause").click()
    expect(status(page)).to_have_text("paused")
    assert client.jobs.get(job_id).status == "paused"
    expect(page.get_by_text("as far as it came").first).to_be_visible()
    button(page, "Go on").click()
    expect(status(page)).to_have_text("running")
    button(page, "Cancel").click()
    expect(status(page)).to_have_text("cancelled")
    assert client.jobs.get(job_id).status == "cancelled"
    expect(button(page, "Delete…")).to_be_visible()
    words = page.locator(".run-events li > span:first-child").all_inner_texts()
    assert [word for word in words if word != "queued" and not word.startswith("epoch")][-3:] == [
        "running", "cancelling", "cancelled",
    ]  # fmt: skip


# --- what can be asked of it -------------------------------------------------------------------------------------------

POSSIBLE = {
    Status.QUEUED: ["Pause", "Cancel"],
    Status.RUNNING: ["Pause", "Cancel"],
    Status.PAUSING: ["Go on", "Cancel"],
    Status.PAUSED: ["Go on", "Cancel"],
    Status.CANCELLING: [],
    Status.SUCCEEDED: ["Train on", "Delete…"],
    Status.FAILED: ["Go on", "Train on", "Delete…"],
    Status.CANCELLED: ["Go on", "Train on", "Delete…"],
}
ALWAYS = ["Copy link", "Copy curl"]


@pytest.mark.parametrize("state", Status)
def test_each_state_offers_what_can_be_asked_in_it(api: Api, visit: Visit, state: Status) -> None:
    page = visit.open(f"run/{api.jobs[state]}")
    expect(status(page)).to_have_text(state)
    bar = page.get_by_role("region", name="What can be done with it")
    assert bar.get_by_role("button").all_inner_texts() == POSSIBLE[state] + ALWAYS
    expect(bar.get_by_role("link", name="Change and train again")).to_have_attribute(
        "href", f"#/new?from={api.jobs[state]}"
    )
    expect(bar.get_by_role("link", name="Compare")).to_have_attribute("href", f"#/?on={api.jobs[state]}")


def test_a_run_that_has_ended_is_trained_for_more_epochs(visit: Visit, http: httpx2.Client) -> None:
    job_id = cancelled(http, epochs=3)
    page = visit.open(f"run/{job_id}")
    page.get_by_label("Epochs to add").fill("2")
    button(page, "Train on").click()
    expect(status(page)).to_have_text("queued")
    expect(page.get_by_text("epoch 0 of 5")).to_be_visible()
    expect(page.get_by_text(re.compile(r"number \d+ in the queue"))).to_be_visible()
    assert http.get(f"/jobs/{job_id}").json()["spec"]["epochs"] == 5


def test_deleting_asks_first_and_goes_back_to_all_runs(visit: Visit, http: httpx2.Client) -> None:
    job_id = cancelled(http)
    page = visit.open(f"run/{job_id}")
    button(page, "Delete…").click()
    button(page, "Keep it").click()
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert http.get(f"/jobs/{job_id}").status_code == 200
    button(page, "Delete…").click()
    button(page, "Delete").click()
    page.wait_for_url("**/#/")
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert http.get(f"/jobs/{job_id}").status_code == 404


def test_a_run_whose_model_is_in_use_stays_and_it_says_why(api: Api, visit: Visit, http: httpx2.Client) -> None:
    visit.allowed.append("409")
    job_id = api.jobs[Status.SUCCEEDED]
    http.put("/models/prod", json={"job_id": job_id}).raise_for_status()
    page = visit.open(f"run/{job_id}")
    button(page, "Delete…").click()
    button(page, "Delete").click()
    expect(page.get_by_role("dialog").get_by_role("alert")).to_contain_text("Let the name go first")
    assert http.get(f"/jobs/{job_id}").status_code == 200
    http.delete("/models/prod").raise_for_status()


def test_the_answer_to_an_action_stays_and_so_does_the_focus(visit: Visit, http: httpx2.Client) -> None:
    page = visit.open(f"run/{submitted(http)}")
    button(page, "Pause").press("Enter")
    expect(button(page, "Go on")).to_be_focused()
    expect(status(page)).to_have_text("paused")
    expect(page.locator(".run-said")).to_have_text("The run is paused now.")


def test_an_action_that_does_not_reach_the_server_says_so(visit: Visit, http: httpx2.Client) -> None:
    visit.allowed.append("Failed to load resource")
    page = visit.open(f"run/{submitted(http)}")
    expect(status(page)).to_have_text("queued")
    visit.context.set_offline(True)
    button(page, "Pause").click()
    expect(page.get_by_text("nothing was changed")).to_be_visible()
    visit.context.set_offline(False)
    button(page, "Pause").click()
    expect(status(page)).to_have_text("paused")


def test_the_curl_that_is_copied_asks_for_the_same_training(visit: Visit, http: httpx2.Client) -> None:
    visit.context.grant_permissions(["clipboard-read", "clipboard-write"])
    job_id = cancelled(http, name="it's 'mine'")
    page = visit.open(f"run/{job_id}")
    button(page, "Copy curl").click()
    expect(page.get_by_text("Copied.")).to_be_visible()
    command = shlex.split(page.evaluate("navigator.clipboard.readText()"))
    headers = {"Content-Type": command[command.index("-H") + 1].partition(": ")[2]}
    again = http.post("/jobs", content=command[command.index("-d") + 1].encode(), headers=headers).raise_for_status()
    assert again.json()["spec"] == http.get(f"/jobs/{job_id}").json()["spec"]


# --- what it shows -----------------------------------------------------------------------------------------------------


def test_a_failed_run_says_in_words_why(api: Api, visit: Visit) -> None:
    page = visit.open(f"run/{api.jobs[Status.FAILED]}")
    problem = page.locator(".run-notes .error")
    expect(problem).to_contain_text("The loss blew up: the learning rate is too large for this optimizer (at step 9)")
    expect(problem).to_contain_text("diverged the loss blew up")
    expect(page.locator(".run-actions .primary")).to_have_text(["Change and train again"])  # going on ends the same way


def test_a_queued_run_says_what_no_worker_has(visit: Visit, http: httpx2.Client) -> None:
    job_id = submitted(http, device="gpu:3")
    page = visit.open(f"run/{submitted(http, device='cpu')}")
    expect(page.locator(".run-standing")).to_contain_text("in the queue")
    expect(page.locator(".run-waiting")).to_have_count(0)
    page = visit.open(f"run/{job_id}")
    expect(page.locator(".run-waiting")).to_contain_text("No live worker has the GPU number 3; the job stays queued")
    page.get_by_role("button", name="中文").click()
    expect(page.locator(".run-waiting")).to_contain_text("存活的 worker 都没有编号为 3 的 GPU")
    http.post(f"/jobs/{job_id}/cancel").raise_for_status()
    expect(page.locator(".run-waiting")).to_have_count(0)


def test_a_run_cancelled_before_it_began_promises_nothing(visit: Visit, http: httpx2.Client) -> None:
    page = visit.open(f"run/{submitted(http, epochs=40)}")
    curve = page.locator(".run-curve")
    expect(curve).to_contain_text("The first loss comes as soon as")
    button(page, "Cancel").click()
    expect(status(page)).to_have_text("cancelled")
    expect(curve).to_contain_text("It ended before it began to train.")
    expect(page.get_by_text("It ended before its first epoch did.")).to_be_visible()
    expect(page.locator(".run-standing")).to_contain_text("epoch 0 of 40")
    expect(page.get_by_label("Epochs to add")).to_have_attribute("max", "960")


def test_a_name_is_text_whatever_is_in_it(visit: Visit, http: httpx2.Client) -> None:
    name, tag = "<img src=x onerror=alert(1)>", "<b>bold</b>"
    page = visit.open(f"run/{cancelled(http, name=name, tags={'k': tag})}")
    expect(page.get_by_text(name, exact=True)).to_be_visible()
    expect(page.get_by_text(f"k: {tag}")).to_be_visible()
    assert page.locator("main img, main b").count() == 0


def test_an_address_of_no_run_says_so(visit: Visit, http: httpx2.Client) -> None:
    visit.allowed.append("404")
    for job_id in (f"job_{'0' * 32}", "nonsense"):
        page = visit.open(f"run/{job_id}")
        expect(page.get_by_role("heading", name="There is no such run")).to_be_visible()
    deleted = cancelled(http)
    visit.open(f"run/{deleted}")
    expect(status(page)).to_have_text("cancelled")
    http.delete(f"/jobs/{deleted}").raise_for_status()
    expect(page.get_by_role("heading", name="There is no such run")).to_be_visible()
    page.get_by_role("link", name="All runs").click()
    page.wait_for_url("**/#/")


def test_a_range_test_leads_to_what_it_found(visit: Visit, http: httpx2.Client) -> None:
    job_id = http.post("/lr-range-tests", json={"optimizer": "adam"}).raise_for_status().json()["id"]
    page = visit.open(f"run/{job_id}")
    expect(page.get_by_role("link", name="What it found")).to_have_attribute("href", f"#/rate/{job_id}")


def test_what_is_seen_of_the_curve_stands_in_the_address(trained: Page) -> None:
    title = trained.locator(".run-plot .xtitle").first
    expect(title).to_have_text("step")
    linear = width(trained)
    button(trained, "Epochs").click()
    expect(title).to_have_text("epoch")
    trained.get_by_label("Log scale").check()
    trained.get_by_label("Smoothing").fill("0.9")
    expect(trained.locator(CURVE)).to_have_count(2)  # the raw line stays
    assert re.search(r"x=epoch&y=log&smooth=0\.9$", trained.url)
    trained.reload()
    expect(title).to_have_text("epoch")
    expect(trained.locator(CURVE)).to_have_count(2)
    assert trained.evaluate("document.querySelector('.run-plot').layout.yaxis.type") == "log"
    assert width(trained) == pytest.approx(linear, rel=0.05)


def test_facts_events_and_spec_are_the_servers(trained: Page, trained_job: str, client: Client) -> None:
    job = dict[str, Any](client.jobs.get(trained_job).data)
    facts = trained.locator(".run-facts")
    expect(facts).to_contain_text(f"{job['result']['test_accuracy'] * 100:.2f}%")
    expect(facts).to_contain_text(job["backend"]["kernel"])
    words = trained.locator(".run-events li > span:first-child").all_inner_texts()
    assert words == ["queued", "running", "epoch 1 ended", "succeeded"]
    trained.get_by_text("The whole spec").click()
    shown = trained.get_by_label("The whole spec").inner_text()
    assert json.loads(shown) == job["spec"]
    trained.get_by_text("Checkpoints").click()
    expect(trained.locator(".run-rest details[open] table").first).to_contain_text("500")


# --- what came of it ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "path"),
    [
        ("model.pdparams", "model?format=pdparams"), ("model.safetensors", "model?format=safetensors"),
        ("loss.csv", "loss?format=csv"), ("loss.ndjson", "loss?format=ndjson"),
    ],
)  # fmt: skip
def test_a_download_has_the_bytes_of_the_api(
    trained: Page, server: Server, trained_job: str, label: str, path: str
) -> None:
    with trained.expect_download() as taken:
        button(trained, label).click()
    assert taken.value.suggested_filename.startswith(trained_job)
    content = taken.value.path().read_bytes()
    assert content == httpx2.get(f"{server.url}/jobs/{trained_job}/{path}", trust_env=False).content
    expect(button(trained, label)).to_be_enabled()


def test_a_download_that_fails_says_why_beside_its_button(api: Api, visit: Visit) -> None:
    visit.allowed.append("503")
    page = visit.open(f"run/{api.jobs[Status.SUCCEEDED]}")
    problem = '{"title": "Unavailable", "detail": "other files are being made", "code": "unavailable"}'
    visit.context.route("**/model?format=onnx", lambda route: route.fulfill(status=503, body=problem))
    button(page, "model.onnx").click()
    expect(page.get_by_role("alert").filter(has_text="other files are being made")).to_be_visible()
    expect(button(page, "model.onnx")).to_be_enabled()


def test_there_is_nothing_to_take_before_there_is_a_model(api: Api, visit: Visit) -> None:
    page = visit.open(f"run/{api.jobs[Status.QUEUED]}")
    expect(button(page, "model.pdparams")).to_be_disabled()
    expect(page.get_by_text("when the run has succeeded")).to_be_visible()
    expect(page.locator(".run-evaluation")).to_be_hidden()


def cells(page: Page) -> list[list[int]]:
    rows = page.locator(".run-matrix tbody tr").all()
    return [[int(text.replace(",", "")) for text in row.locator("button").all_inner_texts()] for row in rows]


@pytest.fixture
def evaluated(server: Server, trained_job: str) -> Json:
    return get(f"{server.url}/jobs/{trained_job}/evaluation")


def test_the_confusion_matrix_is_the_servers_and_a_cell_says_what_it_counts(trained: Page, evaluated: Json) -> None:
    shown = cells(trained)
    assert shown == evaluated["confusion"]
    assert sum(map(sum, shown)) == 10_000
    assert sum(shown[digit][digit] for digit in range(10)) == evaluated["right"]
    wrong = evaluated["examples"]["wrong"][0]
    cell = cell_of(trained, wrong)
    cell.hover()
    said = f"{shown[wrong['label']][wrong['predicted']]} of {sum(shown[wrong['label']]):,} images of “{wrong['label']}”"
    expect(trained.locator(".run-cell-said")).to_contain_text(said)
    assert colour(cell) != colour(trained.locator(".run-matrix .none button").first)


def cell_of(page: Page, example: Json) -> Locator:
    return page.locator(".run-matrix tbody tr").nth(example["label"]).locator("button").nth(example["predicted"])


def colour(element: Locator) -> str:
    return str(element.evaluate("(it) => getComputedStyle(it).backgroundColor"))


def test_digits_told_right_and_wrong_are_drawn(trained: Page, evaluated: Json) -> None:
    for kind in ("wrong", "right"):
        pictures = trained.locator(f".run-gallery li.{kind} img")
        expect(pictures).to_have_count(20)
        pixels = np.asarray(Image.open(io.BytesIO(pictures.first.screenshot())).convert("L"))
        assert pixels.min() < 20
        assert pixels.max() > 220
        assert 0.02 < (pixels > 128).mean() < 0.5
    first = evaluated["examples"]["wrong"][0]
    said = trained.locator(".run-gallery li.wrong").first
    expect(said.locator("s")).to_have_text(str(first["predicted"]))
    expect(said.locator(".run-said-as")).to_have_text(f"{first['predicted']}{first['label']}")
    expect(said).to_contain_text("%")


def test_a_cell_shows_its_images_and_can_be_reached_by_keys(trained: Page, evaluated: Json) -> None:
    wrong = evaluated["examples"]["wrong"][0]
    count = evaluated["confusion"][wrong["label"]][wrong["predicted"]]
    trained.locator(".run-matrix button").first.focus()
    for key, times in (("ArrowDown", wrong["label"]), ("ArrowRight", wrong["predicted"])):
        for _ in range(times):
            trained.keyboard.press(key)
    expect(cell_of(trained, wrong)).to_be_focused()
    trained.keyboard.press("Enter")
    expect(trained.locator(".run-gallery li")).to_have_count(count)
    expect(trained.locator(".run-gallery li.wrong s").first).to_have_text(str(wrong["predicted"]))
    button(trained, "Show all again").click()
    expect(trained.locator(".run-gallery li")).to_have_count(40)


def test_test_images_that_are_not_there_are_told_and_asked_for_again(api: Api, visit: Visit) -> None:
    visit.allowed.append("503")
    problem = '{"title": "Unavailable", "detail": "run `descent data fetch mnist`", "code": "unavailable"}'
    visit.context.route("**/evaluation", lambda route: route.fulfill(status=503, body=problem))
    page = visit.open(f"run/{api.jobs[Status.SUCCEEDED]}")
    expect(page.locator(".run-evaluation [role=alert]")).to_contain_text("descent data fetch mnist")
    visit.context.unroute("**/evaluation")
    button(page, "Try again").click()
    expect(page.locator(".run-matrix")).to_be_visible()


# --- readers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("locale", "heading"), [("en-US", "Downloads"), ("zh-CN", "下载")])
def test_it_fits_a_phone_in_both_languages(
    browser: Browser, server: Server, trained_job: str, locale: str, heading: str
) -> None:
    with visiting(browser, server.url, locale=locale, viewport={"width": 390, "height": 844}) as visit:
        page = visit.open(f"run/{trained_job}")
        expect(page.locator(".run-matrix")).to_be_visible()
        expect(page.get_by_role("heading", name=heading)).to_be_visible()
        wait_for_width(page, 100)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        wide = "(cells) => cells.filter((it) => it.scrollWidth > it.clientWidth).map((it) => it.innerText)"
        assert page.locator(".run-matrix button").evaluate_all(wide) == []


def test_the_language_changes_without_a_new_evaluation(working: Visit, trained: Page) -> None:
    asked: list[str] = []
    trained.on("request", lambda it: asked.append(it.url) if it.url.endswith("/evaluation") else None)
    button(trained, "中文").click()
    expect(trained.get_by_role("heading", name="模型在测试集上的表现")).to_be_visible()
    expect(trained.locator(".run-matrix")).to_be_visible()
    expect(status(trained)).to_have_text("成功")
    assert asked == []
