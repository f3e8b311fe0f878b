"""The layer relu(maxpool2x2(conv5x5(x, padding 2, stride 1) + bias)): by Paddle's operators, and fused."""

import ctypes
import functools
import logging
from pathlib import Path

import paddle
from paddle.nn import functional

logger = logging.getLogger(__name__)

_MOST_FLOATS = 2**31
"""The kernel counts the floats of one padded image, and of the weights, in 32 bits."""


def plain_conv_relu_pool(x: paddle.Tensor, weight: paddle.Tensor, bias: paddle.Tensor) -> paddle.Tensor:
    """The layer by Paddle's own operators, for any device, type and shape.

    x [N, C, H, W], weight [O, C, 5, 5], bias [O]; gives [N, O, H // 2, W // 2].
    """
    return functional.max_pool2d(functional.relu(functional.conv2d(x, weight, bias, padding=2)), 2)


class Kernel:
    """The compiled layer. Safe to use from several threads and after fork().

    `name` is such as `fused-avx512` (`fused-neon-serial` without OpenMP): together with the number of threads and the
    compiler it decides the last bits. `library` is the file, named for all it was built from.
    """

    def __init__(self, name: str, library: Path, entry: ctypes.CDLL) -> None:
        """Raises AttributeError where the library is another one."""
        ints, pointer = [ctypes.c_int] * 5, ctypes.c_void_p
        entry.fused_forward.argtypes = [*ints, *[pointer] * 5]
        entry.fused_backward.argtypes = [*ints, *[pointer] * 7]
        self.name = name
        self.library = library
        self._entry = entry

    def conv_relu_pool(self, x: paddle.Tensor, weight: paddle.Tensor, bias: paddle.Tensor) -> paddle.Tensor:
        """`plain_conv_relu_pool`, several times faster. What the kernel cannot do goes to Paddle's operators, and one
        log line for each reason says so. Raises MemoryError.
        """
        if obstacle := _obstacle(x, weight, bias):
            _say_once(obstacle)
            return plain_conv_relu_pool(x, weight, bias)
        if paddle.is_grad_enabled():
            return _FusedLayer.apply(x, weight, bias, self)
        return self.forward(x, weight, bias)[0]

    def forward(
        self, x: paddle.Tensor, weight: paddle.Tensor, bias: paddle.Tensor
    ) -> tuple[paddle.Tensor, paddle.Tensor]:
        """The output, and for each of its elements which of the four came through (int8; 4 is none), unchecked."""
        n, channels, height, width = x.shape
        shape = [n, weight.shape[0], height // 2, width // 2]
        out, winner = _empty(shape, "float32"), _empty(shape, "int8")
        inputs = (x.data_ptr(), weight.data_ptr(), bias.data_ptr())
        failed = self._entry.fused_forward(
            n, channels, height, width, weight.shape[0], *inputs, out.data_ptr(), winner.data_ptr()
        )
        _check_memory(failed)
        return out, winner

    def backward(
        self, x: paddle.Tensor, weight: paddle.Tensor, winner: paddle.Tensor, grad: paddle.Tensor, *, wants_x: bool
    ) -> tuple[paddle.Tensor | None, paddle.Tensor, paddle.Tensor]:
        """The gradients of x (if wanted), weight and bias, unchecked."""
        n, channels, height, width = x.shape
        outputs = weight.shape[0]
        grad_x = _empty(x.shape, "float32") if wants_x else None
        grad_weight, grad_bias = _empty(weight.shape, "float32"), _empty([outputs], "float32")
        inputs = (x.data_ptr(), weight.data_ptr(), winner.data_ptr(), grad.data_ptr())
        results = (None if grad_x is None else grad_x.data_ptr(), grad_weight.data_ptr(), grad_bias.data_ptr())
        failed = self._entry.fused_backward(n, channels, height, width, outputs, *inputs, *results)
        _check_memory(failed)
        return grad_x, grad_weight, grad_bias


class _FusedLayer(paddle.autograd.PyLayer):
    @staticmethod
    def forward(
        ctx: paddle.autograd.PyLayerContext,
        x: paddle.Tensor,
        weight: paddle.Tensor,
        bias: paddle.Tensor,
        kernel: Kernel,
    ) -> paddle.Tensor:
        out, winner = kernel.forward(x, weight, bias)
        ctx.save_for_backward(x, weight, winner)
        ctx.kernel = kernel
        ctx.wanted = [not tensor.stop_gradient for tensor in (x, weight, bias)]
        return out

    @staticmethod
    def backward(ctx: paddle.autograd.PyLayerContext, grad: paddle.Tensor) -> tuple[paddle.Tensor | None, ...]:
        x, weight, winner = ctx.saved_tensor()
        # What follows the layer may hand its gradient back transposed.
        grads = ctx.kernel.backward(x, weight, winner, grad.contiguous(), wants_x=ctx.wanted[0])
        # Paddle takes nothing but None for a tensor that wants no gradient.
        return tuple(grad if wanted else None for grad, wanted in zip(grads, ctx.wanted, strict=True))


def _obstacle(x: paddle.Tensor, weight: paddle.Tensor, bias: paddle.Tensor) -> str | None:
    """Why the kernel cannot do this, or None."""
    tensors = (x, weight, bias)
    if not paddle.in_dynamic_mode():
        return "the network is being traced"
    if not all(tensor.place.is_cpu_place() for tensor in tensors):
        return "the tensors are not on the CPU"
    if not all(tensor.dtype is paddle.float32 for tensor in tensors):
        return "the tensors are not float32"
    if not all(tensor.is_contiguous() for tensor in tensors):
        return "the tensors are not contiguous"
    return _shape_obstacle(tuple(x.shape), tuple(weight.shape), tuple(bias.shape))


@functools.lru_cache(maxsize=1024)
def _shape_obstacle(x: tuple[int, ...], weight: tuple[int, ...], bias: tuple[int, ...]) -> str | None:
    if len(x) != 4 or len(weight) != 4 or weight[1] != x[1] or weight[2:] != (5, 5) or bias != weight[:1]:
        return "it is not a 5x5 convolution with a bias over images"
    n, channels, height, width = x
    if height % 2 or width % 2:
        return "height or width is odd"
    if not n * channels * height * width * weight[0]:
        return "there is nothing to compute"
    # As padded in the kernel: rows by up to two vectors of 16, channels to a multiple of 10 or a vector.
    pixels = (height + 4) * (width + 36)
    if max(pixels * (channels + 16), (weight[0] + 10) * 25 * (channels + 16), weight[0] * width * 3, n) >= _MOST_FLOATS:
        return "the images are too large"
    return None


@functools.cache
def _say_once(obstacle: str) -> None:
    logger.warning("the fused kernel is not used here, Paddle's operators are: %s", obstacle)


def _empty(shape: list[int], dtype: str) -> paddle.Tensor:
    return paddle.empty(shape, dtype=dtype, device="cpu")


def _check_memory(failed: int) -> None:
    if failed:
        raise MemoryError("the fused kernel got no working memory")
