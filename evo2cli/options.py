"""Declare the options of commands, each in one place.

The options of a command are the fields of a frozen dataclass. The annotation of a field holds the
help text, range and choices of the option; the default of the field is the default of the option.
`takes` turns the dataclass into the command line, its constructor is the Python call, and
docs/commands.md is written from it::

    @dataclass(frozen=True, kw_only=True)
    class PlanOptions(Options, panel="Plan"):
        gpus: Annotated[int | None, typer.Option(min=1, help="Number of GPUs.")] = None


    @takes(PlanOptions)
    def plan(options: PlanOptions) -> None:
        "Estimate memory, time and cost of a recipe without running it."

Option classes can inherit from each other, so that an option shared by several commands is still
declared once; each class may name a panel of the help page, and inherited fields that its command
line leaves out. Nothing here imports torch.
"""

import inspect
import re
import sys
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import MISSING, Field, dataclass, fields
from enum import Enum, StrEnum
from functools import wraps
from numbers import Integral, Real
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, ClassVar, TypeVar, Union, get_args, get_origin, get_type_hints

import typer
from typer.models import ArgumentInfo, OptionInfo

from evo2cli.errors import UserError

T = TypeVar("T", bound="Options")
_NUMBERS = {int: (Integral, "a whole number"), float: (Real, "a number")}
_DASH, _OUTPUTS = Path("-"), ("--output", "DESTINATION")  # `-` means stdin, and is no output


@dataclass(frozen=True, kw_only=True)
class Options:
    """Base class of command options; validates every field against its declaration.

    Text is converted to a path or a choice, a path to text, and any sequence to a tuple.

    Raises:
        UserError: A value is not one of the choices, not a number, or outside its range.
    """

    panel: ClassVar[str | None] = None
    without: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, panel: str | None = None, without: tuple[str, ...] = ()) -> None:
        cls.panel, cls.without = panel, without

    def __post_init__(self) -> None:
        for name, declaration in _declarations(type(self)).items():
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, declaration.checked(value))


@dataclass(frozen=True)
class _Declaration:
    """The declaration of an option, from the annotation of its field.

    Attributes:
        kind: Type of the value, or of the entries of a tuple.
        is_tuple: Whether the option can be repeated.
        info: Typer's description of the option or argument.
        flag: Its long option, e.g. "--model", or the metavar of an argument.
    """

    kind: Any
    is_tuple: bool
    info: OptionInfo | ArgumentInfo
    flag: str

    def checked(self, value: Any) -> Any:
        """Convert the value to its type, and check its range."""
        if self.is_tuple:
            return tuple(self._checked_entry(entry) for entry in value)
        return self._checked_entry(value)

    def _checked_entry(self, value: Any) -> Any:
        if isinstance(self.kind, type) and issubclass(self.kind, Enum):
            try:
                return self.kind(value)
            except ValueError:
                choices = ", ".join(str(choice.value) for choice in self.kind)
                raise UserError(f"{self.flag} {value}: must be one of {choices}") from None
        if self.kind is Path:
            path = Path(value)
            if path == _DASH and self.flag in _OUTPUTS:
                raise UserError(
                    f"{self.flag} -: name a file or folder; a command that can write to stdout "
                    f"does so without {self.flag}"
                )
            return path
        if self.kind is str and isinstance(value, Path):
            return str(value)
        if self.kind in _NUMBERS and not isinstance(value, _NUMBERS[self.kind][0]):
            raise UserError(f"{self.flag} {value!r}: must be {_NUMBERS[self.kind][1]}")
        if self.kind is int and abs(value) > sys.maxsize:
            raise UserError(f"{self.flag} {value}: must be at most {sys.maxsize}")
        # `not a <= b` is true for NaN, too.
        if self.info.min is not None and not self.info.min <= value:
            raise UserError(f"{self.flag} {value}: must be at least {self.info.min}")
        if self.info.max is not None and not value <= self.info.max:
            raise UserError(f"{self.flag} {value}: must be at most {self.info.max}")
        return value


def _declarations(options: type[Options]) -> dict[str, _Declaration]:
    """The declarations of all fields that are on the command line, by name."""
    hints = get_type_hints(options, include_extras=True)
    return {
        field.name: _declaration(field.name, *get_args(hints[field.name]))
        for field in fields(options)
        if field.name not in options.without
    }


