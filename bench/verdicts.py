"""How often the verdicts of `core/training/analysis.py` agree with hindsight, on real curves.

`python bench/verdicts.py` judges the recorded curves and prints the tables; with `--record` it first trains what
tests/data/curves.json does not hold yet: 5 optimizers x 5 rates x 3 seeds, 2 epochs each (about 10 minutes on two idle cores).

Hindsight knows what a verdict does not: the validation accuracy, and how the other runs went. A run is good when its error is
at most twice that of the best of all runs of its seed. Otherwise it is too slow when its rate is below the best of its own
optimizer; above that, it oscillates when it learned something, and has diverged when it knows less than two images in ten.
"""

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench import measure
from core.catalogue import LESSON_OPTIMIZERS
from core.settings import Settings
from core.spec import JobSpec
from core.training import analysis, runtime
from core.training.analysis import Outcome

RATES = (1.0, 0.1, 0.01, 0.001, 0.0001)
SET_ON = (0, 1)  # the seeds whose curves were looked at when the limits were chosen
HELD_OUT = (2,)
EPOCHS = 2
CURVES = Path(__file__).parent.parent / "tests" / "data" / "curves.json"


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A recorded run, or the beginning of one: the rates are constant, so that is the same as a shorter run."""

    optimizer: str
    rate: float
    seed: int
    epochs: int
    losses: tuple[float | None, ...]
    valid_accuracy: float
    has_diverged: bool

    @property
    def verdict(self) -> Outcome | None:
        found = analysis.verdict(self.losses, has_ended=True, has_diverged=self.has_diverged)
        return found.outcome if found else None


def recorded(epochs: int) -> list[Curve]:
    """All recorded runs, as they were after so many epochs."""
    spec = JobSpec.model_validate({"optimizer": "sgd", "learning_rate": 0.1})
    steps = epochs * spec.steps_per_epoch
    return [
        Curve(
            optimizer=run["optimizer"],
            rate=run["rate"],
            seed=run["seed"],
            epochs=epochs,
            losses=tuple(run["losses"][: steps // spec.log_every]),
            valid_accuracy=run["epochs"][epochs - 1]["valid_accuracy"] if len(run["epochs"]) >= epochs else 0.0,
            has_diverged=run["diverged_at"] is not None and run["diverged_at"] < steps,
        )
        for run in json.loads(CURVES.read_text())
    ]


def hindsight(curve: Curve, curves: Sequence[Curve]) -> Outcome:
    """What the run should have been called, seen from all runs of its seed."""
    alike = [other for other in curves if other.seed == curve.seed]
    least = min(1 - other.valid_accuracy for other in alike)
    if 1 - curve.valid_accuracy <= 2 * least:
        return Outcome.GOOD
    own = [other for other in alike if other.optimizer == curve.optimizer]
    best = max(own, key=lambda other: other.valid_accuracy)
    if curve.rate < best.rate:
        return Outcome.TOO_SLOW
    return Outcome.DIVERGED if curve.valid_accuracy < 0.2 else Outcome.OSCILLATING


def agreement(curves: Sequence[Curve], seeds: Sequence[int]) -> Counter[tuple[Outcome, Outcome | None]]:
    """How many runs of these seeds hindsight and the rules call what."""
    return Counter((hindsight(curve, curves), curve.verdict) for curve in curves if curve.seed in seeds)


def record() -> None:
    """Train all runs that the file does not hold yet; one run a line, losses with four digits."""
    runtime.prepare(threads=1)  # before Paddle is imported; other work then costs it the least
    from core.training import datasets
    from core.training.fused import kernel as fused

    settings = Settings()
    data = datasets.load("mnist", cache=settings.cache_dir, folder=settings.datasets)
    kernel = fused.load(settings.cache_dir / "kernels")
    runs = json.loads(CURVES.read_text()) if CURVES.exists() else []
    known = {(run["optimizer"], run["rate"], run["seed"]) for run in runs}
    for seed, name, rate in product(SET_ON + HELD_OUT, LESSON_OPTIMIZERS, RATES):
        if (name, rate, seed) in known:
            continue
        fields = {"optimizer": name, "learning_rate": rate, "seed": seed, "epochs": EPOCHS, "device": "cpu"}
        run = {"optimizer": name, "rate": rate, "seed": seed} | _trained(JobSpec.model_validate(fields), data, kernel)
        runs.append(run)
        lines = ",\n".join(json.dumps(run, allow_nan=False, separators=(",", ":")) for run in runs)
        CURVES.write_text(f"[\n{lines}\n]\n")
        print(name, rate, seed, run["epochs"], run["diverged_at"], file=sys.stderr)


def _trained(spec: JobSpec, data: Any, kernel: Any) -> dict[str, Any]:
    """A run as the file keeps it."""
    from core.errors import Diverged
    from core.training import trainer
    from core.training.progress import Block, EpochEnd, Finished

    run: dict[str, Any] = {"losses": [], "epochs": [], "diverged_at": None, "test_accuracy": None}
    try:
        for progress in trainer.train(spec, data, kernel=kernel):
            if isinstance(progress, Block):
                run["losses"] += [_short(point.loss) for point in progress.points]
            elif isinstance(progress, EpochEnd):
                metrics = {"valid_loss": _short(progress.valid_loss), "valid_accuracy": progress.valid_accuracy}
                run["epochs"].append(metrics)
            elif isinstance(progress, Finished):
                run["test_accuracy"] = progress.test_accuracy
    except Diverged as error:
        run["diverged_at"] = error.step
    return run


def _short(loss: float) -> float | None:
    return float(f"{loss:.4g}") if math.isfinite(loss) else None


def report(epochs: int) -> None:
    curves = recorded(epochs)
    for what, seeds in (("set on", SET_ON), ("held out", HELD_OUT)):
        counts = agreement(curves, seeds)
        right = sum(count for (wanted, found), count in counts.items() if wanted == found)
        named = f"{epochs} epoch(s), seeds {', '.join(map(str, seeds))} ({what})"
        print(f"\n{named}: {right} of {counts.total()} as in hindsight\n")
        rows = [[wanted, *(counts[wanted, found] for found in Outcome)] for wanted in Outcome]
        print(measure.table(["hindsight \\ verdict", *Outcome], rows))
    print(f"\nwhere they differ, {epochs} epoch(s):\n")
    for curve in curves:
        wanted = hindsight(curve, curves)
        if curve.verdict != wanted:
            part = "set on" if curve.seed in SET_ON else "held out"
            facts = f"{curve.optimizer} {curve.rate} seed {curve.seed} ({part}, {curve.valid_accuracy:.2%})"
            print(f"- {facts}: {curve.verdict}, hindsight {wanted}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", action="store_true")
    if parser.parse_args().record:
        record()
    print(measure.heading("Verdicts against hindsight"))
    for epochs in range(1, EPOCHS + 1):
        report(epochs)


if __name__ == "__main__":
    main()
