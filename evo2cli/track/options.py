"""Options of `evo2 track`."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from evo2cli.errors import UserError
from evo2cli.files import check_output
from evo2cli.genome.source import STDIN
from evo2cli.options import ModelOptions, RegionOptions

BEDGRAPH = (".bedgraph", ".bedGraph", ".bg")
BIGWIG = (".bw", ".bigwig", ".bigWig")


class Value(StrEnum):
    """A value for each base x_t, given all bases before it.

    LOGPROB: log P(x_t | x_1 ... x_(t-1)), in nats. ENTROPY: entropy of the prediction among A, C, G
    and T, in bits: 0 to 2.
    """

    LOGPROB = "logprob"
    ENTROPY = "entropy"


@dataclass(frozen=True, kw_only=True)
class TrackOptions(ModelOptions, RegionOptions):
    """Options of `evo2 track`.

    Raises:
        UserError: An option contradicts another one, or the output cannot be written.
    """

    source: Annotated[
        Path, typer.Argument(metavar="GENOME", help="FASTA of sequences or of a genome.")
    ]
    window: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Bases read before each region, as context without values of their own. Without "
            "regions: read records in pieces of so many bases, each after the piece before it.",
            show_default="8192, or the model's context if that is less; records are read whole",
            rich_help_panel="Input",
        ),
    ] = None
    value: Annotated[
        Value,
        typer.Option(
            help="logprob: log-probability of each base, in nats. entropy: entropy of the "
            "prediction, in bits.",
            rich_help_panel="Output",
        ),
    ] = Value.LOGPROB
    output: Annotated[
        Path | None,
        typer.Option(
            "-O",
            "--output",
            metavar="FILE",
            help="x.bedgraph, x.bedgraph.gz or x.bw.",
            show_default="stdout, as bedGraph",
            rich_help_panel="Output",
        ),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_output(self.output, self.source, self.bed)
        if self.source == STDIN:
            raise UserError("evo2 track reads its FASTA twice; give a file instead of stdin")
        if self.output is not None and self.output.suffix not in BIGWIG:
            suffix = Path(self.output.name.removesuffix(".gz")).suffix
            if suffix not in BEDGRAPH:
                raise UserError(f"--output {self.output}: needs .bedgraph, .bedgraph.gz or .bw")

    @property
    def by_region(self) -> bool:
        """Whether regions of a genome are read, not whole records."""
        return bool(self.regions or self.bed)
