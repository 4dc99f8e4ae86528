"""Configuration and data files (TOML, yml, JSON): bounded in size and depth, and validated.

All such files are read here, so that any file, however damaged or malicious, gives either a value
of the expected type or a one-line error that names it.
"""

import json
import re
import reprlib
import stat
import tomllib
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BeforeValidator, TypeAdapter, ValidationError

from stripedhyena2.errors import InputError, reason_of

T = TypeVar("T")

# Bytes. For some TOML and yml, tomllib and PyYAML take time quadratic in the size.
MAX_TEXT, MAX_JSON = 1 << 16, 1 << 26
MAX_NESTING = 32  # levels of tables and lists; JSON may have 200
_PARSER_ERRORS = (
    ValueError,
    ArithmeticError,
    LookupError,
    AttributeError,
    TypeError,
    yaml.YAMLError,
)

_NAME_BYTE = re.compile(rb"\\u[dD][cC][89a-fA-F]")

_short = reprlib.Repr()
_short.maxlevel, _short.maxstring, _short.maxother = 2, 80, 80


class _Loader(yaml.SafeLoader):
    """Refuses aliases, with which a small file can expand to any amount of data."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not supported")
        return super().compose_node(parent, index)


def shown(value: object) -> str:
    """The `repr` of a value, shortened for error messages."""
    try:
        return _short.repr(value)
    except ValueError:  # Python prints no integer of more digits
        return "a number of more than 4,300 digits"


def _not_bool(value: T) -> T:
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    return value


Number = BeforeValidator(_not_bool)  # for every numeric key, because pydantic accepts true as 1


def require_regular(path: Path, refuse: type[ValueError] = InputError) -> None:
    """Refuse files that are not regular (links are followed): a pipe or device may never end.

    Raises:
        InputError: Or `refuse`.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:  # ValueError: the name contains NUL
        raise refuse(f"{path}: cannot be read ({reason_of(error)})") from None
    if stat.S_ISDIR(mode):
        raise refuse(f"{path}: is a folder, not a file")
    if not stat.S_ISREG(mode):
        raise refuse(f"{path}: is a pipe or a device, not a file; give a regular file")


def read_values(path: Path, refuse: type[ValueError] = InputError) -> dict[str, Any]:
    """The values of a TOML file, or of a yml file if the suffix says so; keys are text.

    Raises:
        InputError: Or `refuse`: it cannot be read, is too large or too deep, or is not of that
            format.
    """
    is_yml = path.suffix in (".yml", ".yaml")
    form = "yml" if is_yml else "TOML"
    data = _read(path, MAX_TEXT, refuse)
    try:
        text = data.decode()
        values = yaml.load(text, _Loader) if is_yml else tomllib.loads(text)  # noqa: S506 - is safe
    except RecursionError:
        raise refuse(_too_deep(path)) from None
    except _PARSER_ERRORS as error:  # PyYAML lets the errors of its constructors through
        reason = " ".join(str(error).split())[:200]
        raise refuse(f"{path}: not {form} ({reason})") from None
    if not isinstance(values, dict):
        raise refuse(f"{path}: not a mapping of keys to values, but {shown(values)}")
    for key in values:
        if not isinstance(key, str):
            raise refuse(f"{path}: the key {shown(key)} is not text")
    if _is_deep(values):
        raise refuse(_too_deep(path))
    return values


def read_json(path: Path, schema: TypeAdapter[T], refuse: type[ValueError] = InputError) -> T:
    """The value of a JSON file, checked against a schema.

    Raises:
        InputError: Or `refuse`: it cannot be read, is too large or too deep, or does not match.
    """
    data = _read(path, MAX_JSON, refuse)
    try:
        value = _with_names(data)
        return schema.validate_json(data) if value is None else schema.validate_python(value)
    except ValidationError as error:
        raise refuse(f"{path}: {fault(error)}") from None


def _with_names(data: bytes) -> Any:
    """The value of JSON with file names that are not UTF-8, which pydantic cannot parse.

    Python writes a byte of such a name as a lone surrogate. None for any other JSON.
    """
    if not _NAME_BYTE.search(data):
        return None
    try:
        value = json.loads(data)
        json.dumps(value, ensure_ascii=False).encode(errors="surrogateescape")  # names, no others
    except (ValueError, RecursionError):
        return None
    return value


def fault(error: ValidationError) -> str:
    """The first error of a validation as one line: the key, its value and the reason."""
    first = error.errors(include_url=False, include_context=False)[0]
    key = ".".join(map(str, first["loc"]))[:200] or "its content"
    if first["type"] == "missing":
        return f"the key {key!r} is missing"
    message = first["msg"].removeprefix("Value error, ").replace("Input should", "must")
    message = message[:1].lower() + message[1:]
    if first["type"] == "json_invalid" or (
        first["type"] == "value_error" and isinstance(first["input"], dict)
    ):
        # The value is a whole file or table, and the message names what it is about.
        return f"{key}: {message}" if first["loc"] else message
    return f"{key} = {shown(first['input'])}: {message}"


def _read(path: Path, limit: int, refuse: type[ValueError]) -> bytes:
    require_regular(path, refuse)
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise refuse(f"{path}: cannot be read ({reason_of(error)})") from None
    if len(data) > limit:
        raise refuse(f"{path}: larger than {limit:,} bytes, so it is not a file of this kind")
    return data


def _too_deep(path: Path) -> str:
    return f"{path}: tables or lists are nested more than {MAX_NESTING} deep"


def _is_deep(values: object) -> bool:
    level = [values]
    for _ in range(MAX_NESTING):
        level = [inner for value in level for inner in _inside(value)]
    return bool(level)


def _inside(value: object) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []
