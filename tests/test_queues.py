"""CPU and GPU workers: which jobs reach which, what a job that none can train says, and how GPUs are shared out.

No GPU is needed: `DESCENT_GPUS` declares some. What a trainer then sees of them is in its environment, and a job that asks for
one is taken, looks for it, and says that it is not there.
"""

import asyncio
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis

from core import devices
from core.errors import StackError
from core.jobs import broker
from core.jobs.work import WorkStore
from core.processes import Child
from core.settings import Settings, read_settings
from core.spec import JobSpec
from tests.conftest import DOOMED, WithStore, descendants, eventually, processes, redis_running
from tests.staged import Api, api_without_worker
from worker.several import command
from worker.trainer_process import Setup

Json = dict[str, Any]

ENDLESS: Json = {"optimizer": "sgd", "learning_rate": 0.01, "epochs": 1000, "log_every": 100}
QUICK = {"lease_s": "2", "beat_s": "0.3", "scan_s": "0.5", "stop_s": "3", "threads": "1", "log_level": "info"}
CPU, GPU, FORMER = broker.CPU_QUEUE, broker.GPU_QUEUE, broker.FORMER_QUEUE

# What `nvidia-smi` answers on a machine with three GPUs, one of which tells no memory.
DRIVER = """0, GPU-aaaa1111, NVIDIA H100 80GB HBM3, 81559
1, GPU-bbbb2222, NVIDIA H100 80GB HBM3, 81559
2, GPU-cccc3333, NVIDIA T4, [N/A]"""


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Iterator[Api]:
    """An API and its Redis, to which tests add workers."""
    with api_without_worker(tmp_path_factory.mktemp("queues"), cache, is_empty=True) as api:
        yield api


@pytest.fixture
def http(arena: Api) -> Iterator[httpx2.Client]:
    """A client, whose jobs have all ended afterwards."""
    with httpx2.Client(base_url=arena.url, timeout=30, trust_env=False) as http:
        yield http
        for job in http.get("/jobs", params={"limit": "100"}).json()["jobs"]:
            http.post(f"/jobs/{job['id']}/cancel")


@pytest.fixture
def lists(arena: Api) -> Iterator[redis.Redis]:
    with redis.Redis(unix_socket_path=str(arena.settings.socket)) as lists:
        yield lists


@contextmanager
def working(arena: Api, http: httpx2.Client, run: list[str] | None = None, **settings: str) -> Iterator[Child]:
    """A worker (or what `run` starts) of a machine with these settings, announced; ended afterwards."""
    values = {"home": str(arena.settings.home), "cache": str(arena.settings.cache), "workers": "", **QUICK, **settings}
    env = {f"DESCENT_{name.upper()}": value for name, value in values.items()}
    env |= {"DESCENT_REDIS_URL": arena.settings.store_url}
    child = Child("worker", run or command(1), log_file=arena.settings.logs_dir / "worker.log", env=env)
    try:
        eventually(lambda: workers_below(child.pid, http), within_s=60, what="the worker's announcement")
        yield child
    finally:
        child.stop(20)


def workers(http: httpx2.Client) -> list[Json]:
    found: list[Json] = http.get("/workers").raise_for_status().json()["workers"]
    return found


def workers_below(pid: int, http: httpx2.Client) -> list[Json]:
    """Those that a process is or has started."""
    family = descendants(pid)
    return [worker for worker in workers(http) if worker["pid"] in family]


def submitted(http: httpx2.Client, spec: Json, **more: Any) -> str:
    return str(http.post("/jobs", json=spec | more).raise_for_status().json()["id"])


def job_of(http: httpx2.Client, job_id: str) -> Json:
    job: Json = http.get(f"/jobs/{job_id}").raise_for_status().json()
    return job


def pid_that_trained(job: Json) -> int:
    """The process of the worker that began it last."""
    worker = [at["worker"] for at in job["transitions"] if at["status"] == "running"][-1]
    return int(worker.split(":")[1])


