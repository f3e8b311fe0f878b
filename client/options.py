"""Options that several commands share: each group is a dataclass, and a command takes it as one parameter."""

import inspect
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from client.exits import usage

Command = Callable[..., None]


def with_options(command: Command) -> Command:
    """Let a command take dataclasses: Typer sees each of their fields as an option of its own."""
    hints = get_type_hints(command, include_extras=True)
    groups = {name: hint for name, hint in hints.items() if is_dataclass(hint) and isinstance(hint, type)}
    parameters = [
        parameter.replace(annotation=hints[parameter.name], kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in inspect.signature(command).parameters.values()
        if parameter.name not in groups
    ]
    parameters += [_parameter(field, kind) for kind in groups.values() for field in fields(kind)]

    def run(**given: Any) -> None:
        made = {
            name: kind(**{field.name: given.pop(field.name) for field in fields(kind)}) for name, kind in groups.items()
        }
        command(**made, **given)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what inspect asks for
    return run


def _parameter(field: "Field[Any]", kind: type) -> inspect.Parameter:
    default = None if field.default is MISSING else field.default
    annotation = get_type_hints(kind, include_extras=True)[field.name]
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


AsJson = Annotated[bool, typer.Option("--json", help="JSON on stdout.")]


@dataclass(frozen=True)
class Server:
    """Which server, and with which key. A key is never an option: others on this machine could read it."""

    url: Annotated[
        str | None,
        typer.Option(envvar="DESCENT_URL", help="The server.", show_default="http://127.0.0.1:8000", metavar="URL"),
    ] = None
    key_file: Annotated[
        Path | None,
        typer.Option(help="A file that holds the key; else it is what DESCENT_API_KEY says.", metavar="FILE"),
    ] = None

    @property
    def address(self) -> str:
        """Of the server, as the client takes it."""
        from client.calls import DEFAULT_URL

        return (self.url or DEFAULT_URL).rstrip("/")

    @property
    def key(self) -> str | None:
        """The key of the file. None: there is none, and the environment's counts."""
        if self.key_file is None:
            return None
        try:
            return self.key_file.expanduser().read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise usage(f"cannot be read: {error}", "--key-file") from None


# For the shell's completion:


def optimizer_names() -> list[str]:
    from core.catalogue import OPTIMIZERS

    return list(OPTIMIZERS)


def dataset_names() -> list[str]:
    from core.catalogue import DATASETS

    return list(DATASETS)


def statuses() -> list[str]:
    from core.jobs.job import Status

    return list(Status)


def one_of(*words: str) -> Callable[[], list[str]]:
    return lambda: list(words)


devices = one_of("auto", "cpu", "gpu")


OptimizerName = Annotated[
    str | None,
    typer.Option(
        "--optimizer",
        "-O",
        help="As adam, or momentum:momentum=0.5.",
        metavar="NAME[:PARAM=VALUE...]",
        autocompletion=optimizer_names,
    ),
]


@dataclass(frozen=True)
class Waiting:
    """How to wait for a job."""

    no_wait: Annotated[bool, typer.Option("--no-wait", help="Do not watch; print the id and return.")] = False
    timeout: Annotated[
        float, typer.Option(min=0, help="Seconds to wait at most, then exit code 6.", metavar="SECONDS")
    ] = 86_400


@dataclass(frozen=True)
class Recipe:
    """How to train, whatever the optimizer and its rate are. What is None is left to the server, which has the lesson's."""

    dataset: Annotated[
        str | None, typer.Option(help="mnist or fashion-mnist.", autocompletion=dataset_names, show_default="mnist")
    ] = None
    epochs: Annotated[int | None, typer.Option(help="How often over all images.", show_default="5; of lr-find 1")] = (
        None
    )
    batch_size: Annotated[int | None, typer.Option(help="Images a step.", show_default="100")] = None
    log_every: Annotated[
        int | None, typer.Option(help="Steps from one stored loss point to the next.", show_default="10; of lr-find 1")
    ] = None
    weight_decay: Annotated[float | None, typer.Option(help="L2 penalty.", show_default="0")] = None
    grad_clip: Annotated[
        str | None, typer.Option(help="As in global_norm:clip_norm=1.0; or norm, value.", metavar="TYPE:PARAM=VALUE")
    ] = None
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, gpu or gpu:N.", show_default="auto", autocompletion=devices)
    ] = None
    precision: Annotated[
        str | None,
        typer.Option(help="float32 or bf16.", show_default="float32", autocompletion=one_of("float32", "bf16")),
    ] = None
    to_static: Annotated[bool, typer.Option("--to-static", help="Compile the network, on a GPU.")] = False
    on_divergence: Annotated[
        str | None,
        typer.Option(help="stop or continue.", show_default="stop", autocompletion=one_of("stop", "continue")),
    ] = None
    max_runtime: Annotated[int | None, typer.Option(help="Seconds the job may run.", show_default="3600")] = None
    name: Annotated[str | None, typer.Option(help="A name for people to read.")] = None
    tag: Annotated[list[str] | None, typer.Option(help="May be repeated.", metavar="KEY=VALUE")] = None
    spec: Annotated[
        str | None,
        typer.Option(help="The request as JSON, a file or - for stdin; other options change it.", metavar="FILE|-"),
    ] = None

    def fields(self) -> dict[str, Any]:
        """The part of a request that these options are, on top of what `--spec` says."""
        given: dict[str, Any] = {
            "dataset": self.dataset,
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "log_every": self.log_every,
            "weight_decay": self.weight_decay,
            "grad_clip": chosen(self.grad_clip, "type", "--grad-clip") if self.grad_clip else None,
            "device": self.device,
            "precision": self.precision,
            "to_static": self.to_static or None,
            "on_divergence": self.on_divergence,
            "max_runtime_s": self.max_runtime,
            "name": self.name,
            "tags": dict(pair(tag, "--tag") for tag in self.tag) if self.tag else None,
        }
        base = _read_spec(self.spec) if self.spec else {}
        return base | {name: value for name, value in given.items() if value is not None}


