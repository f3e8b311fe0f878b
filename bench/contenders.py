"""Who answers with a digit: Descent, and the same network in other servers, each as its documentation advises for this.

The rivals' own files lie in bench/rivals, their environments below `.descent/bench`. Images go one at a time, as JSON.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench import measure, network
from bench.load import Request
from bench.servers import Server, descent, serving
from client.stack import free_port
from core.jobs import artifacts
from core.jobs.job import Status
from core.jobs.work import WorkStore
from core.settings import Settings, available_cores
from core.spec import JobSpec

RIVALS = measure.ROOT / "bench" / "rivals"
CHECKED = 10  # digits whose answers are compared before anything is measured
_WITHIN = 1e-4
Image = list[list[float]]
_TORCHSERVE = """\
inference_address=http://127.0.0.1:{}
management_address=http://127.0.0.1:{}
metrics_address=http://127.0.0.1:{}
grpc_inference_port={}
grpc_management_port={}
disable_token_authorization=true
disable_system_metrics=true
async_logging=true
job_queue_size=1000
vmargs=-Djava.io.tmpdir={}
"""
_TORCHSERVE_MODEL = """\
minWorkers: {0}
maxWorkers: {0}
batchSize: 16
maxBatchDelay: 1
"""
_QUIET_LOG4J = '<Configuration><Loggers><Root level="error"/></Loggers></Configuration>'


def _bare_answer(answer: Any) -> tuple[int, list[float]]:
    return answer["digit"], answer["probabilities"]


@dataclass(frozen=True)
class Contender:
    start: Callable[[], AbstractContextManager[Server]]
    path: str
    ask: Callable[[Image], Any] = lambda image: {"image": image}
    read: Callable[[Any], tuple[int, list[float]]] = _bare_answer  # the digit and the probabilities in an answer
    processes: int = 1  # that answer requests

    def request(self, server: Server, image: Image) -> Request:
        return Request(server.url + self.path, body=json.dumps(self.ask(image)))

    def check(self, server: Server) -> None:
        """Raises RuntimeError when an answer is not the network's."""
        for image, expected in zip(network.digits()[:CHECKED], network.probabilities(), strict=False):
            digit, probabilities = self.read(self.request(server, image.tolist()).check().json())
            if digit != expected.argmax() or np.abs(np.array(probabilities) - expected).max() > _WITHIN:
                raise RuntimeError(f"{server.url}{self.path}: {digit} {probabilities}, not {expected}")


def _ours(answer: Any) -> tuple[int, list[float]]:
    prediction = answer["predictions"][0]
    return prediction["digit"], prediction["probabilities"]


def _mlflow(answer: Any) -> tuple[int, list[float]]:
    row = answer["predictions"]["probabilities"][0]
    return int(np.argmax(row)), row


def ours(processes: int) -> AbstractContextManager[Server]:
    cache = str(Settings().cache_dir)  # with the compiled kernel
    return descent(publish, DESCENT_API_PROCESSES=str(processes), DESCENT_CACHE=cache)


async def publish(settings: Settings) -> None:
    """One job that has succeeded, with the trained network as its model."""
    async with WorkStore.connect(settings.store_url) as store:
        job = await store.submit(JobSpec.model_validate(network.SPEC))
        claim = await store.claim(job.id, worker="bench", lease_s=3600)
        assert claim
        at, folder = artifacts.storage(settings), artifacts.claim_folder(claim.job_id, claim.token)
        name = artifacts.FORMATS["safetensors"]
        files = {"safetensors": artifacts.publish(at, folder, name, (network.folder() / name).read_bytes())}
        result = {"test_accuracy": network.test_accuracy()}
        await store.finish(claim, Status.SUCCEEDED, result=result, files=files)


@contextmanager
def rival(environment: str, command: list[str], *, ready: str) -> Iterator[Server]:
    """A server out of an environment of its own. `{port}` in the command is its port; it runs beside our files for it."""
    bin_dir, port = Path(measure.environment(environment)).parent, free_port("127.0.0.1")
    program, *words = [word.format(port=port) for word in command]
    whole = [str(bin_dir / program), *words]
    with serving(whole, f"http://127.0.0.1:{port}", _environment(bin_dir), ready=ready) as server:
        yield server