def _declaration(name: str, annotation: Any, info: OptionInfo | ArgumentInfo) -> _Declaration:
    kinds = [annotation]
    if get_origin(annotation) in (Union, UnionType):
        kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
    is_tuple = get_origin(kinds[0]) is tuple
    kind = get_args(kinds[0])[0] if is_tuple else kinds[0]
    if isinstance(info, ArgumentInfo):
        return _Declaration(kind, is_tuple, info, info.metavar or name.upper())
    spellings = [info.default, *(info.param_decls or ())]
    long = [s for s in spellings if isinstance(s, str) and s.startswith("--")]
    return _Declaration(kind, is_tuple, info, [*long, f"--{name.replace('_', '-')}"][0])


def flag(options: type[Options], name: str) -> str:
    """The command-line flag of the field `name` of `options`."""
    return _declarations(options)[name].flag


def takes(options: type[T]) -> Callable[[Callable[[T], None]], Callable[..., None]]:
    """Decorate a command that takes `options`: their fields become its command line."""

    def decorate(command: Callable[[T], None]) -> Callable[..., None]:
        @wraps(command)
        def run(**values: Any) -> None:
            command(options(**{k: v for k, v in values.items() if v is not None}))

        declarations = _declarations(options)
        parameters = [
            _parameter(options, field, declarations[field.name])
            for field in fields(options)
            if field.name in declarations
        ]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        # Join the lines of a paragraph: help pages wrap them to the terminal.
        run.__doc__ = re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.cleandoc(command.__doc__ or ""))
        return run

    return decorate


_METAVARS = {bool: "", int: "N", float: "NUMBER", str: "TEXT", Path: "FILE"}


def _parameter(
    options: type[Options], field: "Field[Any]", declaration: _Declaration
) -> inspect.Parameter:
    """The parameter from which Typer creates an option or an argument."""
    info, kind = copy(declaration.info), declaration.kind
    declared_by = next(cls for cls in options.__mro__ if field.name in inspect.get_annotations(cls))
    assert issubclass(declared_by, Options)
    info.rich_help_panel = info.rich_help_panel or declared_by.panel
    default = inspect.Parameter.empty if field.default is MISSING else field.default
    if isinstance(info, ArgumentInfo):
        info.metavar = declaration.flag
    else:
        if info.metavar is None:
            info.metavar = "|".join(kind) if issubclass(kind, StrEnum) else _METAVARS.get(kind)
        if kind is not bool and info.default is ... and not info.param_decls:
            info.param_decls = (declaration.flag,)  # else typer 0.27 may name it after its metavar
    if declaration.is_tuple:
        kind = list[kind]  # type: ignore[valid-type]
        default = None if default == () else default
    if default is None:
        kind = kind | None
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[kind, info],
    )


