"""The trained network that the benches predict with, and digits to predict, in the formats of all engines.

Made once, below `.descent/bench/network`; remove that folder to have it made anew. Run as a script it is the process that
makes it: the benches themselves never import Paddle (measure.hardware says why).
"""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench import measure

if TYPE_CHECKING:
    from core.training.network import Weights

Floats = npt.NDArray[np.float32]

DIGITS = 256
SPEC = {"optimizer": "adam", "learning_rate": 0.001, "epochs": 1, "device": "cpu"}
_FOLDER = measure.ENVIRONMENTS / "network"


def folder() -> Path:
    """Where `model.safetensors`, `model.npz` (the weights), `model.onnx`, `inference.json` with `inference.pdiparams`,
    `digits.npy` and `probabilities.npy` lie."""
    done = _FOLDER / "result.json"
    if not done.exists():
        print("training the network: one epoch", file=sys.stderr)
        _FOLDER.mkdir(parents=True, exist_ok=True)
        run = measure.run([sys.executable, "bench/network.py"])
        measure.run([measure.environment("bare"), "bench/rivals/to_onnx.py", str(_FOLDER)])
        done.write_text(json.dumps(run.figures))
    return _FOLDER


def digits() -> Floats:
    """Test images as the network sees them, float32 [256, 28, 28]."""
    return np.asarray(np.load(folder() / "digits.npy"), np.float32)


def probabilities() -> Floats:
    """What eager Paddle, with its own operators, says to them: float32 [256, 10]."""
    return np.asarray(np.load(folder() / "probabilities.npy"), np.float32)


def test_accuracy() -> float:
    return float(json.loads((folder() / "result.json").read_text())["test_accuracy"])


def make() -> None:
    from core.settings import Settings, available_cores
    from core.training import runtime

    runtime.prepare(available_cores())
    import safetensors.numpy

    from core.spec import JobSpec
    from core.training import datasets, trainer
    from core.training.fused import kernel as fused
    from core.training.progress import Finished

    settings = Settings()
    data = datasets.load("mnist", cache=settings.cache_dir, folder=settings.datasets)
    kernel = fused.load(settings.cache_dir / "kernels")
    *_, last = trainer.train(JobSpec.model_validate(SPEC), data, kernel=kernel)
    assert isinstance(last, Finished)
    safetensors.numpy.save_file(last.weights, _FOLDER / "model.safetensors")
    np.savez(_FOLDER / "model.npz", **last.weights)  # type: ignore[arg-type]  # none is called allow_pickle
    _run_and_export(last.weights, datasets.scaled(data.test.images[:DIGITS]))
    print(json.dumps({"test_accuracy": last.test_accuracy}))


def _run_and_export(weights: "Weights", images: Floats) -> None:
    """As `paddle.inference` reads it, with the probabilities as its output."""
    import paddle

    from core.training.network import new_network

    network = new_network(seed=0)
    network.set_state_dict(weights)
    whole = paddle.nn.Sequential(network, paddle.nn.Softmax(axis=1))
    whole.eval()
    np.save(_FOLDER / "digits.npy", images[:, 0])
    np.save(_FOLDER / "probabilities.npy", whole(paddle.to_tensor(images)).numpy())
    inputs = [paddle.static.InputSpec([None, 1, 28, 28], "float32", "images")]
    paddle.jit.save(whole, str(_FOLDER / "inference"), input_spec=inputs)


if __name__ == "__main__":
    make()
