"""The lesson's network: 20,350 parameters."""

import io

import numpy as np
import numpy.typing as npt
import paddle
from paddle import Tensor
from paddle.nn import Conv2D, Layer, Linear

from core.training.fused.layer import Kernel, plain_conv_relu_pool

Weights = dict[str, npt.NDArray[np.float32]]


class DigitNetwork(Layer):
    """Two times convolution, relu and pooling, then one fully connected layer.

    Input float32 [N, 1, 28, 28]; output the ten digits' logits, [N, 10]. The names of the layers are the lesson's, so its
    own class loads our weights. With a `kernel`, its fused layer does the first three; without, Paddle's operators.
    """

    def __init__(self, kernel: Kernel | None = None) -> None:
        super().__init__()
        self._conv_relu_pool = kernel.conv_relu_pool if kernel else plain_conv_relu_pool
        self.conv1 = Conv2D(in_channels=1, out_channels=20, kernel_size=5, stride=1, padding=2)
        self.conv2 = Conv2D(in_channels=20, out_channels=20, kernel_size=5, stride=1, padding=2)
        self.fc = Linear(in_features=980, out_features=10)

    def forward(self, images: Tensor) -> Tensor:
        x = self._conv_relu_pool(images, self.conv1.weight, self.conv1.bias)
        x = self._conv_relu_pool(x, self.conv2.weight, self.conv2.bias)
        return self.fc(x.flatten(start_axis=1))


def new_network(seed: int, kernel: Kernel | None = None) -> DigitNetwork:
    """A network with Paddle's initial weights, the same for the same seed."""
    paddle.seed(seed)
    with paddle.utils.unique_name.guard():
        return DigitNetwork(kernel)


def weights_of(network: DigitNetwork) -> Weights:
    """Copies of the parameters, by name; shapes as in Paddle (a convolution [out, in, 5, 5], the last layer [980, 10])."""
    return {name: np.array(value.numpy()) for name, value in network.state_dict().items()}


def to_pdparams(weights: Weights) -> bytes:
    """The weights as the lesson's `mnist.pdparams`, for `paddle.load` and `set_state_dict`. Written, never read, by us."""
    network = new_network(seed=0)
    network.set_state_dict(weights)
    buffer = io.BytesIO()
    paddle.save(network.state_dict(), buffer)
    return buffer.getvalue()
