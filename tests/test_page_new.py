"""The page's forms for a job, a sweep and a rate range test."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from playwright.sync_api import Browser, Page, Route, expect

from client.client import Client
from tests.browser import Visit, visiting
from tests.conftest import Server
from tests.staged import Api

# before any browser: it runs a loop of its own in this thread, for which an open browser leaves no room
pytestmark = pytest.mark.usefixtures("api")

REFUSED = "Failed to load resource"  # the browser logs each answer that refuses something

JOB: dict[str, Any] = {"optimizer": "adam", "learning_rate": 0.001}
ONE_CYCLE = {"schedule": "one_cycle", "max_learning_rate": 0.1, "total_steps": 10}
WRONG: list[tuple[str, dict[str, Any]]] = [
    (
        "/jobs",
        JOB | {"epochs": 0, "batch_size": 10**6, "seed": 1.5, "log_every": "x", "weight_decay": "x", "name": "x" * 201},
    ),
    (
        "/jobs",
        JOB | {"dataset": "x", "device": "tpu", "on_divergence": "x", "tags": {str(tag): "" for tag in range(17)}},
    ),
    ("/jobs", {"optimizer": "adma", "learning_rate": {"schedule": "step_decay", "gamma": 1}}),
    ("/jobs", JOB | {"grad_clip": {"type": "norm", "clip_norm": 0}, "learning_rate": "x"}),
    ("/jobs", {"optimizer": "lamb", "learning_rate": 1, "weight_decay": 1}),
    ("/jobs", JOB | {"precision": "bf16", "device": "cpu"}),
    ("/jobs", JOB | {"epochs": 1000, "batch_size": 1, "log_every": 1}),
    ("/jobs", JOB | {"learning_rate": ONE_CYCLE}),
    ("/jobs", JOB | {"learning_rate": ONE_CYCLE | {"total_steps": 2}}),
    ("/jobs", JOB | {"learning_rate": ONE_CYCLE | {"three_phase": True, "phase_pct": 0.6}}),
    ("/jobs", JOB | {"learning_rate": {"schedule": "multi_step_decay", "initial": 1, "milestones": [2, 1]}}),
    ("/sweeps", {"optimizers": [], "seeds": list(range(51))}),
    ("/sweeps", {"learning_rates": [0.1, 0.1]}),
    ("/sweeps", {"seeds": list(range(50))}),
    ("/lr-range-tests", {"optimizer": "adam", "batch_size": 5000}),
    ("/lr-range-tests", {"optimizer": "adam", "start": 1, "end": 2}),
]


@pytest.fixture
def visit(api: Api, browser: Browser) -> Iterator[Visit]:
    with visiting(browser, api.url) as visit:
        yield visit


def asked(api: Api, path: str) -> Any:
    return httpx2.get(f"{api.url}{path}", trust_env=False).json()


def newest(api: Api) -> dict[str, Any]:
    return dict(asked(api, "/jobs?limit=1")["jobs"][0])


def count(api: Api) -> int:
    return len(asked(api, "/jobs?limit=100")["jobs"])


def made(page: Page, api: Api) -> dict[str, Any]:
    """The job whose view the page has gone to."""
    page.wait_for_url(re.compile("#/run/job_"))
    return dict(asked(api, f"/jobs/{page.url.rpartition('/')[2]}"))


def refused(api: Api, path: str, body: Any) -> list[dict[str, str]]:
    """What the server has against a body."""
    answer = httpx2.post(f"{api.url}{path}?validate_only=true", json=body, trust_env=False)
    assert answer.status_code == 422, body
    return list(answer.json()["errors"])


def forget(sweep: dict[str, Any], page: Page, api: Api) -> None:
    """Delete a sweep, when the page does not look at it any more."""
    page.goto("about:blank")
    httpx2.post(f"{api.url}/sweeps/{sweep['id']}/cancel", trust_env=False)
    assert httpx2.delete(f"{api.url}/sweeps/{sweep['id']}", trust_env=False).status_code == 204


def start(page: Page) -> None:
    page.get_by_role("button", name="Start training").click()


def unfold(page: Page, title: str) -> None:
    page.locator("summary", has_text=title).click()


def test_a_newcomer_trains_with_one_click_and_without_typing(visit: Visit, api: Api) -> None:
    page = visit.open("new")
    start(page)
    spec = made(page, api)["spec"]
    assert (spec["optimizer"]["name"], spec["learning_rate"], spec["epochs"]) == ("adam", 0.001, 5)


def test_what_was_chosen_in_the_form_is_what_the_server_trains(
    browser: Browser, server: Server, client: Client
) -> None:
    with visiting(browser, server.url) as visit:
        page = visit.open("new")
        page.get_by_role("radio", exact=True, name="momentum").check()
        unfold(page, "Parameters of momentum")
        page.get_by_label("use_nesterov").check()
        page.get_by_role("radio", exact=True, name="0.01").check()
        page.get_by_label("Epochs").fill("1")
        page.get_by_label("Batch size").fill("5000")
        start(page)
        page.wait_for_url(re.compile("#/run/job_"))
        job_id = page.url.rpartition("/")[2]
    spec = client.jobs.get(job_id).spec
    assert spec["optimizer"] == {"name": "momentum", "momentum": 0.9, "use_nesterov": True}
    assert (spec["learning_rate"], spec["epochs"], spec["batch_size"]) == (0.01, 1, 5000)
    client.jobs.get(job_id).cancel()


def test_the_optimizers_and_their_parameters_are_those_of_the_catalogue(visit: Visit, api: Api) -> None:
    page = visit.open("new")
    every = asked(api, "/optimizers")["optimizers"]
    lesson = [each["name"] for each in every if each["lesson"]]
    shown = page.locator("input[name=optimizer]:visible")
    expect(shown).to_have_count(5)
    assert [each.get_attribute("value") for each in shown.all()] == lesson
    page.get_by_role("button", name="6 more optimizers").click()
    expect(shown).to_have_count(len(every))
    for each in every:
        page.locator(f"input[name=optimizer][value={each['name']}]").check()
        names = [parameter["name"] for parameter in each["parameters"]]
        assert page.locator(".new-group > .new-part code").all_text_contents() == names
        assert page.locator(".new-group > .new-part input[type=checkbox]").count() == sum(
            parameter["schema"]["type"] == "boolean" for parameter in each["parameters"]
        )
    page.locator("input[name=optimizer][value=adamw]").check()
    assert page.get_by_label("weight_decay", exact=True).input_value() == "0.01"


def test_what_holds_by_itself_stands_in_its_field_and_is_not_sent(visit: Visit) -> None:
    page = visit.open("new")
    for label, value in (("Epochs", "5"), ("Batch size", "100"), ("Seed", "0")):
        expect(page.get_by_label(label, exact=True)).to_have_value(value)
    page.get_by_label("Seed").fill("1")
    page.get_by_label("Batch size").fill("")
    expect(page.locator(".new-curl")).to_contain_text('"learning_rate": 0.001, "seed": 1}')


def test_every_schedule_can_be_chosen_and_one_with_a_warm_up_is_sent(visit: Visit, api: Api) -> None:
    page = visit.open("new?rate=0.1")
    unfold(page, "Change the rate")
    select = page.get_by_label("Schedule")
    names = [each["name"] for each in asked(api, "/optimizers")["schedules"] if each["name"] != "range_test"]
    assert [each.get_attribute("value") for each in select.locator("option").all()] == ["", *names]
    select.select_option("step_decay")
    expect(page.locator(".new-go")).to_contain_text("Still needed: step_size")
    expect(page.locator(".new-problem:visible")).to_have_count(0)  # not filled in yet is not wrong yet
    page.get_by_label("step_size").fill("2")
    page.get_by_label("warmup.warmup_steps").fill("100")
    expect(page.locator(".new-sum")).to_contain_text("2,500")
    start(page)
    rate = made(page, api)["spec"]["learning_rate"]
    assert (rate["schedule"], rate["initial"], rate["step_size"]) == ("step_decay", 0.1, 2)
    assert rate["warmup"]["warmup_steps"] == 100


def test_what_it_comes_to_is_shown_before_anything_is_made(visit: Visit, api: Api) -> None:
    before = count(api)
    page = visit.open("new")
    expect(page.locator(".new-sum")).to_contain_text("2,500")
    page.get_by_label("Epochs").fill("2")
    expect(page.locator(".new-sum")).to_contain_text("1,000")
    expect(page.locator(".new-sum")).to_contain_text("101")
    assert count(api) == before


def test_what_the_server_refuses_stands_beside_its_field_and_is_told(visit: Visit, api: Api) -> None:
    visit.allowed.append(REFUSED)
    before = count(api)
    page = visit.open("new")
    epochs = page.get_by_label("Epochs")
    epochs.fill("1.5")
    problem = page.locator(".new-field", has=epochs).locator(".new-problem")
    expect(problem).to_have_text("It must be a whole number.")
    expect(page.locator(".new-go [role=status]").first).to_contain_text("Epochs")
    page.get_by_label("Batch size").focus()
    start(page)
    expect(epochs).to_be_focused()
    expect(epochs).to_have_attribute("aria-invalid", "true")
    assert problem.get_attribute("id") in (epochs.get_attribute("aria-describedby") or "").split()
    below, above = epochs.bounding_box(), problem.bounding_box()
    assert below
    assert above
    assert abs(below["x"] - above["x"]) < 2
    assert 0 < above["y"] - below["y"] < 120
    epochs.fill("3")
    expect(problem).to_be_hidden()
    assert count(api) == before


def test_what_the_server_says_of_wrong_values_has_chinese_words(api: Api, browser: Browser) -> None:
    said = {error["detail"] for path, body in WRONG for error in refused(api, path, body)}
    assert len(said) > 20
    with visiting(browser, api.url, locale="zh-CN") as visit:
        worded = visit.open("new").evaluate(
            """async (said) => {
                const base = document.querySelector("script[type=module]").src.replace("main.js", "");
                const { worded } = await import(`${base}refusal.js`);
                return said.map((each) => [each, worded(each)]);
            }""",
            sorted(said),
        )
    assert [english for english, words in worded if not re.search("[\u4e00-\u9fff]", words)] == []
    assert [words for _, words in worded if "undefined" in words or "{" in words] == []


def test_an_error_in_a_folded_part_unfolds_it_and_one_without_a_field_stands_at_the_button(visit: Visit) -> None:
    visit.allowed.append(REFUSED)
    page = visit.open("new")
    unfold(page, "More settings")
    page.get_by_label("Device").fill("tpu")
    unfold(page, "More settings")
    start(page)
    expect(page.get_by_label("Device")).to_be_focused()
    expect(page.locator(".new-problem:visible")).to_contain_text("It must be auto, cpu, gpu")
    full = '{"status":429,"code":"queue-full","title":"There are too many jobs","detail":"1000 wait","errors":[]}'
    headers = {"Retry-After": "30", "Content-Type": "application/problem+json"}
    page.route("**/jobs", lambda route: route.fulfill(status=429, body=full, headers=headers))
    page.get_by_label("Device").fill("cpu")
    start(page)
    expect(page.locator(".new-go [role=alert]")).to_have_text("There are as many jobs as may wait. Try again in 30 s.")


def test_a_mistyped_name_in_a_link_can_be_put_right_with_a_click(visit: Visit, api: Api) -> None:
    visit.allowed.append(REFUSED)
    page = visit.open("new?optimizer=adma&rate=0.003")
    page.get_by_role("button", name="adam", exact=True).click()
    expect(page.get_by_role("radio", exact=True, name="adam")).to_be_checked()
    expect(page.locator(".new-problem:visible")).to_have_count(0)
    expect(page).to_have_url(re.compile("optimizer=adam&rate=0.003"))
    start(page)
    spec = made(page, api)["spec"]
    assert (spec["optimizer"]["name"], spec["learning_rate"]) == ("adam", 0.003)


@pytest.mark.skipif(not shutil.which("curl"), reason="there is no curl here")
def test_the_command_shown_does_in_a_shell_what_the_button_does(visit: Visit, api: Api) -> None:
    page = visit.open("new")
    page.get_by_role("radio", exact=True, name="rmsprop").check()
    unfold(page, "More settings")
    page.get_by_label("Name").fill("""it's "5 $HOME `ls` \\ 学习率""")
    page.get_by_label("Tags").fill("course=o'clock, week=3")
    command = page.locator(".new-curl").inner_text()
    assert "Authorization" not in command
    env = {"PATH": "/usr/bin:/bin", "no_proxy": "*"}
    shell = ["sh", "-c", f"{command} -s -w '\\n%{{http_code}}'"]
    said = subprocess.run(shell, env=env, capture_output=True, text=True, timeout=30, check=True).stdout
    assert said.endswith("\n202")
    spec = newest(api)["spec"]
    assert (spec["name"], spec["tags"]) == ("""it's "5 $HOME `ls` \\ 学习率""", {"course": "o'clock", "week": "3"})
    start(page)
    assert made(page, api)["spec"] == spec


