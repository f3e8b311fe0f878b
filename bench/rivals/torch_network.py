"""The network in PyTorch, with the probabilities as its output. Runs in an environment with PyTorch."""

from pathlib import Path

import numpy as np
import torch
from torch import nn


def network(weights: Path) -> nn.Module:
    """With the weights of `model.npz`. Input float32 [N, 1, 28, 28], output [N, 10]."""
    module = nn.Sequential(
        nn.Conv2d(1, 20, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(20, 20, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(980, 10), nn.Softmax(1),
    )  # fmt: skip
    arrays = np.load(weights)
    values = [arrays[f"{layer}.{kind}"] for layer in ("conv1", "conv2", "fc") for kind in ("weight", "bias")]
    values[4] = values[4].T  # Paddle keeps a linear layer's weight as [in, out]
    with torch.no_grad():
        for parameter, value in zip(module.parameters(), values, strict=True):
            parameter.copy_(torch.from_numpy(value.copy()))
    return module.eval()
