"""A model in the formats it can be taken away in. The same weights of the same training give the same bytes, always.

    safetensors   the weights, and in the file's metadata what is known of them; published by the trainer
    inference     a zip of what `paddle.jit.save` writes, for `paddle.inference`: model.json, model.pdiparams
    onnx          one ONNX model, operator set 13

The last two are made from the first when they are asked for, in a process of its own that ends with its parent: `python -m
core.training.export FORMAT` takes safetensors from stdin and writes the file to stdout. Both take `images`, float32
[N, 1, 28, 28] with values from 0 to 1 (a byte is divided by 256), and give the ten classes' probabilities, [N, 10], as the
lesson's own class and /predict do: the softmax is in the file.
"""

import asyncio
import contextlib
import hashlib
import io
import json
import logging
import os
import signal
import sys
import tempfile
import traceback
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import DescentError, Unavailable
from core.spec import JobSpec
from core.training import runtime

if TYPE_CHECKING:  # NumPy and Paddle are loaded where a file is made, not in the process that asks for it
    import numpy.typing as npt

    Tensors = dict[str, npt.NDArray[Any]]

LIMIT_S = 60  # of making a file; it takes one to three seconds
FORMAT, NETWORK = "descent-model-1", "DigitNetwork"
OPSET, IR_VERSION = 13, 7  # the oldest that say all we need, so that every runtime since 2020 takes it

log = logging.getLogger(__name__)


# --- safetensors -------------------------------------------------------------------------------------------------------


def to_safetensors(weights: "Tensors", spec: JobSpec, *, step: int, metrics: dict[str, float | None]) -> bytes:
    """The weights after `step` steps, with metadata: texts by name, in the order of the names.

    `format`, `network` (the class), `seed`, `step`; as JSON `spec` (without the labels `name` and `tags`) and `metrics`; and
    `tensors_sha256` (see `digest`). Nothing in it depends on when or as which job the training ran.
    """
    import safetensors.numpy

    about = {
        "format": FORMAT,
        "network": NETWORK,
        "spec": _json(spec.model_dump(mode="json", exclude={"name", "tags"})),
        "seed": str(spec.seed),
        "step": str(step),
        "metrics": _json(metrics),
        "tensors_sha256": digest(weights),
    }
    return _in_order(safetensors.numpy.save(weights, metadata=about))


def digest(weights: "Tensors") -> str:
    """SHA-256 over the tensors, in the order of their names: of each a line `name F32 20x1x5x5`, then its bytes.

    The bytes are float32, little-endian, row by row. The file's own digest cannot be in the file; this one can.
    """
    import numpy as np

    found = hashlib.sha256()
    for name, value in sorted(weights.items()):
        found.update(f"{name} F32 {'x'.join(map(str, value.shape))}\n".encode())
        found.update(np.ascontiguousarray(value, "<f4").tobytes())
    return found.hexdigest()


def metadata(content: bytes) -> dict[str, str]:
    """The metadata of a safetensors file; empty when it has none."""
    found: dict[str, str] = _header(content).get("__metadata__", {})
    return found


def _in_order(content: bytes) -> bytes:
    """The same file with its metadata sorted: the library writes them in an order that changes from run to run."""
    header = _header(content)
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = _json(header).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of eight
    return len(text).to_bytes(8, "little") + text + content[_end_of_header(content) :]


def _header(content: bytes) -> dict[str, Any]:
    header: dict[str, Any] = json.loads(content[8 : _end_of_header(content)])
    return header


def _end_of_header(content: bytes) -> int:
    return 8 + int.from_bytes(content[:8], "little")


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


# --- asking for the others ---------------------------------------------------------------------------------------------


async def made(format: str, weights: bytes, *, limit_s: float = LIMIT_S) -> bytes:
    """The file of a format, from the safetensors file of the network's weights, made by a process of its own.

    That process ends with this one, when the caller is cancelled, and after `limit_s` at the latest. Raises Unavailable when
    it was killed or the machine had no room for it, and DescentError when it failed; the log has the reason.
    """
    try:
        code, content, told = await _run(format, weights, limit_s)
    except OSError as error:  # no descriptor, process or room on the disk is left
        log.error("export failed", extra={"format": format, "reason": str(error)})
        raise Unavailable("the file cannot be made now", retry_after_s=30) from error
    if code:
        log.error("export failed", extra={"format": format, "code": code, "reason": _last(told)})
        if code == os.EX_TEMPFAIL:
            raise Unavailable("the file cannot be made now", retry_after_s=30)
        if code < 0:
            raise Unavailable("the process that made the file was killed", retry_after_s=30)
        raise DescentError("the file could not be made; the server's log has the reason")
    return content


