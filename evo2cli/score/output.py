"""What `evo2 score` writes of variants: VCF, BCF, TSV, JSON lines or Parquet; and its last word."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.table import Table

from evo2cli import console
from evo2cli.errors import TooManySkippedError, UserError
from evo2cli.files import atomic_path, open_output
from evo2cli.genome.htslib import index_table, index_variants, write_bcf
from evo2cli.genome.normalization import Indels
from evo2cli.genome.parquet import open_parquet
from evo2cli.genome.vcf import OUR_PREFIX, Header, Status, VariantRecord
from evo2cli.options import Strand
from evo2cli.score.options import Layout, Quantity, ScoreOptions
from evo2cli.tables import Row, cell, json_line, table_line

MUCH_MISMATCH = 0.01  # share of REFs that the genome denies; above, it is likely another build
FEW_MISMATCHES = 3  # as many prove nothing, however small the file

PERCENTILE = "EVO2_PCT"  # filled where there is a background

# The INFO fields, a value for each allele: type and meaning.
FIELDS = {
    "EVO2_DELTA": (
        "Float",
        "EVO2_ALT - EVO2_REF in nats; negative: the alternate allele is less likely",
    ),
    "EVO2_REF": ("Float", "Log-likelihood of the window with the reference allele, in nats"),
    "EVO2_ALT": ("Float", "Log-likelihood of the window with the alternate allele, in nats"),
    "EVO2_FWD": ("Float", "EVO2_DELTA of the forward strand, in nats"),
    "EVO2_RC": ("Float", "EVO2_DELTA of the reverse-complement strand, in nats"),
    PERCENTILE: (
        "Float",
        "Percentage of random variants of the same kind (SNV: change and both neighbours; others: "
        "length) with a lower EVO2_DELTA",
    ),
    "EVO2_STATUS": (
        "String",
        "OK; EDGE: a contig end moved or cut the windows; NONACGT: they hold other letters than "
        "ACGT; SWAPPED: the genome has ALT, and REF was put there; NOISE: EVO2_DELTA is within "
        "##evo2Noise; any other word says why there is no score",
    ),
}
SHARD = "##evo2Shard="  # I/N of a part, by which `evo2 merge` knows its place
STRAND_FIELDS = {Strand.FORWARD: "EVO2_FWD", Strand.REVERSE: "EVO2_RC"}
QUANTITIES = {
    Quantity.DELTA: {"EVO2_DELTA", *STRAND_FIELDS.values()},
    Quantity.REF: {"EVO2_REF"},
    Quantity.ALT: {"EVO2_ALT"},
    Quantity.ALL: {"EVO2_DELTA", "EVO2_REF", "EVO2_ALT", *STRAND_FIELDS.values()},
}
WINDOW_COLUMNS = ("window_start", "window_end", "alt_window_start", "alt_window_end")
SCORED = frozenset({Status.OK, Status.EDGE, Status.NONACGT, Status.SWAPPED, Status.NOISE})
_VARIANT_COLUMNS = {"chrom": str, "pos": int, "id": str, "ref": str, "alt": str}
_TYPES = {"Float": float, "String": str}
_MEANINGS = {
    Status.OK: "",
    Status.EDGE: "a contig's end moved or cut the windows",
    Status.NONACGT: "windows hold other letters than ACGT",
    Status.SWAPPED: "the reference has ALT; REF was put there",
    Status.NOISE: "the delta is within what rounding moves",
    Status.NO_ALT: "no alternate allele (.)",
    Status.STAR: "deleted by another record (*)",
    Status.SYMBOLIC: "its bases are not given",
    Status.BREAKEND: "joins two places",
    Status.INVALID_ALLELE: "not spelled in bases",
    Status.CONTIG_MISSING: "the reference has no such contig",
    Status.OUT_OF_RANGE: "outside its contig",
    Status.REF_MISMATCH: "the reference has other bases there than REF",
    Status.TOO_LONG: "longer than half a window",
}

Put = Callable[[VariantRecord, Sequence[Row]], None]


@contextmanager
def open_variant_output(
    path: Path | None, writer: "VariantWriter", header: Header, provenance: Sequence[str]
) -> Iterator[Put]:
    """Yield what writes a record with its rows to `path`, or to stdout for None.

    The file gets its name when everything is written. Where its kind can be indexed, it is, if the
    records came sorted.

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
    """As `open_output`, by way of text beside the file."""
    assert path is not None
    text = path.with_name(f"{path.name}.text.gz")
    try:
        with open_output(text) as write:
            yield write
        with atomic_path(path) as part:
            write_bcf(text, part)
    finally:
        text.unlink(missing_ok=True)


