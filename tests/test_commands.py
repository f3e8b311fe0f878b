"""The commands of a server, as a user types them: what goes to stdout, what to stderr, how it looks, and how it ends."""

import dataclasses
import hashlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest

from client import exits
from client.options import Recipe, listed, parameters, rate
from client.plot import Line, bar, plot, sparkline
from core.jobs.job import Status
from core.spec import JobSpec
from tests import terminal
from tests.commands import COMMAND, begun, descent, environment, id_in, once, worked
from tests.conftest import ROOT
from tests.redrawn import png, strokes
from tests.staged import Api
from tests.stumbling import LOST, SMOOTH, Stumble, Stumbling

QUICK = ("--optimizer", "adam", "--lr", "0.001", "--epochs", "1", "--batch-size", "5000")


@pytest.fixture(scope="module")
def url(api: Api) -> str:
    return api.url


def job(url: str, job_id: str) -> dict[str, Any]:
    answer: dict[str, Any] = httpx2.get(f"{url}/jobs/{job_id}").json()
    return answer


# --- submit ------------------------------------------------------------------------------------------------------------


def test_a_submit_that_does_not_wait_prints_the_id_alone(url: str) -> None:
    done = descent(url, "submit", *QUICK, "--no-wait")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"job_[0-9a-f]{32}\n", done.stdout)
    assert job(url, done.stdout.strip())["spec"]["batch_size"] == 5000


def test_every_field_of_a_spec_has_an_option(url: str) -> None:
    words = "submit --no-wait --json --optimizer momentum:momentum=0.5 --set use_nesterov=true"
    words += (
        " --lr step_decay:initial=0.1:step_size=1:gamma=0.5:warmup.warmup_steps=3 --seed 7 --epochs 2 --batch-size 500"
    )
    words += (
        " --dataset fashion-mnist --log-every 5 --weight-decay 0.01 --grad-clip global_norm:clip_norm=2.0 --device cpu"
    )
    words += " --precision float32 --on-divergence continue --max-runtime 60 --name mine --tag a=b --tag c=d=e"
    done = descent(url, *words.split())
    assert done.returncode == 0, done.stderr
    spec = json.loads(done.stdout)["spec"]
    assert spec["optimizer"] == {"name": "momentum", "momentum": 0.5, "use_nesterov": True}
    assert (spec["learning_rate"]["gamma"], spec["learning_rate"]["warmup"]["warmup_steps"]) == (0.5, 3)
    assert spec["grad_clip"] == {"type": "global_norm", "clip_norm": 2.0}
    assert spec["tags"] == {"a": "b", "c": "d=e"}
    rest = {
        name: value for name, value in spec.items() if name not in ("optimizer", "learning_rate", "grad_clip", "tags")
    }
    assert rest == {
        "seed": 7, "epochs": 2, "batch_size": 500, "dataset": "fashion-mnist", "log_every": 5, "weight_decay": 0.01,
        "device": "cpu", "precision": "float32", "to_static": False, "on_divergence": "continue", "max_runtime_s": 60,
        "name": "mine",
    }  # fmt: skip
    own = {field.name for field in dataclasses.fields(Recipe)} - {"spec"}
    fields = {name.removesuffix("_s").replace("tags", "tag") for name in JobSpec.model_fields}
    assert own == fields - {"optimizer", "learning_rate", "seed"}


