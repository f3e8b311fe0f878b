"""Load on a server, made by wrk (Debian: `apt-get install wrk`): it is light, and shares the cores with the servers."""

import argparse
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import httpx2

from bench import measure
from bench.measure import Run


def require_wrk(parser: argparse.ArgumentParser) -> None:
    if not shutil.which("wrk"):
        parser.error("this needs wrk: apt-get install wrk")


@dataclass(frozen=True)
class Request:
    """What is asked for again and again, and what the answer must be: its status, and how often it says "step"."""

    url: str
    status: int = 200
    steps: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str | None = None

    def check(self) -> httpx2.Response:
        """Ask once. Raises RuntimeError when the answer is not what is to be measured."""
        method = "POST" if self.body else "GET"
        json = {"Content-Type": "application/json"} if self.body else {}
        answer = httpx2.request(
            method, self.url, headers={**self.headers, **json}, content=self.body, timeout=60, trust_env=False
        )
        if answer.status_code != self.status or self.steps not in (None, answer.text.count('"step"')):
            raise RuntimeError(f"{self.url}: {answer.status_code} {answer.text[:300]}")
        return answer

    def load(self, connections: int, seconds: int) -> Run:
        """Keep so many connections busy with it for so long. Raises RuntimeError when an answer failed."""
        run = self.tried(connections, seconds)
        if run.figures["failed"]:
            raise RuntimeError(f"{self.url}: {run.figures['failed']:.0f} answers failed")
        self.check()  # is still right; and answered after what wrk left unread
        return run

    def tried(self, connections: int, seconds: int) -> Run:
        """The same, with what failed counted in `failed`."""
        headers = [word for name, value in self.headers.items() for word in ("-H", f"{name}: {value}")]
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", *headers]
        env = os.environ | ({"BODY": self.body} if self.body else {})
        return measure.run([*command, "-s", "bench/load.lua", self.url], env=env, limit_s=seconds + 120)


def loaded(requests: Mapping[str, Request], connections: int, seconds: int, rounds: int) -> dict[str, list[Run]]:
    for request in requests.values():
        request.check()
        request.load(connections, 1)  # connections opened, code warm
    return measure.interleaved(
        {name: partial(request.load, connections, seconds) for name, request in requests.items()}, rounds
    )
