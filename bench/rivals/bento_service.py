"""BentoML: one worker. Neither a `def` method's thread nor its adaptive batches, which refuse what comes late, were faster."""

import os
from pathlib import Path
from typing import Any

import bentoml
import numpy as np

from bench.rivals.onnx_network import session


@bentoml.service(workers=1, logging={"access": {"enabled": False}}, metrics={"enabled": False})
class Digits:
    def __init__(self) -> None:
        self.network = session(Path(os.environ["NETWORK"]))

    @bentoml.api
    async def predict(self, image: list[list[float]]) -> dict[str, Any]:
        probabilities = self.network.run(None, {"images": np.array([image], np.float32)})[0][0]
        return {"digit": int(probabilities.argmax()), "probabilities": probabilities.tolist()}
