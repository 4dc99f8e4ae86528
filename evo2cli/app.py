"""The `evo2` command: every subcommand joined, and every error turned into one line and a code."""

import sys
from typing import Annotated

import typer

from evo2cli import __version__, console
from evo2cli.commands import (
    convert,
    doctor,
    embed,
    extend,
    fetch,
    generate,
    info,
    launch,
    merge,
    plan,
    score,
    tokenize,
    train,
)
from evo2cli.commands import eval as evaluations
from evo2cli.errors import UserError

app = typer.Typer(
    name="evo2",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(asked: bool) -> None:
    if asked:
        console.write(f"evo2cli {__version__}\n")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show it.")
    ] = False,
) -> None:
    """Evo 2 genomic language models: tokenize, train, score, generate, convert."""


app.command(cls=tokenize.Tokenize)(tokenize.tokenize)
app.command()(plan.plan)
app.command()(train.train)
app.command()(launch.launch)
app.command()(extend.extend)
app.add_typer(evaluations.app, name="eval")
app.command()(score.score)
app.command()(merge.merge)
app.command()(embed.embed)
app.command()(generate.generate)
app.command()(fetch.fetch)
app.command()(convert.convert)
app.command()(info.info)
app.command()(doctor.doctor)


def main() -> None:
    """Run the command line; a `UserError` becomes one line on stderr and its exit code."""
    console.tell_warnings()
    try:
        app()
    except UserError as error:
        console.say(str(error))
        sys.exit(error.exit_code)
    except (MemoryError, RuntimeError) as error:
        # PyTorch is imported once a command is at work, and not before.
        from stripedhyena2.memory import is_out_of_memory, out_of_memory

        if not is_out_of_memory(error):
            raise
        console.say(f"{out_of_memory(error)}; less at a time, or --device cpu")
        sys.exit(UserError.exit_code)
    except BrokenPipeError:
        # The reader of our stdout (head, less) has gone: nothing is left to say to it.
        sys.stderr.close()
        sys.exit(0)
    except KeyboardInterrupt:
        console.say("interrupted")
        sys.exit(130)
