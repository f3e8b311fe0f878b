"""Which specs are one configuration, trained with several seeds, and what to call it."""

import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from core.spec import JobSpec

# What does not change the training, or only in ways that a comparison takes for chance.
NOT_CONFIGURATION = {"seed", "name", "tags", "device", "max_runtime_s", "log_every"}


def labelled(specs: Sequence[JobSpec]) -> list[str]:
    """A label for each: optimizer and rate, `momentum 0.01`, and where that is not enough, the fields that differ.

    Specs of one configuration have the same label, all others different ones.
    """
    names = [_name(spec) for spec in specs]
    fields = [_flat(spec.model_dump(mode="json", exclude=NOT_CONFIGURATION)) for spec in specs]
    alike: dict[str, list[dict[str, str]]] = defaultdict(list)
    for name, own in zip(names, fields, strict=True):
        alike[name].append(own)
    common = {name: set.intersection(*(set(own.items()) for own in group)) for name, group in alike.items()}
    return [
        ", ".join([name, *(f"{key}={value}" for key, value in own.items() if (key, value) not in common[name])])
        for name, own in zip(names, fields, strict=True)
    ]


def _name(spec: JobSpec) -> str:
    rate = spec.learning_rate
    if isinstance(rate, float):
        return f"{spec.optimizer.name} {rate!r}"
    peak = next(getattr(rate, name) for name in ("initial", "max_learning_rate", "end") if hasattr(rate, name))
    return f"{spec.optimizer.name} {peak!r} {rate.schedule}"


def _flat(fields: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """`{"a": {"b": 1}}` as `{"a.b": "1"}`."""
    flat: dict[str, str] = {}
    for name, value in fields.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": json.dumps(value)}
    return flat