def test_a_spec_comes_from_a_file_or_from_stdin_and_options_change_it(url: str, tmp_path: Path) -> None:
    text = json.dumps({"optimizer": "rmsprop", "learning_rate": 0.5, "epochs": 9, "tags": {"from": "file"}})
    (tmp_path / "spec.json").write_text(text)
    words = ("submit", "--dry-run", "--epochs", "3", "--set", "rho=0.8", "--spec")
    done = descent(url, *words, str(tmp_path / "spec.json"))
    piped = descent(url, *words, "-", stdin=text)
    assert done.returncode == 0, done.stderr
    assert done.stdout == piped.stdout
    preview = json.loads(done.stdout)
    assert (preview["spec"]["epochs"], preview["total_steps"]) == (3, 1500)
    assert (preview["spec"]["optimizer"]["name"], preview["spec"]["optimizer"]["rho"]) == ("rmsprop", 0.8)
    assert preview["spec"]["tags"] == {"from": "file"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--optimizer", "adma", "--lr", "0.1"), "--optimizer: unknown optimizer 'adma'; did you mean adam?"),
        (("--optimizer", "sgd", "--lr", "0"), "--lr: "),
        (("--optimizer", "sgd", "--lr", "0.1", "--set", "momentun=1"), "--optimizer (momentun): no such field"),
        (
            ("--optimizer", "sgd", "--lr", "0.1", "--batch-size", "60000"),
            "--batch-size: Input should be less than or equal to 50000",
        ),
        (("--optimizer", "sgd", "--lr", "0.1", "--max-runtime", "0"), "--max-runtime: "),
        (("--optimizer", "sgd", "--lr", "nan"), "a rate is finite"),
        (
            ("--optimizer", "sgd", "--lr", "banana"),
            "'banana' is neither a number nor a schedule. Allowed: constant, step",
        ),
        (("--optimizer", "sgd", "--learning-rate", "step_decy:initial=1"), "did you mean step_decay?"),
        (("--optimizer", "sgd", "--lr", "0.1", "--device", "tpu"), "--device: a device is auto, cpu, gpu, or gpu:N"),
        (("--optimizer", "sgd", "--lr", "0.1", "--epochs", "x"), "--epochs"),
        (("--lr", "0.1"), "--optimizer: this is required"),
        (("--set", "beta1=0.5", "--lr", "0.1"), "--set"),
        (("--spec", "no-such-file"), "--spec"),
        (("--optimizer", "adam", "--lr", "0.1", "--weight-decay", "inf"), "not finite"),
        (("--optimizer", "adam", "--lr", "0.1", "--set", "beta1=1e999"), "not finite"),
    ],
)
def test_what_is_refused_is_told_beside_its_option(url: str, words: tuple[str, ...], said: str) -> None:
    done = descent(url, "submit", "--no-wait", *words, COLUMNS="300")
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_submit_shows_its_progress_on_stderr_and_what_came_of_it_on_stdout(api: Api) -> None:
    with begun(api.url, "submit", *QUICK) as process:
        assert process.stderr is not None
        job_id = id_in(process.stderr.readline())
        worked(api, job_id)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert re.search(rf"^job +{job_id}$", out, re.MULTILINE)
    assert re.search(r"^test accuracy +49.00%$", out, re.MULTILINE)
    assert "\x1b" not in out + err  # no terminal: plain lines, and no animation
    lines = err.splitlines()
    assert f"{job_id} running" in lines
    assert err.count(f"{job_id} queued") == 0  # it is the line that was read
    assert re.search(
        r"^epoch 1/1 done, mean loss [\d.]+, validation accuracy 50.00%, [\d,]+ images/s$", err, re.MULTILINE
    )
    assert f"  descent download {job_id}" in lines


def test_a_submit_with_json_prints_one_object_at_the_end(api: Api) -> None:
    with begun(api.url, "submit", *QUICK, "--json") as process:
        assert process.stderr is not None
        job_id = id_in(process.stderr.readline())
        worked(api, job_id)
        out, _ = process.communicate(timeout=60)
    assert (json.loads(out)["id"], json.loads(out)["status"]) == (job_id, "succeeded")
    assert out.count("\n") == 1


def test_a_job_that_fails_ends_the_command_with_1_and_advice(api: Api) -> None:
    with begun(api.url, "submit", *QUICK) as process:
        assert process.stderr is not None
        worked(api, id_in(process.stderr.readline()), as_=Status.FAILED)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "diverged: the loss blew up" in out
    assert "descent lr-find --optimizer adam" in err


