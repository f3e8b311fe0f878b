"""Published files: absent or complete at every moment, whoever is killed; noticed when damaged; kept and removed by rule."""

import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

from core.errors import ArtifactCorrupt
from core.jobs import archive, artifacts, spool
from core.jobs.job import Job, Status, new_job_id
from core.jobs.spool import Spool
from core.jobs.work import WorkStore
from core.spec import JobSpec
from core.storage import Folder
from core.training.checkpoint import Checkpoint
from tests.conftest import WithStore
from worker.resume import resumptions

ROOT = Path(__file__).parent.parent
JOB_ID = "job_" + "0" * 32
NAME = "model.safetensors"
CONTENT = bytes(range(256)) * 400
SPEC = JobSpec.model_validate({"optimizer": "adam", "learning_rate": 0.001, "epochs": 2, "log_every": 10})
STEPS_AN_EPOCH = SPEC.steps_per_epoch


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job's folder."""
    return tmp_path / "jobs" / JOB_ID


def placed(path: Path) -> tuple[Folder, str]:
    """A path below a job's folder, or that itself, as the storage and the name there."""
    root = path.parents[len(path.parts) - path.parts.index(JOB_ID) - 1]
    return Folder(root), path.relative_to(root).as_posix()


def publish(folder: Path, name: str, content: bytes) -> dict[str, Any]:
    return artifacts.publish(*placed(folder), name, content)


def save(folder: Path, step: int, content: bytes) -> None:
    artifacts.publish_checkpoint(*placed(folder), step, content)


def checkpoints(job: Path) -> list[Path]:
    return [job.parent / path for path in artifacts.checkpoints(*placed(job))]


def read_checkpoint(path: Path) -> bytes:
    return artifacts.read_checkpoint(*placed(path))


# --- the order of effects ----------------------------------------------------------------------------------------------


