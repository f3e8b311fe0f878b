"""One epoch of the lesson's network in PyTorch eager, arrays preloaded. Run by bench/train.py in an environment with PyTorch.

Arguments: the arrays (.npz), the optimizer, the rate, `nchw` or `nhwc`, threads. Prints one line of JSON.
"""

import json
import sys
import time

import numpy as np
import torch
from torch import nn

path, optimizer_name, rate, layout, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
torch.manual_seed(0)
memory_format = torch.channels_last if layout == "nhwc" else torch.contiguous_format
arrays = np.load(path)


def seen(images: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(images.astype(np.float32) / np.float32(256))[:, None].contiguous(
        memory_format=memory_format
    )


images, labels = seen(arrays["images"]), torch.from_numpy(arrays["labels"].astype(np.int64))
test_images, test_labels = seen(arrays["test_images"]), torch.from_numpy(arrays["test_labels"].astype(np.int64))
network = nn.Sequential(
    nn.Conv2d(1, 20, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
    nn.Conv2d(20, 20, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
    nn.Flatten(), nn.Linear(980, 10),
).to(memory_format=memory_format)  # fmt: skip
optimizers = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
optimizer = optimizers[optimizer_name](network.parameters(), lr=float(rate))
loss_of = nn.CrossEntropyLoss()

began = time.perf_counter()
order = torch.from_numpy(np.random.default_rng([0, 0]).permutation(len(images)))
for start in range(0, len(images), 100):
    rows = order[start : start + 100]
    loss = loss_of(network(images[rows]), labels[rows])
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
seconds = time.perf_counter() - began

with torch.no_grad():
    guessed = torch.cat([network(part).argmax(1) for part in test_images.split(1000)])
accuracy = (guessed == test_labels).float().mean().item()
print(json.dumps({"seconds": seconds, "test_accuracy": accuracy}))
