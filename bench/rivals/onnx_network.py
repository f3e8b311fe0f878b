"""The network in ONNX Runtime. Runs in an environment that has it."""

from pathlib import Path

from onnxruntime import InferenceSession, SessionOptions


def session(folder: Path, threads: int = 1) -> InferenceSession:
    """Input `images` float32 [N, 28, 28], output the probabilities [N, 10]."""
    options = SessionOptions()
    options.intra_op_num_threads = threads
    return InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