def test_a_file_gets_its_name_when_its_bytes_are_on_disk_and_then_the_folders_follow(
    job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, fsync, replace = job / "1", os.fsync, Path.replace
    events: list[tuple[str, int, bool]] = []

    def seen_fsync(handle: int) -> None:
        state = os.fstat(handle)
        events.append(("fsync", state.st_ino, (folder / NAME).exists()))
        if not events[1:]:
            assert state.st_size == len(CONTENT)
        fsync(handle)

    def seen_replace(path: Path, target: Path) -> Path:
        events.append(("name", path.stat().st_ino, (folder / NAME).exists()))
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(Path, "replace", seen_replace)
    file = publish(folder, NAME, CONTENT)
    inodes = [path.stat().st_ino for path in (folder / NAME, folder, job, job.parent, job.parent.parent)]
    assert events == [
        ("fsync", inodes[0], False),
        ("name", inodes[0], False),
        *(("fsync", it, True) for it in inodes[1:]),
    ]
    assert artifacts.read_verified(Folder(job.parent), file) == CONTENT


def test_a_reader_never_sees_a_part_of_a_file_that_is_published_again_and_again(job: Path) -> None:
    contents = [bytes([n]) * (200_000 + 3_000 * n) for n in range(100)]
    folder, done = job / "1", threading.Event()
    seen: list[bytes] = []
    publish(folder, NAME, contents[0])

    def read_on() -> None:
        while not done.is_set():
            seen.append((folder / NAME).read_bytes())

    reader = threading.Thread(target=read_on)
    reader.start()
    for content in contents:
        publish(folder, NAME, content)
    done.set()
    reader.join()
    assert len(set(seen)) > 10
    assert set(seen) <= set(contents)
    assert [path.name for path in folder.iterdir()] == [NAME]


def test_a_disk_that_refuses_leaves_the_older_file_and_no_rest(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, fsync = job / "1", os.fsync
    publish(folder, NAME, b"old")

    def refuse(handle: int) -> None:
        monkeypatch.setattr(os, "fsync", fsync)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="No space"):
        publish(folder, NAME, CONTENT)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {NAME: b"old"}


# --- F13: killed at each step ------------------------------------------------------------------------------------------

BEGUN = ((10, b"ten" * 5_000), (20, b"twenty" * 5_000))  # the checkpoints that are there before
STEP, CHECKPOINT = 30, b"thirty" * 20_000


def publish_model(job: Path) -> None:
    publish(job / "2", NAME, CONTENT)


def publish_checkpoint(job: Path) -> None:
    save(job / "2", STEP, CHECKPOINT)


def die_at_every_call(action: str, root: Path) -> None:
    """Run in a process of its own: do `action` again and again, killed at its first call to the system, its second, ...

    Each has its own jobs folder, by that number; the last is the one that came to its end. Prints the names of the calls.
    """
    act = {"model": publish_model, "checkpoint": publish_checkpoint}[action]
    calls: list[str] = []
    following(calls.append, lambda: act(begun(root, "undisturbed")))
    for count in itertools.count(1):
        job = begun(root, str(count))
        child = os.fork()
        if child == 0:
            following(Bomb(count), lambda job=job: act(job))  # type: ignore[misc]
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
            break
    print(json.dumps(calls))  # noqa: T201


class Bomb:
    """Kills this process when it is called for the `count`th time."""

    def __init__(self, count: int) -> None:
        self._left = count

    def __call__(self, _: str) -> None:
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def begun(root: Path, name: str) -> Path:
    """A new job that has checkpoints already."""
    job = root / name / JOB_ID
    for step, content in BEGUN:
        save(job / "1", step, content)
    return job


def following(tell: Callable[[str], object], act: Callable[[], None]) -> None:
    """Do something, and tell of each call to the system just before it and just after it."""

    def trace(_: FrameType, event: str, argument: Any) -> None:
        if event in ("c_call", "c_return"):
            module = argument.__module__ or type(argument.__self__).__module__
            if module in ("posix", "io", "_io"):
                tell(argument.__name__)

    sys.setprofile(trace)
    act()
    sys.setprofile(None)


def killed_everywhere(action: str, root: Path) -> list[Path]:
    """The jobs in which an action was killed, sooner and later; the last one lived."""
    code = f"from tests.test_publish import *; die_at_every_call({action!r}, Path({str(root)!r}))"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=env, check=True
    )
    calls = json.loads(done.stdout)
    assert {"open", "write", "flush", "fsync", "replace"} <= set(calls)
    count = sum(folder.name.isdecimal() for folder in root.iterdir())
    assert count > 20
    return [root / str(number) / JOB_ID for number in range(1, count + 1)]


def test_a_kill_at_any_moment_leaves_a_model_absent_or_complete(tmp_path: Path) -> None:
    jobs = killed_everywhere("model", tmp_path)
    there = []
    for job in jobs:
        path = job / "2" / NAME
        there.append(path.exists())
        assert not path.exists() or path.read_bytes() == CONTENT
        assert artifacts.read_verified(Folder(job.parent), publish(job / "2", NAME, CONTENT)) == CONTENT
        artifacts.sweep(*placed(job), {f"{JOB_ID}/2/{NAME}"}, upto=2)
        assert [path.name for path in (job / "2").iterdir()] == [NAME]  # what the dead one had begun is gone
    assert there == sorted(there)
    assert there.count(False) > 5
    assert there.count(True) > 5


def test_a_kill_at_any_moment_leaves_the_checkpoint_before_it_intact(tmp_path: Path) -> None:
    known = {*BEGUN, (STEP, CHECKPOINT)}
    for job in killed_everywhere("checkpoint", tmp_path):
        found = [(int(path.name[11:20]), read_checkpoint(path)) for path in checkpoints(job)]
        assert set(found) <= known
        assert BEGUN[1] in found
        assert len(found) in (2, 3)
        save(job / "3", 40, b"forty")
        assert read_checkpoint(checkpoints(job)[0]) == b"forty"
        assert len(checkpoints(job)) == artifacts.CHECKPOINTS_KEPT


# --- damage is noticed -------------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


