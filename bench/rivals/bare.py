"""The route somebody would write by hand, with none of our features. `async def`: a `def` route's thread costs a third."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI
from pydantic import BaseModel

from bench.rivals.onnx_network import session

app = FastAPI()
network = session(Path(os.environ["NETWORK"]))


class Digit(BaseModel):
    image: list[list[float]]


@app.post("/predict")
async def predict(body: Digit) -> dict[str, Any]:
    images = np.array([body.image], dtype=np.float32)
    probabilities = network.run(None, {"images": images})[0][0]
    return {"digit": int(probabilities.argmax()), "probabilities": probabilities.tolist()}