# --- on a terminal -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [80, 40])
def test_a_job_is_drawn_live_on_a_terminal_within_its_width(api: Api, columns: int) -> None:
    command = [*COMMAND, "submit", *QUICK, "--log-every", "1"]
    shown = terminal.run(
        command,
        env=environment(api.url),
        columns=columns,
        rows=24,
        interrupt_at=once(lambda job_id: worked(api, job_id)),
    )
    assert shown.code == 0
    assert "\x1b[?25l" in shown.raw  # drawn over and over, the cursor hidden
    assert shown.raw.rindex("\x1b[?25h") > shown.raw.rindex("\x1b[?25l")  # and shown again at the end
    assert any(0x2800 < ord(letter) < 0x2900 for letter in shown.text)  # the curve
    assert "epoch 1/1" in shown.text
    drawn = shown.lines[1 : shown.lines.index("Next:")]  # above and below stand ids and commands to copy, never broken
    assert max(map(len, drawn)) <= columns


def test_no_color_means_none(api: Api) -> None:
    command = [*COMMAND, "watch", api.jobs[Status.SUCCEEDED]]
    coloured = terminal.run(command, env=environment(api.url))
    plain = terminal.run(command, env=environment(api.url, NO_COLOR="1"))
    assert coloured.code == plain.code == 0
    assert re.search(r"\x1b\[[0-9;]*3[0-9]m", coloured.raw)
    assert not re.search(r"\x1b\[[0-9;]*[34][0-9]m", plain.raw)


def test_ctrl_c_leaves_the_job_running_and_says_how_to_come_back(api: Api) -> None:
    job_id = api.jobs[Status.RUNNING]
    shown = terminal.run(
        [*COMMAND, "watch", job_id], env=environment(api.url), interrupt_at=lambda text: "epoch 1/1" in text
    )
    assert shown.code == 130
    assert f"descent watch {job_id}" in shown.text
    assert f"descent cancel {job_id}" in shown.text
    assert "Traceback" not in shown.text
    assert job(api.url, job_id)["status"] == "running"


def test_ctrl_c_without_a_terminal_does_the_same(api: Api) -> None:
    with begun(api.url, "watch", api.jobs[Status.RUNNING]) as process:
        assert process.stderr is not None
        process.stderr.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "goes on" in err


# --- watch -------------------------------------------------------------------------------------------------------------


def test_watching_as_json_is_every_event_a_line_and_the_job_at_the_end(api: Api) -> None:
    done = descent(api.url, "watch", api.jobs[Status.SUCCEEDED], "--json")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert (done.returncode, done.stderr) == (0, "")
    kinds = [event.get("status", event["event"]) for event in events]
    assert kinds == ["queued", "running", "points", "epoch", "succeeded", "end"]
    assert [point["step"] for point in events[2]["points"]] == list(range(10))
    assert events[-1]["job"]["id"] == api.jobs[Status.SUCCEEDED]


def test_a_wait_that_is_over_ends_with_6_and_the_job_goes_on(api: Api) -> None:
    job_id = api.jobs[Status.RUNNING]
    done = descent(api.url, "watch", job_id, "--timeout", "1")
    assert done.returncode == 6
    assert f"descent watch {job_id}" in done.stderr
    assert job(api.url, job_id)["status"] == "running"


def test_a_cancelled_job_ends_its_watching_with_1(api: Api) -> None:
    done = descent(api.url, "watch", api.jobs[Status.CANCELLED])
    assert done.returncode == 1
    assert f"descent resume {api.jobs[Status.CANCELLED]}" in done.stderr


# --- ls, show, compare -------------------------------------------------------------------------------------------------


def test_jobs_are_listed_in_full_where_a_program_reads_them(api: Api) -> None:
    done = descent(api.url, "ls", "--limit", "100")
    heads, *rows = [re.split(r"\s{2,}", line.strip()) for line in done.stdout.splitlines()]
    assert heads == ["id", "status", "optimizer", "rate", "valid.", "loss", "curve", "age"]
    shown = {row[0]: row[1:] for row in rows}
    assert set(api.jobs.values()) <= set(shown)
    *facts, curve, _ = shown[api.jobs[Status.SUCCEEDED]]
    assert facts == ["succeeded", "adam", "0.001", "50.00%", "not finite"]
    assert set(curve) <= set("▁▂▃▄▅▆▇█ ")


