"""The lesson's comparison, in full: 5 optimizers x 3 learning rates x 3 seeds, 5 epochs each; a table and a plot.

`.venv/bin/python bench/accuracy.py` (about 15 minutes on two cores). The plot goes to docs/images/optimizers.png.
With `--dataset fashion-mnist --only sgd:0.1 adam:0.001` it trains some of them on other data, without a plot.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from core.settings import Settings, available_cores
from core.training import runtime

runtime.prepare(available_cores())  # before Paddle is imported

from bench import measure  # noqa: E402
from core.catalogue import DATASETS, DEFAULT_DATASET, LESSON_OPTIMIZERS  # noqa: E402
from core.errors import Diverged  # noqa: E402
from core.spec import JobSpec  # noqa: E402
from core.training import datasets, trainer  # noqa: E402
from core.training.fused import kernel as fused  # noqa: E402
from core.training.fused.layer import Kernel  # noqa: E402
from core.training.progress import Block, EpochEnd, Finished  # noqa: E402

RATES = (0.1, 0.01, 0.001)
PLOT = measure.ROOT / "docs" / "images" / "optimizers.png"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--dataset", default=DEFAULT_DATASET, choices=list(DATASETS))
    parser.add_argument(
        "--only", nargs="+", type=pair, metavar="NAME:RATE", help="these instead of all of the lesson's"
    )
    options = parser.parse_args()
    settings = Settings()
    pairs = options.only or [(name, rate) for name in LESSON_OPTIMIZERS for rate in RATES]
    data = datasets.load(options.dataset, cache=settings.cache_dir, folder=settings.datasets)
    kernel = fused.load(settings.cache_dir / "kernels")
    groups: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for name, rate in pairs:
        for seed in range(options.seeds):
            fields = {
                "optimizer": name,
                "learning_rate": rate,
                "dataset": options.dataset,
                "seed": seed,
                "epochs": options.epochs,
                "device": "cpu",
            }
            outcome = one(JobSpec.model_validate(fields), data, kernel)
            groups.setdefault((name, rate), []).append(outcome)
            print(name, rate, seed, json.dumps({k: v for k, v in outcome.items() if k != "curve"}), file=sys.stderr)
    title = "The lesson's comparison" if not options.only else "Accuracy"
    on = "" if options.dataset == DEFAULT_DATASET else f" on {options.dataset}"
    print(measure.heading(f"{title}{on}: {options.epochs} epochs, {options.seeds} seeds"))
    print(table(groups))
    if not (on or options.only):
        draw(groups)


def pair(text: str) -> tuple[str, float]:
    """`adam:0.001` as an optimizer's name and a rate."""
    name, _, rate = text.partition(":")
    return name, float(rate)


def one(spec: JobSpec, data: datasets.Dataset, kernel: Kernel | None) -> dict[str, Any]:
    """How a run ended, with its curve as (step, loss). The final loss is the mean over the last epoch's batches."""
    curve: list[tuple[int, float]] = []
    outcome: dict[str, Any] = {"curve": curve, "accuracy": None, "loss": None, "seconds": None}
    try:
        for progress in trainer.train(spec, data, kernel=kernel):
            if isinstance(progress, Block):
                curve += [(point.step, point.loss) for point in progress.points]
            elif isinstance(progress, EpochEnd):
                outcome["loss"] = progress.train_loss
            elif isinstance(progress, Finished):
                outcome |= {"accuracy": progress.test_accuracy, "seconds": progress.seconds}
    except Diverged as error:
        outcome["diverged_at"] = error.step
    return outcome


def table(groups: dict[tuple[str, float], list[dict[str, Any]]]) -> str:
    rows = []
    for (name, rate), runs in groups.items():
        ended = [run for run in runs if run["accuracy"] is not None]
        lost = len(runs) - len(ended)
        if not ended:
            rows.append([name, rate, "-", "-", "-", "-", f"diverged in {lost} of {len(runs)}"])
            continue
        accuracies, losses = [run["accuracy"] for run in ended], [run["loss"] for run in ended]
        rows.append([
            name, rate, f"{statistics.mean(losses):.4f}", f"{statistics.mean(accuracies):.2%}",
            f"{min(accuracies):.2%} - {max(accuracies):.2%}",
            f"{statistics.median(run['seconds'] for run in ended):.1f}",
            f"diverged in {lost} of {len(runs)}" if lost else "",
        ])  # fmt: skip
    head = ["optimizer", "rate", "training loss, last epoch", "test accuracy, mean", "range", "training s", ""]
    return measure.table(head, rows)


def draw(groups: dict[tuple[str, float], list[dict[str, Any]]]) -> None:
    """One panel a rate, one line an optimizer (seed 0), smoothed over five points; log scale."""
    import numpy as np
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.2), layout="constrained")
    panels = figure.subplots(1, len(RATES), sharey=True)
    for panel, rate in zip(panels, RATES, strict=True):
        for name in LESSON_OPTIMIZERS:
            steps, losses = (np.array(values) for values in zip(*groups[name, rate][0]["curve"], strict=True))
            smooth = np.convolve(losses, np.full(5, 0.2), "valid")
            panel.plot(steps[4:], smooth, label=name, linewidth=1.2)
        panel.axhline(2.302585, linestyle=":", color="grey")
        panel.set(title=f"learning rate {rate}", xlabel="step", yscale="log", ylim=(1e-3, 100))
        panel.grid(visible=True, alpha=0.3)
    panels[0].set_ylabel("cross-entropy (mean of 5 points)")
    panels[-1].legend(loc="upper right")
    PLOT.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PLOT, dpi=110)


if __name__ == "__main__":
    main()
