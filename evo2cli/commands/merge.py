"""`evo2 merge`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from evo2cli.files import locks_output
from evo2cli.options import Options, takes


@dataclass(frozen=True, kw_only=True)
class MergeOptions(Options):
    """Options of `evo2 merge`."""

    parts: Annotated[
        tuple[Path, ...],
        typer.Argument(
            exists=True, dir_okay=False, help="Outputs of --shard 1/N to N/N, in this order."
        ),
    ]
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-O", help="Output file: .vcf, .tsv or .jsonl, or these with .gz."
        ),
    ]


@takes(MergeOptions)
@locks_output
def merge(options: MergeOptions) -> None:
    """Join the outputs of `evo2 score --shard` into the output of one run."""
    from evo2cli.merge import merge_files

    merge_files(options.parts, options.output)
