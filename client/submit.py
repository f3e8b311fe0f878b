"""The commands that have a server train something: one job, a sweep, a test that suggests a rate."""

import json
import shlex
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from client import output, watching
from client.connection import connected
from client.exits import usage
from client.options import (
    AsJson,
    OptimizerName,
    Recipe,
    Server,
    Waiting,
    chosen,
    listed,
    parameters,
    rate,
    with_options,
)

app = typer.Typer()

_PANEL = "Training on a server"

Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="A parameter of the optimizer; may be repeated.", metavar="PARAM=VALUE"),
]
Seed = Annotated[int | None, typer.Option(help="Of the initial weights and the order of the images.", show_default="0")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only check it, and print what it would be as JSON.")]


@app.command(rich_help_panel=_PANEL)
@with_options
def submit(
    server: Server,
    waiting: Waiting,
    recipe: Recipe,
    optimizer: OptimizerName = None,
    lr: Annotated[
        str | None,
        typer.Option(
            "--lr",
            "--learning-rate",
            metavar="RATE",
            help="A number, or a schedule: step_decay:initial=0.1:step_size=1:gamma=0.5.",
        ),
    ] = None,
    seed: Seed = None,
    set_: Set = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Train a network: `descent submit --optimizer adam --lr 0.001`. Shows its loss as it falls.

    Ctrl-C leaves the job running, and says how to come back. --json: the job as it ended, or with --no-wait as it began.
    """
    spec = _with_optimizer(recipe.fields(), optimizer, set_)
    spec |= {"learning_rate": rate(lr, "--lr")} if lr is not None else {}
    spec |= {"seed": seed} if seed is not None else {}
    _refuse_infinities(spec)
    with connected(server) as client:
        if dry_run:
            output.emit_json(client.jobs.preview(**spec))
            return
        with watching.may_be_made("job", "descent ls"):
            job = client.jobs.submit(**spec)
        if waiting.no_wait:
            output.emit_json(job.data) if as_json else output.emit(job.id)
            return
        watching.job(client, job, timeout_s=waiting.timeout, as_json=as_json)


def _with_optimizer(spec: dict[str, Any], optimizer: str | None, set_: list[str] | None) -> dict[str, Any]:
    """The request with this optimizer, or its own, and these parameters of it."""
    own = spec.get("optimizer", {})
    found = (
        chosen(optimizer, "name", "--optimizer")
        if optimizer
        else dict(own)
        if isinstance(own, Mapping)
        else {"name": own}
    )
    if set_ and not found:
        raise usage("say of which optimizer: --optimizer NAME", "--set")
    found |= parameters(set_ or [], "--set")
    return spec | ({"optimizer": plain(found)} if found else {})


def _refuse_infinities(spec: dict[str, Any]) -> None:
    """JSON has none, so that the server could not even be asked."""
    try:
        json.dumps(spec, allow_nan=False)
    except ValueError:
        raise usage("a number in this request is not finite") from None


def plain(choice: dict[str, Any]) -> str | dict[str, Any]:
    """An optimizer without parameters by its name alone."""
    return str(choice["name"]) if list(choice) == ["name"] else choice


@app.command(rich_help_panel=_PANEL)
@with_options
def sweep(
    server: Server,
    waiting: Waiting,
    recipe: Recipe,
    lesson: Annotated[
        bool, typer.Option("--lesson", help="The lesson's 15 runs: five optimizers at three rates.")
    ] = False,
    optimizers: Annotated[
        str | None, typer.Option(metavar="NAME,...", help="With commas: sgd,momentum:momentum=0.5,adam.")
    ] = None,
    rates: Annotated[
        str | None, typer.Option(metavar="RATE,...", help="With commas: 0.1,0.01; or a range to draw from: 0.0001..1.")
    ] = None,
    seeds: Annotated[str | None, typer.Option(metavar="SEED,...", help="With commas: 0,1,2.", show_default="0")] = None,
    samples: Annotated[int | None, typer.Option(help="Draw so many combinations at random.")] = None,
    search_seed: Annotated[int | None, typer.Option(help="Fixes what is drawn.")] = None,
    max_concurrent: Annotated[int | None, typer.Option(help="How many may run at a time.")] = None,
    asha: Annotated[bool, typer.Option("--asha", help="Stop hopeless runs early.")] = False,
    target: Annotated[float | None, typer.Option(help="A validation accuracy to reach.", show_default="0.97")] = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Train many: optimizers x rates x seeds. Shows the table, best first."""
    spec = recipe.fields()
    given: dict[str, Any] = {
        "optimizers": [plain(chosen(each, "name", "--optimizers")) for each in listed(optimizers)]
        if optimizers
        else None,
        "learning_rates": _rates(rates) if rates else None,
        "seeds": _seeds(seeds) if seeds else None,
        "samples": samples,
        "strategy": "random" if samples is not None else None,
        "search_seed": search_seed,
        "max_concurrent": max_concurrent,
        "early_stopping": "asha" if asha else None,
        "target_accuracy": target,
    }
    if rates and ".." in rates and samples is None:
        raise usage("a range of rates needs --samples N: so many are drawn from it at random", "--rates")
    if lesson and (optimizers or rates):
        raise usage("the lesson's are five optimizers at three rates; leave out --lesson, or --optimizers and --rates")
    if not (lesson or optimizers or rates or recipe.spec):
        raise usage("say --lesson for the lesson's 15 runs, or give --optimizers, --rates or both")
    spec |= {name: value for name, value in given.items() if value is not None}
    _refuse_infinities(spec)
    with connected(server) as client:
        if dry_run:
            output.emit_json(client.sweeps.preview(**spec))
            return
        with watching.may_be_made("sweep", "descent ls --sweeps"):
            made = client.sweeps.submit(**spec)
        if waiting.no_wait:
            output.emit_json(made.data) if as_json else output.emit(made.id)
            return
        output.tell(f"{made.id}: {made.data['progress']['jobs']} jobs")
        watching.sweep(made, timeout_s=waiting.timeout, as_json=as_json)


def _rates(text: str) -> Any:
    low, dots, high = text.partition("..")
    if dots:
        return {"low": rate(low, "--rates"), "high": rate(high, "--rates")}
    return [rate(each, "--rates") for each in listed(text)]


def _seeds(text: str) -> list[int]:
    try:
        return [int(seed) for seed in listed(text)]
    except ValueError:
        raise usage(f"{text!r} is no list of whole numbers", "--seeds") from None


@app.command("lr-find", rich_help_panel=_PANEL)
@with_options
def lr_find(
    server: Server,
    waiting: Waiting,
    recipe: Recipe,
    optimizer: OptimizerName = None,
    set_: Set = None,
    start: Annotated[float | None, typer.Option(help="The first step's rate.", show_default="1e-6")] = None,
    end: Annotated[float | None, typer.Option(help="The last step's rate.", show_default="10")] = None,
    seed: Seed = None,
    as_json: AsJson = False,
) -> None:
    """Find a learning rate: one short run with a rising rate, its curve, and the rate it suggests (Smith 2015)."""
    spec = _with_optimizer(recipe.fields(), optimizer, set_)
    spec |= {name: value for name, value in {"start": start, "end": end, "seed": seed}.items() if value is not None}
    _refuse_infinities(spec)
    with connected(server) as client:
        with watching.may_be_made("job", "descent ls"):
            test = client.rate_range(**spec)
        if waiting.no_wait:
            output.emit_json(test.data) if as_json else output.emit(test.id)
            return
        watching.range_test(test, timeout_s=waiting.timeout, as_json=as_json)
        suggested = test.suggestion["rate"]
        if suggested and not as_json:
            output.tell(f"Next:\n  descent submit {_same(spec)} --lr {suggested:.2g}")


def _same(spec: Mapping[str, Any]) -> str:
    """The options of what the suggested rate was found with, and depends on."""
    optimizer = spec.get("optimizer", "adam")
    if isinstance(optimizer, Mapping):
        rest = (f"{name}={json.dumps(value)}" for name, value in optimizer.items() if name != "name")
        optimizer = ":".join([optimizer["name"], *rest])
    found = {"--optimizer": optimizer, "--dataset": spec.get("dataset"), "--batch-size": spec.get("batch_size")}
    return " ".join(f"{option} {shlex.quote(str(value))}" for option, value in found.items() if value is not None)