def test_a_list_fits_a_terminal(api: Api) -> None:
    wide, narrow = (terminal.run([*COMMAND, "ls"], env=environment(api.url), columns=columns) for columns in (80, 50))
    assert max(map(len, wide.lines)) <= 80
    assert max(map(len, narrow.lines)) <= 50
    assert "succeeded" in wide.text  # what has no room is left out, not cut
    assert "succeeded" in narrow.text
    assert api.jobs[Status.FAILED][-8:] in narrow.text


def test_a_list_is_filtered_by_the_server(api: Api) -> None:
    def ids(*words: str) -> list[str]:
        lines = descent(api.url, "ls", "--json", "--limit", "50", *words).stdout.splitlines()
        return [json.loads(line)["id"] for line in lines]

    tagged = descent(api.url, "submit", *QUICK, "--no-wait", "--tag", "team=blue").stdout.strip()
    assert api.jobs[Status.FAILED] in ids("--status", "failed")
    assert api.jobs[Status.QUEUED] not in ids("--status", "failed")
    assert ids("--tag", "team:blue") == ids("--tag", "team=blue") == [tagged]
    assert ids("--optimizer", "lamb") == []
    refused = descent(api.url, "ls", "--status", "runing")
    assert refused.returncode == 2
    assert "--status: " in refused.stderr
    assert "did you mean running?" in refused.stderr


def test_one_job_is_shown_with_its_curve(api: Api) -> None:
    done = descent(api.url, "show", api.jobs[Status.FAILED])
    assert done.returncode == 0
    assert "diverged: the loss blew up" in done.stdout
    assert "adam: beta1=0.9" in done.stdout
    assert any(0x2800 < ord(letter) < 0x2900 for letter in done.stdout)
    as_json = json.loads(descent(api.url, "show", api.jobs[Status.FAILED], "--json").stdout)
    assert as_json == job(api.url, api.jobs[Status.FAILED])


def test_a_job_that_no_worker_can_train_says_so(api: Api) -> None:
    words = ("submit", "--optimizer", "sgd", "--lr", "0.1", "--device", "gpu", "--timeout", "1")
    left = descent(api.url, *words)
    job_id = id_in(left.stderr)
    said = job(api.url, job_id)["waiting_for"]["en"]
    assert left.returncode == 6
    assert said in left.stderr
    assert said in " ".join(descent(api.url, "show", job_id).stdout.split())
    assert descent(api.url, "cancel", job_id).returncode == 0


def test_jobs_are_compared_with_their_verdicts_and_drawn_in_colours(api: Api) -> None:
    one, other = api.jobs[Status.SUCCEEDED], api.jobs[Status.FAILED]
    done = descent(api.url, "compare", one, other)
    rows = {line.split()[0]: line for line in done.stdout.splitlines()[1:3]}
    assert list(rows) == [one, other]  # the best first
    assert "90.00%" in rows[one]
    assert "diverged" in rows[other]
    assert "└" not in done.stdout  # curves that only colours tell apart are drawn where there are colours
    shown = terminal.run([*COMMAND, "compare", one, other], env=environment(api.url))
    assert "└" in shown.text
    assert max(map(len, shown.lines)) <= 80
    found = json.loads(descent(api.url, "compare", one, other, "--x", "time", "--json").stdout)
    assert (found["x"], len(found["curves"])) == ("time", 2)


# --- short names -------------------------------------------------------------------------------------------------------


def test_an_id_may_be_shortened_to_what_is_unique(api: Api) -> None:
    whole = api.jobs[Status.PAUSED]
    digits = whole.removeprefix("job_")
    others = [other.removeprefix("job_") for other in api.jobs.values() if other != whole]
    unique = next(n for n in range(1, 33) if not any(other.startswith(digits[:n]) for other in others))
    for short in (whole, digits, digits[:unique], f"job_{digits[:unique]}", whole[-8:]):
        assert json.loads(descent(api.url, "show", short, "--json").stdout)["id"] == whole


def test_a_short_name_that_fits_several_or_none_is_told(api: Api) -> None:
    several = descent(api.url, "show", "job_0")
    assert (several.returncode, several.stdout) == (2, "")
    assert len(re.findall(r"^  job_[0-9a-f]{32}  [a-z]+ .*, mnist, ", several.stderr, re.MULTILINE)) == 5
    none = descent(api.url, "show", "xyz")
    assert none.returncode == 5
    assert "descent ls" in none.stderr


