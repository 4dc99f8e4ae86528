"""`evo2 tokenize`."""

from pathlib import Path
from typing import Annotated

import typer

from evo2cli import console


def tokenize(
    fasta: Annotated[
        list[Path], typer.Argument(help="FASTA files; gzip and bgzip are read too, - is stdin.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to make.")],
    valid: Annotated[
        list[Path] | None, typer.Option(help="FASTA whose sequences are held out; repeatable.")
    ] = None,
    valid_fraction: Annotated[
        float | None,
        typer.Option(help="Of the sequences, held out. Default: 0.05, or 0 with --valid."),
    ] = None,
    test_fraction: Annotated[
        float, typer.Option(help="Of the sequences, kept for a final test.")
    ] = 0.0,
    reverse_complement: Annotated[
        bool, typer.Option("--reverse-complement", help="Write both strands of every sequence.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="The manifest as JSON on stdout.")] = False,
) -> None:
    """Turn FASTA into tokens on disk: a byte a base, split without leaks, ready for training."""
    from evo2cli.workflows.tokenize import tokenize_files

    manifest = tokenize_files(
        fasta,
        output,
        valid=valid or (),
        valid_fraction=valid_fraction,
        test_fraction=test_fraction,
        reverse_complement=reverse_complement,
    )
    if json:
        console.write_json(manifest)