def index_output(path: Path, layout: Layout, fault: str = "") -> None:
    """Leave an index beside `path`, or say why there is none; `fault` is one that is known."""
    for suffix in (".tbi", ".csi"):  # one of an earlier output would lie
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    if fault:
        console.warn(f"{path}: no index: {fault}; `bcftools sort` puts a VCF in order")
        return
    try:
        (index_table if layout is Layout.TSV else index_variants)(path)
    except UserError as error:
        console.warn(f"{error}; the file itself is complete")


class _Order:
    """Whether records come by contig and position.

    Attributes:
        fault: Where they do not, first; "" as long as they do.
    """

    def __init__(self) -> None:
        self.fault = ""
        self._done: set[str] = set()
        self._contig, self._start = "", -1

    def note(self, record: VariantRecord) -> None:
        """See the next record."""
        if self.fault or not record.alternates:
            return
        if record.contig != self._contig:
            self._done.add(self._contig)
            if record.contig in self._done:
                self.fault = f"{record.contig} comes twice, with other contigs between"
        elif record.start < self._start:
            self.fault = (
                f"{record.contig}:{record.start + 1} comes after {self._contig}:{self._start + 1}"
            )
        self._contig, self._start = record.contig, record.start


class VariantWriter:
    """Turns records and their rows into the text of a layout, or into whole rows.

    Args:
        layout: Of the output.
        fields: INFO fields to write.
        others: Columns of a table that ride along, and what their cells are.

    Attributes:
        columns: Of a table, and what their cells are.

    Raises:
        UserError: A column that rides along has the name of one of ours.
    """

    def __init__(
        self, layout: Layout, fields: Sequence[str], others: Mapping[str, type] | None = None
    ) -> None:
        self.layout, self._fields, self._others = layout, fields, dict(others or {})
        own = {
            **_VARIANT_COLUMNS,
            **{name: _TYPES[kind] for name, (kind, _) in FIELDS.items() if name in fields},
            **dict.fromkeys(WINDOW_COLUMNS, int),
        }
        for name in self._others:
            if name in own or name.startswith(OUR_PREFIX.decode()):
                raise UserError(
                    f"column {name!r} is one that is written here: rename it, or score the "
                    "original table if this one was scored before"
                )
        self.columns: dict[str, type] = {**own, **self._others}

    def opening(self, header: Header, provenance: Sequence[str]) -> bytes:
        """What stands before the first record."""
        if self.layout in (Layout.VCF, Layout.BCF):
            info = [
                f'##INFO=<ID={field},Number=A,Type={kind},Description="{meaning}">'
                for field, (kind, meaning) in FIELDS.items()
                if field in self._fields
            ]
            return header.with_lines([*provenance, *info])
        if self.layout is Layout.TSV:
            keys = ("#CHROM", "POS", "ID", "REF", "ALT")
            return table_line((*keys, *self._fields, *WINDOW_COLUMNS, *self._others))
        return b""

    def lines(self, record: VariantRecord, rows: Sequence[Row]) -> bytes:
        """The record as it was with INFO appended, or a line for each of its alleles."""
        if self.layout in (Layout.VCF, Layout.BCF):
            if not rows:  # a blank line, which BCF cannot hold
                return record.line if self.layout is Layout.VCF else b""
            values = {f: ",".join(cell(row[f]) for row in rows) for f in self._fields}
            return record.with_info(";".join(f"{f}={text}" for f, text in values.items()))
        whole = self.rows(record, rows)
        if self.layout is Layout.JSONL:
            return b"".join(map(json_line, whole))
        return b"".join(table_line(self._cells(row)) for row in whole)

    def rows(self, record: VariantRecord, rows: Sequence[Row]) -> list[Row]:
        """A row of `columns` for each allele."""
        others = dict(zip(self._others, record.others, strict=True))
        return [
            {
                "chrom": record.contig,
                "pos": record.start + 1,
                "id": record.identifier,
                "ref": record.reference.decode(errors="surrogateescape"),
                "alt": alternate.decode(errors="surrogateescape"),
                **{name: row[name] for name in (*self._fields, *WINDOW_COLUMNS)},
                **others,
            }
            for alternate, row in zip(record.alternates, rows, strict=True)
        ]

    def _cells(self, row: Row) -> Iterator[object]:
        """Values as a TSV shows them; numbers that ride along keep their digits."""
        for name, value in row.items():
            if name in self._others and value is not None:
                yield " ".join(str(value).splitlines()).replace("\t", " ")
            else:
                yield value