def _environment(bin_dir: Path) -> dict[str, str]:
    return {
        "PATH": f"{bin_dir}:{os.environ['PATH']}",
        "PYTHONPATH": str(measure.ROOT),
        "NETWORK": str(network.folder()),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "BENTOML_DO_NOT_TRACK": "true",
        "BENTOML_HOME": str(measure.ENVIRONMENTS / "bentoml" / "home"),
        "UVICORN_ACCESS_LOG": "false",  # MLflow's; the others are told
    }


def bare(processes: int) -> AbstractContextManager[Server]:
    loop = ["--loop", "uvloop", "--http", "httptools", "--no-access-log"]
    command = ["uvicorn", "bench.rivals.bare:app", "--port", "{port}", "--workers", str(processes), *loop]
    return rival("bare", command, ready="/docs")


def litserve() -> AbstractContextManager[Server]:
    return rival("litserve", ["python", str(RIVALS / "lit_server.py"), "{port}"], ready="/health")


def bentoml() -> AbstractContextManager[Server]:
    serve = ["bentoml", "serve", "bench.rivals.bento_service:Digits"]
    return rival("bentoml", [*serve, "--host", "127.0.0.1", "--port", "{port}"], ready="/readyz")


@contextmanager
def mlflow() -> Iterator[Server]:
    bin_dir = Path(measure.environment("mlflow-serve")).parent
    with tempfile.TemporaryDirectory() as folder:
        model = str(Path(folder, "model"))
        _prepare([str(bin_dir / "python"), str(RIVALS / "mlflow_model.py"), model], bin_dir)
        serve = ["mlflow", "models", "serve", "-m", model, "--env-manager", "local"]
        with rival("mlflow-serve", [*serve, "-h", "127.0.0.1", "-p", "{port}", "-w", "1"], ready="/ping") as server:
            yield server


@contextmanager
def torchserve() -> Iterator[Server]:
    bin_dir = Path(measure.environment("torchserve")).parent
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, config, log = folder / "model.yaml", folder / "config.properties", folder / "log4j2.xml"
        port = free_port("127.0.0.1")
        config.write_text(_TORCHSERVE.format(port, *(free_port("127.0.0.1") for _ in range(4)), name))
        model.write_text(_TORCHSERVE_MODEL.format(available_cores()))  # as many workers as it starts by itself
        log.write_text(_QUIET_LOG4J)
        pack = ["--model-name", "digits", "--version", "1", "--handler", str(RIVALS / "torchserve_handler.py")]
        where = ["--config-file", str(model), "--export-path", name]
        _prepare([str(bin_dir / "torch-model-archiver"), *pack, *where], bin_dir)
        run = ["--foreground", "--ncs", "--ts-config", str(config), "--log-config", str(log)]
        command = [str(bin_dir / "torchserve"), *run, "--model-store", name, "--models", "digits=digits.mar"]
        env = _environment(bin_dir) | {"LOG_LOCATION": name, "METRICS_LOCATION": name, "TMPDIR": name}
        with serving(command, f"http://127.0.0.1:{port}", env, ready="/ping") as server:
            yield server


def _prepare(command: list[str], bin_dir: Path) -> None:
    subprocess.run(command, check=True, stdout=sys.stderr, env=os.environ | _environment(bin_dir), timeout=120)


CONTENDERS = {
    "Descent, 1 process": Contender(partial(ours, 1), "/predict", read=_ours),
    "bare route, 1 process": Contender(partial(bare, 1), "/predict"),
    "LitServe": Contender(litserve, "/predict"),
    "BentoML": Contender(bentoml, "/predict"),
    "MLflow": Contender(mlflow, "/invocations", ask=lambda image: {"inputs": {"images": [image]}}, read=_mlflow),
    "TorchServe": Contender(torchserve, "/predictions/digits"),
    "Descent, 2 processes": Contender(partial(ours, 2), "/predict", read=_ours, processes=2),
    "bare route, 2 processes": Contender(partial(bare, 2), "/predict", processes=2),
}
if not shutil.which("java"):
    del CONTENDERS["TorchServe"]
