"""The trainer as a process of its own: `python -m worker.trainer_process SETUP`, one job, JSON lines in and out.

A crash, a leak or a CUDA context stays in here. It gets ready first (imports Paddle, loads the data set) and then waits: the
supervisor (`worker.run`) writes one line, the assignment, to stdin and keeps stdin open; when it ends, the supervisor is gone
and so is this process. Each line written to stdout is one message: `{"type": "started" | "block" | "epoch" | "done" |
"stopped" | "failed", ...}`. SIGTERM asks it to save a checkpoint and the weights so far, say `stopped`, and leave.
"""

import contextlib
import dataclasses
import functools
import io
import itertools
import json
import logging
import math
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

from core.errors import StorageAway, TrainingError
from core.jobs import artifacts
from core.jobs.spool import Message, Spool
from core.logs import bind
from core.settings import Settings, configure_logging
from core.spec import TRAIN_IMAGES, JobSpec
from core.storage import storage_at
from core.training import export, runtime

if TYPE_CHECKING:
    from core.training.checkpoint import Checkpoint
    from core.training.datasets import Dataset
    from core.training.fused.layer import Kernel
    from core.training.network import Weights
    from core.training.progress import Progress

T = TypeVar("T")

_POINTS_A_LINE = 10_000
_PAUSE_S = 1.0  # before the storage is asked again
_SHARE_WAITING = 0.1  # of the time, at most, for checkpoints that cannot be kept
_METRICS = ("valid_accuracy", "test_accuracy", "final_loss")  # of a result, those that the clock has no part in

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
    """What is the same for all trainers of a worker. A data set that is missing is fetched into `cache`."""

    device: str  # where `auto` trains
    gpu: int | None  # the number that the only GPU it sees goes by; None: it sees all there are, or none
    threads: int
    checkpoint_s: float
    kernel: str  # fused or plain
    kernels: str | None
    cache: str
    datasets: str | None
    data_mirror: str | None
    artifacts: str
    log_level: str

    @classmethod
    def of(cls, settings: Settings, *, gpu: int | None = None, device: str | None = None) -> "Setup":
        """As the settings have it; or with a GPU of its own, or another place for `auto`."""
        return cls(
            device=device or settings.device,
            gpu=gpu,
            threads=settings.threads_per_trainer,
            checkpoint_s=settings.checkpoint_s,
            kernel=settings.kernel,
            kernels=str(settings.kernels) if settings.kernels else None,
            cache=str(settings.cache_dir),
            datasets=str(settings.datasets) if settings.datasets else None,
            data_mirror=settings.data_mirror,
            artifacts=settings.artifacts_at,
            log_level=settings.log_level,
        )

    def place_of(self, spec: JobSpec) -> str:
        """The device of a job; that of `auto` is the worker's, unless only a GPU can do what the job asks for."""
        if spec.device != "auto":
            return spec.device
        return "gpu" if spec.wants_gpu and self.device == "cpu" else self.device

    def paddles(self, device: str) -> str:
        """What Paddle calls a device here: the only GPU it sees is its first."""
        return "gpu:0" if self.gpu is not None and device == f"gpu:{self.gpu}" else device

    def ours(self, device: str) -> str:
        """What clients call a device of Paddle's."""
        return f"gpu:{self.gpu}" if self.gpu is not None and device == "gpu:0" else device


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assignment:
    """One job: its spec, where this claim writes to, the last step whose loss is stored already, and whose job it is."""

    job_id: str
    spec: dict[str, Any]
    folder: str
    last_step: int
    log: dict[str, Any] = dataclasses.field(default_factory=dict)  # what its log lines have beside the event


def main() -> None:
    runtime.die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the worker, which then gives the job back
    out = _private_stdout()
    setup = Setup(**json.loads(sys.argv[1]))
    configure_logging(setup.log_level)
    runtime.prepare(setup.threads)
    # Paddle's own handler of SIGTERM, and its advice on variables, would write lines that are no JSON.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    with contextlib.redirect_stderr(io.StringIO()) as said:
        import paddle
    log.debug("Paddle was loaded", extra={"said": said.getvalue()})
    paddle.disable_signal_handler()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    kernel = _get_ready(setup)
    line = sys.stdin.readline()
    if line:
        threading.Thread(target=_exit_at_end_of_input, daemon=True).start()
        Job(setup, Assignment(**json.loads(line)), kernel, out).work()
    os._exit(0)  # all is said and written; the interpreter's own way out would wait for the thread that reads


