"""The checks at the end: what each spec gives when nothing happens, and every accepted job held to that and to the promises."""

import hashlib
import itertools
from collections import Counter
from dataclasses import dataclass
from typing import Any

from tests.chaos.arena import LONGER, PATIENCE_S, SPECS, TERMINAL, Accepted, Arena, Point

LEGAL = {
    "": {"queued"},
    "queued": {"running", "paused", "cancelled"},
    "running": {"queued", "pausing", "cancelling", "succeeded", "failed"},
    "pausing": {"paused", "running", "cancelling", "succeeded", "failed"},
    "paused": {"queued", "cancelled"},
    "cancelling": {"cancelled"},
    "succeeded": {"queued"},
    "failed": {"queued"},
    "cancelled": {"queued"},
}


@dataclass(frozen=True)
class Outcome:
    """What a spec gives when nothing happens, to the bit."""

    points: list[Point]
    sha256: str


def train_undisturbed(arena: Arena) -> dict[str, Outcome]:
    """What each spec gives when nothing happens."""
    jobs = [arena.submit(name) for name in [*SPECS, *LONGER]]
    arena.wait_for(jobs, PATIENCE_S)
    outcomes = {}
    for job in jobs:
        job.must_be_undisturbed = True
        content = arena.api.insist("GET", f"/jobs/{job.job_id}/model", params={"format": "safetensors"}).content
        outcomes[job.name] = Outcome(without_times(all_points(arena, job)), hashlib.sha256(content).hexdigest())
    return outcomes


def all_points(arena: Arena, job: Accepted) -> list[Point]:
    points: list[Point] = arena.api.insist("GET", f"/jobs/{job.job_id}/loss").json()["points"]
    return points


def without_times(points: list[Point]) -> list[Point]:
    return [{name: value for name, value in point.items() if name != "time_s"} for point in points]


class Verdict:
    """Every accepted job, held to the promises."""

    def __init__(self, arena: Arena, undisturbed: dict[str, Outcome]) -> None:
        self._arena, self._undisturbed = arena, undisturbed
        self.totals: Counter[str] = Counter()
        for job in arena.jobs:
            self._check(job)
        self._check_that_no_other_is_there()

    def _check(self, job: Accepted) -> None:
        answer = self._arena.api.insist("GET", f"/jobs/{job.job_id}")
        if answer.status_code != 200:
            self._say(job, f"lost: {answer.status_code}")
            return
        now, points = answer.json(), all_points(self._arena, job)
        code = (now["error"] or {}).get("code", "")
        self.totals[code or now["status"]] += 1
        self.totals["attempts"] += sum(t["status"] == "running" for t in now["transitions"])
        self.totals["resumed from a checkpoint"] += now["resumed_from_step"] is not None
        self._check_states(job, now)
        self._check_history(job, now, points)
        self._check_model(job, now)

    def _check_states(self, job: Accepted, now: dict[str, Any]) -> None:
        states = [transition["status"] for transition in now["transitions"]]
        if any(after not in LEGAL[before] for before, after in itertools.pairwise(["", *states])):
            self._say(job, f"went through {states}")
        ends = sum(state in TERMINAL for state in states)
        if now["status"] not in TERMINAL or ends != 1 + job.extended:
            self._say(job, f"has not exactly one end: {states}")
        if now["status"] == "failed" and (now["error"]["code"] != "worker_lost" or len(job.hits) < 3):
            self._say(job, f"failed: {now['error']}, hit by {job.hits}")
        if now["attempt"] > 3 or (job.must_be_undisturbed and states != ["queued", "running", "succeeded"]):
            self._say(job, f"took {now['attempt']} attempts: {states}")
        if job.must_be_cancelled and now["status"] != "cancelled":
            self._say(job, f"was told that it is cancelled, and is {now['status']}")

    def _check_history(self, job: Accepted, now: dict[str, Any], points: list[Point]) -> None:
        expected, found = self._undisturbed[job.name].points, without_times(points)
        if found != expected[: len(found)] or (now["status"] == "succeeded" and len(found) != len(expected)):
            steps = [point["step"] for point in points]
            self._say(
                job, f"({now['status']}) its history is not the undisturbed one's: {len(found)} points, {steps[:20]}…"
            )
        if job.seen != points[: len(job.seen)]:
            self._say(job, "what was seen while it ran is not what its history says")
        if job.count_when_cancelled not in (None, len(points)):
            self._say(job, f"{len(points) - (job.count_when_cancelled or 0)} points came after it was cancelled")

    def _check_model(self, job: Accepted, now: dict[str, Any]) -> None:
        if not now["model"]["ready"]:
            if now["status"] == "succeeded":
                self._say(job, "succeeded without a model")
            return
        answer = self._arena.api.insist("GET", f"/jobs/{job.job_id}/model", params={"format": "safetensors"})
        if hashlib.sha256(answer.content).hexdigest() != now["model"]["sha256"]:
            self._say(job, f"its model is not the one it names: {answer.status_code}")
        if now["status"] == "succeeded":
            equal = now["model"]["sha256"] == self._undisturbed[job.name].sha256
            self.totals["bit-equal to an undisturbed run"] += equal
            if not equal:
                self._say(job, "its weights are not the undisturbed ones")

    def _check_that_no_other_is_there(self) -> None:
        """Each key named one job, however often it was sent."""
        found, after = set(), ""
        while True:
            query = {"limit": "100"} | ({"after": after} if after else {})
            page = self._arena.api.insist("GET", "/jobs", params=query).json()
            found |= {job["id"] for job in page["jobs"]}
            if not (after := page["next"] or ""):
                break
        if others := found - {job.job_id for job in self._arena.jobs}:
            self._arena.violations.add(f"jobs that nobody was told of: {sorted(others)}")

    def _say(self, job: Accepted, what: str) -> None:
        self._arena.violations.add(f"{job.job_id} ({job.name}) {what}")
