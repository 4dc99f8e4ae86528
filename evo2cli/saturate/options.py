"""Options of `evo2 saturate`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from evo2cli.errors import UserError
from evo2cli.figures import check_plot
from evo2cli.files import check_output
from evo2cli.score.options import QuantityOptions, VariantOptions


# There are no insertions, deletions or mismatches of REF, and so no options for them.
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
            metavar="[REGION]",
            help="Regions of the genome as chr:from-to, 1-based, both ends included.",
        ),
    ] = ()
    bed: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Use the intervals of this BED file instead of REGION; overlapping intervals "
            "are merged, in the order of the genome.",
            rich_help_panel="Input",
        ),
    ] = None
    reference: Annotated[
        Path,
        typer.Option(
            "-R", "--reference", metavar="FASTA", help="Reference genome.", rich_help_panel="Input"
        ),
    ] = field()
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Also draw a heat map: x.png, x.pdf or x.svg.",
            rich_help_panel="Output",
        ),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.regions) == (self.bed is not None):
            raise UserError(
                "give regions, or a BED file with --bed" + ", not both" * bool(self.bed)
            )
        check_plot(self.plot)
        check_output(self.output, self.reference, self.bed, self.background, self.contig_names)

    @property
    def command(self) -> str:
        """The command in the header of the output."""
        words = self.regions if self.bed is None else ("--bed", self.bed.name)
        return " ".join(["evo2 saturate", *words])

    @property
    def source(self) -> Path:
        """The genome."""
        return self.reference
