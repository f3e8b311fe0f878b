"""The machine's GPUs, and how they are shared out among its workers: one each. Asks NVIDIA's driver, never Paddle."""

import logging
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from core.settings import Settings

_ASK = ["--query-gpu=index,uuid,name,memory.total", "--format=csv,noheader,nounits"]
_ASK_LIMIT_S = 20  # a driver that no process uses yet takes seconds to wake up
_NO_GPUS = ("", "-1")  # as CUDA_VISIBLE_DEVICES says it

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU. `number` is the N of a job's `gpu:N`; `id` names it in CUDA_VISIBLE_DEVICES: the driver's number or a UUID."""

    number: int
    id: str
    uuid: str | None = None
    name: str | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class Slot:
    """What one worker has of the machine: a GPU of its own, or the CPU alone.

    `hides_gpus`: its trainers are not to see any, because others have them or nobody is to.
    """

    gpu: Gpu | None = None
    hides_gpus: bool = False

    @property
    def number(self) -> int | None:
        """Of its GPU."""
        return self.gpu.number if self.gpu else None

    @property
    def env(self) -> dict[str, str]:
        """The variables that make its trainers see that GPU and no other. Empty where nothing is known of any."""
        if self.gpu:
            order = os.environ.get("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # the driver's; CUDA's own is another
            return {"CUDA_VISIBLE_DEVICES": self.gpu.id, "CUDA_DEVICE_ORDER": order}
        return {"CUDA_VISIBLE_DEVICES": ""} if self.hides_gpus else {}

    def device(self, settings: Settings) -> str:
        """Where its jobs train that say `auto`: one beyond the GPUs that are shared out has the CPU alone."""
        return "cpu" if self.hides_gpus and self.gpu is None else settings.device

    def devices(self, settings: Settings) -> list[dict[str, Any]]:
        """What it tells others that it can train on."""
        cpu = {"device": "cpu", "name": _cpu_name(), "memory_bytes": settings.memory_per_trainer}
        if self.gpu is None:
            return [cpu]
        gpu = {"device": f"gpu:{self.gpu.number}", "name": self.gpu.name, "memory_bytes": self.gpu.memory_bytes}
        return [gpu, cpu]


def slots(settings: Settings) -> list[Slot]:
    """One for each worker of this machine: as many as there are GPUs, or as `workers` says; those beyond have the CPU."""
    gpus = gpus_for(settings)
    hides = bool(gpus) or settings.gpus is not None
    count = settings.workers or max(1, len(gpus))
    return [Slot(gpu=gpu, hides_gpus=hides) for gpu in [*gpus, *[None] * count][:count]]


def gpus_for(settings: Settings) -> list[Gpu]:
    """Those that workers may use, in the order of their numbers.

    Declared ones are taken at their word. Others must be shown by the driver, allowed by CUDA_VISIBLE_DEVICES, and usable by
    the Paddle that is installed.
    """
    if settings.gpus == "none":
        return []
    driver = ask_driver()
    if settings.gpus:
        gpus = shared_out(settings.gpus.split(","), driver)
    elif driver and not _paddle_has_cuda():
        log.warning("there are GPUs, and the Paddle that is installed is built for CPUs", extra={"gpus": len(driver)})
        gpus = []
    else:
        gpus = shared_out(_visible(), driver) if driver else []
    wanted = settings.device.removeprefix("gpu:")
    return [gpu for gpu in gpus if not wanted.isdecimal() or gpu.number == int(wanted)]


def shared_out(ids: Sequence[str] | None, driver: Sequence[Gpu]) -> list[Gpu]:
    """The GPUs that these ids name, numbered in this order from 0; without ids those of the driver."""
    if ids is None:
        return list(driver)
    found = []
    for number, id in enumerate(ids):
        known = (gpu for gpu in driver if gpu.id == id or (gpu.uuid and len(id) > 4 and gpu.uuid.startswith(id)))
        found.append(replace(next(known, Gpu(number=number, id=id)), number=number, id=id))
    return found


def ask_driver() -> list[Gpu]:
    """The GPUs that NVIDIA's driver shows, by `nvidia-smi`; none when that is not here or fails."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    try:
        told = subprocess.run([command, *_ASK], capture_output=True, text=True, timeout=_ASK_LIMIT_S, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("nvidia-smi failed: no GPU is used", extra={"reason": str(error)})
        return []
    return [_of_driver(number, line) for number, line in enumerate(told.splitlines()) if line.count(",") == 3]


def _of_driver(number: int, line: str) -> Gpu:
    index, uuid, name, memory_mb = (part.strip() for part in line.split(","))
    memory = int(memory_mb) << 20 if memory_mb.isdecimal() else None
    return Gpu(number=number, id=index, uuid=uuid, name=name, memory_bytes=memory)


def _visible() -> list[str] | None:
    """What CUDA_VISIBLE_DEVICES lets us see; None when it says nothing. CUDA, too, reads it as far as the first -1."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        return None
    ids = [id.strip() for id in given.split(",")]
    ends = [place for place, id in enumerate(ids) if id in _NO_GPUS]
    return ids[: ends[0]] if ends else ids


def _paddle_has_cuda() -> bool:
    """By the name of the package: importing it would take a second and 300 MB."""
    try:
        return bool(version("paddlepaddle-gpu"))
    except PackageNotFoundError:
        return False


def _cpu_name() -> str | None:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)
