"""`evo2 merge-adapter`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from evo2cli import console
from evo2cli.convert.options import Target
from evo2cli.options import JSONOptions, takes


@dataclass(frozen=True, kw_only=True)
class MergeAdapterOptions(JSONOptions):
    """Options of `evo2 merge-adapter`."""

    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="Folder written by evo2 finetune, or of an adapter."),
    ]
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-O",
            help="Checkpoint to write, a folder or a file as for evo2 convert.",
        ),
    ]
    to: Annotated[Target, typer.Option(help="Layout to write, as for evo2 convert.")] = Target.AUTO
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="The base.", show_default="the one of the adapter"),
    ] = None


@takes(MergeAdapterOptions)
def merge_adapter(options: MergeAdapterOptions) -> None:
    """Merge an adapter into the weights of its base, as a checkpoint in any layout of convert."""
    from evo2cli.merge_adapter import merge_adapter as run

    summary = run(options.run, options.output, to=options.to, model=options.model)
    if options.json:
        console.write_json(summary)
    else:
        console.say(f"{summary['destination']}: {summary['base']} with {summary['adapter']}")
