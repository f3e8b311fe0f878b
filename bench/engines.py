"""What computes the lesson's network fastest: engines by themselves, without a server.

`.venv/bin/python bench/engines.py` (about 3 minutes once the environments are there). Each engine runs in a process of its
own, with one thread and with one for each core; the processes take turns, and each figure is the median of its rounds.
Loading is counted from the start of the process (imports and all), memory is resident after the first image.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench import engine_time, measure, network
from bench.engine_time import ENGINES, SIZES
from bench.measure import Run
from core.settings import available_cores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1, help="for each number of images")
    parser.add_argument("--only", default="", help="engines whose name holds this")
    options = parser.parse_args()
    network.folder()  # not within the first round
    contenders = {
        (name, threads): partial(engine_time.run, name, threads, options.seconds)
        for name in ENGINES
        for threads in sorted({1, available_cores()})
        if options.only in name
    }
    runs = measure.interleaved(contenders, options.rounds)
    print(measure.heading("Engines: the lesson's network, microseconds a call"))
    print(report(runs))


def report(runs: dict[tuple[str, int], list[Run]]) -> str:
    reference = network.probabilities()
    rows = []
    for (name, threads), group in runs.items():
        times = [measure.median(group, f"us_{size}") for size in SIZES]
        rows.append([
            name, threads, *(f"{time:,.0f}" for time in times), f"{times[-1] / SIZES[-1]:,.1f}",
            f"{np.abs(np.array(group[0].figures['probabilities']) - reference).max():.1e}",
            f"{measure.median(group, 'load_s'):.2f}", f"{measure.median(group, 'rss_mb'):.0f}",
        ])  # fmt: skip
    sizes = [f"{size} image{'s' * (size > 1)}" for size in SIZES]
    head = ["us", "threads", *sizes, f"an image of {SIZES[-1]}", "furthest from eager Paddle", "load s", "RSS MB"]
    return measure.table(head, rows)


if __name__ == "__main__":
    main()
