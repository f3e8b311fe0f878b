"""The network's weights as an ONNX file. Run by bench/network.py in an environment with `onnx`; argument: its folder.

Input `images` float32 [N, 28, 28]; output `probabilities` float32 [N, 10].
"""

import sys
from pathlib import Path

import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper, save_model

folder = Path(sys.argv[1])
weights = dict(np.load(folder / "model.npz"))
constants = {**weights, "as_channel": np.array([-1, 1, 28, 28]), "as_row": np.array([0, 980])}


def node(kind: str, inputs: str, output: str, **attributes: object) -> object:
    return helper.make_node(kind, inputs.split(), [output], **attributes)


nodes = [
    node("Reshape", "images as_channel", "x"),
    node("Conv", "x conv1.weight conv1.bias", "conv1", kernel_shape=[5, 5], pads=[2, 2, 2, 2]),
    node("Relu", "conv1", "relu1"),
    node("MaxPool", "relu1", "pool1", kernel_shape=[2, 2], strides=[2, 2]),
    node("Conv", "pool1 conv2.weight conv2.bias", "conv2", kernel_shape=[5, 5], pads=[2, 2, 2, 2]),
    node("Relu", "conv2", "relu2"),
    node("MaxPool", "relu2", "pool2", kernel_shape=[2, 2], strides=[2, 2]),
    node("Reshape", "pool2 as_row", "flat"),
    node("Gemm", "flat fc.weight fc.bias", "logits"),
    node("Softmax", "logits", "probabilities", axis=1),
]
graph = helper.make_graph(
    nodes,
    "digits",
    [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 28, 28])],
    [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 10])],
    [numpy_helper.from_array(value, name) for name, value in constants.items()],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
checker.check_model(model, full_check=True)
save_model(model, folder / "model.onnx")
print("{}")
