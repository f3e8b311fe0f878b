"""The trainer as a process of its own: `python -m worker.trainer_process SETUP`, one job, JSON lines in and out.

A crash, a leak or a CUDA context stays in here. It gets ready first (imports Paddle, loads the data set) and then waits: the
supervisor (`worker.run`) writes one line, the assignment, to stdin and keeps stdin open; when it ends, the supervisor is gone
and so is this process. Each line written to stdout is one message: `{"type": "started" | "block" | "epoch" | "done" |
"failed", ...}`.
"""

import contextlib
import dataclasses
import functools
import json
import math
import os
import signal
import sys
import threading
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from core.errors import TrainingError
from core.jobs import artifacts
from core.settings import Settings, configure_logging
from core.spec import TRAIN_IMAGES, JobSpec
from core.training import runtime

if TYPE_CHECKING:
    from core.training.datasets import Dataset
    from core.training.fused import Kernel


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
    """What is the same for all trainers of a worker. A data set that is missing is fetched into `cache`."""

    device: str  # where `auto` trains
    threads: int
    kernel: str  # fused or plain
    kernels: str | None
    cache: str
    datasets: str | None
    log_level: str

    @classmethod
    def of(cls, settings: Settings) -> "Setup":
        return cls(
            device=settings.device,
            threads=settings.threads_per_trainer,
            kernel=settings.kernel,
            kernels=str(settings.kernels) if settings.kernels else None,
            cache=str(settings.cache_dir),
            datasets=str(settings.datasets) if settings.datasets else None,
            log_level=settings.log_level,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assignment:
    """One job: its spec, and the folder its weights go to."""

    job_id: str
    spec: dict[str, Any]
    folder: str


def main() -> None:
    runtime.die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the worker, which then gives the job back
    out = _private_stdout()
    setup = Setup(**json.loads(sys.argv[1]))
    configure_logging(setup.log_level)
    runtime.prepare(setup.threads)
    import paddle

    paddle.disable_signal_handler()  # Paddle replaces SIGTERM's
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    kernel = _get_ready(setup)
    line = sys.stdin.readline()
    if line:
        threading.Thread(target=_exit_at_end_of_input, daemon=True).start()
        _work(setup, Assignment(**json.loads(line)), kernel, out)
    os._exit(0)  # all is said and written; the interpreter's own way out would wait for the thread that reads


def _get_ready(setup: Setup) -> "Kernel | None":
    """Whatever the first step would otherwise wait for: the kernel, the data set (if it is here), a first step."""
    from core.training import datasets, fused, trainer

    prebuilt = Path(setup.kernels) if setup.kernels else None
    kernel = fused.load(Path(setup.cache) / "kernels", wanted=setup.kernel == "fused", prebuilt=prebuilt)
    for name in TRAIN_IMAGES:
        if datasets.is_here(name, cache=Path(setup.cache), folder=_folder(setup)):
            with contextlib.suppress(TrainingError):  # the job that needs it will say what is wrong
                _load(name, setup)
    with contextlib.suppress(TrainingError):
        place = trainer.select_device(setup.device)
        trainer.warm_up(kernel if place == "cpu" else None)
    return kernel


def _work(setup: Setup, assignment: Assignment, kernel: "Kernel | None", out: IO[str]) -> None:
    try:
        _train(setup, assignment, kernel, out)
    except TrainingError as error:
        _send(out, type="failed", code=error.code, message=str(error), step=error.step)
    except BrokenPipeError:
        return  # the supervisor is gone; nobody listens
    except OSError as error:  # a full disk, a folder that cannot be written
        _send(out, type="failed", code="internal", message=f"the trainer's files: {error.strerror or error}", step=None)
    except MemoryError:
        _send(out, type="failed", code="out_of_memory", message="the trainer ran out of memory", step=None)


def _folder(setup: Setup) -> Path | None:
    return Path(setup.datasets) if setup.datasets else None


@functools.cache
def _load(name: str, setup: Setup) -> "Dataset":
    from core.training import datasets

    return datasets.load(name, cache=Path(setup.cache), folder=_folder(setup))


def _train(setup: Setup, assignment: Assignment, kernel: "Kernel | None", out: IO[str]) -> None:
    from core.training import trainer
    from core.training.progress import Block, EpochEnd, Finished, Started

    spec = JobSpec.model_validate(assignment.spec)
    if spec.device == "auto":
        spec = spec.model_copy(update={"device": setup.device})
    trainer.select_device(spec.device)  # a missing device is reported before a data set is fetched
    data = _load(spec.dataset, setup)
    for progress in trainer.train(spec, data, kernel=kernel):
        match progress:
            case Started():
                _send(out, type="started", backend=dataclasses.asdict(progress))
            case Block():
                _send(
                    out,
                    type="block",
                    points=[_point(point) for point in progress.points],
                    steps_done=progress.steps_done,
                    images_per_s=progress.images_per_s,
                )
            case EpochEnd():
                _send(out, type="epoch", metrics=_finite(dataclasses.asdict(progress)))
            case Finished():
                files = _publish(Path(assignment.folder), progress.weights)
                result = dataclasses.asdict(progress)
                del result["weights"]
                _send(out, type="done", files=files, result=_finite(result))


def _publish(folder: Path, weights: dict[str, Any]) -> dict[str, Any]:
    import safetensors.numpy

    from core.training.network import to_pdparams

    contents = {"pdparams": to_pdparams(weights), "safetensors": safetensors.numpy.save(weights)}
    return {name: artifacts.publish(folder, artifacts.FORMATS[name], content) for name, content in contents.items()}


def _point(point: Any) -> dict[str, Any]:
    """A loss point as it is stored: strict JSON, so a loss that is not finite is null and named beside."""
    fields = dataclasses.asdict(point)
    if not math.isfinite(point.loss):
        fields |= {"loss": None, "nonfinite": "nan" if math.isnan(point.loss) else "inf" if point.loss > 0 else "-inf"}
    return fields


def _finite(fields: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in fields.items()}


def _send(out: IO[str], **message: Any) -> None:
    out.write(json.dumps(message, allow_nan=False) + "\n")
    out.flush()


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
