"""Saved weights to classes. NumPy, safetensors and the fused kernel: no Paddle in the process that answers requests."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import safetensors

from core.errors import ArtifactCorrupt, ModelUnsupported
from core.training.fused.arrays import Layer, plain_conv_relu_pool

Floats = npt.NDArray[np.float32]

CLASSES = 10
_CHUNK = 64  # images at a time: NumPy unfolds the second layer to 25 MB then
_SHAPES = {
    "conv1.weight": (20, 1, 5, 5),
    "conv1.bias": (20,),
    "conv2.weight": (20, 20, 5, 5),
    "conv2.bias": (20,),
    "fc.weight": (980, CLASSES),
    "fc.bias": (CLASSES,),
}


@dataclass(frozen=True)
class Predictor:
    """The lesson's network with fixed weights; safe to use from several threads.

    `layer` computes relu(maxpool2x2(conv5x5 + bias)): the fused kernel's, or NumPy's.
    """

    weights: dict[str, Floats]
    layer: Layer = plain_conv_relu_pool

    @classmethod
    def from_safetensors(cls, content: bytes, layer: Layer = plain_conv_relu_pool) -> "Predictor":
        """Raises ArtifactCorrupt for what is no safetensors file, ModelUnsupported for the weights of another network."""
        try:
            tensors = dict(safetensors.deserialize(content))  # type: ignore[no-untyped-call]
        except safetensors.SafetensorError as error:
            raise ArtifactCorrupt("the model's file is not safetensors") from error
        kinds = {name: (tensor["dtype"], tuple(tensor["shape"])) for name, tensor in tensors.items()}
        if kinds != {name: ("F32", shape) for name, shape in _SHAPES.items()}:
            raise ModelUnsupported("the model's tensors are not the lesson's network's, in names, types or shapes")
        arrays = {name: np.frombuffer(tensor["data"], "<f4") for name, tensor in tensors.items()}
        return cls({name: arrays[name].reshape(shape) for name, shape in _SHAPES.items()}, layer)

    def probabilities(self, images: Floats) -> Floats:
        """Float32 [N, 28, 28] as the network sees them (0 to 1) -> probabilities of the ten classes [N, 10]."""
        with np.errstate(all="ignore"):  # weights that blew up give what is not finite, and no warnings
            chunks = [self._chunk(images[start : start + _CHUNK]) for start in range(0, len(images), _CHUNK)]
        return chunks[0] if len(chunks) == 1 else np.concatenate(chunks)

    def _chunk(self, images: Floats) -> Floats:
        x = np.ascontiguousarray(images).reshape(-1, 1, *images.shape[1:])
        for name in ("conv1", "conv2"):
            x = self.layer(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])
        logits = x.reshape(len(x), -1) @ self.weights["fc.weight"] + self.weights["fc.bias"]
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)
