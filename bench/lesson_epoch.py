"""One epoch as the lesson writes it: images one by one through a generator, Paddle as it comes. Run by bench/train.py.

Arguments: the arrays (.npz), the optimizer, the rate. Prints one line of JSON.
"""

import json
import random
import sys
import time
from collections.abc import Iterator

import numpy as np
import paddle
import paddle.nn.functional as F

path, optimizer_name, rate = sys.argv[1:]
arrays = np.load(path)
# The course file holds floats: what the lesson's loop starts from.
images, labels = (arrays["images"].reshape(-1, 784) / 256).astype(np.float32), arrays["labels"]


def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    index_list = list(range(len(images)))
    random.Random(0).shuffle(index_list)
    image_list, label_list = [], []
    for i in index_list:
        image_list.append(np.reshape(images[i], [1, 28, 28]).astype("float32"))
        label_list.append(np.reshape(labels[i], [1]).astype("int64"))
        if len(image_list) == 100:
            yield np.array(image_list), np.array(label_list)
            image_list, label_list = [], []
    if image_list:
        yield np.array(image_list), np.array(label_list)


class MNIST(paddle.nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = paddle.nn.Conv2D(in_channels=1, out_channels=20, kernel_size=5, stride=1, padding=2)
        self.max_pool1 = paddle.nn.MaxPool2D(kernel_size=2, stride=2)
        self.conv2 = paddle.nn.Conv2D(in_channels=20, out_channels=20, kernel_size=5, stride=1, padding=2)
        self.max_pool2 = paddle.nn.MaxPool2D(kernel_size=2, stride=2)
        self.fc = paddle.nn.Linear(in_features=980, out_features=10)

    def forward(self, inputs: paddle.Tensor) -> paddle.Tensor:
        x = self.max_pool1(F.relu(self.conv1(inputs)))
        x = self.max_pool2(F.relu(self.conv2(x)))
        return self.fc(paddle.reshape(x, [x.shape[0], 980]))


paddle.seed(0)
model = MNIST()
optimizers = {"sgd": paddle.optimizer.SGD, "adam": paddle.optimizer.Adam}
optimizer = optimizers[optimizer_name](learning_rate=float(rate), parameters=model.parameters())
model.train()
began = time.perf_counter()
for batch_id, (batch_images, batch_labels) in enumerate(batches()):
    loss = F.cross_entropy(model(paddle.to_tensor(batch_images)), paddle.to_tensor(batch_labels))
    if batch_id % 200 == 0:
        print(f"epoch: 0, batch: {batch_id}, loss is: {float(loss)}", file=sys.stderr)
    loss.backward()
    optimizer.step()
    optimizer.clear_grad()
seconds = time.perf_counter() - began
model.eval()
right = 0
for start in range(0, 10_000, 1000):
    part = paddle.to_tensor((arrays["test_images"][start : start + 1000] / 256).astype(np.float32)[:, None])
    right += int((model(part).numpy().argmax(axis=1) == arrays["test_labels"][start : start + 1000]).sum())
print(json.dumps({"seconds": seconds, "test_accuracy": right / 10_000}))
