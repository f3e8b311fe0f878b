"""From one worker to a thousand: the real store, its real moves and a real API process, with workers that do not train.

`.venv/bin/python bench/scale.py` (about half an hour). First each move alone, as fast as it goes, for what it costs the
server. Then 100,000 jobs are queued, and 1, 10, 100 and 1,000 workers work at them: each waits for a message as Celery does,
claims, begins, appends a block of losses every second, beats, ends its job after five, notes it as filed, and takes its turn
at reconciling. A client polls losses over HTTP meanwhile, from a process of its own. Simulator, server and API share the
machine, so latencies hold while the simulator's own processes are not busy all the time (a column says how busy they were).
"""

import argparse
import asyncio
import contextlib
import math
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench import measure
from bench.servers import Server, serving
from bench.simulated import FILE, RESULT, Load, Told, points, poll, simulate, submit
from client.redis_server import RedisServer
from client.stack import free_port
from core.jobs.job import Status
from core.jobs.work import Claim, WorkStore
from core.settings import Settings

_MEMORY_MB = 8192
_CLIENTS = 50  # of a process, where something is done as fast as it goes


@dataclass(frozen=True)
class Bed:
    """The servers under test, and the processes that simulate."""

    settings: Settings
    api: Server
    pool: ProcessPoolExecutor
    processes: int

    @property
    def url(self) -> str:
        return self.settings.store_url

    def ask(self, use: Callable[[WorkStore], Awaitable[Any]]) -> Any:
        async def asked() -> Any:
            async with WorkStore.connect(self.url) as store:
                return await use(store)

        return asyncio.run(asked())

    def server_cpu_s(self) -> float:
        return float(self.ask(server_cpu_s))

    def server_mb(self) -> float:
        return float(self.ask(lambda store: store.database.redis.info("memory"))["used_memory"]) / 2**20

    def shared(self, count: int) -> list[int]:
        """So many, spread over the processes."""
        return [count // self.processes + (n < count % self.processes) for n in range(self.processes)]


@contextlib.contextmanager
def bed(processes: int, settings: dict[str, Any]) -> Iterator[Bed]:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # a thousand workers wait on a connection each
    with tempfile.TemporaryDirectory() as home:
        settings_ = Settings(home=Path(home), redis_memory_mb=_MEMORY_MB, port=free_port("127.0.0.1"), **settings)
        redis = RedisServer(settings_)
        child = redis.start()
        env = {"DESCENT_HOME": home, "DESCENT_PORT": str(settings_.port), "DESCENT_LOG_LEVEL": "warning"}
        url = f"http://127.0.0.1:{settings_.port}"
        try:
            with (
                serving([sys.executable, "-m", "api.app"], url, env, ready="/healthz") as api,
                ProcessPoolExecutor(processes + 1, mp_context=get_context("spawn")) as pool,
            ):
                yield Bed(settings_, api, pool, processes)
        finally:
            child.stop(20)
            redis.release()


def moves_alone(bed: Bed, jobs: int) -> str:
    """Each move as fast as it goes, from the clients of one process, and what it costs the server."""
    bed.pool.submit(submit, bed.url, 1, 1).result()  # a process that has all loaded
    cpu_s, began = bed.server_cpu_s(), time.perf_counter()
    ids = bed.pool.submit(submit, bed.url, jobs, _CLIENTS).result()
    took, cpu_s = time.perf_counter() - began, bed.server_cpu_s() - cpu_s
    rows = [["submit", f"{jobs / took:,.0f}", f"{cpu_s / jobs * 1e6:.0f}"]]
    rows += bed.ask(lambda store: moves_of_workers(store, ids))
    bed.ask(lambda store: store.database.redis.flushdb())
    return measure.table(["move", "a second, one process of clients", "server's time, us"], rows)


async def moves_of_workers(store: WorkStore, ids: list[str]) -> list[list[str]]:
    jobs, claims = len(ids), list[Claim]()

    async def claim(number: int) -> None:
        claimed = await store.claim(ids[number], worker="bench", lease_s=600)
        assert claimed is not None
        claims.append(claimed)

    def append(number: int) -> Awaitable[Any]:
        return store.append(claims[number % jobs], points(number // jobs), steps_done=number, images_per_s=1.0)

    def finish(number: int) -> Awaitable[Any]:
        return store.finish(claims[number], Status.SUCCEEDED, result=RESULT, files={"safetensors": FILE})

    return [
        await cost(store, "claim", claim, jobs),
        await cost(store, "append a block of 10 points", append, 3 * jobs),
        await cost(store, "beat", lambda number: store.beat(claims[number % jobs], lease_s=600), 3 * jobs),
        await cost(store, "read a history", lambda number: store.loss(ids[number % jobs]), 3 * jobs),
        await cost(store, "finish", finish, jobs),
    ]


async def cost(store: WorkStore, name: str, move: Callable[[int], Awaitable[Any]], count: int) -> list[str]:
    left = iter(range(count))

    async def client() -> None:
        for number in left:
            await move(number)

    before, began = await server_cpu_s(store), time.perf_counter()
    await asyncio.gather(*(client() for _ in range(_CLIENTS)))
    took = time.perf_counter() - began
    return [name, f"{count / took:,.0f}", f"{(await server_cpu_s(store) - before) / count * 1e6:.0f}"]


async def server_cpu_s(store: WorkStore) -> float:
    cpu = await store.database.redis.info("cpu")
    return float(cpu["used_cpu_user"]) + float(cpu["used_cpu_sys"])


def fill(bed: Bed, jobs: int) -> str:
    """Queue all jobs, from all processes at once."""
    empty_mb, cpu_s, began = bed.server_mb(), bed.server_cpu_s(), time.perf_counter()
    futures = [bed.pool.submit(submit, bed.url, count, _CLIENTS) for count in bed.shared(jobs)]
    for future in futures:
        future.result()
    took = time.perf_counter() - began
    mb, cpu_s = (bed.server_mb() - empty_mb) / jobs * 1000, bed.server_cpu_s() - cpu_s
    return (
        f"{jobs:,} jobs submitted by {bed.processes} processes in {took:.0f} s: {jobs / took:,.0f} a second; "
        f"the server took {cpu_s / jobs * 1e6:.0f} us and {mb:.2f} MB per 1,000 of them."
    )


def level(bed: Bed, load: Load, over: Path) -> list[str]:
    """So many workers for a while, and how it went."""
    cpu_s, api_cpu_s, began = bed.server_cpu_s(), bed.api.usage().cpu_s, time.perf_counter()
    loads = [replace(load, workers=count) for count in bed.shared(load.workers) if count]
    simulating = [bed.pool.submit(simulate, load) for load in loads]
    polling = bed.pool.submit(poll, bed.api.url, over)
    try:
        told = sum((future.result() for future in simulating), Told())
        took = time.perf_counter() - began
        cpu_s, api_cpu_s = bed.server_cpu_s() - cpu_s, bed.api.usage().cpu_s - api_cpu_s
    finally:
        over.touch()
    polled = polling.result()
    over.unlink()
    return [
        f"{load.workers:,}",
        *(f"{told.counts[name] / took:,.1f}" for name in ("claim", "append", "beat", "announce")),
        *(quantiles(ms) for ms in (told.ms["claim"], told.ms["append"], polled.ms["GET loss"], told.ms["scan"])),
        *(f"{share:.0%}" for share in (cpu_s / took, api_cpu_s / took, told.cpu_s / took / len(loads))),
    ]


def quantiles(ms: Sequence[float]) -> str:
    """p50 and p99."""
    if len(ms) < 2:
        return f"{ms[0]:.1f}" if ms else ""
    cuts = statistics.quantiles(ms, n=100, method="inclusive")
    return f"{cuts[49]:.1f} / {cuts[98]:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", default="1,10,100,1000")
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=30, help="of each level but the last, which takes all jobs")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a few seconds, to see that it works")
    options = parser.parse_args()
    if options.quick:
        options.workers, options.jobs, options.seconds, options.processes = "1,4", 60, 1, 1
    print(measure.heading("A thousand workers on one store"))
    with bed(options.processes, {"beat_s": 0.5, "scan_s": 1} if options.quick else {}) as servers:
        print(moves_alone(servers, 50 if options.quick else 2000), end="\n\n", flush=True)
        empty_mb = servers.server_mb()
        print(fill(servers, options.jobs), end="\n\n", flush=True)
        print(levels(servers, options), end="\n\n")
        done = servers.ask(lambda store: store.database.redis.zcard("descent:labelled:status:succeeded"))
        mb = (servers.server_mb() - empty_mb) / done * 1000
        print(f"{done:,} jobs have succeeded; the server has {mb:.2f} MB for 1,000 of them.")


def levels(bed: Bed, options: argparse.Namespace) -> str:
    """The numbers of workers one after the other; the last works until no job is left."""
    load = Load(
        url=bed.url,
        workers=0,
        seconds=options.seconds,
        blocks=2 if options.quick else 5,
        every_s=0.1 if options.quick else 1.0,
        settings=bed.settings,
    )
    rows, counts = [], [int(text) for text in options.workers.split(",")]
    for workers in counts:
        seconds = options.seconds if workers != counts[-1] else math.inf
        rows.append(level(bed, replace(load, workers=workers, seconds=seconds), bed.settings.home / "over"))
        print(*rows[-1], sep="  ", file=sys.stderr)
    head = ["workers", "jobs/s", "blocks/s", "beats/s", "announces/s", "claim, ms", "append, ms", "GET loss, ms", "scan, ms",
            "server", "API", "simulator"]  # fmt: skip
    return measure.table(head, rows)


if __name__ == "__main__":
    main()