def test_last_is_the_newest_job(api: Api) -> None:
    newest = descent(api.url, "submit", *QUICK, "--no-wait").stdout.strip()
    assert json.loads(descent(api.url, "show", "@last", "--json").stdout)["id"] == newest


# --- cancel, pause, resume, delete -------------------------------------------------------------------------------------


def test_jobs_are_paused_resumed_cancelled_and_deleted(url: str) -> None:
    made = [descent(url, "submit", *QUICK, "--no-wait").stdout.strip() for _ in range(2)]
    assert descent(url, "pause", *made).stdout.splitlines() == [f"{job_id} paused" for job_id in made]
    resumed = descent(url, "resume", made[0], "--json")
    assert json.loads(resumed.stdout)["status"] == "queued"
    too_soon = descent(url, "delete", made[0])
    assert too_soon.returncode == 2
    assert descent(url, "cancel", *made).stdout.splitlines() == [f"{job_id} cancelled" for job_id in made]
    assert descent(url, "delete", *made).stdout.splitlines() == [f"{job_id} deleted" for job_id in made]
    assert descent(url, "show", made[0]).returncode == 5


# --- models ------------------------------------------------------------------------------------------------------------


def test_a_model_is_downloaded_to_a_file_a_folder_or_stdout(api: Api, tmp_path: Path) -> None:
    job_id = api.jobs[Status.SUCCEEDED]
    wanted = httpx2.get(f"{api.url}/jobs/{job_id}/model", params={"format": "safetensors"}).content
    options = ("--format", "safetensors", "--out")
    done = descent(api.url, "download", job_id, *options, str(tmp_path / "own.name"))
    assert done.stdout == f"{tmp_path / 'own.name'}\n"
    assert hashlib.sha256(wanted).hexdigest() in done.stderr
    assert (tmp_path / "own.name").read_bytes() == wanted
    facts = json.loads(descent(api.url, "download", job_id, *options, str(tmp_path), "--json").stdout)
    assert Path(facts["path"]).read_bytes() == wanted
    assert descent(api.url, "download", job_id, *options, "-").content == wanted
    nowhere = descent(api.url, "download", job_id, "--out", str(tmp_path / "no" / "such" / "folder"))
    assert (nowhere.returncode, "--out" in nowhere.stderr, "Traceback" in nowhere.stderr) == (2, True, False)
    no_folder = descent(api.url, "download", job_id, "--out", f"{tmp_path / 'new'}/")
    assert (no_folder.returncode, "no such folder" in no_folder.stderr, (tmp_path / "new").exists()) == (2, True, False)
    not_ready = descent(api.url, "download", api.jobs[Status.QUEUED])
    assert not_ready.returncode == 2


def test_pictures_are_predicted(api: Api, mnist: Any, tmp_path: Path) -> None:
    seven = png(strokes(mnist.test.images[0], brush=20))
    (tmp_path / "seven.png").write_bytes(seven)
    job_id = api.jobs[Status.SUCCEEDED]  # its weights are blank: each digit is as likely as the others
    names = [str(tmp_path / "seven.png")] * 2
    done = descent(api.url, "predict", "--model", job_id, *names)
    assert done.returncode == 0, done.stderr
    assert [re.split(r"\s{2,}", line)[1:4] for line in done.stdout.splitlines()[1:]] == [["0", "10.0%", "██"]] * 2
    assert f"by the model of {job_id}" in done.stderr
    piped = descent(api.url, "predict", "--model", job_id, "--json", "-", stdin=seven)
    (found,) = json.loads(piped.stdout)["predictions"]
    assert (found["file"], found["digit"], len(found["probabilities"])) == ("-", 0, 10)
    shortened = descent(api.url, "predict", "--model", job_id[-12:], "--json", names[0])
    assert json.loads(shortened.stdout)["model"]["job_id"] == job_id
    missing = descent(api.url, "predict", str(tmp_path / "none.png"), COLUMNS="300")
    assert (missing.returncode, "none.png" in missing.stderr) == (2, True)
    unknown = descent(api.url, "predict", "--model", "prod", *names)
    assert (unknown.returncode, "prod" in unknown.stderr) == (5, True)
    (tmp_path / "text.png").write_text("no picture")
    wrong = descent(api.url, "predict", "--model", job_id, names[0], str(tmp_path / "text.png"))
    assert (wrong.returncode, f"{tmp_path / 'text.png'}: not a PNG or JPEG" in wrong.stderr) == (2, True)


