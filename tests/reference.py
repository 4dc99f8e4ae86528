"""docs/commands.md from the options themselves; `python -m tests.reference` writes it."""

import inspect
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import typer
from typer.models import ArgumentInfo

from evo2cli.app import app

PAGE = Path(__file__).parents[1] / "docs" / "commands.md"
OPENING = """\
# Commands

Every command with its arguments and options; `--help` shows the same. `python -m tests.reference`
writes this page from the declarations of the options.
"""


def reference() -> str:
    """The page."""
    return OPENING + "".join(f"\n{section}" for section in _sections(app, "evo2"))


def commands(group: typer.Typer, path: str) -> Iterator[tuple[str, Callable[..., None]]]:
    """The words that call a command, and its function."""
    for command in group.registered_commands:
        if command.callback is not None and not command.hidden:
            name = command.name or command.callback.__name__.replace("_", "-")
            yield f"{path} {name}", command.callback
    for inner in group.registered_groups:
        if inner.typer_instance is not None:
            yield from commands(inner.typer_instance, f"{path} {inner.name}")


def _sections(group: typer.Typer, path: str) -> Iterator[str]:
    for words, function in commands(group, path):
        yield _section(words, function)


def _section(words: str, function: Callable[..., None]) -> str:
    panels: dict[str, list[str]] = {}
    arguments = []
    for parameter in inspect.signature(function).parameters.values():
        info = parameter.annotation.__metadata__[0]
        if info.hidden:
            continue
        if isinstance(info, ArgumentInfo):
            arguments.append(info.metavar or parameter.name.upper())
        panel = info.rich_help_panel or ""
        panels.setdefault(panel, []).append(_row(parameter, info))
    lines = [f"## {words}", "", f"`{' '.join([words, *arguments, '[OPTIONS]'])}`", ""]
    lines += [inspect.cleandoc(function.__doc__ or ""), ""]
    for panel, rows in panels.items():
        lines += [f"**{panel}**", ""] if panel else []
        lines += ["| option | value | default | |", "|---|---|---|---|", *rows, ""]
    return "\n".join(lines)


def _row(parameter: inspect.Parameter, info: Any) -> str:
    text = " ".join((info.help or "").replace("|", "\\|").split())
    spelling, value = _spelling(parameter, info), _value(parameter, info)
    return f"| `{spelling}` | {value} | {_default(parameter, info)} | {text} |"


def _spelling(parameter: inspect.Parameter, info: Any) -> str:
    if isinstance(info, ArgumentInfo):
        return info.metavar or parameter.name.upper()
    declared = [info.default, *(info.param_decls or ())]
    spellings = [word for word in declared if isinstance(word, str)]
    return ", ".join(spellings or [f"--{parameter.name.replace('_', '-')}"])


def _value(parameter: inspect.Parameter, info: Any) -> str:
    """The choices, or what stands for a value, and its range."""
    if isinstance(info, ArgumentInfo):
        return ""
    kinds = parameter.annotation.__args__[0]
    for kind in [kinds, *getattr(kinds, "__args__", ())]:
        if isinstance(kind, type) and issubclass(kind, Enum):
            return ", ".join(f"`{choice.value}`" for choice in kind)
    bounds = [f"at least {info.min:,.10g}"] if info.min is not None else []
    bounds += [f"at most {info.max:,.10g}"] if info.max is not None else []
    return ", ".join([*filter(None, [(info.metavar or "").replace("|", "\\|")]), *bounds])


def _default(parameter: inspect.Parameter, info: Any) -> str:
    if isinstance(info.show_default, str):
        return info.show_default
    default = parameter.default
    if default is inspect.Parameter.empty:
        return "required"
    if default is None or default is False:
        return ""
    return f"`{getattr(default, 'value', default)}`"


if __name__ == "__main__":
    PAGE.write_text(reference())
