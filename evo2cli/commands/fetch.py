"""`evo2 fetch`."""

from pathlib import Path
from typing import Annotated

import typer

from evo2cli import console


def fetch(
    model: Annotated[
        str, typer.Argument(help="A published name, as evo2_7b; @COMMIT asks for another commit.")
    ],
    to: Annotated[
        Path | None,
        typer.Option(file_okay=False, help="A folder.", show_default="the hub's cache"),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Summary as JSON on stdout.")] = False,
) -> None:
    """Fetch a published model for machines without a network, and check what came."""
    from evo2cli.fetch import fetch_model

    summary = fetch_model(model, to)
    if json:
        console.write_json(summary)
        return
    for file in summary["files"]:
        console.say(f"{file['path']}: {file['bytes']:,} bytes")
    known = "as recorded" if summary["verified"] else "no record of it to compare"
    console.say(f"SHA-256 {summary['sha256']}, {known}")
    console.say(f"use it by --model {summary['use']}")
