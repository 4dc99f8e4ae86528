"""Recognise files that are neither FASTA nor variants, and say how to convert them."""

import re

_GFF = "is a GFF, which holds features; give FASTA or variants"
_WORKBOOK = "is an Excel workbook; save its sheet as CSV"
_BEGINNINGS = {
    b"@": "is FASTQ or SAM; convert it to FASTA first (seqtk seq -A, samtools fasta)",
    b"##fileformat=VCF": "is a VCF, not FASTA",
    b"##gff": _GFF,
    b"LOCUS": "is GenBank; convert it to FASTA first",
    b"BAM\1": "is a BAM; convert it to FASTA first (samtools fasta)",
    b"CRAM": "is a CRAM; convert it to FASTA first (samtools fasta)",
    b"\x43\x27\x41\x1a": "is a 2bit genome; convert it to FASTA first (twoBitToFa)",
    b"\xd0\xcf\x11\xe0": _WORKBOOK,
    b"<!DOCTYPE": "is a web page, perhaps an error of a download; download the file again",
    b"<html": "is a web page, perhaps an error of a download; download the file again",
}
_ZIP = b"PK\3\4"
_OFFICE = (b"[Content_Types].xml", b"docProps/", b"xl/")  # files in the zip of an Excel file
_COLUMNS = ("chr", "pos", "ref", "alt")  # beginnings of the column names of variants
_RENAME = "give a VCF, or a table with the columns chrom, pos, ref and alt"
_BASES = re.compile(r"[ACGTUN]+|\.", re.IGNORECASE)


def recognise(opening: bytes) -> str | None:
    """Describe a file by its first bytes, with what to do about it; None if it is not recognised.

    Args:
        opening: The beginning, without leading white space.
    """
    for beginning, description in _BEGINNINGS.items():
        if opening.startswith(beginning):
            return description
    if opening.startswith(_ZIP):
        is_workbook = any(name in opening for name in _OFFICE)
        return _WORKBOOK if is_workbook else "is a zip; unpack it first"
    lines = (line for line in opening.decode("latin-1").splitlines() if line.strip())
    line = next((line for line in lines if not line.startswith("#")), "")
    separator = "\t" if "\t" in line else ","
    cells = [cell.strip().strip('"') for cell in line.split(separator)]
    return _recognise_row(cells) if len(cells) > 1 else None


def _recognise_row(cells: list[str]) -> str | None:
    """As `recognise`, for a text file by its first row that is not a comment."""
    names = [cell.lower() for cell in cells]
    if "hugo_symbol" in names:
        return f"is a MAF of mutations; convert it first (maf2vcf): {_RENAME}"
    if any(name.startswith("hgvs_") for name in names):
        return f"is a table of MaveDB, which names variants by HGVS; {_RENAME}"
    if "mutant" in names:
        return "is a table of variants of a protein; evo2 eval dms scores it, and --scored keeps it"
    if len(cells) == 9 and cells[4].isdecimal() and cells[6] in ("+", "-", ".", "?"):
        return _GFF
    if len(cells) == 5 and all(cell.isdecimal() for cell in cells[1:]):
        return "is the index of a FASTA (.fai); give the FASTA"
    has_bases = len(cells) > 3 and _BASES.fullmatch(cells[3]) is not None
    if len(cells) > 2 and cells[1].isdecimal() and cells[2].isdecimal() and not has_bases:
        return "is a BED, which holds intervals; give FASTA or variants"
    is_record = len(cells) > 1 and cells[1].isdecimal()
    if is_record and len(cells) >= 8 and has_bases:
        return (
            "is a VCF without its header; put the lines ##fileformat=VCFv4.2 and #CHROM POS ID REF "
            "ALT QUAL FILTER INFO (with tabs) before its records"
        )
    if is_record:
        return f"is a table whose first line does not name its columns; {_RENAME}"
    if sum(name.startswith(_COLUMNS) for name in names) > 1:
        return (
            f"is a table with the columns {', '.join(cells)}; rename them to chrom, pos, ref, alt"
        )
    return None