class Command(typer.core.TyperCommand):
    """A command whose help page shows no type for flags.

    Attributes:
        moved: Maps former options, e.g. "--track", to what to use instead.
    """

    moved: ClassVar[Mapping[str, str]] = {}

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse options that have moved, then parse.

        Raises:
            UserError: An option has moved; the message says what to use instead.
        """
        for argument in args:
            option = argument.partition("=")[0]
            if option in self.moved:
                raise UserError(f"{ctx.command_path} {option}: {self.moved[option]}")
        return super().parse_args(ctx, args)

    def get_params(self, ctx: Any) -> list[Any]:
        """As in Typer, without types of flags."""
        return _without_types(super().get_params(ctx))


class Group(typer.core.TyperGroup):
    """A group of commands whose help page shows no type for flags."""

    def get_params(self, ctx: Any) -> list[Any]:
        """As in Typer, without types of flags."""
        return _without_types(super().get_params(ctx))


def _without_types(parameters: list[Any]) -> list[Any]:
    for parameter in parameters:
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""
    return parameters


def arguments(options: Options, of: type[Options] | None = None) -> list[str]:
    """The command-line arguments that are equivalent to `options`, to start another process.

    Positional arguments come first; options at their defaults are left out.

    Args:
        options: The options.
        of: A base class of theirs, to include only its options.
    """
    positional: list[str] = []
    words: list[str] = []
    declarations = _declarations(type(options))
    for field in fields(of or options):
        value, declaration = getattr(options, field.name), declarations.get(field.name)
        if declaration is None or value == field.default:
            continue
        entries = value if declaration.is_tuple else [value]
        if isinstance(declaration.info, ArgumentInfo):
            positional += map(str, entries)
        elif value is True:
            words.append(declaration.flag)
        else:
            words += [word for entry in entries for word in (declaration.flag, str(entry))]
    return [*positional, *words]


def shared(options: Options, other: type[T], **values: Any) -> T:
    """Create the options of another command, copying the fields that both have.

    Args:
        options: Options to copy from.
        other: Option class of the other command.
        values: Fields of `other` to set to other values.
    """
    names = {field.name for field in fields(options)}
    common = {f.name: getattr(options, f.name) for f in fields(other) if f.name in names}
    return other(**{**common, **values})


def given(options: Options, *groups: type[Options]) -> list[str]:
    """Flags of the options that are not at their defaults.

    Args:
        options: Options of a command.
        groups: Base classes of theirs; only their fields are considered.
    """
    return [
        flag(group, field.name)
        for group in groups
        for field in fields(group)
        if getattr(options, field.name) != field.default
    ]


def refuse(options: Options, why: str, *groups: type[Options]) -> None:
    """Refuse options that do not apply.

    Args:
        options: Options of a command.
        why: Begins the message, e.g. "x.toml: a recipe says this itself".
        groups: Base classes whose options are refused, as in `given`.

    Raises:
        UserError: The message lists the options that were given.
    """
    if flags := given(options, *groups):
        raise UserError(f"{why}; drop {' and '.join(flags)}")


class Strand(StrEnum):
    """The strand to read; BOTH averages the two."""

    FORWARD = "fwd"
    REVERSE = "rc"
    BOTH = "both"

    @property
    def single(self) -> "tuple[Strand, ...]":
        """The strands to read, one by one."""
        return (Strand.FORWARD, Strand.REVERSE) if self is Strand.BOTH else (self,)


class DType(StrEnum):
    """Precision of weights and activations."""

    AUTO = "auto"
    FP8 = "fp8"
    BF16 = "bf16"
    FP32 = "fp32"
    FP64 = "fp64"


@dataclass(frozen=True, kw_only=True)
class JSONOptions(Options):
    """JSON output."""

    json: Annotated[bool, typer.Option("--json", help="Write JSON to stdout.")] = False


@dataclass(frozen=True, kw_only=True)
class DeviceOptions(Options, panel="Model"):
    """The device."""

    device: Annotated[
        str, typer.Option(metavar="DEVICE", help="auto, cpu, cuda, or one GPU such as cuda:1.")
    ] = "auto"


@dataclass(frozen=True, kw_only=True)
class ConfigOptions(Options, panel="Model"):
    """The shape of a model whose file does not contain it."""

    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Shape of a released model file: its yml, a TOML file, or the name of a "
            "published model.",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class NamedModelOptions(Options, panel="Model"):
    """The model; a class of its own, so that help pages show it first."""

    model: Annotated[
        str,
        typer.Option(
            metavar="MODEL",
            help="Model: a checkpoint folder or file, or the name of a published or built-in "
            "model.",
        ),
    ] = "nano"


@dataclass(frozen=True, kw_only=True)
class ModelOptions(DeviceOptions, ConfigOptions, NamedModelOptions, panel="Model"):
    """The model, its adapter, device and precision."""

    dtype: Annotated[
        DType,
        typer.Option(
            help="Precision. auto: bf16 on a GPU and fp32 on a CPU, with FP8 projections for the "
            "published models that need them (1B, 20B, 40B). fp8: all projections and MLPs "
            "of any model in FP8, one byte per weight."
        ),
    ] = DType.AUTO
    adapter: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Adapter to use with the model: a folder written by evo2 finetune or by peft.",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class DevicesOptions(ModelOptions, panel="Model"):
    """As `ModelOptions`, for a command that can run on several devices."""

    device: Annotated[
        str,
        typer.Option(
            metavar="DEVICE",
            help="auto, cpu, cuda, or one GPU such as cuda:1. To share the work among GPUs: "
            "cuda:0,cuda:1, or all.",
        ),
    ] = "auto"


@dataclass(frozen=True, kw_only=True)
class RegionOptions(Options, panel="Input"):
    """Regions of a genome to use."""

    regions: Annotated[
        tuple[str, ...],
        typer.Option(
            metavar="REGION",
            help="Use only this region: chr, chr:from or chr:from-to, 1-based, both ends "
            "included; repeatable.",
        ),
    ] = ()
    bed: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Use only the intervals of this BED file.")
    ] = None


@dataclass(frozen=True, kw_only=True)
class TagOptions(Options, panel="Input"):
    """A lineage tag to prepend to every sequence."""

    tag: Annotated[
        str | None,
        typer.Option(
            metavar="LINEAGE",
            help="Lineage tag to read before every sequence, which is not itself scored or "
            "embedded: 'd__Bacteria;p__...;s__...'. A record may also start with its own "
            "tag: |D__BACTERIA;...|.",
        ),
    ] = None
