"""`evo2 doctor`."""

from pathlib import Path
from typing import Annotated

import typer

from evo2cli import console


def doctor(
    model: Annotated[
        str | None, typer.Option(help="A model to test too: a folder, a file, or a name.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Shape of a released file: its yml or TOML.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="CSV of sequences: its publisher's prompts, whose loss is published."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="As JSON on stdout.")] = False,
) -> None:
    """Tell whether this machine computes right, and which published models it can be trusted with.

    Ends with 4 when a self-test fails.
    """
    from evo2cli.doctor.page import doctor_page
    from evo2cli.doctor.run import examine, require_health

    result = examine(model=model, config=config, prompts=prompts, device=device)
    if json:
        console.write_json(result)
    else:
        console.write_page(doctor_page(result))
    require_health(result)
