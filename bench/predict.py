"""Predictions under load, beside a bare route and other model servers with the same network, and what a batch costs.

`.venv/bin/python bench/predict.py` (about 12 minutes once the environments are there; `--soak 10` runs our API alone for ten).
One real test digit as a 28x28 JSON list, again and again. Before anything is measured every server must give the network's
digits and probabilities. All servers stand (idle they take less than 1 % of a core each) and take turns under load; each
line is the median of its rounds. CPU is that of all a server's processes, and says more than requests/s where wrk and the
server share the cores. Descent's database is counted neither in its CPU nor in its memory.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx2
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench import contenders, engine_time, measure, network
from bench.contenders import CONTENDERS, Contender
from bench.load import Request, require_wrk
from bench.measure import Run
from bench.servers import Server
from core.settings import available_cores

BATCH = "a batch of 256"
_HEADER_LENGTH = "Inference-Header-Content-Length"
_SOAK_CONNECTIONS = 64
_WARM_S = 30
_SAMPLE_S = 5


@dataclass(frozen=True)
class Standing:
    """A contender whose server runs."""

    contender: Contender
    server: Server
    request: Request

    def load(self, connections: int, seconds: int) -> Run:
        before_s = self.server.usage().cpu_s
        run = self.request.load(connections, seconds)
        used_s = self.server.usage().cpu_s - before_s
        return Run(run.figures | {"cpu_us": 1e6 * used_s / (run.figures["per_s"] * seconds)}, run.peak_mb)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--only", default="", help=f"contenders whose name holds this; or `{BATCH}`")
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="nothing but 64 clients on our API, for so long")
    options = parser.parse_args()
    require_wrk(parser)
    if options.soak:
        soak(options.soak)
        return
    if "TorchServe" not in CONTENDERS:
        print("there is no java on the PATH: TorchServe is left out", file=sys.stderr)
    print(measure.heading("Predictions: one image as JSON"))
    with ExitStack() as servers:
        standing = start({name: it for name, it in CONTENDERS.items() if options.only in name}, servers)
        for connections in options.connections if standing else []:
            runs = loaded(standing, connections, options.seconds, options.rounds)
            print(f"### {connections} connection{'s' * (connections > 1)}\n\n{report(standing, runs)}\n", flush=True)
        if standing:
            print(f"### Memory after that\n\n{memory(standing)}\n", flush=True)
    if options.only in BATCH:
        print(f"### {BATCH} images in one request, beside the engine alone\n\n{batch(options.rounds)}")


def start(chosen: Mapping[str, Contender], servers: ExitStack) -> dict[str, Standing]:
    """All of them, each with answers that are right."""
    standing = {}
    for name, contender in chosen.items():
        print(f"starting {name}", file=sys.stderr)
        server = servers.enter_context(contender.start())
        contender.check(server)
        standing[name] = Standing(contender, server, contender.request(server, network.digits()[0].tolist()))
    return standing


def loaded(standing: Mapping[str, Standing], connections: int, seconds: int, rounds: int) -> dict[str, list[Run]]:
    for one in standing.values():
        one.request.load(connections, 1)  # connections opened, code warm
    turns = {name: partial(one.load, connections, seconds) for name, one in standing.items()}
    return measure.interleaved(turns, rounds)


def report(standing: Mapping[str, Standing], runs: Mapping[str, list[Run]]) -> str:
    bare = {
        standing[name].contender.processes: measure.median(group, "per_s")
        for name, group in runs.items()
        if name.startswith("bare")
    }
    rows = []
    for name, group in runs.items():
        per_s, spread = measure.median(group, "per_s"), [run.figures["per_s"] for run in group]
        beside = bare.get(standing[name].contender.processes)
        rows.append([
            name, f"{per_s:,.0f}", f"{min(spread):,.0f}-{max(spread):,.0f}",
            f"{measure.median(group, 'p50_ms'):.2f}", f"{measure.median(group, 'p99_ms'):.2f}",
            f"{measure.median(group, 'cpu_us'):,.0f}", f"{per_s / beside:.2f}" if beside else "",
        ])  # fmt: skip
    head = ["", "requests/s, median", "range", "p50 ms", "p99 ms", "CPU us a request", "of the bare route's"]
    return measure.table(head, rows)


def memory(standing: Mapping[str, Standing]) -> str:
    rows = []
    for name, one in standing.items():
        usage = one.server.usage()
        each = ", ".join(f"{size:.0f}" for size in sorted(usage.rss_mb, reverse=True))
        rows.append([name, len(usage.rss_mb), each, f"{sum(usage.rss_mb):.0f}", f"{usage.pss_mb:.0f}"])
    return measure.table(["", "processes", "RSS MB of each", "RSS MB of all", "PSS MB of all"], rows)


def batch(rounds: int) -> str:
    """256 images: the whole request as JSON and as a binary tensor, and the engine alone on the prepared images."""
    body, tensor = json.dumps({"images": network.digits().tolist()}).encode(), network.digits().astype("<f4").tobytes()
    with contenders.ours(1) as server, httpx2.Client(base_url=server.url, trust_env=False, timeout=60) as client:
        asked = {
            "JSON": partial(ask, lambda: by_json(client, body)),
            "binary": partial(ask, lambda: by_tensor(client, tensor)),
        }
        for one in asked.values():
            one()  # warm
        turns = {**asked, "engine": partial(engine_time.run, engine_time.OURS, available_cores(), 1)}
        runs = measure.interleaved(turns, max(rounds, 3))
    engine = [run.figures[f"us_{network.DIGITS}"] / 1000 for run in runs["engine"]]
    rows = {
        "the engine alone, in a process of its own": engine,
        f"/v2: the whole request, {len(tensor) / 1e6:.1f} MB of binary tensor": figures(runs["binary"], "whole_ms"),
        "/predict: `latency_ms` in the answer: lists checked and copied, the engine, classes ranked": figures(
            runs["JSON"], "latency_ms"
        ),
        f"/predict: the whole request, {len(body) / 1e6:.1f} MB of JSON": figures(runs["JSON"], "whole_ms"),
    }
    lines = [
        [what, f"{statistics.median(times):.1f}", f"{min(times):.1f}-{max(times):.1f}",
         f"{statistics.median(times) / statistics.median(engine):.2f}"]
        for what, times in rows.items()
    ]  # fmt: skip
    return measure.table(["", "ms, median", "range", "of the engine's"], lines)


def figures(runs: Sequence[Run], name: str) -> list[float]:
    return [run.figures[name] for run in runs]


def ask(send: Callable[[], tuple[list[int], float]], *, times: int = 5) -> Run:
    """Medians of some requests one after another. Raises RuntimeError when the answer is not the network's."""
    whole_ms, latency_ms = [], []
    for _ in range(times):
        began = time.perf_counter()
        digits, latency = send()
        whole_ms.append(1000 * (time.perf_counter() - began))
        latency_ms.append(latency)
    if digits != network.probabilities().argmax(axis=1).tolist():
        raise RuntimeError("the batch's digits are not the network's")
    return Run({"whole_ms": statistics.median(whole_ms), "latency_ms": statistics.median(latency_ms)}, 0)