def test_the_command_names_a_key_and_does_not_show_it(visit: Visit) -> None:
    page = visit.open("new")
    page.evaluate("sessionStorage.setItem('descent.key', 'dsc_secret')")
    page.get_by_label("Epochs").fill("1")
    expect(page.locator(".new-curl")).to_contain_text('-H "Authorization: Bearer $DESCENT_API_KEY"')
    assert "dsc_secret" not in page.content()


def test_a_double_click_makes_one_job(visit: Visit, api: Api) -> None:
    before = count(api)
    page = visit.open("new")
    sent: list[str] = []
    page.on("request", lambda it: sent.append(it.url) if it.method == "POST" and it.url.endswith("/jobs") else None)
    page.get_by_role("button", name="Start training").dblclick()
    made(page, api)
    assert (len(sent), count(api)) == (1, before + 1)


def test_what_was_typed_outlives_an_outage_and_trying_again_makes_exactly_one(visit: Visit, api: Api) -> None:
    visit.allowed.append(REFUSED)
    before = count(api)
    page = visit.open("new")
    page.get_by_label("Epochs").fill("7")
    expect(page.locator(".new-sum")).to_contain_text("3,500")

    def lose_the_answer(route: Route) -> None:
        route.fetch()  # it gets there, and makes a job
        route.abort()

    page.route("**/jobs", lose_the_answer, times=1)
    start(page)
    expect(page.locator(".new-go [role=alert]")).to_contain_text("All you chose is still here")
    assert count(api) == before + 1
    assert page.get_by_label("Epochs").input_value() == "7"
    expect(page.get_by_role("button", name="Start training")).to_be_focused()
    start(page)
    assert made(page, api)["spec"]["epochs"] == 7
    assert count(api) == before + 1


