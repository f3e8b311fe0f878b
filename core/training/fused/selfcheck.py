"""The kernel against Paddle's operators on small batches, once for each library and machine."""

import contextlib
import hashlib
import json
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import paddle

from core.training.fused.layer import Kernel, plain_conv_relu_pool
from core.training.fused.library import cpu_description, cpu_features

_SHAPES = ((3, 1, 28, 28, 20), (3, 20, 14, 14, 20), (2, 3, 6, 10, 7))
"""(N, C, H, W, O): both layers of the lesson's network, and one that no tile fits."""
_RESULTS = ("output", "gradient of x", "gradient of the weight", "gradient of the bias")


def failure(kernel: Kernel) -> str | None:
    """How the kernel differs from Paddle's operators, or None.

    All values are small integers: float32 sums of them are exact in any order, so that the results must be equal to
    the last bit, and many pooling windows have ties.
    """
    for shape in _SHAPES:
        x, weight, bias, grad = _batch(shape)
        out, winner = kernel.forward(x, weight, bias)
        ours = (out, *kernel.backward(x, weight, winner, grad, wants_x=True))
        with paddle.enable_grad():
            expected = plain_conv_relu_pool(x, weight, bias)
            paddle.autograd.backward([expected], [grad])
        theirs = (expected, x.grad, weight.grad, bias.grad)
        for name, our, their in zip(_RESULTS, ours, theirs, strict=True):
            if not np.array_equal(our.numpy(), their.numpy()):
                return f"its {name} differs from Paddle's operators at N, C, H, W, O = {shape}"
    return None


def remembered_failure(kernel: Kernel, folder: Path) -> str | None:
    """`failure`, asked once for each library, machine and Paddle; the answer is kept in `folder`."""
    note = folder / f"{kernel.library.stem}-{_machine()}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        kept: str | None = json.loads(note.read_text())["failure"]
        return kept
    found = failure(kernel)
    with contextlib.suppress(OSError):  # a folder that cannot be written costs a check at every start, no more
        _write(note, json.dumps({"failure": found}))
    return found


def _batch(shape: tuple[int, int, int, int, int]) -> Iterator[paddle.Tensor]:
    n, channels, height, width, outputs = shape
    values = np.random.default_rng(0)
    x = values.integers(-2, 3, (n, channels, height, width))
    weight = values.integers(-1, 2, (outputs, channels, 5, 5))
    bias = values.integers(-3, 4, outputs)
    bias[0] = -10_000  # a dead relu at every position
    grad = values.integers(-2, 3, (n, outputs, height // 2, width // 2))
    for array in (x, weight, bias, grad):
        yield paddle.to_tensor(array.astype("float32"), place=paddle.CPUPlace(), stop_gradient=array is grad)


def _machine() -> str:
    cpu = cpu_description()
    known = [cpu.get(name, "") for name in ("vendor_id", "model name", "CPU implementer", "CPU part", "Features")]
    facts = [paddle.__version__, platform.machine(), *known, *sorted(cpu_features())]
    return hashlib.sha256("\0".join(facts).encode()).hexdigest()[:16]


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".checking-", dir=path.parent) as work:
        finished = Path(work, "note")
        finished.write_text(text)
        finished.replace(path)
