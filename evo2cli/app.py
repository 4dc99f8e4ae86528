"""The `evo2` app: registers all commands, and turns errors into one line and an exit code."""

import sys
from typing import Annotated, Any

import typer

from evo2cli import __version__, console
from evo2cli.commands import (
    convert,
    doctor,
    embed,
    extend,
    fetch,
    finetune,
    generate,
    info,
    launch,
    merge,
    merge_adapter,
    plan,
    predict,
    report,
    saturate,
    score,
    serve,
    tokenize,
    track,
    train,
)
from evo2cli.commands import eval as evaluations
from evo2cli.errors import UserError, explain
from evo2cli.options import Command, Group
from evo2cli.processes import INTERRUPTED, end_interrupted

app = typer.Typer(
    name="evo2",
    cls=Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(requested: bool) -> None:
    if requested:
        console.write(f"evo2cli {__version__}\n")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Evo 2 genomic language models: tokenize, train, score, generate, convert."""


_USE, _TRAIN, _FILES = "Use a model", "Train a model", "Models, files and this machine"

app.command(cls=score.Score, rich_help_panel=_USE)(score.score)
app.command(cls=Command, rich_help_panel=_USE)(saturate.saturate)
app.command(cls=Command, rich_help_panel=_USE)(track.track)
app.command(cls=Command, rich_help_panel=_USE)(merge.merge)
app.command(cls=Command, rich_help_panel=_USE)(report.report)
app.command(cls=Command, rich_help_panel=_USE)(embed.embed)
app.command(cls=Command, rich_help_panel=_USE)(generate.generate)
app.command(cls=Command, rich_help_panel=_USE)(predict.predict)
app.command(cls=Command, rich_help_panel=_USE)(serve.serve)
app.add_typer(evaluations.app, name="eval", rich_help_panel=_USE)
app.command(cls=tokenize.Tokenize, rich_help_panel=_TRAIN)(tokenize.tokenize)
app.command(cls=Command, rich_help_panel=_TRAIN)(plan.plan)
app.command(cls=Command, rich_help_panel=_TRAIN)(train.train)
app.command(cls=Command, rich_help_panel=_TRAIN)(finetune.finetune)
app.command(cls=Command, rich_help_panel=_TRAIN)(launch.launch)
app.command(cls=Command, rich_help_panel=_TRAIN)(extend.extend)
app.command(cls=Command, rich_help_panel=_FILES)(fetch.fetch)
app.command(cls=Command, rich_help_panel=_FILES)(convert.convert)
app.command(cls=Command, rich_help_panel=_FILES)(merge_adapter.merge_adapter)
app.command(cls=Command, rich_help_panel=_FILES)(info.info)
app.command(cls=Command, rich_help_panel=_FILES)(doctor.doctor)


# The base class of Typer's errors about the command line; it has no public name.
_UsageError: Any = typer.BadParameter.__base__


def main() -> None:
    """Run the command line; turns errors into one line on stderr and an exit code."""
    console.show_warnings()
    console.replace_closed_streams()
    console.never_fail_encoding()
    try:
        code = _run()
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit) as error:
        # Typer turns a BrokenPipeError of a running command into a SystemExit.
        if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
            raise
        code = 0  # the reader of our stdout (head, less) has closed it
        console.discard_stdout()
    except OSError as error:
        console.discard_stdout()
        console.say(f"{error.filename or 'stdout'}: {error.strerror or 'is closed'}")
        code = UserError.exit_code
    sys.exit(code)


def _with_value(error: Any) -> str:
    """The message of a usage error, with the value that Typer leaves out."""
    from pydantic import ValidationError

    message = " ".join(error.format_message().split()).rstrip(".")
    if not isinstance(error.__cause__, ValidationError):
        return message
    value, reason = (error.__cause__.errors()[0][key] for key in ("input", "msg"))
    reason = reason.removeprefix("Value error, ").replace("Input should", "must").rstrip(".")
    return f"{error.param.opts[0]} {value}: {reason}"


def _run() -> int:
    """Run a command and return its exit code."""
    try:
        code = app(prog_name="evo2", standalone_mode=False)
    except _UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()
        else:
            message = _with_value(error)
            command = error.ctx.command_path if error.ctx else "evo2"
            console.say(f"{message}; see `{command} --help`")
        return UserError.exit_code
    except typer.Abort:
        code = INTERRUPTED
    except (ValueError, ArithmeticError, MemoryError, RuntimeError) as error:
        explained = explain(error)
        if explained is None:
            raise
        line, code = explained
        console.say(line)
        return code
    if code == INTERRUPTED:  # Typer's exit code after Ctrl-C, too
        end_interrupted()
    return code if isinstance(code, int) else 0
