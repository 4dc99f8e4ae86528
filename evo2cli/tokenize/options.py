"""Options of `evo2 tokenize`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from evo2cli.options import Options


@dataclass(frozen=True, kw_only=True)
class TokenizeOptions(Options):
    """Options of `evo2 tokenize`."""

    files: Annotated[
        tuple[Path, ...],
        typer.Argument(help="FASTA or JSON lines, plain or compressed; - reads stdin."),
    ]
    output: Annotated[
        Path,
        typer.Option("--output", "-O", "-o", metavar="FOLDER", help="Folder of the token set."),
    ]
    reverse_complement: Annotated[
        bool,
        typer.Option("--reverse-complement", help="Write both strands of every sequence."),
    ] = False
    workers: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="Number of worker processes."),
    ] = 1
    json: Annotated[bool, typer.Option("--json", help="Write the manifest to stdout.")] = False
    valid: Annotated[
        tuple[Path, ...],
        typer.Option(
            metavar="FILE",
            help="Files to hold out for validation: all up to the next option.",
            rich_help_panel="Splits",
        ),
    ] = ()
    valid_fraction: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Fraction of the sequences to hold out for validation.",
            show_default="0.05, or 0 with --valid",
            rich_help_panel="Splits",
        ),
    ] = None
    test_fraction: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Fraction of the sequences to hold out for a final test.",
            rich_help_panel="Splits",
        ),
    ] = 0.0
