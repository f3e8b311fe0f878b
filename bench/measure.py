"""What the benches share: runs in processes of their own, medians, the hardware, and tables for RESULTS.md."""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import venv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).parent.parent
ENVIRONMENTS = ROOT / ".descent" / "bench"
REQUIREMENTS = {  # of the environments
    "mlflow": ["mlflow==3.17.2", "uvloop==0.23.0", "httptools==0.9.0"],
    "torch": ["torch==2.13.0", "numpy"],
    "litserve": ["litserve==0.2.19", "uvloop==0.23.0", "httptools==0.9.0", "numpy==2.4.6", "onnxruntime==1.32.0"],
    "bentoml": ["bentoml==1.4.39", "numpy==2.4.6", "onnxruntime==1.32.0"],
    "mlflow-serve": ["mlflow==3.17.2", "uvloop==0.23.0", "httptools==0.9.0", "onnxruntime==1.32.0", "onnx==1.23.2"],
    "torchserve": ["torchserve==0.12.0", "torch-model-archiver==0.12.0", "torch==2.13.0", "numpy==2.4.6", "pyyaml"],
    "bare": [
        "fastapi==0.165.0",
        "uvicorn==0.54.0",
        "uvloop==0.23.0",
        "httptools==0.9.0",
        "numpy==2.4.6",
        "onnxruntime==1.32.0",
        "onnx==1.23.2",
    ],
}

Name = TypeVar("Name")  # of a contender


@dataclass(frozen=True)
class Run:
    """What a process printed as its last line of JSON, and its peak memory in MB."""

    figures: dict[str, Any]
    peak_mb: float


def run(command: Sequence[str], *, stdin: str = "", env: dict[str, str] | None = None, limit_s: float = 900) -> Run:
    """Run a command to its end; its last line of output is JSON. Raises RuntimeError when it fails."""
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, cwd=ROOT, env=env, text=True
        )
        limit = threading.Timer(limit_s, process.kill)
        limit.start()
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(stdin)
            process.stdin.flush()  # and left open: a trainer ends with its input
            lines = [line for line in process.stdout if line.startswith("{")]
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            process.stdin.close()
        finally:
            limit.cancel()
        if process.returncode or not lines:
            errors.seek(0)
            raise RuntimeError(f"{command[:4]} ended with {process.returncode}: {errors.read()[-1000:]}")
    return Run(json.loads(lines[-1]), usage.ru_maxrss / (1024 if sys.platform == "linux" else 1024**2))


def environment(name: str) -> str:
    """The Python of a virtual environment that holds what REQUIREMENTS says; made on first use."""
    folder, requirements = ENVIRONMENTS / name, REQUIREMENTS[name]
    python = folder / "bin" / "python"
    done = folder / ".done"
    if not done.exists() or done.read_text() != " ".join(requirements):
        print(f"making the environment {name}: {' '.join(requirements)}", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *requirements], check=True)
        done.write_text(" ".join(requirements))
    return str(python)


def interleaved(contenders: Mapping[Name, Callable[[], Run]], repeats: int) -> dict[Name, list[Run]]:
    """All contenders in turn, `repeats` times, so that a slow minute of the machine hits all of them."""
    runs: dict[Name, list[Run]] = {name: [] for name in contenders}
    for round_number in range(repeats):
        for name, contender in contenders.items():
            began = time.perf_counter()
            runs[name].append(contender())
            took = time.perf_counter() - began
            print(f"round {round_number + 1}/{repeats}  {name!s:<34} {took:6.1f} s", file=sys.stderr)
    return runs


def median(runs: Sequence[Run], figure: str) -> float:
    return statistics.median(run.figures[figure] for run in runs)


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def heading(title: str) -> str:
    """A section's head: the date, the hardware, the command."""
    command = " ".join(["python", Path(sys.argv[0]).resolve().relative_to(ROOT).as_posix(), *sys.argv[1:]])
    return f"## {title}\n\n{date.today()} · {hardware()} · `{command}`\n"


def hardware() -> str:
    """Paddle is not imported for this: it would set OMP_NUM_THREADS=1 for all that are started from here."""
    model = next(
        (line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith("model name")), platform.machine()
    )
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    python = platform.python_version()
    return f"{os.cpu_count()} cores {model}, {memory:.0f} GB · Python {python}, paddlepaddle {version('paddlepaddle')}"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