def test_it_also_starts_where_the_browser_has_no_random_uuid(visit: Visit, api: Api) -> None:
    """As over plain HTTP from another machine."""
    visit.page.add_init_script("delete Crypto.prototype.randomUUID")
    page = visit.open("new")
    assert page.evaluate("crypto.randomUUID") is None
    start(page)
    made(page, api)


def test_a_job_can_be_trained_again_as_it_was(visit: Visit, api: Api) -> None:
    wanted = {
        "optimizer": {"name": "rmsprop", "rho": 0.8, "centered": True},
        "learning_rate": {"schedule": "multi_step_decay", "initial": 0.05, "milestones": [2, 4], "warmup": {"warmup_steps": 9}},
        "grad_clip": {"type": "global_norm", "clip_norm": 2.5},
        "dataset": "fashion-mnist", "batch_size": 64, "seed": 11, "weight_decay": 0.001, "name": "<b>&", "tags": {"k": "v"},
    }  # fmt: skip
    job = httpx2.post(f"{api.url}/jobs", json=wanted, trust_env=False).json()
    page = visit.open(f"new?from={job['id']}")
    expect(page.get_by_label("Name")).to_have_value("<b>&")
    start(page)
    again = made(page, api)
    assert again["id"] != job["id"]
    assert again["spec_hash"] == job["spec_hash"]
    assert again["spec"] == job["spec"]


