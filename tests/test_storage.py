"""Files in a folder and in a bucket: there as a whole or not at all, noticed when damaged, and no wait without an end."""

import gzip
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from core.errors import ArtifactCorrupt, DatasetUnavailable, StackError, StorageAway
from core.jobs import archive, artifacts, spool
from core.jobs.job import Status
from core.jobs.spool import Spool
from core.jobs.work import Claim, WorkStore
from core.remote import Copies
from core.settings import Settings, read_settings
from core.spec import JobSpec
from core.storage import Folder, Storage, storage_at
from core.training import datasets, idx
from core.training.sources import Sources
from tests.conftest import ROOT, WithStore, eventually
from tests.proxy import Mode, Proxy
from tests.s3 import BUCKET, S3, remote, s3_running

JOB_ID = "job_" + "0" * 32
NAME = f"{JOB_ID}/1/model.safetensors"
CONTENT = bytes(range(256)) * 4000
SPEC = JobSpec.model_validate({"optimizer": "adam", "learning_rate": 0.001, "epochs": 2, "log_every": 10})


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with s3_running(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def aws(s3: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    """This process speaks to the server."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in s3.env().items():
        monkeypatch.setenv(name, value)
    return s3


@pytest.fixture(params=["folder", "bucket"])
def files(request: pytest.FixtureRequest, tmp_path: Path, aws: S3) -> Storage:
    """Either kind, empty."""
    return Folder(tmp_path / "jobs") if request.param == "folder" else remote(f"a/{tmp_path.name}")


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    """One that no other test has."""
    return f"b/{tmp_path.name}"


@pytest.fixture
def proxy(aws: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """This process speaks to the server through it."""
    with Proxy(("127.0.0.1", aws.port)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        yield proxy


# --- what both kinds promise -------------------------------------------------------------------------------------------


def test_a_file_is_there_from_its_publishing_to_its_removal(files: Storage) -> None:
    assert files.find() == files.find(JOB_ID) == {}
    files.put(NAME, b"old")
    files.put(NAME, CONTENT)
    files.put(f"{JOB_ID}/2/b", b"")
    files.put("sweep.json", b"{}")
    assert files.get(NAME) == CONTENT
    assert files.find(JOB_ID) == {NAME: len(CONTENT), f"{JOB_ID}/2/b": 0}
    assert files.find(f"{JOB_ID}/2") == {f"{JOB_ID}/2/b": 0}
    assert {*files.find()} == {NAME, f"{JOB_ID}/2/b", "sweep.json"}
    files.remove([f"{JOB_ID}/2/b", f"{JOB_ID}/2/gone"])
    assert {*files.find()} == {NAME, "sweep.json"}
    files.clear(JOB_ID)
    files.clear(JOB_ID)
    assert {*files.find()} == {"sweep.json"}
    with pytest.raises(FileNotFoundError):
        files.get(NAME)


def test_what_is_made_from_files_that_are_gone_is_not_kept(files: Storage) -> None:
    files.put(NAME, CONTENT)
    files.put(f"{NAME}.onnx", b"made", anew=False)
    assert len(files.find(JOB_ID)) == 2
    files.clear(JOB_ID)
    with pytest.raises(FileNotFoundError):
        files.put(f"{NAME}.onnx", b"made", anew=False)
    assert files.find() == {}


def test_a_missing_or_damaged_file_is_noticed(files: Storage) -> None:
    file = artifacts.publish(files, f"{JOB_ID}/1", "model.safetensors", CONTENT)
    assert artifacts.read_verified(files, file) == CONTENT
    files.put(NAME, CONTENT[:-1])
    with pytest.raises(ArtifactCorrupt):
        artifacts.read_verified(files, file)
    files.remove([NAME])
    with pytest.raises(ArtifactCorrupt):
        artifacts.read_verified(files, file)


def test_a_spool_holds_what_was_told_before_each_sync(files: Storage) -> None:
    folder = f"{JOB_ID}/1"
    told = Spool(files, folder)
    assert artifacts.newest_token(files, JOB_ID) == 1  # it was begun: nobody else will write below this token
    messages = [{"type": "epoch", "n": n, "text": "x" * 100_000} for n in range(30)]
    for message in messages:
        told.add(message)
        told.sync()
    told.close()
    assert spool.read(files, folder) == messages
    assert len(files.find(folder)) < 5  # of the 3 MB: it is not one file a sync


def test_checkpoints_and_the_end_of_a_job_leave_the_same_files(files: Storage) -> None:
    for token, steps in (("1", (10, 20)), ("2", (30,)), ("3", (25,))):
        Spool(files, f"{JOB_ID}/{token}").close()
        for step in steps:
            artifacts.publish_checkpoint(files, f"{JOB_ID}/{token}", step, b"%d" % step)
    kept = artifacts.checkpoints(files, JOB_ID)
    assert [artifacts.read_checkpoint(files, path) for path in kept] == [b"25", b"30"]
    assert [it["step"] for it in artifacts.kept_checkpoints(files, JOB_ID)] == [25, 30]
    stale = artifacts.publish(files, f"{JOB_ID}/2", "model.safetensors", b"stale")
    weights = artifacts.publish(files, f"{JOB_ID}/3", "model.safetensors", CONTENT)
    for source in (stale, weights):
        artifacts.publish_export(files, source, "onnx", source["path"].encode())
    artifacts.sweep(files, JOB_ID, {weights["path"]}, upto=3)
    assert artifacts.read_export(files, weights, "onnx") == weights["path"].encode()
    assert artifacts.read_export(files, stale, "onnx") is None
    spools = {path for path in files.find(JOB_ID) if artifacts.SPOOL in path}
    assert {path.split("/")[1] for path in spools} == {"2", "3"}
    assert len(set(files.find(JOB_ID)) - spools) == 4  # two checkpoints, the weights, what was made from them


async def claimed(store: WorkStore, job_id: str) -> Claim:
    claim = await store.claim(job_id, worker="w", lease_s=3600)
    assert claim
    return claim


def published(files: Storage, claim: Claim, content: bytes) -> dict[str, dict[str, Any]]:
    folder = artifacts.claim_folder(claim.job_id, claim.token)
    return {kind: artifacts.publish(files, folder, name, content) for kind, name in artifacts.FORMATS.items()}


def test_a_stale_claims_files_are_never_the_jobs(with_store: WithStore[Any], files: Storage) -> None:
    async def use(store: WorkStore) -> None:
        job_id = (await store.submit(SPEC)).id
        stale = await claimed(store, job_id)
        await store.stop(stale)  # as when it had lost its lease
        now = await claimed(store, job_id)
        new = published(files, now, b"new")
        assert await store.finish(now, Status.SUCCEEDED, result={"test_accuracy": 0.5}, files=new) == "succeeded"
        old = published(files, stale, b"old")
        assert await store.finish(stale, Status.SUCCEEDED, result={"test_accuracy": 0.9}, files=old) == "lost"
        stored = await store.model(job_id)
        assert artifacts.read_verified(files, stored.files["safetensors"]) == b"new"
        await archive.file_job(store, files, job_id)
        assert {path.split("/")[1] for path in files.find(job_id)} == {now.token, "job.json", "history.jsonl"}

    with_store(use)


def test_jobs_are_restored_from_their_files_and_removed_with_them(with_store: WithStore[Any], files: Storage) -> None:
    async def use(store: WorkStore) -> None:
        claims = [await claimed(store, (await store.submit(SPEC)).id) for _ in range(2)]
        done, unended = claims
        point = {"step": 0, "epoch": 0, "batch": 0, "loss": 2.3, "time_s": 0.0}
        block = {"type": "block", "points": [point], "steps_done": 1, "images_per_s": 1.0}
        told = Spool(files, artifacts.claim_folder(unended.job_id, unended.token))
        told.add(block)
        told.sync()
        told.close()
        await store.finish(done, Status.SUCCEEDED, result={"test_accuracy": 0.5}, files=published(files, done, CONTENT))
        for claim in claims:
            await archive.file_job(store, files, claim.job_id)
        await store.database.redis.flushdb()
        outcome = await archive.reindex(store, files)
        assert outcome == {claim.job_id: "restored" for claim in claims}
        stored = await store.model(done.job_id)
        assert artifacts.read_verified(files, stored.files["pdparams"]) == CONTENT
        assert len((await store.loss(unended.job_id)).points) == 1
        await store.delete(done.job_id)
        await archive.remove_job(store, files, done.job_id)
        assert files.find(done.job_id) == {}
        assert done.job_id not in await store.trash()

    with_store(use)


# --- an upload that fails ----------------------------------------------------------------------------------------------


def test_an_upload_that_is_cut_is_seen_by_nobody_and_tried_again(proxy: Proxy, s3: S3, prefix: str) -> None:
    through = remote(prefix, limit_s=5)
    proxy.cut_after(len(CONTENT) // 2, times=1000)
    with pytest.raises(StorageAway, match="cannot be reached"):
        through.put(NAME, CONTENT)
    assert proxy.cuts > 1
    with pytest.MonkeyPatch.context() as direct:
        direct.setenv("AWS_ENDPOINT_URL", s3.env()["AWS_ENDPOINT_URL"])
        assert remote(prefix).find() == {}
    proxy.cut_after(0, times=0)
    eventually(lambda: works(lambda: through.put(NAME, CONTENT)), what="the upload")
    assert through.get(NAME) == CONTENT


def test_a_cut_in_the_middle_costs_a_try(proxy: Proxy, prefix: str) -> None:
    through = remote(prefix)
    proxy.cut_after(len(CONTENT) // 2, times=2)
    through.put(NAME, CONTENT)
    assert proxy.cuts == 2
    assert through.get(NAME) == CONTENT


def test_bytes_that_change_on_their_way_are_not_published(proxy: Proxy, prefix: str) -> None:
    through = remote(prefix)
    proxy.flip_after(len(CONTENT) // 2)
    with pytest.raises(StorageAway):
        artifacts.publish(through, f"{JOB_ID}/1", "model.safetensors", CONTENT)
    proxy.flip_after(None)
    eventually(lambda: works(lambda: through.put(NAME, CONTENT)), what="the upload")
    assert through.get(NAME) == CONTENT


def works(act: Any) -> bool:
    try:
        act()
    except StorageAway:
        return False
    return True


def test_a_checkpoint_that_cannot_be_written_leaves_those_before_it(proxy: Proxy, prefix: str) -> None:
    through, folder = remote(prefix, limit_s=5), f"{JOB_ID}/1"
    for step in (10, 20):
        artifacts.publish_checkpoint(through, folder, step, b"%d" % step)
    proxy.cut_after(len(CONTENT) // 2, times=1000)
    with pytest.raises(StorageAway):
        artifacts.publish_checkpoint(through, folder, 30, CONTENT)
    proxy.cut_after(0, times=0)
    found = eventually(lambda: there(through), what="the storage")
    assert [artifacts.read_checkpoint(through, path) for path in found] == [b"20", b"10"]


def there(files: Storage) -> list[str]:
    try:
        return artifacts.checkpoints(files, JOB_ID)
    except StorageAway:
        return []


def test_a_silent_storage_is_given_up_and_found_again(proxy: Proxy, prefix: str) -> None:
    through = remote(prefix, limit_s=5)
    through.put(NAME, CONTENT)
    proxy.set_mode(Mode.BLACKHOLE)
    with pytest.raises(StorageAway) as caught:
        artifacts.read_verified(through, {"path": NAME, "sha256": "0" * 64})
    assert "AWS_ENDPOINT_URL" in caught.value.reason
    connections = proxy.open_connections
    with pytest.raises(StorageAway):  # at once: nothing is sent
        through.put(NAME, CONTENT)
    assert proxy.open_connections == connections
    proxy.set_mode(Mode.PASS)
    eventually(lambda: works(lambda: through.get(NAME)), what="the file")


# --- what a person must see to -----------------------------------------------------------------------------------------


def settings_of(home: Path, artifacts_at: str) -> Settings:
    return Settings(home=home, artifacts=artifacts_at)


def test_a_missing_bucket_and_wrong_credentials_are_told_apart(
    aws: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StackError, match="there is no bucket nowhere: make it, or correct DESCENT_ARTIFACTS"):
        artifacts.require_storage(settings_of(tmp_path, "s3://nowhere/jobs"))
    aws.ask_for_credentials(True)
    try:
        with pytest.raises(StackError, match="credentials are wrong") as caught:
            artifacts.require_storage(settings_of(tmp_path, f"s3://{BUCKET}/refused"), must_answer=False)
    finally:
        aws.ask_for_credentials(False)
    assert "AWS_SECRET_ACCESS_KEY" in str(caught.value)
    assert aws.env()["AWS_SECRET_ACCESS_KEY"] not in str(caught.value)
    artifacts.require_storage(settings_of(tmp_path, f"s3://{BUCKET}/granted"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(StackError, match="there are no credentials"):
        artifacts.require_storage(settings_of(tmp_path, f"s3://{BUCKET}/nobody"))


def test_a_bucket_in_which_nothing_may_be_deleted_is_told(aws: S3, tmp_path: Path) -> None:
    """A server is told so when it begins, not when it is full: S3 answers a refused deletion of several files with a 200."""
    everything = {"Effect": "Allow", "Principal": "*", "Action": "s3:*", "Resource": "arn:aws:s3:::*"}
    kept = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:DeleteObject",
        "Resource": f"arn:aws:s3:::{BUCKET}/kept/*",
    }
    policy = {"Version": "2012-10-17", "Statement": [everything, kept]}
    place = f"{aws.env()['AWS_ENDPOINT_URL']}/{BUCKET}?policy"
    httpx2.put(place, json=policy, trust_env=False).raise_for_status()
    try:
        with pytest.raises(StackError, match="may be written there, and not deleted: look at the policies"):
            artifacts.require_storage(settings_of(tmp_path, f"s3://{BUCKET}/kept"), must_answer=False)
        artifacts.require_storage(settings_of(tmp_path, f"s3://{BUCKET}/free"))
        assert storage_at(f"s3://{BUCKET}/free", setting="").find() == {}
    finally:
        httpx2.delete(place, trust_env=False).raise_for_status()


def test_a_storage_that_is_away_lets_a_worker_start_and_nobody_else(
    aws: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("core.remote._FIRST_PAUSE_S", 30)
    settings = settings_of(tmp_path, f"s3://{BUCKET}/away")
    with pytest.raises(StackError, match="AWS_ENDPOINT_URL"):
        artifacts.require_storage(settings)
    artifacts.require_storage(settings, must_answer=False)


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StackError, match="DESCENT_ARTIFACTS cannot be written to"):
        artifacts.require_storage(settings_of(tmp_path, str(tmp_path / "file" / "jobs")))
    artifacts.require_storage(settings_of(tmp_path, str(tmp_path / "shared")))


@pytest.mark.parametrize("wrong", ["s3://key:secret@bucket/x", "s3://", "gs://bucket", "s3://b/a b", "http://x/y"])
def test_an_address_of_another_kind_or_with_a_secret_is_refused_and_not_repeated(wrong: str) -> None:
    with pytest.raises(StackError, match="DESCENT_ARTIFACTS: must be a folder or s3://bucket/prefix") as caught:
        read_settings(artifacts=wrong)
    assert "secret@" not in str(caught.value)


def test_folders_and_addresses_are_taken_in_every_spelling(tmp_path: Path) -> None:
    given = {f"file://{tmp_path}": str(tmp_path), "jobs": str(Path("jobs").absolute()), "s3://b1/x/": "s3://b1/x"}
    assert {text: Settings(artifacts=text).artifacts_at for text in given} == given
    assert Settings(home=tmp_path).artifacts_at == str(tmp_path / "jobs")


@pytest.mark.parametrize("setting", ["DESCENT_ARTIFACTS", "DESCENT_DATA_MIRROR"])
def test_a_worker_without_the_extra_that_it_needs_names_it(setting: str, tmp_path: Path) -> None:
    code = "import sys; sys.modules['s3fs'] = None\nfrom worker.app import main\nmain()"
    env = os.environ | {"DESCENT_HOME": str(tmp_path), setting: "s3://bucket/x"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, cwd=ROOT, timeout=60)
    told = f"StackError: {setting} is an s3:// address, and what speaks to those is not installed: pip install s3fs"
    assert told in done.stderr


# --- copies ------------------------------------------------------------------------------------------------------------


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_a_file_is_fetched_once_and_a_damaged_copy_again(aws: S3, prefix: str, tmp_path: Path) -> None:
    far = remote(prefix, copies=tmp_path / "copies")
    file = artifacts.publish(far, f"{JOB_ID}/1", "model.safetensors", CONTENT)
    assert artifacts.read_verified(far, file) == CONTENT
    (copy,) = (tmp_path / "copies").iterdir()
    far.put(NAME, b"other")
    assert artifacts.read_verified(far, file) == CONTENT
    copy.write_bytes(CONTENT[:-1])
    with pytest.raises(ArtifactCorrupt):
        artifacts.read_verified(far, file)
    far.put(NAME, CONTENT)
    assert artifacts.read_verified(far, file) == CONTENT
    assert copy.read_bytes() == CONTENT


def test_copies_never_take_more_than_they_may(tmp_path: Path) -> None:
    copies, contents = Copies(tmp_path, most_bytes=2500), [bytes([n]) * 1000 for n in range(3)]
    for at, content in enumerate(contents[:2]):
        copies.add(digest(content), content)
        os.utime(tmp_path / digest(content), (at, at))
    assert copies.get(digest(contents[0])) == contents[0]  # used last
    copies.add(digest(contents[2]), contents[2])
    assert [copies.get(digest(it)) for it in contents] == [contents[0], None, contents[2]]


def test_a_disk_without_room_for_copies_costs_only_time(aws: S3, prefix: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    far = remote(prefix, copies=tmp_path / "file" / "copies")
    file = artifacts.publish(far, f"{JOB_ID}/1", "model.safetensors", CONTENT)
    assert [artifacts.read_verified(far, file) for _ in range(2)] == [CONTENT] * 2


# --- data sets ---------------------------------------------------------------------------------------------------------


NOWHERE = Sources(package=None, mirrors=())


@pytest.fixture(params=["folder", "bucket"])
def mirror(request: pytest.FixtureRequest, aws: S3, cache: Path, mnist: datasets.Dataset, tmp_path: Path) -> str:
    """Where MNIST is, partly compressed."""
    at = str(tmp_path / "mirror") if request.param == "folder" else f"s3://{BUCKET}/c/{tmp_path.name}"
    files = Folder(Path(at)) if request.param == "folder" else remote(f"c/{tmp_path.name}", limit_s=60)
    for file in idx.FILES["mnist"]:
        content = (cache / "mnist" / file.name).read_bytes()
        if "images" in file.name:
            files.put(f"mnist/{file.name}.gz", gzip.compress(content, 1))
        else:
            files.put(f"mnist/{file.name}", content)
    return at


def test_a_data_set_is_taken_from_a_mirror_and_kept(mirror: str, mnist: datasets.Dataset, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    test = datasets.load_test("mnist", cache=cache, mirror=mirror)
    assert (test.images == mnist.test.images).all()
    assert not cache.exists()
    found = datasets.load("mnist", cache=cache, mirror=mirror, origin=NOWHERE)
    assert (found.train.images == mnist.train.images).all()
    assert datasets.is_here("mnist", cache=cache)


def test_a_mirror_is_not_believed(tmp_path: Path) -> None:
    files = Folder(tmp_path / "mirror")
    for file in idx.FILES["mnist"]:
        files.put(f"mnist/{file.name}", b"something else")
    with pytest.raises(DatasetUnavailable, match="SHA-256 differs"):
        datasets.load("mnist", cache=tmp_path / "cache", mirror=str(tmp_path / "mirror"), origin=NOWHERE)
    with pytest.raises(DatasetUnavailable, match="has no fashion-mnist/"):
        datasets.load("fashion-mnist", cache=tmp_path / "cache", mirror=str(tmp_path / "mirror"), origin=NOWHERE)
