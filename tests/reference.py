"""Writes docs/reference.md: settings, commands, optimizers, problems, routes, metrics, as the code has them, for `make docs`.

A test compares the file with what this would write, so the file cannot say anything else than the code.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import fields
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from typer.main import get_group

from api.app import create_app
from api.catalogue import Choice, OptimizerChoice, Parameter, choices
from api.metrics import Metrics
from api.problem_pages import ABOUT
from client import cli, exits
from core.jobs.measures import Measures
from core.settings import Settings
from tests.conftest import ROOT

TARGET = ROOT / "docs" / "reference.md"
HEAD = """# Reference

Written from the code by `make docs`; what it means is told in the other documents and in the README.
"""


def main() -> None:
    TARGET.write_text(reference(), "utf-8")


def reference() -> str:
    """The whole text."""
    sections = {
        "Settings": _settings(),
        "Commands": _commands(),
        "Routes": _routes(),
        "Problems": _problems(),
        "Optimizers": _choices(choices().optimizers),
        "Learning-rate schedules": _choices(choices().schedules),
        "Gradient clips": _choices(choices().clips),
        "Metrics": _metrics(),
    }
    return HEAD + "".join(f"\n## {title}\n{text}\n" for title, text in sections.items())


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(each) for each in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _code(value: Any) -> str:
    return f"`{value}`"


def _settings() -> str:
    """Every environment variable, with its default and its bounds."""
    properties, prefix = Settings.model_json_schema()["properties"], Settings.model_config["env_prefix"]
    rows = []
    for name, field in Settings.model_fields.items():
        default = field.get_default()
        shown = "" if default is None else _code(json.dumps(default) if isinstance(default, bool) else default)
        if name == "home":
            shown = _code(".descent")  # the default is made absolute where the server runs
        rows.append([_code(f"{prefix}{name.upper()}"), shown, _bounds(properties[name]), field.description or ""])
    return "\nEnvironment variables.\n\n" + _table(["variable", "default", "allowed", "what it is"], rows)


def _bounds(schema: dict[str, Any]) -> str:
    """What a JSON schema allows, in a few words."""
    parts = [part for part in schema.get("anyOf", [schema]) if part.get("type") != "null"]
    return " or ".join(dict.fromkeys(filter(None, map(_bounds_of, parts))))


def _bounds_of(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return ", ".join(_code(each) for each in schema["enum"])
    if schema.get("type") == "array":
        return f"a list: {_bounds(schema['items'])}"
    if "properties" in schema:
        inner = schema["properties"].items()
        return "an object: " + ", ".join(f"{_code(name)} {_bounds(each)}".strip() for name, each in inner)
    if schema.get("type") == "boolean":
        return "`true`, `false`"
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = ", ".join(f"{sign} {_number(schema[key])}" for key, sign in signs.items() if key in schema)
    if schema.get("type") in ("integer", "number"):
        return f"{'whole number' if schema['type'] == 'integer' else 'number'} {bounds}".strip()
    return _code(schema["pattern"]) if "pattern" in schema else bounds


def _number(value: float) -> str:
    return f"{value:g}" if abs(value) >= 1e6 else str(value)


def _commands() -> str:
    """Every command of `descent` with its own options, and the exit codes."""
    parts = ["\n`descent COMMAND --help` shows the same."]
    for name, command in _leaves(get_group(cli.app), "descent"):
        rows = [
            [_code(", ".join(each.opts) if each.param_type_name == "option" else each.metavar or each.name), each.help]
            for each in command.params
            if each.name not in ("help", "install_completion", "show_completion")
        ]
        text = " ".join((command.help or "").split())
        parts.append(f"\n### `{name}`\n{text}" + (f"\n\n{_table(['option', 'what it is'], rows)}" if rows else ""))
    codes = [[_code(int(code)), meaning] for code, meaning in exits.MEANINGS.items()]
    return "\n".join([*parts, f"\n### Exit codes\n\n{_table(['code', 'meaning'], codes)}"])


def _leaves(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """The commands below a group, with all of their words."""
    below = getattr(command, "commands", None)
    if below is None:
        yield name, command
    for word, each in (below or {}).items():
        yield from _leaves(each, f"{name} {word}")


def _routes() -> str:
    """Every route of the OpenAPI document, which the server shows at `/docs`."""
    paths = create_app(Settings()).openapi()["paths"]
    rows = [
        [_code(f"{method.upper()} {path}"), about.get("summary", "")]
        for path, operations in paths.items()
        for method, about in operations.items()
    ]
    return "\nWith their fields they are at `/docs` of a running server.\n\n" + _table(["route", "what it does"], rows)


def _problems() -> str:
    rows = [[_code(code), str(about.status), about.en] for code, about in sorted(ABOUT.items(), key=_by_status)]
    text = "The `code` of a refusal. Its `type` is a page of the server, `/problems/<code>`, in English and Chinese."
    return f"\n{text}\n\n" + _table(["code", "status", "what it means, and what to do"], rows)


def _by_status(item: tuple[str, Any]) -> tuple[int, str]:
    code, about = item
    return about.status, code


def _choices(several: Iterable[Choice]) -> str:
    parts = []
    for choice in several:
        lesson = " One of the lesson's." if isinstance(choice, OptimizerChoice) and choice.lesson else ""
        rows = [[_code(each.name), _default(each), _bounds(each.schema_)] for each in choice.parameters]
        table = f"\n\n{_table(['parameter', 'default', 'allowed'], rows)}" if rows else ""
        parts.append(f"\n### `{choice.name}`\n{choice.summary.en}{lesson}{table}")
    return "\n".join(parts)


def _default(parameter: Parameter) -> str:
    if parameter.required:
        return "required"
    return "" if parameter.default is None else _code(json.dumps(parameter.default))


def _metrics() -> str:
    rows = [[_code(name), kind, text] for name, kind, text in _families()]
    return "\n`GET /metrics`, beside those of the process.\n\n" + _table(["metric", "kind", "what it is"], rows)


def _families() -> Iterator[tuple[str, str, str]]:
    text, _ = Metrics().expose(_anything(), "")
    for family in text_string_to_metric_families(text.decode()):
        if family.name.startswith("descent_"):
            name = f"{family.name}_total" if family.type == "counter" else family.name
            yield f"{name}_info" if family.type == "info" else name, family.type, family.documentation


def _anything() -> Measures:
    """Of a store in which there is something of everything."""
    one_of_each: dict[str, Any] = {field.name: {} if "dict" in str(field.type) else 0 for field in fields(Measures)}
    return Measures(**one_of_each)


if __name__ == "__main__":
    main()