# --- sweeps and range tests --------------------------------------------------------------------------------------------


def test_the_lesson_is_a_sweep_of_15_runs(url: str) -> None:
    preview = json.loads(descent(url, "sweep", "--lesson", "--dry-run").stdout)
    assert len(preview["jobs"]) == 15
    both = descent(url, "sweep", "--lesson", "--optimizers", "adam", "--dry-run")
    assert (both.returncode, "--lesson" in both.stderr) == (2, True)
    drawn = descent(url, "sweep", "--rates", "0.001..1", "--dry-run")
    assert (drawn.returncode, "--samples" in drawn.stderr) == (2, True)
    nothing = descent(url, "sweep")
    assert (nothing.returncode, "--lesson" in nothing.stderr) == (2, True)


def test_a_sweep_is_lists_of_optimizers_rates_and_seeds(url: str) -> None:
    words = ("--optimizers", "sgd,momentum:momentum=0.5", "--seeds", "1,2", "--dry-run")
    grid = json.loads(descent(url, "sweep", *words, "--rates", "0.1,0.01").stdout)["jobs"]
    assert len(grid) == 8
    assert {(each["optimizer"]["name"], each["learning_rate"], each["seed"]) for each in grid} >= {
        ("momentum", 0.01, 2)
    }
    drawn = json.loads(descent(url, "sweep", *words, "--rates", "0.001..1", "--samples", "3", "--asha").stdout)
    assert len(drawn["jobs"]) == 6
    assert drawn["spec"]["early_stopping"]["name"] == "asha"


def test_a_sweep_is_watched_left_cancelled_and_shown(url: str) -> None:
    words = ("sweep", "--optimizers", "sgd,adam", "--rates", "0.1", "--epochs", "1")
    left = descent(url, *words, "--timeout", "0.5")
    sweep_id = id_in(left.stderr, "sweep")
    assert left.returncode == 6
    assert "2 queued" in left.stderr
    assert descent(url, "cancel", sweep_id).stdout == f"{sweep_id} cancelled\n"
    watched = descent(url, "watch", sweep_id, "--json")
    assert watched.returncode == 1  # nothing of it has succeeded
    assert json.loads(watched.stdout.splitlines()[-1])["sweep"]["counts"]["cancelled"] == 2
    shown = descent(url, "show", sweep_id[:-4])
    assert "sgd 0.1" in shown.stdout
    assert sweep_id in descent(url, "ls", "--sweeps").stdout
    its_jobs = descent(url, "ls", "--json", "--sweep", sweep_id.removeprefix("sweep_")).stdout.splitlines()
    assert [json.loads(line)["status"] for line in its_jobs] == ["cancelled"] * 2
    assert descent(url, "pause", sweep_id).returncode == 2


def test_watching_a_sweep_outlives_a_server_that_is_away_for_a_while(url: str) -> None:
    made = descent(url, "sweep", "--optimizers", "sgd", "--rates", "0.1", "--no-wait").stdout.strip()
    with Stumbling(url) as front:
        # each three are all that one request is given
        front.sees(SMOOTH, SMOOTH, *[Stumble(status=503)] * 3, *[LOST] * 3)
        watched = descent(front.url, "watch", made, "--timeout", "3.5")
        assert len(front.seen) > 5
    descent(url, "cancel", made)
    assert (watched.returncode, "goes on" in watched.stderr) == (6, True)


