"""Options of `evo2 doctor`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from evo2cli.errors import UserError
from evo2cli.options import ConfigOptions, DeviceOptions, JSONOptions


@dataclass(frozen=True, kw_only=True)
class DoctorOptions(JSONOptions, DeviceOptions, ConfigOptions):
    """Options of `evo2 doctor`."""

    model: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Also test this model: a checkpoint folder or file, or the name of a published or "
            "built-in model.",
        ),
    ] = None
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="CSV of sequences on which to measure the loss of the model; on its publisher's "
            "prompts it must reproduce the published loss.",
        ),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompts is not None and self.model is None:
            raise UserError(f"--prompts {self.prompts}: measures the loss of a model; give --model")
