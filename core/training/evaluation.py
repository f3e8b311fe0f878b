"""What a network makes of images whose classes are known. NumPy alone, as in `predictor`: the API asks for it."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from core.errors import ModelUnsupported
from core.training.datasets import Split, scaled
from core.training.idx import Bytes
from core.training.predictor import CLASSES, Floats, Predictor

Counts = npt.NDArray[np.int64]

_TOGETHER = 1024  # images made floats at a time: 3 MB


@dataclass(frozen=True)
class Evaluation:
    """For each image its class, the one it was taken for, and how surely: [N] each."""

    labels: Bytes
    predicted: Bytes
    confidence: Floats

    @property
    def is_right(self) -> npt.NDArray[np.bool_]:
        return self.labels == self.predicted

    def confusion(self) -> Counts:
        """[10, 10]: how many of each class (row) were taken for each class (column)."""
        pairs = self.labels.astype(np.int64) * CLASSES + self.predicted
        return np.bincount(pairs, minlength=CLASSES**2).reshape(CLASSES, CLASSES)

    def chosen(self, *, label: int | None = None, predicted: int | None = None) -> npt.NDArray[np.bool_]:
        """Whether an image is of the class `label` and was taken for `predicted`, where they are given."""
        is_of = np.ones(len(self.labels), bool) if label is None else self.labels == label
        return is_of if predicted is None else is_of & (self.predicted == predicted)

    def wrong(self, most: int, among: npt.NDArray[np.bool_]) -> list[int]:
        """Indexes of images that are told wrong, the surest first."""
        found = np.flatnonzero(among & ~self.is_right)
        surest_first = np.argsort(-self.confidence[found], kind="stable")
        return [int(index) for index in found[surest_first][:most]]

    def right(self, most: int, among: npt.NDArray[np.bool_]) -> list[int]:
        """Indexes of images that are told right: the first of each class, then the second of each, and so on."""
        found = among & self.is_right
        ranked = [
            (rank, label, int(index))
            for label in range(CLASSES)
            for rank, index in enumerate(np.flatnonzero(found & (self.labels == label))[:most])
        ]
        return [index for _, _, index in sorted(ranked)[:most]]


def evaluate(predictor: Predictor, split: Split) -> Evaluation:
    """Raises ModelUnsupported for a network that gives what is not finite."""
    predicted, confidence = np.empty(len(split), np.uint8), np.empty(len(split), np.float32)
    for start in range(0, len(split), _TOGETHER):
        part = slice(start, start + _TOGETHER)
        probabilities = predictor.probabilities(scaled(split.images[part])[:, 0])
        if not np.isfinite(probabilities).all():
            raise ModelUnsupported("what the model gives is no number: its training had blown up")
        predicted[part], confidence[part] = probabilities.argmax(axis=1), probabilities.max(axis=1)
    return Evaluation(split.labels, predicted, confidence)
