"""The trainer as a process of its own: `python -m worker.trainer_process`, one job, JSON lines in and out.

A crash, a leak or a CUDA context stays in here. The supervisor (`worker.run`) writes one line, the assignment, to stdin and
then keeps stdin open: when it ends, the supervisor is gone and so is this process. Each line written to stdout is one
message: `{"type": "started" | "block" | "epoch" | "done" | "failed", ...}`.
"""

import dataclasses
import json
import math
import os
import signal
import sys
import threading
from pathlib import Path
from typing import IO, Any

from core.errors import TrainingError
from core.jobs import artifacts
from core.settings import configure_logging
from core.spec import JobSpec
from core.training import runtime


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assignment:
    """What the supervisor asks for. `folder` is where the weights go; a missing data set is fetched into `cache`."""

    job_id: str
    spec: dict[str, Any]
    device: str  # where `auto` trains
    threads: int
    folder: str
    kernel: str  # fused or plain
    kernels: str | None
    cache: str
    datasets: str | None
    log_level: str


def main() -> None:
    die_with_parent()
    out = _private_stdout()
    line = sys.stdin.readline()
    if not line:
        return
    assignment = Assignment(**json.loads(line))
    threading.Thread(target=_exit_at_end_of_input, daemon=True).start()
    configure_logging(assignment.log_level)
    runtime.prepare(assignment.threads)
    import paddle

    paddle.disable_signal_handler()  # Paddle replaces SIGTERM's
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        _train(assignment, out)
    except TrainingError as error:
        _send(out, type="failed", code=error.code, message=str(error), step=error.step)
    except MemoryError:
        _send(out, type="failed", code="out_of_memory", message="the trainer ran out of memory", step=None)
    os._exit(0)  # all is said and written; the interpreter's own way out would wait for the thread that reads


def _train(assignment: Assignment, out: IO[str]) -> None:
    from core.training import datasets, fused, trainer

    spec = JobSpec.model_validate(assignment.spec)
    if spec.device == "auto":
        spec = spec.model_copy(update={"device": assignment.device})
    trainer.select_device(spec.device)  # a missing device is reported before a data set is fetched
    folder = Path(assignment.datasets) if assignment.datasets else None
    data = datasets.load(spec.dataset, cache=Path(assignment.cache), folder=folder)
    kernel = fused.load(
        Path(assignment.cache) / "kernels",
        wanted=assignment.kernel == "fused",
        prebuilt=Path(assignment.kernels) if assignment.kernels else None,
    )
    for progress in trainer.train(spec, data, kernel=kernel):
        match progress:
            case trainer.Started():
                _send(out, type="started", backend=dataclasses.asdict(progress))
            case trainer.Block():
                _send(
                    out,
                    type="block",
                    points=[_point(point) for point in progress.points],
                    steps_done=progress.steps_done,
                    images_per_s=progress.images_per_s,
                )
            case trainer.EpochEnd():
                _send(out, type="epoch", metrics=_finite(dataclasses.asdict(progress)))
            case trainer.Finished():
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


def die_with_parent() -> None:
    """Linux: have the kernel kill this process when its parent dies, however that happens."""
    if sys.platform != "linux":
        return
    import ctypes

    parent = os.getppid()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


if __name__ == "__main__":
    main()
