"""`evo2 info`."""

from dataclasses import dataclass
from typing import Annotated

import typer

from evo2cli import console
from evo2cli.options import ConfigOptions, JSONOptions, takes


@dataclass(frozen=True, kw_only=True)
class InfoOptions(JSONOptions, ConfigOptions):
    """Options of `evo2 info`."""

    subject: Annotated[
        str,
        typer.Argument(
            help="A model (folder, file or name), a fine-tuning run, a recipe, a token set, a "
            "FASTA file, or a file of variants."
        ),
    ]


@takes(InfoOptions)
def info(options: InfoOptions) -> None:
    """Describe a model, a fine-tuning run, a recipe, a token set, FASTA or variants."""
    from evo2cli.info import describe, stripe_colours

    description = describe(options.subject, config=options.config)
    if options.json:
        console.write_json(description)
    else:
        console.write_description(description, stripe_colours())