def test_a_job_that_is_gone_cannot_be_trained_again_and_says_so(visit: Visit) -> None:
    visit.allowed.append(REFUSED)
    page = visit.open("new?from=job_00000000000000000000000000000000")
    expect(page.get_by_role("alert")).to_be_visible()


def test_language_and_colours_change_and_the_form_stays_as_it_was(visit: Visit) -> None:
    visit.allowed.append(REFUSED)
    page = visit.open("new")
    unfold(page, "Parameters of adam")
    page.get_by_label("beta1").fill("2")
    page.get_by_label("Epochs").fill("3")
    page.get_by_role("button", name="中文").click()
    expect(page.get_by_role("button", name="开始训练")).to_be_visible()
    expect(page.get_by_label("beta1")).to_have_value("2")
    expect(page.locator(".new-problem:visible")).to_have_text("必须小于 1。")
    expect(page.get_by_label("轮数")).to_have_value("3")
    expect(page.locator(".new-card", has=page.locator("[value=adam]"))).to_contain_text("动量与自适应学习率的结合")
    page.locator("#theme").click()
    expect(page.get_by_label("beta1")).to_have_value("2")
    expect(page).to_have_url(re.compile("epochs=3"))


def test_the_lesson_is_one_click_and_fifteen_runs(visit: Visit, api: Api) -> None:
    page = visit.open("new?do=lesson")
    expect(page.locator(".new-matrix svg")).to_have_count(15)
    assert "-d '{}'" in page.locator(".new-curl").inner_text()
    page.get_by_role("button", name="Run the lesson (15 runs)").click()
    page.wait_for_url(re.compile("#/.sweep=sweep_"))
    sweep = asked(api, f"/sweeps/{page.url.rpartition('=')[2]}")
    assert len(sweep["jobs"]) == 15
    chosen = {(job["optimizer"]["name"], job["learning_rate"]) for job in sweep["jobs"]}
    assert chosen == {
        (name, rate) for name in ("sgd", "momentum", "adagrad", "rmsprop", "adam") for rate in (0.1, 0.01, 0.001)
    }
    forget(sweep, page, api)