def trained_by(pid: int, http: httpx2.Client, job_ids: Iterable[str]) -> str | None:
    """One of the jobs that this worker has begun."""
    jobs = [job_of(http, job_id) for job_id in job_ids]
    return next((job["id"] for job in jobs if job["status"] == "running" and pid_that_trained(job) == pid), None)


def is_running(http: httpx2.Client, job_id: str) -> Callable[[], bool]:
    return lambda: bool(job_of(http, job_id)["status"] == "running")


def has_ended(http: httpx2.Client, job_id: str) -> Callable[[], bool]:
    return lambda: bool(job_of(http, job_id)["terminal"])


# --- which jobs reach which workers --------------------------------------------------------------------------------------


def test_a_gpu_job_waits_for_a_gpu_says_so_and_begins_when_one_comes(arena: Api, http: httpx2.Client) -> None:
    with working(arena, http, gpus="none"):
        any_gpu, second, first, mixed = (
            submitted(http, DOOMED, **wish)
            for wish in ({"device": "gpu"}, {"device": "gpu:1"}, {"device": "gpu:0"}, {"precision": "bf16"})
        )
        jobs = [job_of(http, job_id) for job_id in (any_gpu, second, first, mixed)]
        assert [job["waiting_for"]["needs"] for job in jobs] == ["gpu", "gpu:1", "gpu:0", "gpu"]
        assert jobs[0]["waiting_for"]["en"].startswith("No live worker has a GPU; the job stays queued until one comes")
        assert "GPU number 1" in jobs[1]["waiting_for"]["en"]
        assert jobs[0]["waiting_for"]["zh"].startswith("存活的 worker 都没有 GPU；在出现之前，任务会一直排队")

        passing = submitted(http, DOOMED, device="auto")
        eventually(has_ended(http, passing), within_s=60, what="the job that needs no GPU")
        assert [job_of(http, job["id"])["status"] for job in jobs] == ["queued"] * 4
        shown = http.get("/metrics").text.splitlines()
        assert {"descent_queue_gpu_jobs 4.0", "descent_queue_stuck_jobs 4.0"} <= set(shown)

        with working(arena, http, run=command(2), gpus="5,7", workers="2") as machine:
            assert [job_of(http, job_id)["waiting_for"] for job_id in (any_gpu, second, mixed)] == [None] * 3
            eventually(has_ended(http, second), within_s=60, what="a job for a GPU")
            job = job_of(http, second)
            assert pid_that_trained(job) == machine.pid
            # There is no such GPU on most machines; on one that has it, the job diverges.
            assert job["error"]["code"] in ("device_unavailable", "diverged")
            still = job_of(http, first)
            assert (still["status"], still["waiting_for"]["needs"], still["queue_position"]) == ("queued", "gpu:0", 0)


def test_without_a_worker_a_job_says_that_none_is_alive(arena: Api, http: httpx2.Client) -> None:
    eventually(lambda: not workers(http), what="the end of what other tests started")
    created = http.post("/jobs", json=ENDLESS).json()
    assert created["waiting_for"]["en"] == "No worker is alive; the job stays queued until one comes."
    assert created["waiting_for"] == job_of(http, created["id"])["waiting_for"]
    assert created["waiting_for"]["needs"] == "any"
    paused = http.post(f"/jobs/{created['id']}/pause").json()
    assert (paused["status"], paused["waiting_for"]) == ("paused", None)


def test_an_auto_job_is_offered_to_gpu_workers_and_runs_elsewhere_when_they_die(
    arena: Api, http: httpx2.Client, lists: redis.Redis
) -> None:
    lists.delete(CPU, GPU)
    with working(arena, http, gpus="0", scan_s="3600") as machine:
        begun = submitted(http, ENDLESS)
        eventually(is_running(http, begun), within_s=60, what="the first job")
        assert pid_that_trained(job_of(http, begun)) == machine.pid
        waiting = submitted(http, ENDLESS)
        assert [lists.llen(queue) for queue in (GPU, CPU)] == [1, 0]
        os.kill(machine.pid, signal.SIGKILL)
        with working(arena, http, gpus="none") as other:
            left = {waiting, begun}
            while left:
                taken = eventually(lambda: trained_by(other.pid, http, left), within_s=60, what="the next of its jobs")
                http.post(f"/jobs/{taken}/cancel")
                left.remove(taken)


