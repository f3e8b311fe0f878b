"""What tritonclient gets from a server, as one line of JSON; `test_inference.py` runs this in an environment of the client's.

Takes host:port, a model's name, its version, and the images as a list [N][1][28][28].
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

OUTPUTS = ("probabilities", "label")


def image(images: Any, *, binary: bool) -> Any:
    tensor = triton.InferInput("image", list(images.shape), "FP32")
    return tensor.set_data_from_numpy(images, binary_data=binary)


def arrays(result: Any) -> dict[str, Any]:
    """Each output as a list, with its type and in which form it came."""
    found = {name: result.as_numpy(name) for name in OUTPUTS}
    return {
        name: {"values": array.tolist(), "dtype": str(array.dtype), "is_binary": "data" not in result.get_output(name)}
        for name, array in found.items()
        if array is not None
    }


def refusal(call: Callable[[], Any]) -> dict[str, Any]:
    try:
        call()
    except InferenceServerException as error:
        return {"status": error.status(), "message": error.message()}
    raise AssertionError("it was not refused")


def session(client: Any, model: str, version: str, images: Any) -> dict[str, Any]:
    as_bytes, as_numbers = image(images, binary=True), image(images, binary=False)
    in_numbers = [triton.InferRequestedOutput(name, binary_data=False) for name in OUTPUTS]
    asked = [client.async_infer(model, [as_bytes], request_id=str(n)) for n in range(8)]
    later = [request.get_result(timeout=30) for request in asked]
    return {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "server": client.get_server_metadata(),
        "models_ready": [
            client.is_model_ready(model),
            client.is_model_ready(model, version),
            client.is_model_ready("nothing"),
            client.is_model_ready(model, "0" * 12),
        ],
        "model": client.get_model_metadata(model, version),
        "results": [
            arrays(client.infer(model, [as_bytes])),
            arrays(client.infer(model, [as_numbers], model_version=version)),
            arrays(client.infer(model, [as_bytes], outputs=in_numbers)),
            arrays(client.infer(model, [as_numbers], outputs=in_numbers, priority=1, timeout=1_000_000, sequence_id=3)),
            *map(arrays, later),
        ],
        "ids": [result.get_response()["id"] for result in later],
        "label_alone": arrays(client.infer(model, [as_bytes], outputs=[triton.InferRequestedOutput("label")])),
        "refusals": {
            "unknown model": refusal(lambda: client.infer("nothing", [as_bytes])),
            "other version": refusal(lambda: client.infer(model, [as_bytes], model_version="0" * 12)),
            "27 wide": refusal(lambda: client.infer(model, [image(images[..., :27].copy(), binary=True)])),
            "compressed": refusal(lambda: client.infer(model, [as_bytes], request_compression_algorithm="gzip")),
            "configuration": refusal(lambda: client.get_model_config(model)),
            "statistics": refusal(lambda: client.get_inference_statistics(model)),
            "repository": refusal(client.get_model_repository_index),
        },
    }


if __name__ == "__main__":
    address, model, version = sys.argv[1:]
    images = np.array(json.load(sys.stdin), np.float32)
    with triton.InferenceServerClient(address, concurrency=4) as client:
        print(json.dumps(session(client, model, version, images)))  # noqa: T201