def _read_spec(place: str) -> dict[str, Any]:
    try:
        text = typer.get_text_stream("stdin").read() if place == "-" else Path(place).expanduser().read_text()
        found = json.loads(text)
    except (OSError, ValueError) as error:
        raise usage(f"{place} cannot be read as JSON: {error}", "--spec") from None
    if not isinstance(found, dict):
        raise usage(f"{place} holds no JSON object", "--spec")
    return found


# --- values ------------------------------------------------------------------------------------------------------------


def pair(text: str, option: str) -> tuple[str, str]:
    """`name=value` in its parts."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise usage(f"{text!r} is not of the form name=value", option)
    return name, value


def parameters(texts: list[str], option: str) -> dict[str, Any]:
    """`momentum=0.5`, `warmup.warmup_steps=100`: a value is JSON or else a word; a dot leads into an object."""
    found: dict[str, Any] = {}
    for text in texts:
        name, value = pair(text, option)
        *path, last = name.split(".")
        place = found
        for part in path:
            place = place.setdefault(part, {})
        try:
            place[last] = json.loads(value)
        except ValueError:
            place[last] = value
    return found


def unknown(name: str, names: Iterable[str]) -> str:
    """What to say after the sentence that a name is none of these."""
    from core.catalogue import nearest

    hint = nearest(name, tuple(names))
    return f"{f'; did you mean {hint}?' if hint else '.'} Allowed: {', '.join(names)}."


def chosen(text: str, tag: str, option: str) -> dict[str, Any]:
    """`adam:beta1=0.8:amsgrad=true`, or `adam` alone, as an object; `tag` is the field of the name."""
    name, *rest = text.split(":")
    return {tag: name, **parameters(rest, option)}


def rate(text: str, option: str) -> float | dict[str, Any]:
    """A learning rate: a number, or a schedule as `step_decay:initial=0.1:step_size=1:gamma=0.5`."""
    from core.catalogue import SCHEDULES

    try:
        value = float(text)
    except ValueError:
        name = text.partition(":")[0]
        if name in SCHEDULES:
            return chosen(text, "schedule", option)
        schedules = unknown(name, SCHEDULES)
        raise usage(f"{name!r} is neither a number nor a schedule{schedules}", option) from None
    if not math.isfinite(value):
        raise usage("a rate is finite and above 0", option)
    return value


def listed(text: str) -> list[str]:
    """A list with commas; those within brackets belong to a value."""
    items, depth = [""], 0
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and not depth:
            items.append("")
        else:
            items[-1] += letter
    return [item.strip() for item in items if item.strip()]