def test_a_range_test_draws_its_curve_and_suggests_a_rate(api: Api) -> None:
    words = ("lr-find", "--optimizer", "momentum:momentum=0.5", "--batch-size", "1000", "--log-every", "1")
    with begun(api.url, *words) as process:
        assert process.stderr is not None
        job_id = id_in(process.stderr.readline())
        worked(api, job_id, points=50)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    suggestion = httpx2.get(f"{api.url}/lr-range-tests/{job_id}").json()["suggestion"]
    assert suggestion["sentence"]["en"] in out
    assert "descent submit --optimizer momentum:momentum=0.5 --batch-size 1000 --lr " in err
    assert "rate" in out
    assert any(0x2800 < ord(letter) < 0x2900 for letter in out)
    assert suggestion["sentence"]["en"] in descent(api.url, "show", job_id).stdout


# --- how commands end --------------------------------------------------------------------------------------------------


def test_a_server_that_is_not_there_is_exit_code_3() -> None:
    done = descent("http://127.0.0.1:9", "ls")
    assert (done.returncode, done.stdout) == (3, "")
    assert "127.0.0.1:9" in done.stderr


@pytest.mark.parametrize("address", ["localhost:8000", "http://[::1", "http://127.0.0.1:99999", "ftp://127.0.0.1"])
def test_an_address_that_is_none_is_exit_code_2(address: str) -> None:
    done = descent(address, "ls")
    assert (done.returncode, "is no address" in done.stderr) == (2, True)


def test_a_key_that_is_none_is_exit_code_2_and_not_shown(url: str) -> None:
    done = descent(url, "ls", DESCENT_API_KEY="schlüssel")
    assert (done.returncode, "no key" in done.stderr, "schl" in done.stderr) == (2, True, False)


def test_a_database_that_is_away_is_exit_code_3_and_one_line(url: str) -> None:
    env = environment(url, DESCENT_REDIS_URL="redis://127.0.0.1:9")
    done = subprocess.run([*COMMAND, "keys", "list"], env=env, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (3, "", 1)


def test_a_pipe_that_closes_is_quiet(url: str) -> None:
    for words in (("ls", "--json"), ("ls",), ("version",)):
        read, write = os.pipe()
        os.close(read)
        command = [*COMMAND, *words]
        done = subprocess.run(command, env=environment(url), cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True)
        os.close(write)
        assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("words", [("ls", "--json"), ("ls",), ("show", "@last"), ("version",)])
def test_a_disk_that_is_full_is_one_line_and_exit_code_1(url: str, words: tuple[str, ...]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, *words], env=environment(url), cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, done.stderr) == (1, "descent: cannot write: No space left on device\n")


@pytest.mark.parametrize("words", [("submit", *QUICK), ("sweep", "--lesson"), ("lr-find",)])
def test_ctrl_c_before_the_server_has_answered_says_that_nobody_knows(words: tuple[str, ...]) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,  # it takes a request, and says nothing
        begun(f"http://127.0.0.1:{silent.getsockname()[1]}", *words) as process,
    ):
        connection, _ = silent.accept()
        with connection:
            connection.recv(1)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
    assert (process.returncode, out, "not known" in err, "descent ls" in err) == (130, "", True, True)


@pytest.mark.parametrize("words", [("-h",), ("submit", "-h")])
def test_help_has_a_short_name(url: str, words: tuple[str, ...]) -> None:
    assert descent(url, *words).stdout == descent(url, *words[:-1], "--help").stdout != ""


def test_a_port_that_is_none_is_refused_as_it_was_typed(url: str) -> None:
    done = descent(url, "up", "--port", "99999")
    assert (done.returncode, "--port" in done.stderr) == (2, True)


def test_the_help_and_the_readme_list_the_exit_codes_and_all_commands() -> None:
    said = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    words = " ".join(said.split())
    readme = (ROOT / "README.md").read_text().partition("## Command line")[2].partition("\n## ")[0]
    for code, meaning in exits.MEANINGS.items():
        assert f"{code.value} {meaning}" in words
        assert re.search(rf"^\| `{code.value}` \| {re.escape(meaning)} \|$", readme, re.MULTILINE)
    names = re.findall(r"^│ ([a-z][a-z-]*)  ", said, re.MULTILINE)
    assert len(names) > 20
    for name in names:
        assert re.search(rf"^\|.*`(descent )?{name}[ `]", readme, re.MULTILINE)