def _get_ready(setup: Setup) -> "Kernel | None":
    """Whatever the first step would otherwise wait for: the kernel, a first step, the data sets that are here."""
    from core.training import datasets, trainer
    from core.training.fused import kernel as fused

    prebuilt = Path(setup.kernels) if setup.kernels else None
    kernel = fused.load(Path(setup.cache) / "kernels", wanted=setup.kernel == "fused", prebuilt=prebuilt)
    storage_at(setup.artifacts, setting="DESCENT_ARTIFACTS")  # an object store's library takes half a second to import
    with contextlib.suppress(TrainingError):
        place = trainer.select_device(setup.paddles(setup.device))
        trainer.warm_up(kernel if place == "cpu" else None)
    for name in TRAIN_IMAGES:
        if _is_assigned():
            break  # the job needs one of them, and reads it itself
        if datasets.is_here(name, cache=Path(setup.cache), folder=_folder(setup)):
            with contextlib.suppress(TrainingError):  # the job that needs it will say what is wrong
                _load(name, setup)
    return kernel


def _is_assigned() -> bool:
    """Whether a job waits for this process already."""
    return bool(select.select([sys.stdin], [], [], 0)[0])


class Job:
    """One job of this process, from the assignment to the last word."""

    def __init__(self, setup: Setup, assignment: Assignment, kernel: "Kernel | None", out: IO[str]) -> None:
        spec = JobSpec.model_validate(assignment.spec)
        self._spec = spec.model_copy(update={"device": setup.paddles(setup.place_of(spec))})
        self._setup, self._assignment, self._kernel, self._out = setup, assignment, kernel, out
        self._files = storage_at(setup.artifacts, setting="DESCENT_ARTIFACTS")
        bind(**{"job_id": assignment.job_id} | assignment.log)
        self._stopping = False
        self._next_save_at = 0.0

    def work(self) -> None:
        """Train, and say how it went, whatever happens. Only a process that died says nothing."""
        try:
            self._train()
        except TrainingError as error:
            self._fail(error.code, str(error), error.step)
        except BrokenPipeError:
            return  # the supervisor is gone; nobody listens
        except StorageAway:  # we are to leave, and cannot save anything
            self._send("stopped", files=None)
        except OSError as error:  # a full disk, a folder that cannot be written
            self._fail("internal", f"the trainer's files: {error.strerror or error}")
        except MemoryError:
            self._fail("out_of_memory", "the trainer ran out of memory")
        except Exception:  # a bug: the same bug would wait in every other attempt
            log.exception("unforeseen error")
            self._fail("internal", "a bug in the trainer; the worker's log has it")

    def _fail(self, code: str, message: str, step: int | None = None) -> None:
        log.info("training failed", extra={"code": code, "step": step})
        self._send("failed", code=code, message=message, step=step)

    def _train(self) -> None:
        from core.training import trainer
        from core.training.checkpoint import Checkpoint
        from core.training.progress import Block, EpochEnd, Finished, RangeTested, Started

        trainer.select_device(self._spec.device)  # a missing device is reported before a data set is fetched
        data = _load(self._spec.dataset, self._setup)
        _load.cache_clear()  # the other data sets are not needed
        signal.signal(signal.SIGTERM, self._stop)
        spool = self._insist(lambda: Spool(self._files, self._assignment.folder))
        for progress in self._begin(data, spool):
            match progress:
                case Started():
                    backend = progress.backend | {"device": self._setup.ours(progress.device)}
                    log.info("training began", extra={**backend, "resumed_from_step": progress.resumed_from_step})
                    self._send("started", backend=backend, resumed_from=progress.resumed_from_step)
                case Block():
                    points = [_point(point) for point in progress.points]
                    told = {"steps_done": progress.steps_done, "images_per_s": progress.images_per_s}
                    spool.add(self._send("block", points=points, **told))
                case EpochEnd():
                    spool.add(self._send("epoch", metrics=_finite(dataclasses.asdict(progress))))
                case Checkpoint():
                    self._save(progress, spool)
                    if self._stopping:
                        metrics = (
                            {"valid_accuracy": progress.state["valid_accuracy"]} if progress.state["epoch"] else {}
                        )
                        log.info("training stopped", extra={"step": progress.step})
                        self._send("stopped", files=self._publish(progress.part("network"), progress.step, metrics))
                        return
                case Finished():
                    result = _finite(dataclasses.asdict(progress))
                    weights = result.pop("weights")
                    metrics = {name: result[name] for name in _METRICS}
                    log.info("training ended", extra={"steps": self._spec.total_steps, **metrics})
                    self._send("done", files=self._publish(weights, self._spec.total_steps, metrics), result=result)
                case RangeTested():
                    self._send("done", files=None, result=_finite(dataclasses.asdict(progress)))

    def _begin(self, data: "Dataset", spool: Spool) -> "Iterator[Progress]":
        """The training's progress, from the best checkpoint that can be used. What was told before it is told again."""
        from core.training import trainer
        from worker.resume import resumptions

        job_id = self._assignment.job_id
        for found in [*self._insist(lambda: resumptions(self._files, job_id, self._spec)), None]:
            run = trainer.train(
                self._spec,
                data,
                kernel=self._kernel,
                checkpoint_s=self._setup.checkpoint_s,
                wants_checkpoint=lambda: self._stopping,
                resume=found.checkpoint if found else None,
            )
            try:
                started = next(run)
            except ValueError as error:
                if found is None:
                    raise
                log.warning("cannot resume", extra={"reason": str(error)})
                continue
            for message in found.told if found else []:
                spool.add(message)
                self._tell_again(message)
            return itertools.chain([started], run)
        raise AssertionError("a training from step 0 can always begin")

    def _tell_again(self, message: Message) -> None:
        """Loss points that are stored are left out; there may be many."""
        if message["type"] == "block":
            new = [point for point in message["points"] if point["step"] > self._assignment.last_step]
            for start in range(0, len(new) or 1, _POINTS_A_LINE):
                self._send(**message | {"points": new[start : start + _POINTS_A_LINE]})
        else:
            self._send(**message)

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def _save(self, checkpoint: "Checkpoint", spool: Spool) -> None:
        """Keep a checkpoint. While the storage is away the training goes on, and seldom waits for it: a later one will do."""
        began = time.monotonic()
        if began < self._next_save_at and not self._stopping:
            return
        try:
            spool.sync()
            content = checkpoint.to_bytes()
            artifacts.publish_checkpoint(self._files, self._assignment.folder, checkpoint.step, content)
        except StorageAway as error:
            log.warning("no checkpoint", extra={"job_id": self._assignment.job_id, "reason": str(error)})
            self._next_save_at = began + (time.monotonic() - began) / _SHARE_WAITING

    def _publish(self, weights: "Weights", step: int, metrics: dict[str, float | None]) -> dict[str, Any]:
        from core.training.network import to_pdparams

        safetensors = export.to_safetensors(weights, self._spec, step=step, metrics=metrics)
        contents = {artifacts.FORMATS["pdparams"]: to_pdparams(weights), artifacts.FORMATS["safetensors"]: safetensors}

        def publish() -> list[dict[str, Any]]:
            folder = self._assignment.folder
            return [artifacts.publish(self._files, folder, name, content) for name, content in contents.items()]

        return dict(zip(artifacts.FORMATS, self._insist(publish), strict=True))

    def _insist(self, act: Callable[[], T]) -> T:
        """Try again and again while the storage is away: a job loses nothing by waiting, and its time limit counts.

        Raises StorageAway when we are to stop.
        """
        while True:
            try:
                return act()
            except StorageAway as error:
                if self._stopping:
                    raise
                log.warning("waiting for the storage", extra={"job_id": self._assignment.job_id, "reason": str(error)})
            time.sleep(_PAUSE_S)

    def _send(self, type: str, **fields: Any) -> Message:
        message = {"type": type, **fields}
        self._out.write(json.dumps(message, allow_nan=False) + "\n")
        self._out.flush()
        return message


def _folder(setup: Setup) -> Path | None:
    return Path(setup.datasets) if setup.datasets else None


@functools.cache
def _load(name: str, setup: Setup) -> "Dataset":
    from core.training import datasets

    return datasets.load(name, cache=Path(setup.cache), folder=_folder(setup), mirror=setup.data_mirror)


def _point(point: Any) -> dict[str, Any]:
    """A loss point as it is stored: strict JSON, so a loss that is not finite is null and named beside."""
    fields = dataclasses.asdict(point)
    if not math.isfinite(point.loss):
        fields |= {"loss": None, "nonfinite": "nan" if math.isnan(point.loss) else "inf" if point.loss > 0 else "-inf"}
    return fields


def _finite(fields: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in fields.items()}


def _private_stdout() -> IO[str]:
    """Keep stdout for messages alone: whatever a library prints goes to stderr."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return out


def _exit_at_end_of_input() -> None:
    while os.read(0, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
