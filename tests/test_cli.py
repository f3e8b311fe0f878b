"""The command as a user types it, and the README's own words."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import paddle
import pytest

from core.training.datasets import Dataset
from tests import terminal
from tests.commands import COMMAND, environment
from tests.conftest import ROOT, Server, processes
from tests.redrawn import png, strokes


def descent(
    *words: str, home: Path, cache: Path, folder: Path = ROOT, **settings: str
) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"DESCENT_HOME": str(home), "DESCENT_CACHE": str(cache), "COLUMNS": "200"}
    env |= {f"DESCENT_{name.upper()}": value for name, value in settings.items()}
    command = [sys.executable, "-P", "-m", "client.cli", *words]
    return subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=400)


def still_running(home: Path) -> list[str]:
    """Processes whose command names the home."""
    return [command for _, command in processes().values() if str(home) in command]


def test_the_demo_shows_all_of_it_and_leaves_nothing(tmp_path: Path, cache: Path, mnist: Dataset) -> None:
    assert len(mnist.test) == 10_000
    done = descent("demo", "--json", home=tmp_path, cache=cache, redis_url="redis://127.0.0.1:9")
    assert done.returncode == 0, done.stderr
    for part in ("POST /jobs", "POST /predict", "time to first loss", "images/s", "test accuracy", "loss.png"):
        assert part in done.stderr
    facts = json.loads(done.stdout)
    assert (facts["points"], facts["test_accuracy"] > 0.97) == (51, True)
    assert Path(facts["loss_plot"]).read_bytes().startswith(b"\x89PNG")
    assert len(paddle.load(facts["model"])) == 6
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]
    assert still_running(tmp_path) == []


def test_the_demo_fails_loudly(tmp_path: Path, cache: Path, mnist: Dataset) -> None:
    assert len(mnist.test) == 10_000
    done = descent("demo", home=tmp_path, cache=cache, device="gpu:15")
    assert done.returncode == 1
    assert "gpu:15" in done.stderr
    assert "redis " in done.stdout
    assert "Done" not in done.stdout
    assert still_running(tmp_path) == []


def test_a_local_training_needs_no_server(tmp_path: Path, cache: Path) -> None:
    words = ("train", "--local", "--optimizer", "Momentum", "--lr", "0.01", "--epochs", "1", "--batch-size", "5000")
    done = descent(*words, "--json", "--out", "weights.pdparams", home=tmp_path / "home", cache=cache, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    *points, outcome = [json.loads(line) for line in done.stdout.splitlines()]
    assert (outcome["path"], 0 < outcome["test_accuracy"] < 1) == ("weights.pdparams", True)
    assert [point["step"] for point in points] == [0, 9]
    assert "test accuracy" in done.stderr
    assert "OMP_NUM_THREADS" not in done.stderr
    assert len(paddle.load(str(tmp_path / "weights.pdparams"))) == 6


def test_a_local_training_that_is_interrupted_says_what_it_leaves(tmp_path: Path, cache: Path) -> None:
    out = tmp_path / "weights"
    command = [*COMMAND, "train", "--local", "--epochs", "1000", "--out", str(out)]
    env = environment("http://127.0.0.1:9", DESCENT_HOME=str(tmp_path), DESCENT_CACHE=str(cache))
    shown = terminal.run(command, env=env, interrupt_at=lambda text: '"step": 100' in text)
    assert (shown.code, out.exists()) == (130, False)
    assert "interrupted: no weights were written" in shown.text
    assert "Traceback" not in shown.text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--optimizer", "adma"), "did you mean adam?"),
        (("--out", "no-such-folder/weights"), "--out"),
        (("--dataset", "fashion"), "dataset"),
        (("--batch-size", "60000"), "50000"),
        (("--lr", "0"), "learning_rate"),
        (("--device", "tpu"), "gpu:N with N from 0 to 15"),
    ],
)
def test_a_wrong_local_training_is_told_why(words: tuple[str, ...], said: str, tmp_path: Path, cache: Path) -> None:
    done = descent("train", "--local", *words, home=tmp_path, cache=cache)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_key_for_a_home_that_has_none_is_asked_about(tmp_path: Path, cache: Path) -> None:
    """It may be the wrong folder: the server would not know the key."""
    first = descent("keys", "create", "olga", home=tmp_path, cache=cache)
    assert first.stdout.startswith("dsc_")
    assert f"a new database, in {tmp_path}: is that the server's DESCENT_HOME?" in first.stderr
    assert "a new database" not in descent("keys", "create", "pat", home=tmp_path, cache=cache).stderr


def test_data_is_fetched_into_the_cache_it_names(tmp_path: Path, cache: Path, mnist: Dataset) -> None:
    assert len(mnist.test) == 10_000
    done = descent("data", "fetch", home=tmp_path, cache=cache)
    assert done.stdout.strip() == str(cache / "mnist")
    unknown = descent("data", "fetch", "fashion", home=tmp_path, cache=cache)
    assert unknown.returncode == 2
    assert "mnist, fashion-mnist" in unknown.stderr


def test_the_version_is_told(tmp_path: Path, cache: Path) -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", descent("version", home=tmp_path, cache=cache).stdout)
    assert (
        descent("--version", home=tmp_path, cache=cache).stdout == descent("version", home=tmp_path, cache=cache).stdout
    )


def test_the_readmes_python_runs(cache: Path) -> None:
    part = (ROOT / "README.md").read_text().partition("## Without a server")[2]
    found = re.search(r"```python\n(.*?)```", part, re.DOTALL)
    assert found
    quick = (
        found[1].replace('Path("data")', f"Path({str(cache)!r})").replace("0.001)", "0.001, epochs=1, batch_size=5000)")
    )
    done = subprocess.run([sys.executable, "-c", quick], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "test_accuracy=" in done.stdout


def test_a_job_is_trained_downloaded_and_asked_on_the_command_line(
    server: Server, trained_job: str, mnist: Dataset, tmp_path: Path, cache: Path
) -> None:
    """With a real worker. The exit codes, the looks and the refusals are in test_commands.py."""

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return descent(*words, home=tmp_path, cache=cache, folder=tmp_path, url=server.url)

    submitted = run("submit", "--optimizer", "adam", "--lr", "0.001", "--epochs", "1", "--batch-size", "2000")
    assert submitted.returncode == 0, submitted.stderr
    assert re.search(r"^test accuracy  [6-9]\d\.\d\d%$", submitted.stdout, re.MULTILINE)
    assert re.search(
        r"epoch 1/1 done, mean loss \d\.\d{4}, validation accuracy \d\d\.\d\d%, [\d,]+ images/s", submitted.stderr
    )
    next_one = re.search(r"descent (download job_\S+)", submitted.stderr)
    assert next_one
    downloaded = run(*next_one[1].split())
    assert len(paddle.load(downloaded.stdout.strip())) == 6
    assert "verdict" in run("show", trained_job).stdout
    (tmp_path / "seven.png").write_bytes(png(strokes(mnist.test.images[0], brush=20)))
    asked = run("predict", "--model", trained_job, "seven.png", "--json")
    assert json.loads(asked.stdout)["predictions"][0]["digit"] == 7
    found = run("lr-find", "--optimizer", "adam", "--batch-size", "1000", "--json")
    assert found.returncode == 0, found.stderr
    assert 0.0001 < json.loads(found.stdout)["suggestion"]["rate"] < 1


@pytest.mark.skipif(not shutil.which("curl"), reason="the README's requests are made with curl, and there is none here")
def test_the_readmes_requests_are_accepted(server: Server, trained_job: str, mnist: Dataset, tmp_path: Path) -> None:
    """Word for word, but for the address and the job's id."""
    url = server.url
    (tmp_path / "seven.png").write_bytes(png(strokes(mnist.test.images[0], brush=20)))
    part = (ROOT / "README.md").read_text().partition("## Three uses")[2].partition("\n## ")[0]
    train, watch, send, predict, infer, name = re.findall(r"```sh\n(.*?)```", part, re.DOTALL)
    host = url.removeprefix("http://")

    def shell(text: str) -> str:
        script = re.sub(r"JOB=\S+", f"JOB={trained_job}", text.replace("127.0.0.1:8000", host))
        script = script.replace("-o mnist.pdparams", "-o /dev/null")
        done = subprocess.run(
            ["sh", "-c", script], capture_output=True, text=True, check=True, timeout=60, cwd=tmp_path
        )
        return done.stdout

    job = json.loads(shell(train))
    assert job["status"] == "queued"
    history = json.loads(shell(watch))
    assert (history["count"], history["terminal"]) == (51, True)
    (sent,) = json.loads(shell(send))["predictions"]
    assert sent["digit"] == 7
    assert sent["seen"].startswith("iVBOR")
    assert json.loads(shell(predict))["predictions"][0]["digit"] == 1
    assert {"name": "label", "data": [1]}.items() <= json.loads(shell(infer))["outputs"][1].items()
    assert "prod" in json.loads(shell(f"JOB=x\n{name}"))["names"]
    subprocess.run(["curl", "-s", "-X", "DELETE", f"{url}/models/prod"], check=True, capture_output=True)
    subprocess.run(["curl", "-s", "-X", "POST", f"{url}{job['links']['cancel']}"], check=True, capture_output=True)
