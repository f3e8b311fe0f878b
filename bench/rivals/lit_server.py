"""LitServe: one process for HTTP and one that computes, as it starts them for one worker. Argument: the port.

Without batches, two workers or its fast queue, none of which was faster here: the network takes less time than handing it on.
"""

import os
import sys
from pathlib import Path
from typing import Any

import litserve
import numpy as np

from bench.rivals.onnx_network import session


class Digits(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.network = session(Path(os.environ["NETWORK"]))

    def decode_request(self, request: dict[str, Any]) -> Any:
        return np.array([request["image"]], np.float32)

    def predict(self, x: Any) -> Any:
        return self.network.run(None, {"images": x})[0][0]

    def encode_response(self, output: Any) -> dict[str, Any]:
        return {"digit": int(output.argmax()), "probabilities": output.tolist()}


if __name__ == "__main__":
    server = litserve.LitServer(Digits(), accelerator="cpu", workers_per_device=1)
    quiet = {"log_level": "warning", "access_log": False, "generate_client_file": False}
    server.run(host="127.0.0.1", port=int(sys.argv[1]), **quiet)
