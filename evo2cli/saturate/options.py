"""Options of `evo2 saturate`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from evo2cli.figures import check_plot
from evo2cli.files import check_output
from evo2cli.score.options import QuantityOptions, VariantOptions


# Without rules for insertions, deletions and mismatches of REF: there are none.
@dataclass(frozen=True, kw_only=True)
class SaturateOptions(VariantOptions, without=("indel_mode", "on_ref_mismatch")):
    """Options of `evo2 saturate`.

    Raises:
        UserError: An option contradicts another one, or a file cannot be written.
    """

    needs_delta: ClassVar[tuple[str, ...]] = (*QuantityOptions.needs_delta, "plot")

    regions: Annotated[
        tuple[str, ...],
        typer.Argument(
            metavar="REGION",
            help="Regions of the genome: chr:from-to, 1-based, both ends included.",
        ),
    ]
    reference: Annotated[
        Path,
        typer.Option(
            "-R", "--reference", metavar="FASTA", help="The genome.", rich_help_panel="Input"
        ),
    ] = field()
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Draw a heat map: x.png, x.pdf or x.svg.",
            rich_help_panel="Output",
        ),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_plot(self.plot)
        check_output(self.output, self.reference, self.background, self.contig_names)

    @property
    def command(self) -> str:
        """How the header of the output names the command."""
        return " ".join(["evo2 saturate", *self.regions])

    @property
    def source(self) -> Path:
        """The genome."""
        return self.reference
