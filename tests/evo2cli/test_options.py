"""Options are declared once: the command line, the constructor and `arguments` agree."""

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Annotated, ClassVar, get_args

import pytest
import typer
from typer.testing import CliRunner

from evo2cli.errors import UserError
from evo2cli.options import Command, Options, arguments, takes


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, kw_only=True)
class Shared(Options, panel="Shared"):
    size: Annotated[int | None, typer.Option(min=2, max=9, help="Its size.")] = None
    share: Annotated[float, typer.Option(min=0, max=1, help="Its share.")] = 0.5


@dataclass(frozen=True, kw_only=True)
class Painting(Shared, panel="Painting"):
    subject: Annotated[Path, typer.Argument(help="What is painted.")]
    colour: Annotated[Colour, typer.Option("--paint", help="Of which colour.")] = Colour.RED
    words: Annotated[tuple[str, ...], typer.Option(help="Written on it.")] = ()
    framed: Annotated[bool, typer.Option("--framed", help="With a frame.")] = False


class Moved(Command):
    moved: ClassVar[dict[str, str]] = {"--tint": "use --paint"}


def painted(*words: str) -> Painting:
    """What a command hears of `words`."""
    heard = []

    @takes(Painting)
    def paint(options: Painting) -> None:
        """Paint."""
        heard.append(options)

    app = typer.Typer()
    app.command(cls=Moved)(paint)
    result = CliRunner().invoke(app, words, env={"COLUMNS": "120"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return heard[0] if heard else result.output


FULL = Painting(
    subject=Path("a b"), colour=Colour.BLUE, words=("x", "y"), framed=True, size=3, share=0.25
)


def test_the_command_line_gives_what_the_constructor_gives() -> None:
    words = ["a b", "--paint", "blue", "--words", "x", "--words", "y", "--framed"]
    assert painted(*words, "--size", "3", "--share", "0.25") == FULL
    assert painted("a b") == Painting(subject=Path("a b"))


@pytest.mark.parametrize("options", [FULL, Painting(subject=Path("c"))], ids=["full", "bare"])
def test_arguments_are_the_way_back(options: Painting) -> None:
    assert painted(*arguments(options)) == options


def test_text_and_lists_are_taken_from_python() -> None:
    options = Painting(subject="a", colour="blue", words=["x"])  # type: ignore[arg-type]
    assert options == Painting(subject=Path("a"), colour=Colour.BLUE, words=("x",))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": 1}, "--size 1: must be at least 2"),
        ({"size": 10}, "--size 10: must be at most 9"),
        ({"size": 10**22}, f"--size 1{'0' * 22}: must be at most {2**63 - 1}"),
        ({"size": "8k"}, "--size '8k': must be a whole number"),
        ({"size": 2.5}, "--size 2.5: must be a whole number"),
        ({"share": "half"}, "--share 'half': must be a number"),
        ({"share": float("nan")}, "--share nan: must be at least 0"),
        ({"colour": "green"}, "--paint green: must be one of red, blue"),
    ],
)
def test_values_out_of_range_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        Painting(subject=Path("a"), **values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("generate --prompt ACGT -n 4 -O -", "--output -"),
        ("convert nano -", "DESTINATION -"),
        ("tokenize examples/phix174.fa -o -", "--output -"),
        ("train recipes/toy.toml -O -", "--output -"),
    ],
)
def test_a_dash_is_no_name_of_an_output(
    command_line: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: str,
    named: str,
) -> None:
    root = Path(__file__).parents[2]
    given = [str(root / word) if "/" in word else word for word in words.split()]
    monkeypatch.chdir(tmp_path)
    code, _, stderr = command_line(*given)
    assert code == 2
    assert f"{named}: name a file or folder; a command that can write to stdout does so" in stderr
    assert not list(tmp_path.iterdir())


def test_help_shows_panels_choices_and_no_type_of_a_flag() -> None:
    page = painted("--help")
    assert isinstance(page, str)
    assert {"Painting", "Shared"} <= set(re.findall(r"─ (\w+) ─", page))
    assert re.search(r"--paint +red\|blue ", page)
    assert "bool" not in page.split("Shared")[1]
    for field in fields(Painting):
        if field.name not in ("subject", "colour"):
            assert f"--{field.name}" in page


def test_an_option_is_spelled_as_its_field_whatever_stands_for_its_value() -> None:
    """typer 0.27 took the metavar for the name, so every option says its own."""

    @dataclass(frozen=True, kw_only=True)
    class Named(Options):
        model_name: Annotated[str, typer.Option(metavar="MODEL", help="Its name.")] = "nano"
        size: Annotated[int, typer.Option(help="Its size.")] = 1

    @takes(Named)
    def command(options: Named) -> None:
        """Run."""

    parameters = inspect.signature(command).parameters
    spelled = [get_args(each.annotation)[1].param_decls for each in parameters.values()]
    assert spelled == [("--model-name",), ("--size",)]


def test_an_option_that_moved_says_where_to() -> None:
    with pytest.raises(UserError, match="--tint: use --paint"):
        painted("a", "--tint=blue")