async def _run(format: str, weights: bytes, limit_s: float) -> tuple[int, bytes, bytes]:
    """The process's exit code, what it made, and what it said. Its folder is ours, so that it goes whatever becomes of it."""
    folder = tempfile.TemporaryDirectory(prefix="descent-export-", ignore_cleanup_errors=True)
    with folder:
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", "core.training.export", format, env={**os.environ, "TMPDIR": folder.name},
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            )  # fmt: skip
        except OSError:
            Path(folder.name).rmdir()  # which needs no descriptor; a cleanup does
            raise
        try:
            async with asyncio.timeout(limit_s):
                content, told = await process.communicate(weights)
        except TimeoutError:
            raise Unavailable(f"the file was not made within {limit_s:g} s", retry_after_s=30) from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            folder.cleanup()  # now: a server that ends may not come to what follows the next line
            code = await process.wait()
    return code, content, told


def _last(told: bytes) -> str:
    return told.decode(errors="replace").strip()[-2000:]


# --- making them -------------------------------------------------------------------------------------------------------


def main() -> None:
    runtime.die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the server, which ends this process
    signal.alarm(LIMIT_S + 5)  # also where the kernel does not tell of a parent's death
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints is no part of the file
    import safetensors.numpy

    content = sys.stdin.buffer.read()
    weights = {name: value.astype("<f4") for name, value in safetensors.numpy.load(content).items()}
    try:
        with out:
            out.write(_WRITERS[sys.argv[1]](weights, metadata(content)))
    except OSError:  # the machine's fault, and perhaps not for ever
        traceback.print_exc()
        sys.exit(os.EX_TEMPFAIL)


def to_inference(weights: "Tensors", about: dict[str, str]) -> bytes:
    """`paddle.jit.save`'s two files and `about` as metadata.json, in a zip without times and compression."""
    runtime.prepare(threads=1)
    import paddle

    from core.training.network import new_network

    paddle.set_device("cpu")
    network = new_network(seed=0)
    network.set_state_dict(weights)
    whole = paddle.nn.Sequential(network, paddle.nn.Softmax())
    whole.eval()
    images = paddle.static.InputSpec([None, 1, 28, 28], "float32", name="images")
    with tempfile.TemporaryDirectory() as folder:
        paddle.jit.save(whole, f"{folder}/model", input_spec=[images])
        files = {name: Path(folder, name).read_bytes() for name in ("model.json", "model.pdiparams")}
    _refuse_cut(files, weights)
    files["metadata.json"] = json.dumps(about, indent=1).encode()
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name)  # of 1980, as long as nobody says otherwise
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, data)
    return content.getvalue()


def _refuse_cut(files: dict[str, bytes], weights: "Tensors") -> None:
    """Paddle does not notice when it could not write. Raises OSError where something is missing."""
    stored = files["model.pdiparams"]
    try:
        json.loads(files["model.json"])
    except ValueError:
        raise OSError("Paddle did not write all of the graph; is the disk full?") from None
    is_long_enough = len(stored) > sum(value.nbytes for value in weights.values())
    if not is_long_enough or not all(value.tobytes() in stored for value in weights.values()):
        raise OSError("Paddle did not write all of the weights; is the disk full?")


def to_onnx(weights: "Tensors", about: dict[str, str]) -> bytes:
    """The network as an ONNX graph, with `about` among the model's properties."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes, x = [], "images"
    for n in (1, 2):
        conv, relu, pool = f"conv{n}", f"relu{n}", f"pool{n}"
        parameters = [f"{conv}.weight", f"{conv}.bias"]
        nodes += [
            helper.make_node("Conv", [x, *parameters], [conv], conv, kernel_shape=[5, 5], pads=[2, 2, 2, 2]),
            helper.make_node("Relu", [conv], [relu], relu),
            helper.make_node("MaxPool", [relu], [pool], pool, kernel_shape=[2, 2], strides=[2, 2]),
        ]
        x = pool
    nodes += [
        helper.make_node("Flatten", [x], ["features"], "flatten"),
        helper.make_node("Gemm", ["features", "fc.weight", "fc.bias"], ["logits"], "fc"),
        helper.make_node("Softmax", ["logits"], ["probabilities"], "softmax", axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        NETWORK,
        inputs=[helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 1, 28, 28])],
        outputs=[helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 10])],
        initializer=[numpy_helper.from_array(value, name) for name, value in sorted(weights.items())],
    )
    opset = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION, producer_name="descent")
    helper.set_model_props(model, about)
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


_WRITERS = {"inference": to_inference, "onnx": to_onnx}

if __name__ == "__main__":
    main()
