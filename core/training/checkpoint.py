"""A training's whole state at a step: what is needed to go on as if nothing had happened, bit for bit.

On disk it is one safetensors file: the arrays, and everything else as JSON in its metadata. One file is one rename and one
digest, so a checkpoint is there or not. Weights and optimizer state are float32, the losses float64. The training draws no
random numbers but the initial weights and each epoch's order of images, which depend on the seed and the epoch alone.
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import safetensors.numpy

FORMAT = 1

Tensors = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The state after `step` steps.

    `tensors`: `network.<parameter>`, `optimizer.<parameter>_<accumulator>`, `history.<losses>`. `state`: `epoch` and `batch`
    (the next ones), `permutation` (seed, epoch and digest of that epoch's order), `schedule` (Paddle's state, or null),
    `clock` (seconds of training), `valid_accuracy`, `backend`.
    """

    step: int
    state: dict[str, Any]
    tensors: Tensors

    def part(self, name: str) -> Tensors:
        """The arrays below `name.`, without that prefix."""
        return {key.partition(".")[2]: value for key, value in self.tensors.items() if key.startswith(f"{name}.")}

    def to_bytes(self) -> bytes:
        text = json.dumps({"format": FORMAT, "step": self.step, **self.state}, sort_keys=True)
        return safetensors.numpy.save(self.tensors, metadata={"state": text})

    @classmethod
    def from_bytes(cls, content: bytes) -> "Checkpoint":
        """Raises ValueError for bytes that are no checkpoint of this format."""
        try:
            tensors = safetensors.numpy.load(content)
            header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
            state = json.loads(header["__metadata__"]["state"])
            step, form = state.pop("step"), state.pop("format")
        except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"no checkpoint: {error}") from error
        if form != FORMAT:
            raise ValueError(f"a checkpoint of format {form}, not {FORMAT}")
        return cls(step=step, state=state, tensors=tensors)
