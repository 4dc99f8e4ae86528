"""Output of scored variants: VCF, BCF, TSV, JSON lines or Parquet."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from evo2cli import console
from evo2cli.errors import UserError
from evo2cli.files import atomic_path, is_stream, open_output
from evo2cli.genome.htslib import index_table, index_variants, write_bcf
from evo2cli.genome.parquet import open_parquet
from evo2cli.genome.vcf import OUR_PREFIX, Header, Status, VariantRecord
from evo2cli.options import Strand
from evo2cli.score.options import Layout, Quantity, VariantOptions
from evo2cli.tables import Row, cell, json_line, table_line

PERCENTILE = "EVO2_PCT"  # only with a background
NON_ACGT = "EVO2_NONACGT"  # omitted from a VCF record whose windows hold only ACGT

# INFO fields with one value for each allele: type and description.
FIELDS = {
    "EVO2_DELTA": (
        "Float",
        "log P(window with ALT) - log P(window with REF), in nats; negative: the alternate allele "
        "is less likely; with --score next-base log P(ALT) - log P(REF) of the base, given those "
        "before it",
    ),
    "EVO2_REF": ("Float", "log P(window with REF), the log-likelihood of the window, in nats"),
    "EVO2_ALT": ("Float", "log P(window with ALT), the log-likelihood of the window, in nats"),
    "EVO2_FWD": ("Float", "EVO2_DELTA of the forward strand, in nats"),
    "EVO2_RC": ("Float", "EVO2_DELTA of the reverse-complement strand, in nats"),
    PERCENTILE: (
        "Float",
        "Percentage of random variants of the same kind (SNV: same change and neighbouring bases; "
        "others: similar length) with a lower EVO2_DELTA",
    ),
    "EVO2_STATUS": (
        "String",
        "".join(f"{s}: {s.meaning}; " if s.meaning else f"{s}; " for s in Status if s.is_scored)
        + "any other word says why there is no score",
    ),
    NON_ACGT: (
        "Integer",
        "Number of letters other than ACGT in the window that has more of them; no field: none",
    ),
}
# Header lines of shards only, for `evo2 merge`: the number of the part, I/N, and a digest of the
# input.
SHARD = "##evo2Shard="
SHARDED_INPUT = "##evo2Input="
SHARD_KEY = "evo2"  # key of these lines in the first line of JSON lines
STRAND_FIELDS = {Strand.FORWARD: "EVO2_FWD", Strand.REVERSE: "EVO2_RC"}
QUANTITIES = {
    Quantity.DELTA: {"EVO2_DELTA", *STRAND_FIELDS.values()},
    Quantity.NEXT_BASE: {"EVO2_DELTA", *STRAND_FIELDS.values()},
    Quantity.REF: {"EVO2_REF"},
    Quantity.ALT: {"EVO2_ALT"},
    Quantity.ALL: {"EVO2_DELTA", "EVO2_REF", "EVO2_ALT", *STRAND_FIELDS.values()},
}
WINDOW_COLUMNS = ("window_start", "window_end", "alt_window_start", "alt_window_end")
_VARIANT_COLUMNS = {"chrom": str, "pos": int, "id": str, "ref": str, "alt": str}
_TYPES = {"Float": float, "Integer": int, "String": str}

WriteRecord = Callable[[VariantRecord, Sequence[Row]], None]


@contextmanager
def open_variant_output(
    path: Path | None, writer: "VariantWriter", header: Header, provenance: Sequence[str]
) -> Iterator[WriteRecord]:
    """Yield a function that writes a record with its rows to `path`, or to stdout if it is None.

    The file is written atomically. It gets an index if its format has one and the records are
    sorted.

    Raises:
        UserError: The file cannot be written.
    """
    order = _OrderCheck()
    layout = writer.layout
    if layout is Layout.PARQUET and path is not None:
        with open_parquet(path, writer.columns) as write_rows:
            yield lambda record, rows: write_rows(writer.rows(record, rows))
        return
    open_text = open_output if path is None or layout is not Layout.BCF else _open_bcf
    with open_text(path) as write:
        write(writer.header(header, provenance))

        def write_record(record: VariantRecord, rows: Sequence[Row]) -> None:
            write(writer.lines(record, rows))
            order.add(record)

        yield write_record
    if path is not None and (layout is Layout.BCF or (path.suffix == ".gz" and layout.has_index)):
        index_output(path, layout, order.problem)


@contextmanager
def _open_bcf(path: Path | None) -> Iterator[Callable[[bytes], object]]:
    """As `open_output`, via a temporary text file beside the output."""
    assert path is not None
    with atomic_path(path) as part:
        text = part.with_name(f"{part.name}.gz")
        try:
            with open_output(text) as write:
                yield write
            write_bcf(text, part)
        finally:
            text.unlink(missing_ok=True)


def index_output(path: Path, layout: Layout, problem: str = "") -> None:
    """Write an index beside an output, or warn why not; devices and pipes get none.

    Args:
        path: The output.
        layout: Its format.
        problem: Why it cannot be indexed, if that is known.
    """
    if is_stream(path):
        return
    for suffix in (".tbi", ".csi"):  # of an earlier output
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    if problem:
        console.warn(f"{path}: no index: {problem}; sort a VCF with `bcftools sort`")
        return
    try:
        (index_table if layout is Layout.TSV else index_variants)(path)
    except UserError as error:
        console.warn(f"{error}; the file itself is complete")


class _OrderCheck:
    """Checks that records are sorted by contig and position.

    Attributes:
        problem: The first violation; "" if there is none.
    """

    def __init__(self) -> None:
        self.problem = ""
        self._finished: set[str] = set()
        self._contig, self._start = "", -1

    def add(self, record: VariantRecord) -> None:
        """Check the next record."""
        if self.problem or not record.alternates:
            return
        if record.contig != self._contig:
            self._finished.add(self._contig)
            if record.contig in self._finished:
                self.problem = f"{record.contig} comes twice, with other contigs in between"
        elif record.start < self._start:
            self.problem = (
                f"{record.contig}:{record.start + 1} comes after {self._contig}:{self._start + 1}"
            )
        self._contig, self._start = record.contig, record.start


class VariantWriter:
    """Formats records and the rows of their alleles.

    Args:
        layout: Format of the output.
        fields: INFO fields to write, then features, which are numbers.
        others: Further columns of the input table, and the types of their cells.

    Attributes:
        layout: The format.
        columns: Columns of an output table, and the types of their cells.

    Raises:
        UserError: A column of the input table has the name of an output column.
    """

    def __init__(
        self, layout: Layout, fields: Sequence[str], others: Mapping[str, type] | None = None
    ) -> None:
        self.layout, self._fields, self._others = layout, fields, dict(others or {})
        columns = {
            **_VARIANT_COLUMNS,
            **{name: _TYPES[FIELDS[name][0]] if name in FIELDS else float for name in fields},
            **dict.fromkeys(WINDOW_COLUMNS, int),
        }
        for name in self._others:
            if name in columns or name.startswith(OUR_PREFIX.decode()):
                raise UserError(
                    f"column {name!r} has the name of an output column: rename it, or score the "
                    "original table if this one was scored before"
                )
        self.columns: dict[str, type] = {**columns, **self._others}

    def header(self, header: Header, provenance: Sequence[str]) -> bytes:
        """The header of the output.

        Args:
            header: Header of the input.
            provenance: Header lines to add; tables and JSON lines have them only in shards.
        """
        if self.layout in (Layout.VCF, Layout.BCF):
            info = [
                f'##INFO=<ID={field},Number=A,Type={kind},Description="{meaning}">'
                for field, (kind, meaning) in FIELDS.items()
                if field in self._fields
            ]
            return header.with_lines([*provenance, *info])
        is_shard = any(line.startswith(SHARD) for line in provenance)
        comments = provenance if is_shard else ()
        if self.layout is Layout.TSV:
            keys = ("#CHROM", "POS", "ID", "REF", "ALT")
            columns = (*keys, *self._fields, *WINDOW_COLUMNS, *self._others)
            return b"".join(table_line([line]) for line in comments) + table_line(columns)
        return json_line({SHARD_KEY: list(comments)}) if comments else b""

    def lines(self, record: VariantRecord, rows: Sequence[Row]) -> bytes:
        """The line of a record with our INFO fields, or for tables one line per allele."""
        if self.layout in (Layout.VCF, Layout.BCF):
            if not rows:  # a blank line, which BCF cannot hold
                return record.line if self.layout is Layout.VCF else b""
            values = {
                field: ",".join(cell(row[field]) for row in rows)
                for field in self._fields
                if field != NON_ACGT or any(row[field] for row in rows)
            }
            return record.with_info(";".join(f"{f}={text}" for f, text in values.items()))
        full_rows = self.rows(record, rows)
        if self.layout is Layout.JSONL:
            return b"".join(map(json_line, full_rows))
        return b"".join(table_line(self._cells(row)) for row in full_rows)

    def rows(self, record: VariantRecord, rows: Sequence[Row]) -> list[Row]:
        """One row per allele, with all `columns`."""
        fields = (*self._fields, *WINDOW_COLUMNS)
        others = dict(zip(self._others, record.others, strict=True))
        return [{**row, **others} for row in allele_rows(record, rows, fields)]

    def _cells(self, row: Row) -> Iterator[object]:
        """The cells of a TSV; cells of the input table keep their text."""
        for name, value in row.items():
            if name in self._others and value is not None:
                yield " ".join(str(value).splitlines()).replace("\t", " ")
            else:
                yield value


def allele_rows(record: VariantRecord, rows: Sequence[Row], fields: Sequence[str]) -> Iterator[Row]:
    """One row per allele: chrom, pos (1-based), id, ref and alt, then `fields` of `rows`."""
    for alternate, row in zip(record.alternates, rows, strict=True):
        yield {
            "chrom": record.contig,
            "pos": record.start + 1,
            "id": record.identifier,
            "ref": record.reference.decode(errors="surrogateescape"),
            "alt": alternate.decode(errors="surrogateescape"),
            **{name: row[name] for name in fields},
        }


def written_fields(options: VariantOptions) -> list[str]:
    """The INFO fields to write, in order."""
    fields = {*QUANTITIES[options.score], "EVO2_STATUS", NON_ACGT}
    if options.background is not None:
        fields.add(PERCENTILE)
    if options.variant_strand is not Strand.BOTH:
        fields.difference_update(STRAND_FIELDS.values())
    return [field for field in FIELDS if field in fields]
