"""Recognise files of a format that a reader does not take, and say how to convert them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from evo2cli.errors import UserError


class Wanted(StrEnum):
    """What a reader takes, as its messages ask for it."""

    FASTA = "FASTA"
    FASTA_OR_VARIANTS = "FASTA or variants"
    VARIANTS = "a VCF or a table of variants"
    VCF = "a VCF"
    BED = "a BED file"
    GFF = "a GFF3 or GTF file"
    FEATURES = "a BED, GFF3 or GTF file"
    TABLE = "a table whose first line names its columns"
    NAMES = "a table of names of contigs"


@dataclass(frozen=True)
class Format:
    """A format of files.

    Attributes:
        what: What such a file is.
        ways_out: What to do with it, by what a reader takes; otherwise another file is asked for.
    """

    what: str
    ways_out: Mapping[Wanted, str] = field(default_factory=dict)

    def refusal(self, wanted: Wanted) -> str:
        """Say what the file is, and the way out."""
        return f"is {self.what}; {self.ways_out.get(wanted, f'give {wanted}')}"


def _always(way_out: str) -> dict[Wanted, str]:
    return dict.fromkeys(Wanted, way_out)


def _as_fasta(way_out: str) -> dict[Wanted, str]:
    return dict.fromkeys((Wanted.FASTA, Wanted.FASTA_OR_VARIANTS), way_out)


def _as_variants(way_out: str) -> dict[Wanted, str]:
    return dict.fromkeys((Wanted.FASTA_OR_VARIANTS, Wanted.VARIANTS), way_out)


_TO_FASTA = "convert it to FASTA first"
_RENAME = "give a VCF, or a table with the columns chrom, pos, ref and alt"
_HEADER = (
    "put the lines ##fileformat=VCFv4.2 and #CHROM POS ID REF ALT QUAL FILTER INFO (with tabs) "
    "before its records"
)
_TO_BED = {
    Wanted.BED: "convert it to BED first (gff2bed, gtf2bed)",
    Wanted.FEATURES: "give it the suffix .gff3 or .gtf",
}
FASTA = Format("FASTA, which holds sequences")
GFF = Format("a GFF or GTF, which holds features", _TO_BED)
BED = Format(
    "a BED, which holds intervals", {Wanted.FEATURES: "give it the suffix .bed, not that of a GFF"}
)
_TO_INTERVALS = dict.fromkeys(
    (Wanted.BED, Wanted.FEATURES),
    r"convert it to BED first (bcftools query -f '%CHROM\t%POS0\t%END\n')",
)
VCF = Format("a VCF, which holds variants", _TO_INTERVALS)
HEADLESS_VCF = Format("a VCF without its header", {**_as_variants(_HEADER), Wanted.VCF: _HEADER})
TABLE = Format("a table whose first line does not name its columns", _as_variants(_RENAME))
_WORKBOOK = Format("an Excel workbook", _always("save its sheet as CSV, or as text with tabs"))
_PAGE = Format(
    "a web page or XML, perhaps an error of a download", _always("download the file again")
)
_SAM = Format(
    "SAM or an interval list of Picard",
    {
        **_as_fasta(f"{_TO_FASTA} (samtools fasta)"),
        **dict.fromkeys(
            (Wanted.BED, Wanted.FEATURES), "convert it to BED first (picard IntervalListToBed)"
        ),
    },
)
_BEGINNINGS = {
    b">": FASTA,
    b"@HD\t": _SAM,
    b"@SQ\t": _SAM,
    b"@": Format("FASTQ or SAM", _as_fasta(f"{_TO_FASTA} (seqtk seq -A, samtools fasta)")),
    b"##fileformat=VCF": VCF,
    b"##gff": GFF,
    b"BCF\2": Format("a BCF, which holds variants", _TO_INTERVALS),
    b"LOCUS  ": Format("GenBank", _as_fasta(_TO_FASTA)),
    b"BAM\1": Format("a BAM", _as_fasta(f"{_TO_FASTA} (samtools fasta)")),
    **dict.fromkeys(
        (b"CRAM\2", b"CRAM\3"), Format("a CRAM", _as_fasta(f"{_TO_FASTA} (samtools fasta)"))
    ),
    b"\x43\x27\x41\x1a": Format("a 2bit genome", _as_fasta(f"{_TO_FASTA} (twoBitToFa)")),
    b"\xd0\xcf\x11\xe0": _WORKBOOK,
    b"<": _PAGE,
}
_ZIP = b"PK\3\4"
_OFFICE = (b"[Content_Types].xml", b"docProps/", b"xl/")  # files in the zip of an Excel file
_COLUMNS = ("chr", "pos", "ref", "alt")  # beginnings of the column names of variants
_BASES = re.compile(r"[ACGTUN]+|\.", re.IGNORECASE)


def refuse_other(path: Path, opening: bytes, wanted: Wanted, *own: Format) -> None:
    """Refuse a file that is recognised as another format than those that its reader takes.

    Args:
        path: The file.
        opening: How it begins, or its first line with data.
        wanted: What the reader takes.
        own: Formats that are left to the reader.

    Raises:
        UserError: It is; the message says what it is, and the way out.
    """
    found = recognise(opening)
    if found is not None and found not in own:
        raise UserError(f"{path}: {found.refusal(wanted)}")


def recognise(opening: bytes) -> Format | None:
    """The format of a file by its first bytes; None if it is not recognised.

    Args:
        opening: The beginning, without leading white space.
    """
    for beginning, found in _BEGINNINGS.items():
        if opening.startswith(beginning):
            return found
    if opening.startswith(_ZIP):
        is_workbook = any(name in opening for name in _OFFICE)
        return _WORKBOOK if is_workbook else Format("a zip", _always("unpack it first"))
    lines = (line for line in opening.decode("latin-1").splitlines() if line.strip())
    line = next((line for line in lines if not line.startswith("#")), "")
    separator = "\t" if "\t" in line else ","
    cells = [cell.strip().strip('"') for cell in line.split(separator)]
    return _recognise_row(cells) if len(cells) > 1 else None


def _recognise_row(cells: list[str]) -> Format | None:
    """As `recognise`, for a text file by its first row that is not a comment."""
    names = [cell.lower() for cell in cells]
    if "hugo_symbol" in names:
        return Format("a MAF of mutations", _as_variants(f"convert it (maf2vcf): {_RENAME}"))
    if any(name.startswith("hgvs_") for name in names):
        return Format("a table of MaveDB, which names variants by HGVS", _as_variants(_RENAME))
    if "mutant" in names:
        return Format(
            "a table of variants of a protein",
            _as_variants("evo2 eval dms scores it, and --scored keeps it"),
        )
    if len(cells) == 9 and cells[4].isdecimal() and cells[6] in ("+", "-", ".", "?"):
        return GFF
    if len(cells) == 5 and all(cell.isdecimal() for cell in cells[1:]):
        return Format("the index of a FASTA (.fai)", _as_fasta("give the FASTA"))
    has_bases = len(cells) > 3 and _BASES.fullmatch(cells[3]) is not None
    if len(cells) > 2 and cells[1].isdecimal() and cells[2].isdecimal() and not has_bases:
        return BED
    is_record = len(cells) > 1 and cells[1].isdecimal()
    if is_record:
        return HEADLESS_VCF if len(cells) >= 8 and has_bases else TABLE
    if sum(name.startswith(_COLUMNS) for name in names) > 1:
        return Format(
            f"a table with the columns {', '.join(cells)}",
            _as_variants("rename them to chrom, pos, ref, alt"),
        )
    return None