def test_an_auto_job_that_no_gpu_worker_has_time_for_goes_to_whoever_has(arena: Api, http: httpx2.Client) -> None:
    with working(arena, http, gpus="0") as machine:
        first = submitted(http, ENDLESS)
        eventually(is_running(http, first), within_s=60, what="the first job")
        with working(arena, http, gpus="none") as other:
            second = submitted(http, ENDLESS)
            eventually(is_running(http, second), within_s=60, what="the second job")
            assert [pid_that_trained(job_of(http, each)) for each in (first, second)] == [machine.pid, other.pid]


def test_a_worker_with_a_gpu_trains_what_only_it_can_before_the_rest(arena: Api, http: httpx2.Client) -> None:
    with working(arena, http, gpus="0", scan_s="3600"):
        first = submitted(http, ENDLESS)
        eventually(is_running(http, first), within_s=60, what="the first job")
        for_any, for_gpu, for_this = (submitted(http, DOOMED, device=device) for device in ("cpu", "gpu", "gpu:0"))
        http.post(f"/jobs/{first}/cancel")
        first_at = eventually(lambda: job_of(http, for_this)["started_at"], within_s=60, what="the next job")
        others = [job_of(http, job_id)["started_at"] for job_id in (for_gpu, for_any)]
        assert all(at is None or at > first_at for at in others)


def test_messages_of_the_former_queue_are_served(arena: Api, http: httpx2.Client, lists: redis.Redis) -> None:
    """As a former version left them: jobs that are at home in no queue yet, their messages in the one queue there was."""
    app = broker.make_celery(arena.settings.store_url)

    async def submit(spec: Json) -> str:
        async with WorkStore.connect(arena.settings.store_url) as store:
            return (await store.submit(JobSpec.model_validate(spec))).id

    for_any, for_gpu = asyncio.run(submit(DOOMED)), asyncio.run(submit({**DOOMED, "device": "gpu"}))
    lists.delete(*(f"descent:queued:{queue}" for queue in (CPU, GPU)))
    for job_id in (for_gpu, for_any):
        app.send_task(broker.TASK, args=[job_id], task_id=job_id, queue=FORMER)
    with working(arena, http, gpus="none", scan_s="3600"):
        eventually(lambda: job_of(http, for_any)["attempt"], within_s=60, what="the job")
        assert lists.llen(FORMER) == 0
        assert job_of(http, for_gpu)["status"] == "queued"  # it came first, to a worker that cannot train it
        assert job_of(http, for_gpu)["attempt"] == 0
    with working(arena, http, gpus="0"):  # its reconciler finds that the message is nowhere
        eventually(lambda: job_of(http, for_gpu)["attempt"], within_s=60, what="the job for a GPU")


# --- slots ---------------------------------------------------------------------------------------------------------------


def trainers(pid: int) -> list[dict[str, str]]:
    """The environments of the trainer processes below a process."""
    everyone, found = processes(), []
    for each in descendants(pid):
        if "worker.trainer_process" in everyone.get(each, (0, ""))[1]:
            with suppress(OSError):  # it has ended
                variables = Path(f"/proc/{each}/environ").read_text().split("\0")
                found.append(dict(variable.partition("=")[::2] for variable in variables if variable))
    return found