def test_what_the_readme_submits_is_accepted(url: str) -> None:
    part = (ROOT / "README.md").read_text().partition("## Command line")[2]
    found = re.search(r"```sh\n(.*?)```", part, re.DOTALL)
    assert found
    for line in found[1].splitlines():
        command, *words = shlex.split(line, comments=True)
        assert command == ".venv/bin/descent"
        done = descent(url, *words, "--dry-run")
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("words", [("--help",), ("ls",), ("submit", "--help")])
def test_a_command_loads_only_what_it_needs(url: str, words: tuple[str, ...]) -> None:
    code = "import sys, client.cli as cli\ntry: cli.main()\nfinally: print(*sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code, *words], env=environment(url), cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = {name.partition(".")[0] for name in done.stderr.split()}
    assert "typer" in loaded
    assert not loaded & {"paddle", "numpy", "fastapi", "celery", "redis", "matplotlib", "api", "worker"}


def test_the_shell_completes_ids_and_names(api: Api) -> None:
    def complete(*words: str) -> list[str]:
        asked = {"_DESCENT_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(("descent", *words))}
        env = environment(api.url, **asked, COMP_CWORD=str(len(words)))
        return subprocess.run(COMMAND, env=env, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()

    assert api.jobs[Status.FAILED] in complete("show", "job_")
    assert complete("submit", "--optimizer", "ada") == ["adagrad", "adam", "adamw", "adamax", "adadelta"]
    assert set(complete("re")) == {"resume", "reindex"}
    assert complete("ls", "--optimizer", "x") == []
    made = descent(api.url, "sweep", "--optimizers", "sgd", "--rates", "0.1", "--no-wait").stdout.strip()
    descent(api.url, "cancel", made)
    assert made in complete("watch", "sweep_")
    assert made in complete("ls", "--sweep", "")
    assert complete("predict", "--model", "lat") == ["latest"]
    assert complete("ls", "--status", "ca") == ["cancelling", "cancelled"]
    assert complete("download", "x", "--format", "o") == ["onnx"]
    assert complete("data", "fetch", "fa") == ["fashion-mnist"]
    assert complete("submit", "--device", "") == ["auto", "cpu", "gpu"]


# --- parts -------------------------------------------------------------------------------------------------------------


def test_words_become_parameters() -> None:
    assert parameters(["a=1", "b.c=true", "b.d=word", "e=[1,2]"], "--set") == {
        "a": 1, "b": {"c": True, "d": "word"}, "e": [1, 2],
    }  # fmt: skip
    assert rate("1e-3", "--lr") == 0.001
    assert rate("cosine_annealing:max_learning_rate=0.1", "--lr") == {
        "schedule": "cosine_annealing",
        "max_learning_rate": 0.1,
    }
    assert listed("sgd, multi:milestones=[1,2],adam") == ["sgd", "multi:milestones=[1,2]", "adam"]


def test_a_plot_of_one_point_is_none() -> None:
    assert plot([Line([(0, 2.3)])], width=40, height=5) == []


def test_a_plot_shows_where_points_are() -> None:
    rows = [row.plain for row in plot([Line([(0, 1.0), (10, 2.0)])], width=30, height=4)]
    assert len(rows) == 5
    assert (rows[0].split()[0], rows[3].split()[0]) == ("2", "1")
    first, last = (row.partition("│")[2] for row in (rows[0], rows[3]))
    assert (first.strip(), first[-1]) == (first[-len(first.strip()) :], first.rstrip()[-1])  # it rises to the right
    assert last.startswith("⣀") or ord(last[0]) > 0x2800
    assert plot([Line([(0, None), (1, float("nan"))])], width=30, height=4) == []


def test_a_sparkline_and_a_bar_are_as_long_as_what_they_show() -> None:
    assert sparkline([1.0, 2.0, 3.0, None], 4) == "▁▅█ "
    assert sparkline([float(n) for n in range(100)], 10)[::9] == "▁█"
    assert sparkline([None], 5) == ""
    assert (bar(1, 4), bar(0.5, 4), bar(0, 4), bar(0.03, 4)) == ("████", "██", "", "▏")
