"""The trainer against PyTorch and the lesson's own loop: one epoch of MNIST at batch 100, interleaved, on the same arrays.

`.venv/bin/python bench/train.py` (about 20 minutes; `--repeats 1` for a look). Ours is timed as a job runs it: the trainer
process, progress messages on. All times are of the training loop alone, without reading data or evaluating.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench import measure
from bench.measure import Run
from core.settings import Settings
from core.spec import JobSpec
from worker.trainer_process import Assignment, Setup

RATES = {"sgd": 0.01, "adam": 0.001}
IMAGES = 50_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--lesson-repeats", type=int, default=2, help="it takes the better part of a minute")
    options = parser.parse_args()
    python = measure.environment("torch")
    with tempfile.TemporaryDirectory() as folder:
        arrays = save_arrays(Path(folder))
        print(measure.heading("Training: one epoch, batch 100"))
        for optimizer, rate in RATES.items():
            contenders: dict[str, Callable[[], Run]] = {
                "Descent, 2 threads": partial(ours, optimizer, rate, 2),
                "Descent, 1 thread": partial(ours, optimizer, rate, 1),
                "PyTorch eager NCHW, 2 threads": partial(torch, python, arrays, optimizer, rate, "nchw", 2),
                "PyTorch eager channels_last, 2 threads": partial(torch, python, arrays, optimizer, rate, "nhwc", 2),
            }
            runs = measure.interleaved(contenders, options.repeats)
            slow = {"the lesson's loop as written": partial(lesson, arrays, optimizer, rate)}
            runs |= measure.interleaved(slow, options.lesson_repeats)
            print(report(optimizer, rate, runs), flush=True)
    print(f"\nThe kernel's floor, both layers forward and backward alone, 2 threads: {floor(2):.2f} s/epoch.")


def save_arrays(folder: Path) -> Path:
    from core.training import datasets

    settings = Settings()
    data = datasets.load("mnist", cache=settings.cache_dir, folder=settings.datasets)
    path = folder / "mnist.npz"
    np.savez(path, images=data.train.images, labels=data.train.labels,
             test_images=data.test.images, test_labels=data.test.labels)  # fmt: skip
    return path


def ours(optimizer: str, rate: float, threads: int) -> Run:
    """The trainer process, as a worker starts it."""
    setup = Setup.of(Settings(threads=threads, log_level="warning"))
    spec = JobSpec.model_validate({"optimizer": optimizer, "learning_rate": rate, "epochs": 1, "device": "cpu"})
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "job", "1")
        assignment = Assignment(job_id="bench", spec=spec.model_dump(), folder=str(place), last_step=-1)
        command = [sys.executable, "-m", "worker.trainer_process", json.dumps(vars(setup))]
        run = measure.run(command, stdin=json.dumps(vars(assignment)) + "\n")
    return Run(run.figures["result"], run.peak_mb)


def torch(python: str, arrays: Path, optimizer: str, rate: float, layout: str, threads: int) -> Run:
    env = os.environ | {"OMP_NUM_THREADS": str(threads)}
    command = [python, "bench/torch_epoch.py", str(arrays), optimizer, str(rate), layout, str(threads)]
    return measure.run(command, env=env)


def lesson(arrays: Path, optimizer: str, rate: float) -> Run:
    return measure.run([sys.executable, "bench/lesson_epoch.py", str(arrays), optimizer, str(rate)])


def report(optimizer: str, rate: float, runs: dict[str, list[Run]]) -> str:
    best = measure.median(runs["Descent, 2 threads"], "seconds")
    rows = []
    for name, group in runs.items():
        seconds = measure.median(group, "seconds")
        spread = [run.figures["seconds"] for run in group]
        rows.append([
            name, f"{seconds:.2f}", f"{min(spread):.2f}-{max(spread):.2f}", f"{IMAGES / seconds:,.0f}",
            f"{seconds / best:.2f}", f"{statistics.median(run.peak_mb for run in group):.0f}",
            f"{measure.median(group, 'test_accuracy'):.2%}", len(group),
        ])  # fmt: skip
    head = ["", "s/epoch, median", "range", "images/s", "time / ours", "peak MB", "test accuracy", "runs"]
    return f"\n### {optimizer}, rate {rate}\n\n{measure.table(head, rows)}"


def floor(threads: int) -> float:
    """Seconds of an epoch's kernel calls, without Paddle around them: median of five times 100 steps."""
    code = f"""
import json, statistics, time
from core.training import runtime
runtime.prepare({threads})
import numpy as np, paddle
from core.settings import Settings
from core.training.fused import kernel as fused
kernel = fused.load(Settings().cache_dir / "kernels")
rng = np.random.default_rng(0)
def tensor(*shape): return paddle.to_tensor(rng.normal(0, 0.1, shape).astype(np.float32))
layers = [(tensor(100, 1, 28, 28), tensor(20, 1, 5, 5), tensor(20), tensor(100, 20, 14, 14), False),
          (tensor(100, 20, 14, 14), tensor(20, 20, 5, 5), tensor(20), tensor(100, 20, 7, 7), True)]
def steps(count):
    began = time.perf_counter()
    for _ in range(count):
        for x, weight, bias, grad, wants_x in layers:
            _, winner = kernel.forward(x, weight, bias)
            kernel.backward(x, weight, winner, grad, wants_x=wants_x)
    return (time.perf_counter() - began) / count * 500
steps(20)
print(json.dumps({{"seconds": statistics.median(steps(100) for _ in range(5))}}))
"""
    return float(measure.run([sys.executable, "-c", code]).figures["seconds"])


if __name__ == "__main__":
    main()