def test_one_worker_a_gpu_each_with_a_trainer_that_sees_that_one_alone(arena: Api, http: httpx2.Client) -> None:
    descent_worker = [*command(1)[:-2], "client.cli", "worker"]
    with working(arena, http, run=descent_worker, gpus="3,5") as machine:
        eventually(lambda: len(workers_below(machine.pid, http)) == 2, within_s=60, what="both workers")
        found = workers_below(machine.pid, http)
        assert sorted(each["devices"][0]["device"] for each in found) == ["gpu:0", "gpu:1"]
        assert sorted(each["queues"] for each in found) == [[f"{GPU}.{n}", GPU, CPU, FORMER] for n in (0, 1)]
        jobs = [submitted(http, ENDLESS, device="auto") for _ in range(2)]
        for job_id in jobs:
            eventually(is_running(http, job_id), within_s=60, what="a job")
        assert len({pid_that_trained(job_of(http, job_id)) for job_id in jobs}) == 2
        assert {env["CUDA_VISIBLE_DEVICES"] for env in trainers(machine.pid)} == {"3", "5"}
        assert {env["CUDA_DEVICE_ORDER"] for env in trainers(machine.pid)} == {"PCI_BUS_ID"}
        everyone = descendants(machine.pid)
        assert len(everyone) >= 5  # one that watches, two workers, two trainers
        machine.stop(30)
        assert not everyone & set(processes())
        assert [(job_of(http, each)["status"], job_of(http, each)["attempt"]) for each in jobs] == [("queued", 0)] * 2


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine whose driver shows three GPUs, with a Paddle that can use them; the folder of its commands."""
    script = tmp_path / "nvidia-smi"
    script.write_text(f"#!/bin/sh\ncat <<END\n{DRIVER}\nEND\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    paddle = tmp_path / "packages" / "paddlepaddle_gpu-3.3.1.dist-info" / "METADATA"
    paddle.parent.mkdir(parents=True)
    paddle.write_text("Metadata-Version: 2.1\nName: paddlepaddle-gpu\nVersion: 3.3.1\n")
    monkeypatch.syspath_prepend(paddle.parent.parent)
    return tmp_path


def visible(settings: Settings) -> list[str | None]:
    return [slot.env.get("CUDA_VISIBLE_DEVICES") for slot in devices.slots(settings)]


def test_the_gpus_that_the_driver_shows_are_shared_out(driver: Path) -> None:
    slots = devices.slots(Settings())
    assert [slot.gpu and (slot.gpu.number, slot.gpu.name) for slot in slots] == [
        (0, "NVIDIA H100 80GB HBM3"), (1, "NVIDIA H100 80GB HBM3"), (2, "NVIDIA T4"),
    ]  # fmt: skip
    assert [slot.gpu and slot.gpu.memory_bytes for slot in slots] == [81559 << 20, 81559 << 20, None]
    assert visible(Settings()) == ["0", "1", "2"]
    assert visible(Settings(workers=2)) == ["0", "1"]
    assert visible(Settings(workers=5)) == ["0", "1", "2", "", ""]  # those beyond the GPUs see none
    assert visible(Settings(device="gpu:2")) == ["2"]
    assert visible(Settings(gpus="none")) == [""]


@pytest.mark.parametrize(
    ("given", "ids", "names"),
    [
        ("2,0", ["2", "0"], ["NVIDIA T4", "NVIDIA H100 80GB HBM3"]),
        ("GPU-cccc3333", ["GPU-cccc3333"], ["NVIDIA T4"]),
        ("GPU-cc, GPU-aa", ["GPU-cc", "GPU-aa"], ["NVIDIA T4", "NVIDIA H100 80GB HBM3"]),
        ("1,-1,2", ["1"], ["NVIDIA H100 80GB HBM3"]),
        ("9", ["9"], [None]),
    ],
)
def test_those_that_are_visible_from_outside_are_the_ones_shared_out(
    driver: Path, monkeypatch: pytest.MonkeyPatch, given: str, ids: list[str], names: list[str | None]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    slots = devices.slots(Settings())
    assert [slot.env["CUDA_VISIBLE_DEVICES"] for slot in slots] == ids
    assert [slot.gpu and (slot.gpu.number, slot.gpu.name) for slot in slots] == list(enumerate(names))


@pytest.mark.parametrize("given", ["", "-1"])
def test_where_none_is_visible_there_is_one_worker_without_one(
    driver: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert [slot.gpu for slot in devices.slots(Settings())] == [None]


def test_gpus_are_left_alone_by_a_paddle_for_cpus(driver: Path, caplog: pytest.LogCaptureFixture) -> None:
    (driver / "packages" / "paddlepaddle_gpu-3.3.1.dist-info" / "METADATA").unlink()
    (driver / "packages" / "paddlepaddle_gpu-3.3.1.dist-info").rmdir()
    if devices._paddle_has_cuda():
        pytest.skip("the Paddle of this environment is one for GPUs")
    assert visible(Settings()) == [None]
    assert "built for CPUs" in caplog.text
    assert visible(Settings(gpus="1,0")) == ["1", "0"]  # declared ones are taken at their word


def test_a_driver_that_fails_shows_no_gpu(driver: Path, caplog: pytest.LogCaptureFixture) -> None:
    (driver / "nvidia-smi").write_text("#!/bin/sh\necho Failed to initialize NVML\nexit 9\n")
    assert visible(Settings()) == [None]
    assert "nvidia-smi failed" in caplog.text


@pytest.mark.parametrize("gpus", ["all", "0 1", "0,", "-1", "none,0", ",".join(map(str, range(17)))])
def test_a_list_of_gpus_that_is_none_is_refused(gpus: str) -> None:
    with pytest.raises(StackError, match="DESCENT_GPUS"):
        read_settings(gpus=gpus)


def test_a_trainers_only_gpu_goes_by_the_workers_number() -> None:
    setup = Setup.of(Settings(), gpu=2)
    assert [setup.paddles(device) for device in ("gpu:2", "gpu", "cpu", "auto")] == ["gpu:0", "gpu", "cpu", "auto"]
    assert [setup.ours(device) for device in ("gpu:0", "cpu")] == ["gpu:2", "cpu"]
    without = Setup.of(Settings())
    assert (without.paddles("gpu:2"), without.ours("gpu:0")) == ("gpu:2", "gpu:0")


def test_a_worker_beyond_the_gpus_trains_on_its_cpu_whatever_the_others_do() -> None:
    settings = Settings(device="gpu", gpus="0", workers=2)
    first, second = devices.slots(settings)
    assert (first.device(settings), second.device(settings)) == ("gpu", "cpu")
    assert Setup.of(settings, device=second.device(settings)).device == "cpu"


@pytest.mark.parametrize(
    ("fields", "trained_on"), [({}, "cpu"), ({"precision": "bf16"}, "gpu"), ({"to_static": True}, "gpu")]
)
def test_auto_is_the_workers_device_unless_only_a_gpu_can_do_it(fields: dict[str, Any], trained_on: str) -> None:
    spec = JobSpec.model_validate({"optimizer": "adam", "learning_rate": 0.001, **fields})
    assert Setup.of(Settings(device="cpu")).place_of(spec) == trained_on


# --- the store -----------------------------------------------------------------------------------------------------------

NEEDS = [
    ({"device": "cpu"}, "any", CPU),
    ({"device": "auto"}, "any", CPU),
    ({"device": "gpu"}, "gpu", GPU),
    ({"device": "gpu:3"}, "gpu:3", f"{GPU}.3"),
    ({"device": "gpu:15", "to_static": True}, "gpu:15", f"{GPU}.15"),
    ({"device": "auto", "precision": "bf16"}, "gpu", GPU),
    ({"device": "auto", "to_static": True}, "gpu", GPU),
]


@pytest.mark.parametrize(("wish", "needs", "queue"), NEEDS)
def test_a_job_is_at_home_where_those_listen_who_can_train_it(
    with_store: WithStore[Any], wish: Json, needs: str, queue: str
) -> None:
    spec = JobSpec.model_validate(DOOMED | wish)
    assert spec.needs == needs

    async def use(store: WorkStore) -> None:
        job = await store.submit(spec)
        assert (await store.queued(queue))[-1] == job.id
        can, cannot = (broker.queues_of(int(n) if (n := queue.rpartition(".")[2]).isdecimal() else 0), ["elsewhere"])
        assert await store.claim(job.id, worker="a", lease_s=30, queues=cannot) is None
        claim = await store.claim(job.id, worker="a", lease_s=30, queues=can)
        assert claim
        assert job.id not in await store.queued(queue)
        await store.cancel(job.id)
        await store.stop(claim)

    with_store(use)


def test_a_queue_is_short_when_messages_of_its_jobs_are_lost(tmp_path: Path) -> None:
    """Only while somebody listens; a job that a former version queued counts as well."""
    doorbell = broker.doorbells(broker.make_celery("redis://nowhere"))

    async def use(settings: Settings) -> None:
        async with WorkStore.connect(settings.store_url) as store:
            for_cpu = (await store.submit(JobSpec.model_validate(DOOMED))).id
            for_gpu = (await store.submit(JobSpec.model_validate(DOOMED | {"device": "gpu"}))).id
            await store.announce("here:1", alive_s=30, info={"queues": broker.queues_of(None)})
            assert await store.short_queues() == [CPU]
            await store.announce("here:2", alive_s=30, info={"queues": broker.queues_of(4)})
            assert await store.short_queues() == [CPU, GPU]
            await store.announce("here:2", alive_s=0, info={"queues": broker.queues_of(4)})
            assert await store.short_queues() == [CPU]
            await store._redis.delete(f"descent:queued:{CPU}", f"descent:queued:{GPU}")
            assert await store.short_queues() == [CPU]
            assert (await store.queued(CPU), await store.queued(GPU)) == ([for_cpu], [for_gpu])
            assert await store.ring(for_cpu, doorbell=doorbell)
            assert await store.short_queues() == []
            assert [broker.job_id_of(text) for text in await store.messages(CPU)] == [for_cpu]

    with redis_running(tmp_path) as settings:  # a database without the jobs of other tests
        asyncio.run(use(settings))


def test_a_long_queue_is_read_only_for_a_job_that_was_passed_over(tmp_path: Path) -> None:
    """With a thousand workers some message is on its way all the time; to read a long queue for each takes seconds."""
    doorbell = broker.doorbells(broker.make_celery("redis://nowhere"))
    spec = JobSpec.model_validate(DOOMED)

    async def use(settings: Settings) -> None:
        async with WorkStore.connect(settings.store_url) as store:
            for _ in range(1100):
                await store.submit_once(spec, None, doorbell=doorbell)
            await store.announce("here:1", alive_s=60, info={"queues": broker.queues_of(None)})
            redis = store.database.redis

            async def fetched() -> str:
                return str(broker.job_id_of(await redis.rpop(CPU)))

            assert await store.short_queues() == []
            for _ in range(3):  # each look finds another one on its way
                job_id = await fetched()
                assert await store.short_queues() == []
                claim = await store.claim(job_id, worker="here:1", lease_s=60)
                assert claim
            lost = await fetched()
            assert await store.short_queues() == []
            assert await store.short_queues() == [CPU]
            assert await store.ring(lost, doorbell=doorbell)  # its message is the newest now
            on_its_way = await fetched()
            assert await store.short_queues() == []
            assert await store.claim(on_its_way, worker="here:1", lease_s=60)
            (not_its_turn,) = await redis.lrange(CPU, 0, 0)
            await redis.lrem(CPU, 1, not_its_turn)
            assert [await store.short_queues() for _ in range(2)] == [[], []]
            await redis.ltrim(CPU, -900, -1)  # it is short enough to be read on every suspicion
            assert await store.short_queues() == [CPU]

    with redis_running(tmp_path) as settings:
        asyncio.run(use(settings))
