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
            help="Scored variants: a VCF, BCF or table that `evo2 score` or `evo2 saturate` wrote; "
            "- is stdin.",
        ),
    ]
    output: Annotated[Path, typer.Option("-O", "--output", metavar="FILE", help="x.html.")]
    gff: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Genes of the genome, to be summarised and drawn: a GFF3 or GTF; .gz is read too.",
        ),
    ] = None
    group: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="INFO key or column by whose values deltas are compared, e.g. a label.",
            show_default="CLASS or CLNSIG, if there is one",
        ),
    ] = None
    consequence: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="INFO key or column of consequences: as VEP, SnpEff, bcftools csq or ClinVar "
            "write them, or single terms such as missense_variant.",
            show_default="CSQ, ANN, BCSQ, MC, ..., if there is one",
        ),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_file(self.output, "--output", (".html",))
        check_output(self.output, self.source, self.gff)