def test_a_sweep_of_ones_own_is_what_was_ticked(visit: Visit, api: Api) -> None:
    page = visit.open("new?do=lesson")
    unfold(page, "Make it another sweep")
    for name in ("sgd", "adagrad", "rmsprop"):
        page.locator(f"input[name=optimizer][value={name}]").uncheck()
    page.locator("input[name=rate][value='0.1']").uncheck()
    page.locator("input[name=own-rate]").fill("0.03，0.3")  # a Chinese comma
    page.locator(".new-chip", has_text="3").last.click()
    page.get_by_label("Stop hopeless runs early").check()
    expect(page.locator(".new-matrix svg")).to_have_count(8)
    page.get_by_role("button", name="Start the sweep (24 runs)").click()
    page.wait_for_url(re.compile("#/.sweep=sweep_"))
    sweep = asked(api, f"/sweeps/{page.url.rpartition('=')[2]}")
    spec = sweep["spec"]
    assert [each["name"] for each in spec["optimizers"]] == ["momentum", "adam"]
    assert (spec["learning_rates"], spec["seeds"]) == ([0.01, 0.001, 0.03, 0.3], [0, 1, 2])
    assert spec["early_stopping"]["name"] == "asha"
    forget(sweep, page, api)


@pytest.mark.parametrize("way", ["new", "new?do=lesson", "new?do=rate"])
def test_it_fits_a_phone_with_everything_unfolded(api: Api, browser: Browser, way: str) -> None:
    with visiting(browser, api.url, viewport={"width": 390, "height": 780}, locale="zh-CN") as visit:
        page = visit.open(way)
        button = page.locator(".new-submit")
        expect(button).to_be_in_viewport()  # also before anybody scrolls
        page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") == 0
        spilt = "[...document.querySelectorAll('main *')].filter((e) => e.getBoundingClientRect().right > 391).length"
        assert page.evaluate(spilt) == 0


def test_it_can_be_filled_in_and_sent_with_the_keyboard_alone(visit: Visit, api: Api) -> None:
    page = visit.open("new")
    page.get_by_role("radio", exact=True, name="adam").focus()
    page.keyboard.press("ArrowUp")
    expect(page.get_by_role("radio", exact=True, name="rmsprop")).to_be_focused()
    page.keyboard.press("ArrowUp")
    expect(page.get_by_role("radio", exact=True, name="adagrad")).to_be_checked()
    page.get_by_label("Epochs").focus()
    page.keyboard.press("Control+A")  # as the Tab key selects what stands there
    page.keyboard.type("2")
    page.keyboard.press("Enter")
    spec = made(page, api)["spec"]
    assert (spec["optimizer"]["name"], spec["epochs"]) == ("adagrad", 2)
