"""MLflow: saves the network as a model of its `onnx` flavor for `mlflow models serve`. Argument: the new folder."""

import os
import sys
from pathlib import Path

import mlflow
import numpy as np
import onnx
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

signature = ModelSignature(
    inputs=Schema([TensorSpec(np.dtype(np.float32), (-1, 28, 28), "images")]),
    outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, 10), "probabilities")]),
)
mlflow.onnx.save_model(
    onnx.load(Path(os.environ["NETWORK"], "model.onnx")),
    sys.argv[1],
    signature=signature,
    onnx_execution_providers=["CPUExecutionProvider"],
    onnx_session_options={"intra_op_num_threads": 1},
)
