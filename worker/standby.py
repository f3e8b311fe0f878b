"""The standby: one trainer process that is ready before there is a job, so that a job need not wait for `import paddle`."""

import asyncio
import contextlib
import dataclasses
import json
import logging
import os
import sys

from core.devices import Slot
from core.settings import Settings
from worker.trainer_process import Setup

_LINE_LIMIT = 16 << 20  # bytes of one message

log = logging.getLogger(__name__)


class Standby:
    """Keeps at most one trainer waiting. All methods belong to one event loop, which must outlive the processes."""

    def __init__(self, settings: Settings, slot: Slot) -> None:
        self._setup = json.dumps(dataclasses.asdict(Setup.of(settings, gpu=slot.number, device=slot.device(settings))))
        self._env = os.environ | slot.env
        self._waiting: asyncio.subprocess.Process | None = None

    async def refill(self) -> None:
        """See to it that a trainer waits (or is on its way to)."""
        if self._waiting is None or self._waiting.returncode is not None:
            self._waiting = await self._start()

    async def take(self) -> asyncio.subprocess.Process:
        """The waiting trainer, or a new one; it is the caller's to end."""
        await self.refill()
        process, self._waiting = self._waiting, None
        assert process is not None
        return process

    async def close(self) -> None:
        if self._waiting is not None:
            with contextlib.suppress(ProcessLookupError):
                self._waiting.kill()
            await self._waiting.wait()
            self._waiting = None

    async def _start(self) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "worker.trainer_process", self._setup,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=_LINE_LIMIT,
            env=self._env,
        )  # fmt: skip
