"""What docs/operations.md says to type for a backup and its return, typed on a real home."""

import os
import re
import subprocess
import sys
from pathlib import Path

from client.client import Client, EpochEnded, Points
from tests.conftest import ROOT, serving

DESCENT = f"{sys.executable} -P -m client.cli"


def blocks(section: str) -> list[str]:
    """The commands of a section, block by block."""
    page = (ROOT / "docs/operations.md").read_text()
    (text,) = re.findall(rf"^## {section}\n(.*?)^## ", page, re.M | re.S)
    return re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)


def type_in(commands: str, folder: Path, home: Path, *, ends_with: tuple[int, ...] = (0,)) -> str:
    """As a user would who is in `folder`; the command is this checkout's."""
    commands = commands.replace(".venv/bin/descent", DESCENT)
    env = {name: value for name, value in os.environ.items() if not name.startswith("DESCENT_")}
    env |= {"DESCENT_HOME": str(home), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-euc", commands], cwd=folder, env=env, capture_output=True, text=True, timeout=100)
    assert done.returncode in ends_with, done.stderr
    return done.stdout


def test_what_was_backed_up_is_there_again_after_a_restore(tmp_path: Path, cache: Path) -> None:
    home, whole, jobs_alone = tmp_path / "home", tmp_path / "whole", tmp_path / "jobs alone"
    save_all, save_jobs = blocks("Back up")
    restore_all, restore_jobs = blocks("Restore")
    with serving(home, cache) as server, Client(server.url) as client:
        ended = client.jobs.submit(optimizer="sgd", learning_rate=0.1, epochs=1).wait(120)
        model, curve = ended.model(), ended.loss().points
        under_way = client.jobs.submit(optimizer="sgd", learning_rate=0.1, epochs=1000)
        record = home / "jobs" / under_way.id / "job.json"  # within DESCENT_SCAN_S
        next(event for event in under_way.stream(60) if isinstance(event, EpochEnded) and record.exists())
        type_in(save_jobs, tmp_path, home, ends_with=(0, 1))  # 1: a file was replaced while tar read it
    type_in(f"{DESCENT} keys create ann", tmp_path, home)
    type_in(save_all, tmp_path, home)

    type_in(restore_all, tmp_path, whole)
    assert "ann" in type_in(f"{DESCENT} keys list", tmp_path, whole)
    told = type_in(restore_jobs, tmp_path, jobs_alone)
    assert sorted(told.split()) == sorted([ended.id, "restored", under_way.id, "restored"])
    for restored in (whole, jobs_alone):
        assert restored.stat().st_mode & 0o777 == 0o700
        with serving(restored, cache) as server, Client(server.url) as client:
            again = client.jobs.get(ended.id)
            assert (again.status, again.model(), again.loss().points) == ("succeeded", model, curve)
            going = client.jobs.get(under_way.id)
            at = going.data["progress"]["step"]
            for event in going.stream(60):
                if isinstance(event, Points) and event.points[-1]["step"] > at:
                    break
            assert going.cancel().wait(60, check=False).status == "cancelled"
