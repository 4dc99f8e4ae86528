"""Options of `evo2 doctor`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from evo2cli.errors import UserError
from evo2cli.options import Options


@dataclass(frozen=True, kw_only=True)
class DoctorOptions(Options):
    """What is tested beside the operators and the built-in model."""

    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Also test this model: a checkpoint folder or file, or the name of a published or "
            "built-in model.",
        ),
    ] = None
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Shape of a released model file, as its yml or as TOML."),
    ] = None
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="CSV of sequences to measure the loss of the model on: on its publisher's prompts "
            "it must be the published loss.",
        ),
    ] = None
    device: Annotated[
        str,
        typer.Option(
            metavar="DEVICE", help="Device to test: auto, cpu, cuda, or one GPU such as cuda:1."
        ),
    ] = "auto"
    json: Annotated[bool, typer.Option("--json", help="Write JSON to stdout.")] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompts is not None and self.model is None:
            raise UserError(f"--prompts {self.prompts}: whose loss? give --model")
