"""A database that is lost is made anew from the jobs' own files."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from client.client import Client, NotFound
from tests.conftest import DOOMED, eventually, serving
from tests.test_cli import descent

SPEC: dict[str, Any] = {
    "optimizer": "adam",
    "learning_rate": 0.001,
    "epochs": 1,
    "batch_size": 2000,
    "log_every": 1,
    "name": "kept",
}
SHORT = {"scan_s": "0.3", "checkpoint_s": "0.5"}


def lose_database(home: Path) -> None:
    """As if its disk had died: the jobs' own files are all there is."""
    shutil.rmtree(home / "redis")


def test_ended_and_unended_jobs_come_back(tmp_path: Path, cache: Path) -> None:
    long_spec = SPEC | {"epochs": 2, "name": "unended"}
    with serving(tmp_path, cache, **SHORT) as server, Client(server.url) as client:
        first = client.jobs.submit(**SPEC).wait(120)
        other = client.jobs.submit(**DOOMED).wait(20, check=False)
        done, failed = first.id, other.id
        before = first.data, first.loss(), first.model(), other.data
        going = client.jobs.submit(**long_spec)
        unended = going.id
        eventually(lambda: going.refresh().data["progress"]["step"] > 30, within_s=60, what="more than an epoch")
        for alias, job_id in (("prod", done), ("gone", done)):
            client.models.name(alias, job_id)
        client.models.unname("gone")
        record = tmp_path / "jobs" / done / "job.json"
        eventually(
            lambda: list(json.loads(record.read_text())["record"].get("aliases", {})) == ["prod"], what="its file"
        )
        deleted = client.jobs.submit(optimizer="sgd", learning_rate=0.1).cancel()
        deleted.delete()
    lose_database(tmp_path)
    done_again = descent("reindex", home=tmp_path, cache=cache)
    assert done_again.returncode == 0, done_again.stderr
    assert sorted(done_again.stdout.splitlines()) == sorted(f"{job} restored" for job in (done, failed, unended))
    with serving(tmp_path, cache, **SHORT) as server, Client(server.url) as client:
        first, other = client.jobs.get(done), client.jobs.get(failed)
        assert (first.data, first.loss(), first.model(), other.data) == before
        for name in ("best", "prod"):
            assert client.predict([[0.0] * 784], model=name)["model"]["job_id"] == done
        assert client.models.aliases() == {"best": done, "latest": done, "prod": done}
        going = client.jobs.get(unended).wait(120)
        assert going.data["attempt"] == 1
        assert (going.data["resumed_from_step"] or 0) > 25
        assert [point["step"] for point in going.loss()] == list(range(50))
        undisturbed = client.jobs.submit(**long_spec).wait(120)
        assert undisturbed.data["model"]["sha256"] == going.data["model"]["sha256"]
        with pytest.raises(NotFound):
            client.jobs.get(deleted.id)
        running = descent("reindex", home=tmp_path, cache=cache)  # beside a server that runs, too
        assert "restored" not in running.stdout
        assert running.stdout.count("exists") == 4


def test_files_that_are_damaged_are_named_and_left_alone(tmp_path: Path, cache: Path) -> None:
    with serving(tmp_path, cache, **SHORT) as server, Client(server.url) as client:
        jobs = [client.jobs.submit(**DOOMED).id for _ in range(5)]
        for job_id in jobs:
            file = tmp_path / "jobs" / job_id / "history.jsonl"
            eventually(file.exists, what="its files")
    folders = [tmp_path / "jobs" / job_id for job_id in jobs]
    (folders[0] / "history.jsonl").write_text("{}\n")
    (folders[1] / "job.json").write_text('{"format": 1')
    record = json.loads((folders[2] / "job.json").read_text())
    (folders[2] / "job.json").write_text(json.dumps(record | {"format": 99}))
    record = json.loads((folders[4] / "job.json").read_text())
    record["record"]["aliases"] = {"no alias": 1}
    (folders[4] / "job.json").write_text(json.dumps(record))
    lose_database(tmp_path)
    done = descent("reindex", home=tmp_path, cache=cache)
    lines = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert lines[jobs[3]] == "restored"
    assert all(lines[job].startswith("not restored: ") for job in (*jobs[:3], jobs[4]))
    assert "digest" in lines[jobs[0]]
    assert "format" in lines[jobs[2]]