def written_fields(options: ScoreOptions) -> list[str]:
    """The INFO fields that are asked for, in their order."""
    wanted = {*QUANTITIES[Quantity(options.score)], "EVO2_STATUS"}
    if options.background is not None:
        wanted.add(PERCENTILE)
    if options.variant_strand is not Strand.BOTH:
        wanted.difference_update(STRAND_FIELDS.values())
    return [field for field in FIELDS if field in wanted]


def report(options: ScoreOptions, counts: Counter[str], indels: Indels, absent: str | None) -> None:
    """Tell what became of the alleles, in a table on stderr.

    Args:
        options: What was asked for.
        counts: Alleles by their status.
        indels: Of the records.
        absent: What to say of contigs that the reference does not have, if there were any.

    Raises:
        TooManySkippedError: More than allowed have no score, or no contig is the reference's.
    """
    total = counts.total()
    skipped = sum(count for status, count in counts.items() if not _is_scored(status))
    console.say(f"{total - skipped:,} of {total:,} alleles scored")
    if total:
        console.write_page(status_table(counts), stderr=True)
    if absent is not None:
        if counts[Status.CONTIG_MISSING] == total:
            raise TooManySkippedError(f"{options.source}: nothing could be scored: {absent}")
        console.warn(absent)
    denied = counts[Status.REF_MISMATCH]
    checked = total - skipped + denied
    if denied > max(FEW_MISMATCHES, MUCH_MISMATCH * checked):
        console.warn(
            f"the reference contradicts REF of {denied:,} of {checked:,} alleles: is it ANOTHER "
            "GENOME BUILD than the VCF was made for?"
        )
    if indels.unnormalized:
        console.warn(
            f"{indels.unnormalized:,} of {indels.total:,} insertions and deletions are not trimmed "
            "and left-aligned; the same change written elsewhere has other windows and other "
            "scores: `bcftools norm -f` the reference first"
        )
    options.check_skipped(skipped, total)


def status_table(counts: Counter[str]) -> Table:
    """A line for each status: the scored first, then the rest, frequent ones on top."""
    table = Table(box=None, pad_edge=False)
    table.add_column("status")
    for label in ("alleles", "share"):
        table.add_column(label, justify="right")
    table.add_column("")
    for status, count in sorted(
        counts.items(), key=lambda item: (not _is_scored(item[0]), -item[1], item[0])
    ):
        meanings = filter(None, (_MEANINGS[Status(word)] for word in status.split("&")))
        share = f"{100 * count / counts.total():.1f} %"
        table.add_row(status, f"{count:,}", share, "; ".join(meanings))
    return table


def _is_scored(status: str) -> bool:
    return not SCORED.isdisjoint(status.split("&"))
