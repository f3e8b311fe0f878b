"""Is the rate that a range test suggests a good one? The lesson's optimizers, one epoch at that rate and at the lesson's three.

`.venv/bin/python bench/range_test.py` (30 short trainings: about three minutes on two idle cores).
"""

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from core.settings import Settings, available_cores
from core.training import runtime

runtime.prepare(available_cores())  # before Paddle is imported

from bench import measure  # noqa: E402
from bench.accuracy import RATES, one  # noqa: E402
from core.catalogue import LESSON_OPTIMIZERS  # noqa: E402
from core.spec import JobSpec  # noqa: E402
from core.training import datasets  # noqa: E402
from core.training.fused import kernel as fused  # noqa: E402
from core.training.rate_range import Analysis, analyse  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed
    settings = Settings()
    data = datasets.load("mnist", cache=settings.cache_dir, folder=settings.datasets)
    kernel = fused.load(settings.cache_dir / "kernels")

    def trained(rate: object, name: str, log_every: int = 10) -> dict[str, Any]:
        fields = {"optimizer": name, "learning_rate": rate, "epochs": 1, "seed": seed, "log_every": log_every}
        return one(JobSpec.model_validate(fields | {"device": "cpu"}), data, kernel)

    rows = []
    for name in LESSON_OPTIMIZERS:
        found, steps = tested(trained({"schedule": "range_test"}, name, log_every=1)["curve"], name)
        accuracies = {rate: trained(rate, name)["accuracy"] for rate in RATES}
        ours, steepest = (
            trained(rate, name)["accuracy"] if rate else None for rate in (found.suggested_rate, found.steepest_rate)
        )
        best = max(RATES, key=lambda rate: accuracies[rate] or 0)
        rows.append([
            name, steps, shown(found.suggested_rate), percent(ours), f"{best}: {percent(accuracies[best])}",
            f"{100 * ((ours or 0) - accuracies[best]):+.2f}", *(percent(accuracies[rate]) for rate in RATES),
            f"{shown(found.steepest_rate)}: {percent(steepest)}",
        ])  # fmt: skip
        print(rows[-1], file=sys.stderr)
    print(measure.heading(f"Range tests: test accuracy after one epoch at the suggested rate, seed {seed}"))
    head = ["optimizer", "steps", "suggested", "accuracy there", "best of the three", "difference, points"]
    print(measure.table([*head, *(str(rate) for rate in RATES), "steepest"], rows))


def tested(curve: list[tuple[int, float]], name: str) -> tuple[Analysis, int]:
    """What the range test of an optimizer found, and how many steps it took."""
    spec = JobSpec.model_validate({"optimizer": name, "learning_rate": {"schedule": "range_test"}, "epochs": 1})
    ramp = spec.range_test
    assert ramp is not None
    steps, losses = zip(*curve, strict=True)
    rates = [ramp.rate_at(step, spec.total_steps) for step in steps]
    return analyse(steps, rates, losses, decades_per_step=spec.decades_per_step, is_whole=True), len(steps)


def shown(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:.2g}"


def percent(accuracy: float | None) -> str:
    return "-" if accuracy is None else f"{accuracy:.2%}"


if __name__ == "__main__":
    main()
