"""`evo2 info`."""

from pathlib import Path
from typing import Annotated

import typer

from evo2cli import console


def info(
    subject: Annotated[
        str,
        typer.Argument(
            help="A model (folder, file, name), a recipe, a token folder, a FASTA or variants."
        ),
    ],
    config: Annotated[
        Path | None, typer.Option(help="Shape of a released file: its yml or TOML.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="As JSON on stdout.")] = False,
) -> None:
    """Show what a model, a recipe, tokens, a FASTA or a file of variants hold."""
    from evo2cli.info import describe, stripe_colours

    description = describe(subject, config=config)
    if json:
        console.write_json(description)
    else:
        console.write_description(description, stripe_colours())
