"""The fused layer against Paddle's operators and NumPy in float64, and everything that may keep it from running.

Inputs lie on a grid of 1/16, so that float32 sums of their products are exact: which member of a pooling window is the
largest does not depend on the order of summation, on no machine, and ties are real ties.
"""

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import paddle
import pytest
from paddle.nn import functional

from core.training.fused import library, selfcheck
from core.training.fused.kernel import load
from core.training.fused.layer import Kernel, plain_conv_relu_pool

Array = np.ndarray[Any, Any]
Layer = Callable[[paddle.Tensor, paddle.Tensor, paddle.Tensor], paddle.Tensor]
Shape = tuple[int, int, int, int, int]
"""N, C, H, W, O."""
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def compiler() -> str:
    try:
        return library.find_compiler()
    except library.Unavailable:
        pytest.skip(
            "the fused kernel is compiled on the spot, and this machine has no C++ compiler (c++, g++, clang++)"
        )


@pytest.fixture(scope="session")
def cache(compiler: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture(scope="session")
def kernel(cache: Path) -> Kernel:
    loaded = load(cache)
    assert loaded, "there is a compiler, so there must be a kernel; the log says why there is none"
    return loaded


# ---- the same numbers


class Batch(NamedTuple):
    x: Array
    weight: Array
    bias: Array
    grad: Array

    def tensors(self, dtype: str = "float32") -> list[paddle.Tensor]:
        """x, weight, bias, which want gradients, and the output's gradient."""
        wanted = [paddle.to_tensor(array.astype(dtype), stop_gradient=False) for array in self[:3]]
        return [*wanted, paddle.to_tensor(self.grad.astype(dtype))]


def batch(n: int, channels: int, height: int, width: int, outputs: int, *, step: float = 1 / 16) -> Batch:
    """Normal values on a grid of `step`; a `step` of 1 makes many ties."""
    random = np.random.default_rng([n, channels, height, width, outputs])

    def grid(*shape: int) -> Array:
        return np.clip(np.round(random.standard_normal(shape) / step) * step, -4, 4)

    grad = random.standard_normal((n, outputs, height // 2, width // 2)).astype("float32")
    return Batch(grid(n, channels, height, width), grid(outputs, channels, 5, 5), grid(outputs), grad)


def run(layer: Layer, inputs: Batch) -> list[Array]:
    """The output and the gradients of x, weight and bias."""
    x, weight, bias, grad = inputs.tensors()
    out = layer(x, weight, bias)
    paddle.autograd.backward([out], [grad])  # paddle.grad crashes when several threads call it
    return [tensor.numpy() for tensor in (out, x.grad, weight.grad, bias.grad)]


def reference(inputs: Batch) -> list[Array]:
    """The same in float64 NumPy, by the definition."""
    x, weight, bias, grad = (array.astype("float64") for array in inputs)
    n, _, height, width = x.shape
    outputs = len(bias)
    padded = np.pad(x, ((0, 0), (0, 0), (2, 2), (2, 2)))
    patches = np.lib.stride_tricks.sliding_window_view(padded, (5, 5), axis=(2, 3))
    convolved = np.einsum("nchwij,ocij->nohw", patches, weight, optimize=True) + bias[:, None, None]
    halves = (n, outputs, height // 2, 2, width // 2, 2)
    windows = convolved.reshape(halves).transpose(0, 1, 2, 4, 3, 5).reshape(n, outputs, height // 2, width // 2, 4)
    best = windows.max(-1)
    to_windows = np.zeros_like(windows)
    np.put_along_axis(to_windows, windows.argmax(-1)[..., None], np.where(best > 0, grad, 0)[..., None], -1)
    to_convolved = to_windows.reshape(*to_windows.shape[:4], 2, 2).transpose(0, 1, 2, 4, 3, 5).reshape(convolved.shape)
    to_padded = np.zeros_like(padded)
    for i in range(5):
        for j in range(5):
            tap = np.einsum("nohw,oc->nchw", to_convolved, weight[:, :, i, j], optimize=True)
            to_padded[:, :, i : i + height, j : j + width] += tap
    to_weight = np.einsum("nchwij,nohw->ocij", patches, to_convolved, optimize=True)
    return [np.maximum(best, 0), to_padded[:, :, 2:-2, 2:-2], to_weight, to_convolved.sum((0, 2, 3))]


def assert_close(got: list[Array], expected: list[Array]) -> None:
    """To 1e-5 of the largest element: float32 keeps 6e-8, and the longest sums, 37 * 196 terms, lose the square root
    of their length of it, 5e-6, in one order or the other.
    """
    for one, other in zip(got, expected, strict=True):
        assert one.shape == other.shape
        assert np.abs(one - other).max() <= 1e-5 * np.abs(other).max()


SHAPES = {
    "the first layer": (4, 1, 28, 28, 20),
    "the second layer": (4, 20, 14, 14, 20),
    "a last, smaller batch of the first": (37, 1, 28, 28, 20),
    "a last, smaller batch of the second": (37, 20, 14, 14, 20),
    "one image": (1, 1, 28, 28, 20),
    "the smallest image": (1, 1, 2, 2, 1),
    "4 x 6 and odd channels": (2, 3, 4, 6, 7),
    "more odd channels": (5, 7, 6, 10, 13),
    "wide": (2, 2, 2, 70, 3),
    "high": (2, 2, 70, 2, 3),
    "just over two vectors": (1, 2, 4, 34, 11),
    "many channels": (3, 33, 4, 4, 21),
    "one channel to many": (2, 1, 6, 6, 64),
    "many channels to one": (2, 64, 6, 6, 1),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("step", [1 / 16, 1.0], ids=["few ties", "many ties"])
def test_output_and_gradients_are_those_of_numpy_and_of_paddle(kernel: Kernel, shape: Shape, step: float) -> None:
    inputs = batch(*shape, step=step)
    got = run(kernel.conv_relu_pool, inputs)
    assert_close(got, reference(inputs))
    assert_close(got, run(plain_conv_relu_pool, inputs))


def test_output_of_any_floats_is_that_of_numpy(kernel: Kernel) -> None:
    random = np.random.default_rng(0)
    inputs = batch(8, 20, 14, 14, 20)
    for array in inputs[:3]:
        array[:] = random.random(array.shape)
    assert_close(run(kernel.conv_relu_pool, inputs)[:1], reference(inputs)[:1])


def test_dead_relus_let_no_gradient_back(kernel: Kernel) -> None:
    inputs = batch(3, 4, 8, 8, 6)
    inputs.bias[::2] = -10_000
    got = run(kernel.conv_relu_pool, inputs)
    assert_close(got, reference(inputs))
    out, _, grad_weight, grad_bias = got
    assert not out[:, ::2].any()
    assert not grad_weight[::2].any()
    assert not grad_bias[::2].any()
    assert grad_bias[1::2].all()


def test_zeros_give_zeros_without_gradient(kernel: Kernel) -> None:
    inputs = batch(2, 3, 6, 6, 5)
    nothing = inputs._replace(x=np.zeros_like(inputs.x), bias=np.zeros_like(inputs.bias))
    for array in run(kernel.conv_relu_pool, nothing):
        assert not array.any()


def test_the_first_of_equal_members_gets_the_gradient(kernel: Kernel) -> None:
    flat = Batch(np.ones((1, 1, 12, 12)), np.ones((1, 1, 5, 5)), np.zeros(1), np.ones((1, 1, 6, 6)))
    x, weight, bias, _ = flat.tensors()
    _, winner = kernel.forward(x, weight, bias)
    assert (winner.numpy()[0, 0, 1:5, 1:5] == 0).all()  # away from the border all four are equal
    assert_close(run(kernel.conv_relu_pool, flat), run(plain_conv_relu_pool, flat))


def test_nan_in_the_image_does_as_paddle_does(kernel: Kernel) -> None:
    inputs = batch(2, 2, 8, 8, 3)
    inputs.x[0, 0, 3, 3] = np.nan
    np.testing.assert_allclose(run(kernel.conv_relu_pool, inputs)[0], run(plain_conv_relu_pool, inputs)[0], rtol=1e-5)


@pytest.mark.parametrize("variant", library.runnable_variants(), ids=lambda variant: str(variant.name))
def test_every_instruction_set_of_this_machine_passes_the_self_check(
    variant: library.Variant, compiler: str, tmp_path: Path
) -> None:
    path = library.build(tmp_path, variant, compiler=compiler)
    assert selfcheck.failure(Kernel("fused", path, library.open_library(path))) is None


# ---- in Paddle's graph


def test_gradients_of_two_backward_calls_add_up(kernel: Kernel) -> None:
    inputs = batch(2, 3, 8, 8, 4)
    once = run(kernel.conv_relu_pool, inputs)[1:]
    x, weight, bias, grad = inputs.tensors()
    for _ in range(2):
        paddle.autograd.backward([kernel.conv_relu_pool(x, weight, bias)], [grad])
    for tensor, expected in zip((x, weight, bias), once, strict=True):
        np.testing.assert_array_equal(tensor.grad.numpy(), 2 * expected)


def test_one_graph_can_be_walked_back_twice(kernel: Kernel) -> None:
    x, weight, bias, grad = batch(2, 3, 8, 8, 4).tensors()
    out = kernel.conv_relu_pool(x, weight, bias)
    first = paddle.grad([out], [x, weight, bias], [grad], retain_graph=True)
    second = paddle.grad([out], [x, weight, bias], [grad])
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


def test_the_layer_twice_in_one_graph_with_the_same_weight(kernel: Kernel) -> None:
    def twice(layer: Layer) -> Layer:
        return lambda x, weight, bias: layer(layer(x, weight, bias), weight, bias)

    inputs = batch(3, 4, 12, 12, 4, step=1 / 2)
    inputs = inputs._replace(grad=inputs.grad[:, :, ::2, ::2])
    assert_close(run(twice(kernel.conv_relu_pool), inputs), run(twice(plain_conv_relu_pool), inputs))


def test_a_transposed_gradient_from_the_next_layer_is_understood(kernel: Kernel) -> None:
    def transposed(layer: Layer) -> Layer:
        return lambda x, weight, bias: layer(x, weight, bias).transpose([0, 1, 3, 2])

    inputs = batch(3, 2, 8, 8, 4)
    assert_close(run(transposed(kernel.conv_relu_pool), inputs), run(transposed(plain_conv_relu_pool), inputs))


@pytest.mark.parametrize("frozen", [(0,), (1,), (2,), (0, 1), (1, 2)], ids=str)
def test_tensors_that_want_no_gradient_get_none(kernel: Kernel, frozen: tuple[int, ...]) -> None:
    inputs = batch(2, 3, 8, 8, 4)
    expected = run(kernel.conv_relu_pool, inputs)[1:]
    *tensors, grad = inputs.tensors()
    for i in frozen:
        tensors[i].stop_gradient = True
    paddle.autograd.backward([kernel.conv_relu_pool(*tensors)], [grad])
    for i, tensor in enumerate(tensors):
        if i in frozen:
            assert tensor.grad is None
        else:
            np.testing.assert_array_equal(tensor.grad.numpy(), expected[i])


def test_without_gradients_the_output_is_the_same(kernel: Kernel) -> None:
    inputs = batch(2, 3, 8, 8, 4)
    x, weight, bias, _ = inputs.tensors()
    with paddle.no_grad():
        out = kernel.conv_relu_pool(x, weight, bias)
    assert out.stop_gradient
    np.testing.assert_array_equal(out.numpy(), run(kernel.conv_relu_pool, inputs)[0])


def test_a_slice_of_the_data_set_is_read_where_it_begins(kernel: Kernel) -> None:
    inputs = batch(6, 3, 8, 8, 4)
    x, weight, bias, _ = inputs.tensors()
    with paddle.no_grad():
        out = kernel.conv_relu_pool(x[2:5], weight, bias)
    np.testing.assert_array_equal(out.numpy(), run(kernel.conv_relu_pool, inputs)[0][2:5])


OPTIMIZERS: dict[str, Callable[[list[paddle.Tensor]], Any]] = {
    "sgd": lambda weights: paddle.optimizer.SGD(0.1, parameters=weights),
    "momentum": lambda weights: paddle.optimizer.Momentum(0.05, parameters=weights),
    "adagrad": lambda weights: paddle.optimizer.Adagrad(0.01, parameters=weights),
    "rmsprop": lambda weights: paddle.optimizer.RMSProp(0.002, parameters=weights),
    "adam": lambda weights: paddle.optimizer.Adam(0.002, parameters=weights),
}


def train(layer: Layer, optimizer: str, steps: int = 50) -> tuple[Array, list[Array]]:
    """The losses and final weights of a small version of the lesson's network on patterns that can be learnt."""
    random = np.random.default_rng(0)
    shapes = [(6, 1, 5, 5), (6,), (8, 6, 5, 5), (8,), (8 * 3 * 3, 10), (10,)]
    weights = [paddle.to_tensor(random.normal(0, 0.1, s).astype("float32"), stop_gradient=False) for s in shapes]
    patterns = random.random((10, 1, 12, 12))
    rule, losses = OPTIMIZERS[optimizer](weights), []
    for _ in range(steps):
        labels = random.integers(0, 10, 20)
        images = paddle.to_tensor((patterns[labels] + random.normal(0, 0.1, (20, 1, 12, 12))).astype("float32"))
        hidden = layer(layer(images, weights[0], weights[1]), weights[2], weights[3])
        scores = paddle.flatten(hidden, 1) @ weights[4] + weights[5]
        loss = functional.cross_entropy(scores, paddle.to_tensor(labels))
        loss.backward()
        rule.step()
        rule.clear_grad()
        losses.append(float(loss))
    return np.array(losses), [weight.numpy() for weight in weights]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_fifty_steps_train_as_with_the_plain_operators(kernel: Kernel, optimizer: str) -> None:
    """To 1e-4: steps differ by float32's rounding, 1e-6 of a gradient. The optimizers that divide by the size of past
    gradients turn that into as much of their step even where a gradient is nearly zero, and 50 steps pass it on; 4e-6
    was seen.
    """
    losses, weights = train(kernel.conv_relu_pool, optimizer)
    expected_losses, expected_weights = train(plain_conv_relu_pool, optimizer)
    assert losses[-1] < 0.9 * losses[0]
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-4)
    for got, expected in zip(weights, expected_weights, strict=True):
        assert np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max()


# ---- threads and processes

SCRIPT = """
import hashlib, os, sys, warnings
warnings.simplefilter("ignore")
from pathlib import Path
import numpy as np
from test_fused import batch, run
from core.training.fused.kernel import load
kernel = load(Path(sys.argv[1]))
assert kernel, "no kernel"
def digest():
    results = [run(kernel.conv_relu_pool, batch(*shape)) for shape in ((9, 1, 28, 28, 20), (9, 20, 14, 14, 20))]
    return hashlib.sha256(b"".join(array.tobytes() for result in results for array in result)).hexdigest(), results
"""


def python(code: str, *arguments: object, threads: int = 2) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT + code, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": f"{ROOT / 'tests'}:{ROOT}"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def said(process: subprocess.Popen[str]) -> str:
    try:
        out, errors = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == 0, errors
    return out.strip()


def test_bits_repeat_at_a_fixed_number_of_threads(kernel: Kernel, cache: Path, tmp_path: Path) -> None:
    code = """
first, results = digest()
assert all(digest()[0] == first for _ in range(5)), "the bits changed within one process"
np.savez(sys.argv[2], *[array for result in results for array in result])
print(first)
"""
    runs = [(1, "one"), (2, "two"), (2, "again")]
    one, two, again = [said(python(code, cache, tmp_path / name, threads=threads)) for threads, name in runs]
    assert two == again
    assert len(one) == len(two) == 64
    with np.load(tmp_path / "one.npz") as serial, np.load(tmp_path / "two.npz") as parallel:
        for name in serial.files:
            scale = np.abs(serial[name]).max()
            assert np.abs(serial[name] - parallel[name]).max() <= 1e-5 * scale


def test_a_forked_child_computes_the_same(kernel: Kernel, cache: Path) -> None:
    code = """
expected = digest()[0]
child = os.fork()
if child == 0:
    os._exit(0 if digest()[0] == expected else 7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), digest()[0] == expected)
"""
    assert said(python(code, cache)) == "0 True"


def test_several_threads_at_once_compute_the_same(kernel: Kernel) -> None:
    shapes = [(5, 1, 28, 28, 20), (5, 20, 14, 14, 20), (3, 3, 6, 10, 7), (2, 2, 2, 70, 3)]
    expected = [run(kernel.conv_relu_pool, batch(*shape)) for shape in shapes]
    wrong: list[str] = []
    together = threading.Barrier(len(shapes))

    def repeat(shape: Shape, results: list[Array]) -> None:
        together.wait(timeout=30)
        for _ in range(10):
            got = run(kernel.conv_relu_pool, batch(*shape))
            if not all(np.array_equal(one, other) for one, other in zip(got, results, strict=True)):
                wrong.append(str(shape))

    threads = [threading.Thread(target=repeat, args=pair) for pair in zip(shapes, expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong


@pytest.mark.skipif(sys.platform != "linux", reason="limits its memory by Linux's address space")
def test_no_memory_is_an_error_and_not_the_end_of_the_process(kernel: Kernel, cache: Path) -> None:
    code = """
import paddle, resource
x, weight, bias = (paddle.ones(shape, "float32") for shape in ([1, 1, 8192, 8192], [1, 1, 5, 5], [1]))
used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
resource.setrlimit(resource.RLIMIT_AS, (used + 160 * 2**20, resource.RLIM_INFINITY))
try:
    kernel.conv_relu_pool(x, weight, bias)
except MemoryError as error:
    print(error)
"""
    assert said(python(code, cache, threads=1)) == "the fused kernel got no working memory"


def test_two_processes_may_build_into_one_empty_cache(compiler: str, tmp_path: Path) -> None:
    both = [python("print(kernel.name)", tmp_path / "cache") for _ in range(2)]
    names = [said(process) for process in both]
    assert (
        names[0]
        == names[1]
        == f"fused-{library.runnable_variants()[0].name}" + ("" if library.openmp_runtime() else "-serial")
    )
    files = sorted(path.suffix for path in (tmp_path / "cache").iterdir())
    assert files == [".json", ".so"]


# ---- the plain operators instead


def rejected(kernel: Kernel, caplog: pytest.LogCaptureFixture, inputs: list[paddle.Tensor]) -> str:
    """What the log says of inputs that the kernel leaves to Paddle's operators, having checked that it does."""
    caplog.set_level(logging.INFO, "core.training.fused")
    x, weight, bias = inputs
    for _ in range(3):
        got, expected = kernel.conv_relu_pool(x, weight, bias), plain_conv_relu_pool(x, weight, bias)
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(got.numpy(), expected.numpy())
    assert len(caplog.messages) == 1, "one log line for each reason"
    return caplog.messages[0]


def test_odd_sizes_take_paddles_operators(kernel: Kernel, caplog: pytest.LogCaptureFixture) -> None:
    assert "height or width is odd" in rejected(kernel, caplog, batch(2, 3, 7, 8, 4).tensors()[:3])


def test_float64_takes_paddles_operators(kernel: Kernel, caplog: pytest.LogCaptureFixture) -> None:
    assert "not float32" in rejected(kernel, caplog, batch(2, 3, 8, 8, 4).tensors("float64")[:3])


def test_tensors_in_pieces_take_paddles_operators(kernel: Kernel, caplog: pytest.LogCaptureFixture) -> None:
    x, weight, bias, _ = batch(2, 3, 8, 6, 4).tensors()
    turned = x.transpose([0, 1, 3, 2])
    assert not turned.is_contiguous()
    assert "not contiguous" in rejected(kernel, caplog, [turned, weight, bias])


def test_other_kernel_sizes_take_paddles_operators(kernel: Kernel, caplog: pytest.LogCaptureFixture) -> None:
    x, weight, bias, _ = batch(2, 3, 8, 8, 4).tensors()
    assert "not a 5x5 convolution" in rejected(kernel, caplog, [x, weight[:, :, 1:4, 1:4].contiguous(), bias])


def test_a_traced_network_takes_paddles_operators(kernel: Kernel, caplog: pytest.LogCaptureFixture) -> None:
    inputs = batch(2, 3, 8, 8, 4)
    x, weight, bias, _ = inputs.tensors()

    def layer(x: paddle.Tensor, weight: paddle.Tensor, bias: paddle.Tensor) -> paddle.Tensor:
        return kernel.conv_relu_pool(x, weight, bias)

    with paddle.no_grad():
        traced = paddle.jit.to_static(layer, full_graph=True)(x, weight, bias)
    assert_close([traced.numpy()], reference(inputs)[:1])
    assert "being traced" in caplog.text


def said_by(loading: Callable[[], Kernel | None], caplog: pytest.LogCaptureFixture) -> str:
    """What the log says of a `load` that gives nothing; a second one says nothing more."""
    caplog.set_level(logging.INFO, "core.training.fused")
    assert loading() is None
    assert loading() is None
    assert len(caplog.messages) == 1
    return caplog.messages[0]


def script(path: Path, text: str) -> str:
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return str(path)


def test_switched_off(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    assert "switched off" in said_by(lambda: load(tmp_path, wanted=False), caplog)
    assert not list(tmp_path.iterdir())


def test_no_compiler(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    text = said_by(lambda: load(tmp_path, compilers=("no-such-compiler",)), caplog)
    assert "there is no C++ compiler (no-such-compiler)" in text


def test_a_compiler_that_fails(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    failing = script(
        tmp_path / "cc", '[ "$1" = --version ] && exit 0\necho "fused.cc:1: error: no such thing"\nexit 3\n'
    )
    text = said_by(lambda: load(tmp_path / "cache", compilers=(failing,)), caplog)
    assert "failed with status 3: fused.cc:1: error: no such thing" in text
    assert not list((tmp_path / "cache").iterdir())


def test_a_compiler_that_hangs_is_ended_with_all_it_started(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    children = tmp_path / "children"
    hanging = script(
        tmp_path / "cc", f'[ "$1" = --version ] && exit 0\n/bin/sleep 300 &\necho $! $$ > {children}\nwait\n'
    )
    began = time.monotonic()
    text = said_by(lambda: load(tmp_path / "cache", compilers=(hanging,), compile_limit_s=0.5), caplog)
    assert "took more than 0.5 s" in text
    assert time.monotonic() - began < 10
    deadline = time.monotonic() + 10
    while any(alive(int(pid)) for pid in children.read_text().split()):
        assert time.monotonic() < deadline, "a process of the compiler lives on"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """By Linux's /proc. A zombie is dead: a container without a reaper keeps it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_cache_that_cannot_be_written(compiler: str, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "Not a directory" in said_by(lambda: load(tmp_path / "file" / "cache"), caplog)


# ---- what lies in the folders


def best() -> library.Variant:
    return library.runnable_variants()[0]


def named_for_its_content(path: Path, like: Path) -> Path:
    """The name under which the loader would take the file at `path` for an undamaged build."""
    content = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return path.replace(like.with_name(f"{like.stem.rpartition('-')[0]}-{content}.so"))


def test_a_damaged_library_in_the_cache_is_built_anew(compiler: str, tmp_path: Path) -> None:
    path = library.build(tmp_path, best(), compiler=compiler)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert library.find(tmp_path, best()) is None
    assert load(tmp_path)
    found = library.find(tmp_path, best())
    assert found
    assert len(found.read_bytes()) == len(whole)


def test_a_ready_library_is_used_as_it_is(cache: Path, kernel: Kernel, tmp_path: Path) -> None:
    ready = Path(shutil.copy(kernel.library, tmp_path))
    loaded = load(tmp_path / "cache", prebuilt=tmp_path, compilers=())
    assert loaded
    assert loaded.name == kernel.name
    assert loaded.library == ready


def test_a_cached_library_is_used_after_the_compiler_is_gone(cache: Path, kernel: Kernel) -> None:
    loaded = load(cache, compilers=())
    assert loaded
    assert loaded.library == kernel.library


def test_a_ready_library_that_does_not_open_gives_way_to_the_compiler(kernel: Kernel, tmp_path: Path) -> None:
    (tmp_path / "junk").write_text("this is not a library")
    junk = named_for_its_content(tmp_path / "junk", like=tmp_path / kernel.library.name)
    loaded = load(tmp_path / "cache", prebuilt=tmp_path)
    assert loaded
    assert loaded.library != junk
    assert loaded.library.parent == tmp_path / "cache"


def test_a_ready_library_works_where_nothing_can_be_written(kernel: Kernel, tmp_path: Path) -> None:
    shutil.copy(kernel.library, tmp_path)
    (tmp_path / "file").touch()
    assert load(tmp_path / "file" / "cache", prebuilt=tmp_path, compilers=())


def test_a_passed_self_check_is_remembered_beside_the_library(kernel: Kernel, cache: Path) -> None:
    (note,) = cache.glob(f"{kernel.library.stem}-*.json")
    assert json.loads(note.read_text()) == {"failure": None}


def test_a_failed_self_check_is_remembered(
    kernel: Kernel, compiler: str, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong.cc"
    wrong.write_text('extern "C" int fused_forward() { return 0; }\nextern "C" int fused_backward() { return 0; }\n')
    subprocess.run([compiler, "-shared", "-fPIC", str(wrong), "-o", str(tmp_path / "wrong")], check=True, timeout=60)
    bad = named_for_its_content(tmp_path / "wrong", like=tmp_path / kernel.library.name)
    text = said_by(lambda: load(tmp_path / "cache", prebuilt=tmp_path, compilers=()), caplog)
    assert f"{bad.name} failed its self-check: its output differs from Paddle's operators" in text

    (note,) = (tmp_path / "cache").glob("*.json")
    note.write_text(json.dumps({"failure": "as it was remembered"}))
    caplog.clear()
    # Another limit, so that this process asks anew.
    later = said_by(lambda: load(tmp_path / "cache", prebuilt=tmp_path, compilers=(), compile_limit_s=1.0), caplog)
    assert "as it was remembered" in later


def test_the_build_command_makes_every_variant_and_the_best_is_loaded(compiler: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "core.training.fused.build", "--out", str(tmp_path / "ready")]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert all(library.find(tmp_path / "ready", variant) for variant in library.variants())
    assert len(made.stdout.splitlines()) == len(library.variants())
    loaded = load(tmp_path / "cache", prebuilt=tmp_path / "ready", compilers=())
    assert loaded
    assert loaded.library == library.find(tmp_path / "ready", best())


def test_the_build_command_says_why_it_failed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "core.training.fused.build", "--out", str(tmp_path), "--compiler", "no-such-one"]
    failed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert failed.returncode == 1
    assert "there is no C++ compiler (no-such-one)" in failed.stderr