DAMAGES = [flip, cut, Path.unlink]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_model_is_noticed(job: Path, damage: Callable[[Path], None]) -> None:
    file = publish(job / "1", NAME, CONTENT)
    damage(job / "1" / NAME)
    with pytest.raises(ArtifactCorrupt):
        artifacts.read_verified(Folder(job.parent), file)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_noticed(job: Path, damage: Callable[[Path], None]) -> None:
    save(job / "1", 10, CONTENT)
    (path,) = checkpoints(job)
    damage(path)
    with pytest.raises(ArtifactCorrupt):
        read_checkpoint(path)


def trained(job: Path, token: int, *steps: int, told_from: int = 0) -> None:
    """What a claim leaves that saved checkpoints at `steps`: them, and a spool with all it told."""
    folder = job / str(token)
    told = Spool(*placed(folder))
    for step in range(told_from, max(steps)):
        if step % SPEC.log_every == 0:
            point = {
                "step": step,
                "epoch": step // STEPS_AN_EPOCH,
                "batch": step % STEPS_AN_EPOCH,
                "loss": 1.0,
                "time_s": 0.0,
            }
            told.add({"type": "block", "points": [point], "steps_done": step + 1, "images_per_s": 100.0})
        if step % STEPS_AN_EPOCH == STEPS_AN_EPOCH - 1:
            told.add({"type": "epoch", "metrics": {"epoch": step // STEPS_AN_EPOCH}})
    told.sync()
    told.close()
    for step in steps:
        save(folder, step, checkpoint(step, token).to_bytes())


def checkpoint(step: int, token: int = 1) -> Checkpoint:
    state = {"epoch": step // STEPS_AN_EPOCH, "batch": step % STEPS_AN_EPOCH, "token": token}
    return Checkpoint(step=step, state=state, tensors={"network.w": np.full(1_000, step, np.float32)})


def places(job: Path) -> list[tuple[int, int]]:
    """The checkpoints there are: (claim, step), the furthest first."""
    return [(int(path.parent.name), int(path.name[11:20])) for path in checkpoints(job)]


def ways_on(job: Path) -> list[tuple[int, int]]:
    """Where the job can go on: (claim, step), the furthest first."""
    return [(found.checkpoint.state["token"], found.checkpoint.step) for found in resumptions(*placed(job), SPEC)]


def test_a_job_goes_on_from_its_furthest_checkpoint_with_all_that_was_told(job: Path) -> None:
    trained(job, 1, 500, 730)
    first, second = resumptions(*placed(job), SPEC)
    assert (first.checkpoint.step, second.checkpoint.step) == (730, 500)
    assert first.checkpoint.tensors["network.w"].tolist() == [730.0] * 1_000
    block, epoch = first.told
    assert [point["step"] for point in block["points"]] == list(range(0, 730, 10))
    assert (block["steps_done"], epoch["metrics"]) == (730, {"epoch": 0})


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(job: Path, damage: Callable[[Path], None]) -> None:
    trained(job, 1, 100, 200)
    damage(checkpoints(job)[0])
    assert ways_on(job) == [(1, 100)]


def test_a_checkpoint_whose_bytes_are_another_format_is_passed_over(job: Path) -> None:
    trained(job, 1, 100)
    save(job / "1", 200, b"its digest is right, and it is no checkpoint")
    assert ways_on(job) == [(1, 100)]


def test_a_checkpoint_whose_spool_lacks_points_is_passed_over(job: Path) -> None:
    trained(job, 1, 100)
    trained(job, 2, 200, told_from=100)
    assert ways_on(job) == [(1, 100)]
    (job / "1" / artifacts.SPOOL).unlink()
    assert ways_on(job) == []


def test_a_checkpoint_whose_spool_lacks_an_epoch_is_passed_over(job: Path) -> None:
    trained(job, 1, 600)
    path = job / "1" / artifacts.SPOOL
    path.write_text("".join(line for line in path.read_text().splitlines(True) if '"metrics"' not in line))
    assert ways_on(job) == []


def test_a_spool_is_read_up_to_a_line_that_was_cut_short(job: Path) -> None:
    trained(job, 1, 100)
    path = job / "1" / artifacts.SPOOL
    messages = spool.read(*placed(path.parent))
    os.truncate(path, path.stat().st_size - 5)
    assert spool.read(*placed(path.parent)) == messages[:-1]
    assert ways_on(job) == []  # the last point before the checkpoint is not there


# --- what is kept ------------------------------------------------------------------------------------------------------


def test_only_two_checkpoints_of_a_job_are_kept(job: Path) -> None:
    trained(job, 1, 10, 20, 30)
    assert places(job) == [(1, 30), (1, 20)]
    trained(job, 2, 40)
    assert places(job) == [(2, 40), (1, 30)]
    assert ways_on(job) == places(job)
    trained(job, 2, 40, 50)
    assert not (job / "1").exists()  # a spool without a checkpoint is of no use


def test_a_stale_claim_never_removes_what_a_newer_one_wrote(job: Path) -> None:
    trained(job, 1, 10)
    trained(job, 2, 20, 30)
    trained(job, 1, 40, 50, 60)  # frozen, thawed, and not yet told that it has lost the job
    assert places(job) == [(2, 30), (2, 20), (1, 60), (1, 50)]
    (furthest, *_) = (path for path in checkpoints(job) if path.parent.name == "2")
    assert read_checkpoint(furthest) == checkpoint(30, 2).to_bytes()
    assert (job / "2" / artifacts.SPOOL).exists()


def test_a_sweep_leaves_models_and_the_newest_checkpoints_with_their_spools(job: Path) -> None:
    trained(job, 1, 10)  # its checkpoint goes with the second one of the next claim
    trained(job, 2, 20)
    trained(job, 4, 30)
    trained(job, 5, 25)
    (job / "5" / "checkpoint-000000099-of-another-name").write_bytes(b"")
    (job / "5" / ".model.safetensors.123.tmp").write_bytes(b"a part")
    (job / ".job.json.123.tmp").write_bytes(b"a part")
    Spool(*placed(job / "6")).close()
    models = [publish(job / token, name, CONTENT) for token in ("3", "5") for name in artifacts.FORMATS.values()]
    for name in (artifacts.RECORD, artifacts.HISTORY):
        publish(job, name, b"{}")
    artifacts.sweep(*placed(job), {model["path"] for model in models[2:]}, upto=6)
    left = {str(path.relative_to(job)) for path in job.rglob("*") if path.is_file()}
    kept = {str(path.relative_to(job)) for path in checkpoints(job)}
    assert places(job) == [(5, 25), (4, 30)]
    assert left == kept | {
        "4/spool.jsonl",
        "5/spool.jsonl",
        "5/model.pdparams",
        "5/model.safetensors",
        "job.json",
        "history.jsonl",
    }
    assert {path.name for path in job.iterdir() if path.is_dir()} == {"4", "5"}


# --- races that once were bugs ------------------------------------------------------------------------------------------


def test_two_threads_of_a_process_publish_the_same_name(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, fsync = job / "1", os.fsync

    def meanwhile(handle: int) -> None:
        monkeypatch.setattr(os, "fsync", fsync)
        other = threading.Thread(target=publish, args=(folder, NAME, b"other"))
        other.start()
        other.join()
        fsync(handle)

    monkeypatch.setattr(os, "fsync", meanwhile)
    publish(folder, NAME, CONTENT)
    assert (folder / NAME).read_bytes() == CONTENT


def test_a_claim_that_had_to_begin_anew_keeps_its_checkpoints(job: Path) -> None:
    trained(job, 1, 500, 600)
    for path in checkpoints(job):
        flip(path)
    trained(job, 2, 100)
    assert ways_on(job) == [(2, 100)]


async def ended(store: WorkStore) -> Job:
    claim = await store.claim((await store.submit(SPEC)).id, worker="w", lease_s=30)
    assert claim
    await store.finish(claim, Status.SUCCEEDED, files={}, result={"test_accuracy": 0.0})
    return await store.get(claim.job_id)


def test_filing_an_ended_job_leaves_a_newer_claim_alone(with_store: WithStore[Any], tmp_path: Path) -> None:
    async def use(store: WorkStore) -> None:
        job = await ended(store)
        raw = await store.raw(job.id)
        assert raw
        await store.extend(job.id, 1)
        claim = await store.claim(job.id, worker="other", lease_s=30)
        assert claim
        folder = artifacts.claim_folder(job.id, claim.token)
        Spool(Folder(tmp_path), folder).close()
        archive._write(Folder(tmp_path), raw, [])  # as file_job does, in a thread, when it has read the record before
        assert (tmp_path / folder / artifacts.SPOOL).exists()

    with_store(use)


def test_filing_a_job_that_is_deleted_meanwhile_leaves_no_files(with_store: WithStore[Any], tmp_path: Path) -> None:
    async def use(store: WorkStore) -> None:
        job = await ended(store)
        raw = await store.raw(job.id)
        assert raw
        await store.delete(job.id)
        await archive.remove_job(store, Folder(tmp_path), job.id)
        archive._write(Folder(tmp_path), raw, [])
        await store.filed(raw)
        assert job.id in await store.trash()
        await store.emptied(job.id)

    with_store(use)


def test_a_deleted_job_is_not_restored_from_files_that_still_wait_to_go(
    with_store: WithStore[Any], tmp_path: Path
) -> None:
    async def use(store: WorkStore) -> None:
        job = await ended(store)
        await archive.file_job(store, Folder(tmp_path), job.id)
        await store.delete(job.id)
        outcome = await archive.reindex(store, Folder(tmp_path))
        await store.emptied(job.id)
        assert outcome[job.id] != "restored"

    with_store(use)


def test_a_job_that_is_deleted_while_its_points_are_read_has_no_files(
    with_store: WithStore[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def use(store: WorkStore) -> None:
        job = await ended(store)
        raw = store.raw

        async def then_deleted(job_id: str) -> Any:
            found = await raw(job_id)
            await store.delete(job_id)
            return found

        monkeypatch.setattr(store, "raw", then_deleted)
        await archive.file_job(store, Folder(tmp_path), job.id)
        assert not (tmp_path / job.id).exists()
        assert job.id not in await store.trash()

    with_store(use)


def test_a_late_filing_is_written_again(with_store: WithStore[Any]) -> None:
    async def use(store: WorkStore) -> None:
        claim = await store.claim((await store.submit(SPEC)).id, worker="w", lease_s=30)
        assert claim
        late = await store.raw(claim.job_id)
        await store.finish(claim, Status.FAILED)
        now = await store.raw(claim.job_id)
        assert late
        assert now
        await store.filed(now)
        assert claim.job_id not in await store.unfiled()
        await store.filed(late)  # its file, which says `running`, has just replaced the other
        assert claim.job_id in await store.unfiled()

    with_store(use)


def test_a_spool_with_a_damaged_word_is_passed_over(job: Path) -> None:
    trained(job, 1, 100)
    trained(job, 2, 200)
    path = job / "2" / artifacts.SPOOL
    path.write_text(path.read_text().replace('"type"', '"tyqe"', 1))
    assert ways_on(job) == [(1, 100)]


def test_a_record_with_a_damaged_field_is_not_restored(with_store: WithStore[Any], tmp_path: Path) -> None:
    async def use(store: WorkStore) -> None:
        for field in ("steps_done", "created_ms", "spec_hash"):
            job = await ended(store)
            await archive.file_job(store, Folder(tmp_path), job.id)
            await store.delete(job.id)
            await store.emptied(job.id)
            path = tmp_path / job.id / artifacts.RECORD
            path.write_text(path.read_text().replace(f'"{field}"', '"damaged"'))
            assert (await archive.reindex(store, Folder(tmp_path)))[job.id].startswith("not restored")

    with_store(use)


def test_points_that_arrive_twice_are_not_restored(with_store: WithStore[Any]) -> None:
    async def use(store: WorkStore) -> None:
        job = await ended(store)
        raw = await store.raw(job.id)
        assert raw
        again = dataclasses.replace(raw, job_id=new_job_id())
        key = f"descent:job:{again.job_id}:restoring:x"
        await store._redis.rpush(key, "{}", "{}")
        assert await store._move("restore", again.job_id, key, 1, "{}", "[]", "[]") == "torn"
        assert not await store._redis.exists(key)
        assert await store.restore(again, ['{"step":0,"loss":1.0}']) == "restored"

    with_store(use)
