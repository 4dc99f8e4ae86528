"""`evo2 merge`."""

from pathlib import Path
from typing import Annotated

import typer


def merge(
    parts: Annotated[
        list[Path],
        typer.Argument(
            exists=True, dir_okay=False, help="Outputs of --shard 1/N to N/N, in order."
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-O", help="x.vcf, x.tsv or x.jsonl; .gz may follow.")
    ],
) -> None:
    """Join what `evo2 score --shard` wrote into what it would have written whole."""
    from evo2cli.merge import merge_files

    merge_files(parts, output)