def by_json(client: httpx2.Client, body: bytes) -> tuple[list[int], float]:
    """The digits, and the time that the answer tells."""
    answer = client.post("/predict", content=body, headers={"Content-Type": "application/json"}).raise_for_status()
    content = answer.json()
    return [it["digit"] for it in content["predictions"]], content["latency_ms"]


def by_tensor(client: httpx2.Client, tensor: bytes) -> tuple[list[int], float]:
    about = {
        "inputs": [
            {
                "name": "image",
                "shape": [network.DIGITS, 1, 28, 28],
                "datatype": "FP32",
                "parameters": {"binary_data_size": len(tensor)},
            }
        ],
        "outputs": [{"name": "label", "parameters": {"binary_data": True}}],
    }
    head = json.dumps(about).encode()
    headers = {"Content-Type": "application/octet-stream", _HEADER_LENGTH: str(len(head))}
    answer = client.post("/v2/models/best/infer", content=head + tensor, headers=headers).raise_for_status()
    return np.frombuffer(answer.content[int(answer.headers[_HEADER_LENGTH]) :], "<i8").tolist(), 0.0


def soak(minutes: float) -> None:
    """Our API under load for so long: whether its memory grows. After the first half minute, which does not count."""
    with contenders.ours(1) as server, ThreadPoolExecutor(1) as pool:
        contender = CONTENDERS["Descent, 1 process"]
        contender.check(server)
        request = contender.request(server, network.digits()[0].tolist())
        request.load(_SOAK_CONNECTIONS, _WARM_S)
        running = pool.submit(request.tried, _SOAK_CONNECTIONS, round(minutes * 60))
        samples = [sum(server.usage().rss_mb)]
        while not running.done():
            time.sleep(_SAMPLE_S)
            samples.append(sum(server.usage().rss_mb))
        figures = running.result().figures
    print(measure.heading(f"Predictions for {minutes:g} minutes: one process, {_SOAK_CONNECTIONS} connections"))
    head = ["requests/s", "failed", "p99 ms", "RSS MB at first", "most", "at last", "grown by"]
    row = [
        f"{figures['per_s']:,.0f}", figures["failed"], f"{figures['p99_ms']:.1f}", f"{samples[0]:.1f}",
        f"{max(samples):.1f}", f"{samples[-1]:.1f}", f"{samples[-1] / samples[0] - 1:+.1%}",
    ]  # fmt: skip
    print(measure.table(head, [row]))
    if figures["failed"]:
        raise SystemExit("requests failed")


if __name__ == "__main__":
    main()
