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
NUM_OTHER = "EVO2_NONACGT"  # left out of a VCF record whose windows hold only ACGT

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
    NUM_OTHER: (
        "Integer",
        "Number of letters other than ACGT in the window that has more of them; no field: none",
    ),
}
# Header lines of a shard alone, from which `evo2 merge` knows the order of the parts, I/N, and that
# they are parts of the same input.
SHARD = "##evo2Shard="
SHARDED_INPUT = "##evo2Input="
MARKS = "evo2"  # key of these lines in the first of JSON lines
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

Put = Callable[[VariantRecord, Sequence[Row]], None]


@contextmanager
def open_variant_output(
    path: Path | None, writer: "VariantWriter", header: Header, provenance: Sequence[str]
) -> Iterator[Put]:
    """Yield a function that writes a record with its rows to `path`, or to stdout if it is None.

    The file appears under its name when everything is written, with an index if its format has one
    and the records are sorted.

    Raises:
        UserError: The file cannot be written.
    """
    order = _Order()
    layout = writer.layout
    if layout is Layout.PARQUET and path is not None:
        with open_parquet(path, writer.columns) as put_rows:
            yield lambda record, rows: put_rows(writer.rows(record, rows))
        return
    open_text = open_output if path is None or layout is not Layout.BCF else _open_bcf
    with open_text(path) as write:
        write(writer.opening(header, provenance))

        def put(record: VariantRecord, rows: Sequence[Row]) -> None:
            write(writer.lines(record, rows))
            order.note(record)

        yield put
    if path is not None and (layout is Layout.BCF or (path.suffix == ".gz" and layout.has_index)):
        index_output(path, layout, order.fault)


@contextmanager
def _open_bcf(path: Path | None) -> Iterator[Callable[[bytes], object]]:
    """As `open_output`, through a temporary text file beside the output."""
    assert path is not None
    with atomic_path(path) as part:
        text = part.with_name(f"{part.name}.gz")
        try:
            with open_output(text) as write:
                yield write
            write_bcf(text, part)
        finally:
            text.unlink(missing_ok=True)


def index_output(path: Path, layout: Layout, fault: str = "") -> None:
    """Write an index beside `path`, or warn why not; `fault` is a reason that is already known.

    A device or a pipe has none.
    """
    if is_stream(path):
        return
    for suffix in (".tbi", ".csi"):  # of an earlier output
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    if fault:
        console.warn(f"{path}: no index: {fault}; sort a VCF with `bcftools sort`")
        return
    try:
        (index_table if layout is Layout.TSV else index_variants)(path)
    except UserError as error:
        console.warn(f"{error}; the file itself is complete")


class _Order:
    """Checks that records are sorted by contig and position.

    Attributes:
        fault: The first violation; "" if there is none.
    """

    def __init__(self) -> None:
        self.fault = ""
        self._done: set[str] = set()
        self._contig, self._start = "", -1

    def note(self, record: VariantRecord) -> None:
        """Check the next record."""
        if self.fault or not record.alternates:
            return
        if record.contig != self._contig:
            self._done.add(self._contig)
            if record.contig in self._done:
                self.fault = f"{record.contig} comes twice, with other contigs in between"
        elif record.start < self._start:
            self.fault = (
                f"{record.contig}:{record.start + 1} comes after {self._contig}:{self._start + 1}"
            )
        self._contig, self._start = record.contig, record.start


class VariantWriter:
    """Formats records and the rows of their alleles.

    Args:
        layout: Format of the output.
        fields: INFO fields to write, and features, which are numbers.
        others: Further columns of the input table, and the types of their cells.

    Attributes:
        columns: Columns of an output table, and the types of their cells.

    Raises:
        UserError: A column of the input table has the name of an output column.
    """

    def __init__(
        self, layout: Layout, fields: Sequence[str], others: Mapping[str, type] | None = None
    ) -> None:
        self.layout, self._fields, self._others = layout, fields, dict(others or {})
        own = {
            **_VARIANT_COLUMNS,
            **{name: _TYPES[FIELDS[name][0]] if name in FIELDS else float for name in fields},
            **dict.fromkeys(WINDOW_COLUMNS, int),
        }
        for name in self._others:
            if name in own or name.startswith(OUR_PREFIX.decode()):
                raise UserError(
                    f"column {name!r} has the name of an output column: rename it, or score the "
                    "original table if this one was scored before"
                )
        self.columns: dict[str, type] = {**own, **self._others}

    def opening(self, header: Header, provenance: Sequence[str]) -> bytes:
        """The header of the output; of tables and JSON lines, only shards have `provenance`."""
        if self.layout in (Layout.VCF, Layout.BCF):
            info = [
                f'##INFO=<ID={field},Number=A,Type={kind},Description="{meaning}">'
                for field, (kind, meaning) in FIELDS.items()
                if field in self._fields
            ]
            return header.with_lines([*provenance, *info])
        marks = provenance if any(line.startswith(SHARD) for line in provenance) else ()
        if self.layout is Layout.TSV:
            keys = ("#CHROM", "POS", "ID", "REF", "ALT")
            columns = (*keys, *self._fields, *WINDOW_COLUMNS, *self._others)
            return b"".join(table_line([line]) for line in marks) + table_line(columns)
        return json_line({MARKS: list(marks)}) if marks else b""

    def lines(self, record: VariantRecord, rows: Sequence[Row]) -> bytes:
        """The line of the record with our INFO appended, or one line for each of its alleles."""
        if self.layout in (Layout.VCF, Layout.BCF):
            if not rows:  # a blank line, which BCF cannot hold
                return record.line if self.layout is Layout.VCF else b""
            values = {
                field: ",".join(cell(row[field]) for row in rows)
                for field in self._fields
                if field != NUM_OTHER or any(row[field] for row in rows)
            }
            return record.with_info(";".join(f"{f}={text}" for f, text in values.items()))
        whole = self.rows(record, rows)
        if self.layout is Layout.JSONL:
            return b"".join(map(json_line, whole))
        return b"".join(table_line(self._cells(row)) for row in whole)

    def rows(self, record: VariantRecord, rows: Sequence[Row]) -> list[Row]:
        """One row of `columns` for each allele."""
        fields = (*self._fields, *WINDOW_COLUMNS)
        others = dict(zip(self._others, record.others, strict=True))
        return [{**row, **others} for row in allele_rows(record, rows, fields)]

    def _cells(self, row: Row) -> Iterator[object]:
        """The cells of a TSV; numbers of the input table keep their digits."""
        for name, value in row.items():
            if name in self._others and value is not None:
                yield " ".join(str(value).splitlines()).replace("\t", " ")
            else:
                yield value


def allele_rows(record: VariantRecord, rows: Sequence[Row], fields: Sequence[str]) -> Iterator[Row]:
    """One row for each allele: chrom, pos (1-based), id, ref and alt, then `fields` of `rows`."""
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
    """The INFO fields that are written, in their order."""
    wanted = {*QUANTITIES[options.score], "EVO2_STATUS", NUM_OTHER}
    if options.background is not None:
        wanted.add(PERCENTILE)
    if options.variant_strand is not Strand.BOTH:
        wanted.difference_update(STRAND_FIELDS.values())
    return [field for field in FIELDS if field in wanted]
