import json
import struct

import numpy as np
import pytest
import safetensors.numpy

from core.errors import ArtifactCorrupt, ModelUnsupported
from core.training.predictor import Floats, Predictor


def random_weights(seed: int = 0) -> dict[str, Floats]:
    random = np.random.default_rng(seed)
    shapes = {"conv1": (20, 1, 5, 5), "conv2": (20, 20, 5, 5), "fc": (980, 10)}
    weights = {f"{name}.weight": random.normal(0, 0.2, shape) for name, shape in shapes.items()}
    weights |= {"conv1.bias": random.normal(size=20), "conv2.bias": random.normal(size=20), "fc.bias": np.zeros(10)}
    return {name: value.astype(np.float32) for name, value in weights.items()}


def test_it_gives_what_paddle_gives() -> None:
    import paddle

    from core.training.network import DigitNetwork

    weights = random_weights()
    network = DigitNetwork()
    network.set_state_dict(weights)
    images = np.random.default_rng(1).random((130, 28, 28), np.float32)
    expected = paddle.nn.functional.softmax(network(paddle.to_tensor(images[:, None]))).numpy()
    assert np.abs(Predictor(weights).probabilities(images) - expected).max() < 1e-5


def test_damaged_weights_are_refused() -> None:
    content = safetensors.numpy.save(random_weights())
    assert Predictor.from_safetensors(content)
    for damaged in (b"", content[:-1], content[: len(content) // 2], b"\x80\x04pickle"):
        with pytest.raises(ArtifactCorrupt):
            Predictor.from_safetensors(damaged)


def test_weights_of_another_network_are_told_from_damaged_ones() -> None:
    weights = random_weights()
    renamed = {name.replace("fc.", "head."): value for name, value in weights.items()}
    wider = weights | {"fc.bias": np.zeros(11, np.float32)}
    for others in ({}, renamed, wider):
        with pytest.raises(ModelUnsupported):
            Predictor.from_safetensors(safetensors.numpy.save(others))


@pytest.mark.parametrize(("kind", "size"), [("BF16", 2), ("F16", 2), ("F64", 8), ("I32", 4)])
def test_weights_of_another_type_are_another_networks(kind: str, size: int) -> None:
    head: dict[str, object] = {}
    end = 0
    for name, value in random_weights().items():
        begin, end = end, end + size * value.size
        head[name] = {"dtype": kind, "shape": list(value.shape), "data_offsets": [begin, end]}
    text = json.dumps(head).encode()
    with pytest.raises(ModelUnsupported, match="types"):
        Predictor.from_safetensors(struct.pack("<Q", len(text)) + text + bytes(end))
