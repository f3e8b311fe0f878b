"""TorchServe's handler: what has arrived together is computed together."""

import os
from pathlib import Path
from typing import Any

import torch

from bench.rivals.torch_network import network


class Digits:
    def initialize(self, context: Any) -> None:
        torch.set_num_threads(1)
        self.network = network(Path(os.environ["NETWORK"], "model.npz"))

    def handle(self, requests: list[dict[str, Any]], context: Any) -> list[dict[str, Any]]:
        with torch.inference_mode():
            rows = self.network(torch.tensor([request["body"]["image"] for request in requests])[:, None])
        return [{"digit": int(row.argmax()), "probabilities": row.tolist()} for row in rows]
