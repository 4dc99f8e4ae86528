"""Variants from a table: TSV, CSV, Parquet or JSON lines with chrom, pos, ref and alt.

Columns may be in any order and case, and the header may begin with `#`. A column `id` is read, too;
all others are passed through. The columns `ref_seq` and `var_seq` hold the sequences with REF and
with ALT. As in a VCF, positions are 1-based, indels are anchored, and commas separate alternates.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from evo2cli.errors import UserError
from evo2cli.genome.parquet import PARQUET_MAGIC
from evo2cli.genome.source import BYTE_ORDER_MARK, first_bytes
from evo2cli.genome.table import Table, cell_text, decoded, open_table, split_names
from evo2cli.genome.vcf import Value, VariantRecord, is_bases, is_position

KEYS = ("chrom", "pos", "ref", "alt")
IDENTIFIER = "id"
SEQUENCES = ("ref_seq", "var_seq")
_VCF_COLUMNS = {"filter", "info"}  # in a VCF that has lost its ## lines
_JSON_KEY = re.compile(r'"([^"]*)"\s*:')
_MIN_KEYS = 2  # of `KEYS` in the header of a table


@dataclass(frozen=True)
class VariantTable:
    """An open table of variants.

    Attributes:
        others: The columns that are passed through, and the types of their cells.
        records: Yields a record for each row.
        has_sequences: Whether records have their two sequences.
    """

    others: Mapping[str, type]
    records: Iterator[VariantRecord]
    has_sequences: bool


def is_table(path: Path) -> bool:
    """Whether a file is a table of variants, by its first bytes; stdin is not consumed.

    Raises:
        UserError: The file cannot be read.
    """
    start = first_bytes(path).removeprefix(BYTE_ORDER_MARK)
    if start.startswith(PARQUET_MAGIC):
        return True
    if start.startswith(b"##fileformat=VCF"):
        return False
    for line in start.splitlines():
        if line.strip() and not line.startswith(b"##"):
            text = decoded(line)
            # A JSON object may be longer than these first bytes, so it cannot be parsed.
            is_json = text.lstrip().startswith("{")
            keys = _JSON_KEY.findall(text) if is_json else split_names(text)
            names = {name.lower() for name in keys}
            return len(names.intersection(KEYS)) >= _MIN_KEYS and not names >= _VCF_COLUMNS
    return False


def read_table(path: Path | str, *, shift: int = 0) -> VariantTable:
    """Open a table (text may be compressed; `-` is stdin) and read its header.

    Args:
        path: The table.
        shift: Number to add to every position.

    Raises:
        UserError: Here or while records are read: a column is missing, or a row is not a variant.
    """
    path = Path(path)
    table = open_table(path)
    try:
        columns = _Columns(path, table.names, shift)
    except UserError:
        table.rows.close()
        raise
    others = {name: table.types[name] for name in columns.others}
    return VariantTable(others, _read_records(columns, table), bool(columns.sequences))


class _Columns:
    """Converts rows to records: the indices of the columns, and the shift of positions."""

    def __init__(self, path: Path, names: Sequence[str], shift: int) -> None:
        self.shift = shift
        lower = [name.lower() for name in names]
        for key in KEYS:
            if lower.count(key) != 1:
                count = "no column" if key not in lower else "more than one column"
                raise UserError(
                    f"{path}: has {count} {key!r}; its columns: {', '.join(names)}; rename them to "
                    f"{', '.join(KEYS)}"
                )
        self.keys = [lower.index(key) for key in KEYS]
        self.identifier = lower.index(IDENTIFIER) if IDENTIFIER in lower else None
        self.sequences = [lower.index(key) for key in SEQUENCES if lower.count(key) == 1]
        if len(self.sequences) != len(SEQUENCES):
            self.sequences = []
        taken = {*self.keys, self.identifier}
        self.others = {name: i for i, name in enumerate(names) if i not in taken}

    def record(self, row: Sequence[Value]) -> VariantRecord:
        """Convert a row.

        Raises:
            ValueError: It is not a variant.
        """
        contig, position, reference, alternates = (cell_text(row[index]) for index in self.keys)
        for name, text in (("chrom", contig), ("ref", reference), ("alt", alternates)):
            if not text:
                raise ValueError(f"{name} is empty; write a missing allele as .")
        is_number = is_position(position.encode(errors="replace"))
        if not is_number or int(position) + self.shift < 1:
            raise ValueError(
                f"pos {position[:40]!r} is not a 1-based position (for 0-based ones: --shift 1)"
            )
        identifier = cell_text(row[self.identifier]) if self.identifier is not None else ""
        return VariantRecord.from_columns(
            contig,
            int(position) + self.shift,
            reference,
            alternates,
            identifier=identifier or ".",
            others=tuple(row[index] for index in self.others.values()),
            sequences=self._sequences(row, alternates),
        )

    def _sequences(self, row: Sequence[Value], alternates: str) -> tuple[bytes, bytes] | None:
        """The sequences of a row with REF and with ALT; None without these columns.

        Raises:
            ValueError: There are several alternate alleles, or a sequence is not DNA.
        """
        if not self.sequences:
            return None
        if "," in alternates:
            raise ValueError(f"alt {alternates[:40]!r}: var_seq is of one allele; give each a row")
        reference, variant = (
            cell_text(row[index]).encode(errors="surrogateescape") for index in self.sequences
        )
        for name, sequence in zip(SEQUENCES, (reference, variant), strict=True):
            if not is_bases(sequence):
                raise ValueError(f"{name} is not a sequence of DNA: {sequence[:40]!r}")
        return reference, variant


def _read_records(columns: _Columns, table: Table) -> Iterator[VariantRecord]:
    with closing(table.rows):  # close the file at once if a row is invalid
        for number, row in table.rows:
            try:
                record = columns.record(row)
            except ValueError as error:
                raise UserError(f"{table.origin(number)}: {error}") from None
            yield record
