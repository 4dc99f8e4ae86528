"""Options of `evo2 predict`."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from evo2cli.errors import UserError
from evo2cli.files import check_output
from evo2cli.options import DeviceOptions, DType
from evo2cli.track.options import BEDGRAPH, BIGWIG

TABLES = (".tsv", ".tsv.gz")
VCFS = (".vcf", ".vcf.gz")
TRACKS = (*BEDGRAPH, *(f"{suffix}.gz" for suffix in BEDGRAPH), *BIGWIG)


@dataclass(frozen=True, kw_only=True)
class PredictOptions(DeviceOptions):
    """Options of `evo2 predict`.

    Raises:
        UserError: The output cannot be written.
    """

    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder written by evo2 finetune.")]
    source: Annotated[
        Path,
        typer.Argument(
            metavar="INPUT",
            help="FASTA or a table of sequences; with --reference, a VCF, or regions as BED, GFF3 "
            "or GTF. May be gzipped.",
        ),
    ]
    reference: Annotated[
        Path | None,
        typer.Option(
            "--reference", "-R", metavar="FASTA", help="Genome of the variants or regions."
        ),
    ] = None
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-O",
            metavar="FILE",
            help="x.tsv; x.vcf if the input is a VCF; x.bedgraph or x.bw if the model labels "
            "bases. Text formats also with .gz.",
            show_default="stdout",
        ),
    ] = None
    of_class: Annotated[
        str | None,
        typer.Option(
            "--class",
            metavar="CLASS",
            help="Class whose probability to write to a bedGraph or bigWig.",
            show_default="the last class",
        ),
    ] = None
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Put NAME into the keys of the INFO fields (EVO2_NAME_...), so that one VCF can "
            "hold predictions of several models.",
        ),
    ] = None
    dtype: Annotated[
        DType, typer.Option(help="Precision; auto is bf16 on a GPU and fp32 on a CPU.")
    ] = DType.AUTO

    def __post_init__(self) -> None:
        super().__post_init__()
        check_output(self.output, self.source, self.reference)
        known = (*TABLES, *VCFS, *TRACKS)
        if self.output is not None and not self.output.name.endswith(known):
            raise UserError(f"--output {self.output}: needs one of the suffixes {', '.join(known)}")
        if self.of_class is not None and not self.is_track:
            raise UserError(f"--class {self.of_class}: needs --output x.bedgraph or x.bw")
        if self.name is not None and not re.fullmatch(r"[A-Za-z0-9_.]+", self.name):
            raise UserError(f"--name {self.name}: may have letters, digits, _ and . only")

    @property
    def is_track(self) -> bool:
        """Whether the output is a bedGraph or bigWig."""
        return self.output is not None and self.output.name.endswith(TRACKS)
