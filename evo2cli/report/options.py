"""Options of `evo2 report`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from evo2cli.files import check_file, check_output
from evo2cli.options import Options


@dataclass(frozen=True, kw_only=True)
class ReportOptions(Options):
    """Options of `evo2 report`.

    Raises:
        UserError: The output cannot be written.
    """

    source: Annotated[
        Path,
        typer.Argument(
            metavar="VARIANTS",
            help="Scored variants: a VCF, BCF or table written by evo2 score or evo2 saturate; - "
            "reads stdin.",
        ),
    ]
    output: Annotated[
        Path, typer.Option("-O", "--output", metavar="FILE", help="HTML file to write, x.html.")
    ]
    gff: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Gene annotation, GFF3 or GTF (may be gzipped): adds a summary of each gene and "
            "draws the genes.",
        ),
    ] = None
    group: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="INFO key, or table column, by whose values the deltas are grouped, e.g. a "
            "clinical label.",
            show_default="CLASS or CLNSIG, if present",
        ),
    ] = None
    consequence: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="INFO key, or table column, of consequences, in the format of VEP, SnpEff, "
            "bcftools csq or ClinVar, or plain terms such as missense_variant.",
            show_default="CSQ, ANN, BCSQ, MC, ..., if present",
        ),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_file(self.output, "--output", (".html",))
        check_output(self.output, self.source, self.gff)
