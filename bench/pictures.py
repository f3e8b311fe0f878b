"""How well digits are told however they are drawn: 1,000 of MNIST's test digits, redrawn, through `pictures.prepare`; a table.

`.venv/bin/python bench/pictures.py` (a few minutes). With `--figure` it asks a server of its own to predict one of
them instead, and draws what was sent, seen and answered: docs/images/predict.png.
"""

import argparse
import base64
import io
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from core.settings import Settings, available_cores
from core.training import runtime

runtime.prepare(available_cores())  # before Paddle is imported

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from bench import measure  # noqa: E402
from client import stack  # noqa: E402
from client.client import Client  # noqa: E402
from core.spec import JobSpec  # noqa: E402
from core.training import datasets, pictures, trainer  # noqa: E402
from core.training.fused import kernel as fused  # noqa: E402
from core.training.predictor import Predictor  # noqa: E402
from core.training.progress import Finished  # noqa: E402
from tests.redrawn import REDRAWN, png, strokes  # noqa: E402

EPOCHS = (1, 2, 5)
PLOT = measure.ROOT / "docs" / "images" / "predict.png"
SHOWN = 0  # which test digit: a seven


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--digits", type=int, default=1000)
    parser.add_argument("--figure", action="store_true")
    asked = parser.parse_args()
    data = datasets.load("mnist", cache=Settings().cache_dir)
    if asked.figure:
        draw(png(strokes(data.test.images[SHOWN], brush=20, ground=255)))
    else:
        table(data, asked.digits)


def table(data: datasets.Dataset, digits: int) -> None:
    predictors = [trained(data, epochs) for epochs in EPOCHS]
    images, labels = data.test.images[:digits], data.test.labels[:digits]

    def row(name: str, prepared: pictures.Floats, ms: float) -> None:
        right = [(each.probabilities(prepared).argmax(axis=1) == labels).mean() for each in predictors]
        print(f"| {name} | {' | '.join(f'{share:.1%}' for share in right)} | {ms:.1f} |", flush=True)

    print(f"| | {' | '.join(f'{epochs} epochs' for epochs in EPOCHS)} | ms |\n|---|{'---|' * (len(EPOCHS) + 1)}")
    row("as arrays", (images / 256).astype(np.float32), 0)
    for name, redraw in REDRAWN.items():
        random = np.random.default_rng(0)
        files = [redraw(digit, random) for digit in images]
        began = time.process_time()
        prepared = np.stack([pictures.prepare(file, pointer="/image") for file in files])
        row(name, prepared, (time.process_time() - began) / digits * 1000)


def trained(data: datasets.Dataset, epochs: int) -> Predictor:
    spec = JobSpec.model_validate({"optimizer": "adam", "learning_rate": 0.001, "epochs": epochs})
    *_, last = trainer.train(spec, data, kernel=fused.load(Settings().cache_dir / "kernels"))
    assert isinstance(last, Finished)
    return Predictor(last.weights)


def private(home: Path) -> Settings:
    changes = {"home": home, "port": 0, "host": "127.0.0.1", "redis_url": None, "require_keys": False}
    return Settings().model_copy(update=changes | {"cache": Settings().cache_dir})


def draw(sent: bytes) -> None:
    """What was sent, what the network saw, and what it said: through a real server, and a job that it trained."""
    from matplotlib.figure import Figure

    with (
        tempfile.TemporaryDirectory() as home,
        stack.running(private(Path(home)), print) as server,
        Client(server.url, trust_env=False) as client,
    ):
        client.jobs.submit(optimizer="adam", learning_rate=0.001, epochs=1).wait(600)
        (answer,) = client.predict([sent], debug=True)["predictions"]
    figure = Figure(figsize=(8, 2.6), layout="constrained")
    drawing, seen, told = figure.subplots(1, 3, width_ratios=(1, 1, 1.5))
    for panel, content, title in (
        (drawing, sent, "sent: 280x280"),
        (seen, base64.b64decode(answer["seen"]), "seen by the network: 28x28"),
    ):
        panel.imshow(np.asarray(Image.open(io.BytesIO(content))), cmap="gray", vmin=0, vmax=255)
        panel.set_title(title, fontsize=10)
        panel.set(xticks=[], yticks=[])
    told.bar(range(10), answer["probabilities"])
    told.set_title(f"predicted: {answer['label']} ({answer['confidence']:.1%})", fontsize=10)
    told.set(xticks=range(10), ylim=(0, 1), ylabel="probability")
    figure.savefig(PLOT, dpi=100)
    print(f"{answer['label']} ({answer['confidence']:.3f}): {PLOT.relative_to(measure.ROOT)}")


if __name__ == "__main__":
    main()
