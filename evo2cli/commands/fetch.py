"""`evo2 fetch`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from evo2cli import console
from evo2cli.options import JSONOptions, takes


@dataclass(frozen=True, kw_only=True)
class FetchOptions(JSONOptions):
    """Options of `evo2 fetch`."""

    model: Annotated[
        str,
        typer.Argument(
            help="Name of a published model, e.g. evo2_7b; @COMMIT selects another commit."
        ),
    ]
    to: Annotated[
        Path | None,
        typer.Option(
            file_okay=False,
            metavar="FOLDER",
            help="Where to put the files.",
            show_default="the cache of the Hugging Face hub",
        ),
    ] = None


@takes(FetchOptions)
def fetch(options: FetchOptions) -> None:
    """Download a published model, e.g. for machines without a network, and verify its checksum."""
    from evo2cli.fetch import fetch_model

    summary = fetch_model(options.model, options.to)
    if options.json:
        console.write_json(summary)
        return
    for file in summary["files"]:
        console.say(f"{file['path']}: {file['bytes']:,} bytes")
    verdict = "as recorded" if summary["verified"] else "not verified: none is recorded"
    console.say(f"SHA-256 {summary['sha256']}, {verdict}")
    console.say(f"use it with --model {summary['use']}")
