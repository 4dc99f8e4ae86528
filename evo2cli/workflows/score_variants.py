"""`evo2 score` of a VCF: every allele by the two windows it makes of the genome."""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from urllib.parse import unquote, urlsplit

from evo2cli import __version__, console
from evo2cli.errors import UserError
from evo2cli.genome.alphabet import ACGT
from evo2cli.genome.interval import Interval
from evo2cli.genome.reference import Reference
from evo2cli.genome.source import STDIN
from evo2cli.genome.vcf import (
    Header,
    Status,
    VariantRecord,
    allele_status,
    find_contig,
    is_bases,
    read_vcf,
)
from evo2cli.genome.windows import Window, WindowPair, agrees, cut_windows, upper_dna
from evo2cli.workflows.likelihood import WindowScorer, fingerprint, require_finite
from evo2cli.workflows.models import open_model
from evo2cli.workflows.results import (
    Row,
    cell,
    json_line,
    open_journal,
    open_output,
    rounded,
    table_line,
)
from evo2cli.workflows.score_options import Layout, ScoreOptions, Strand
from stripedhyena2 import StripedHyena2

DEFAULT_WINDOW = 8192
MUCH_MISMATCH = 0.01  # share of REFs that the genome denies; above, it is likely another build
FEW_MISMATCHES = 3  # as many prove nothing, however small the file

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
    "EVO2_STATUS": (
        "String",
        "OK; EDGE: a contig end moved or cut the windows; NONACGT: they hold other letters than "
        "ACGT; any other word says why there is no score",
    ),
}
STRAND_FIELDS = {Strand.FORWARD: "EVO2_FWD", Strand.REVERSE: "EVO2_RC"}
WINDOW_COLUMNS = ("window_start", "window_end")


def score_variants(options: ScoreOptions) -> None:
    """Score every allele of a VCF and write it in the layout asked for.

    Raises:
        UserError: The VCF or the reference cannot be read, or a REF differs and may not.
        TooManySkippedError: More alleles than allowed have no score; the output is complete.
        UntrustedNumericsError: A log-likelihood is no finite number.
    """
    layout = options.layout(Layout.VCF)
    total = None
    if options.source != STDIN:
        # Reading it once more is fast, and a bad record is found before hours of work.
        total = sum(1 for _ in read_vcf(options.source).records)
    vcf = read_vcf(options.source)
    path = options.reference or _reference_of(vcf.header, options.source)
    counts: Counter[str] = Counter()
    with Reference.open(path) as genome:
        model = open_model(
            options.model, config=options.config, device=options.device, dtype=options.dtype
        )
        scorer = VariantScorer(model, genome, options)
        writer = VariantWriter(layout, scorer.fields)
        provenance = _provenance(options, path, scorer.window, model)
        with (
            open_journal(options.output, [*provenance, *_identity(path)]) as recall,
            open_output(options.output) as write,
            console.progress("score", total, "records") as bar,
        ):
            write(writer.opening(vcf.header, provenance))
            for record in vcf.records:
                rows = recall(str(record), partial(scorer.score, record))
                write(writer.lines(record, rows))
                counts.update(str(row["EVO2_STATUS"]) for row in rows)
                bar.advance()
    _report(options, counts)


class VariantScorer:
    """Scores alleles against one genome with one model.

    Attributes:
        fields: The INFO fields it fills.
        window: Bases in a window.
    """

    def __init__(self, model: StripedHyena2, genome: Reference, options: ScoreOptions) -> None:
        context = model.config.context
        self.window = options.window or min(DEFAULT_WINDOW, context)
        if self.window > context:
            console.warn(
                f"--window {self.window}: the model was trained on {context} bases in one window; "
                "beyond them it extrapolates"
            )
        self._model, self._genome = model, genome
        self._contigs = frozenset(genome.names)
        self._mismatch_is_error = options.on_ref_mismatch == "error"
        self._strands = {strand: WindowScorer(model) for strand in options.strands}
        single = len(self._strands) == 1
        self.fields = [f for f in FIELDS if not (single and f in STRAND_FIELDS.values())]

    def score(self, record: VariantRecord) -> list[Row]:
        """A row for each allele: `fields`, then where the reference window lies, 0-based.

        Raises:
            UserError: REF differs from the genome, and that is to be an error.
            UntrustedNumericsError: A log-likelihood is no finite number.
        """
        rows = []
        for alternate in record.alternates:
            row: Row = dict.fromkeys((*self.fields, *WINDOW_COLUMNS))
            found = self._windows(record, alternate)
            if isinstance(found, Status):
                row["EVO2_STATUS"] = found.value
            else:
                row |= self._scores(found, str(record))
            rows.append(row)
        return rows

    def _windows(self, record: VariantRecord, alternate: bytes) -> WindowPair | Status:
        """The windows of an allele, or why it has none."""
        status = allele_status(alternate)
        if status is not Status.OK:
            return status
        if not is_bases(record.reference):
            return Status.INVALID_ALLELE
        contig = find_contig(record.contig, self._contigs)
        if contig is None:
            return Status.CONTIG_MISSING
        end = record.start + len(record.reference)
        if record.start < 0 or end > self._genome.length(contig):
            return Status.OUT_OF_RANGE
        variant = Interval(contig, record.start, end)
        letters = upper_dna(self._genome.fetch(variant))
        if not agrees(upper_dna(record.reference), letters):
            if self._mismatch_is_error:
                raise UserError(
                    f"{record}: the reference has {letters.decode()} there; is it the right build? "
                    "--on-ref-mismatch skip goes on without such records"
                )
            return Status.REF_MISMATCH
        return cut_windows(self._genome, variant, alternate, self.window) or Status.TOO_LONG

    def _scores(self, pair: WindowPair, name: str) -> Row:
        """The values of a scored allele."""
        references, alternates = [], []
        for strand, scorer in self._strands.items():
            references.append(self._total(strand, scorer, pair.reference, name))
            alternates.append(self._total(strand, scorer, pair.alternate, name))
        deltas = [alt - ref for ref, alt in zip(references, alternates, strict=True)]
        row: Row = {
            "EVO2_DELTA": rounded(mean(deltas)),
            "EVO2_REF": rounded(mean(references)),
            "EVO2_ALT": rounded(mean(alternates)),
            "EVO2_STATUS": _status(pair),
            "window_start": pair.interval.start,
            "window_end": pair.interval.end,
        }
        if len(self._strands) > 1:
            for strand, delta in zip(self._strands, deltas, strict=True):
                row[STRAND_FIELDS[strand]] = rounded(delta)
        return row

    def _total(self, strand: Strand, scorer: WindowScorer, window: Window, name: str) -> float:
        """Log-likelihood of a window, read along `strand`."""
        read = window if strand is Strand.FORWARD else window.reverse_complement()
        total = scorer.total(read)
        require_finite(total, self._model, read.sequence, name)
        return total


class VariantWriter:
    """Turns records and their rows into the text of a layout."""

    def __init__(self, layout: Layout, fields: Sequence[str]) -> None:
        self._layout, self._fields = layout, fields

    def opening(self, header: Header, provenance: Sequence[str]) -> bytes:
        """What stands before the first record."""
        if self._layout is Layout.VCF:
            info = [
                f'##INFO=<ID={field},Number=A,Type={kind},Description="{meaning}">'
                for field, (kind, meaning) in FIELDS.items()
                if field in self._fields
            ]
            return header.with_lines([*provenance, *info])
        if self._layout is Layout.TSV:
            columns = ("#CHROM", "POS", "ID", "REF", "ALT", *self._fields, *WINDOW_COLUMNS)
            return table_line(columns)
        return b""

    def lines(self, record: VariantRecord, rows: Sequence[Row]) -> bytes:
        """The record as it was with INFO appended, or a line for each of its alleles."""
        if self._layout is Layout.VCF:
            if not rows:
                return record.line
            values = {f: ",".join(cell(row[f]) for row in rows) for f in self._fields}
            return record.with_info(";".join(f"{f}={text}" for f, text in values.items()))
        lines = []
        for alternate, row in zip(record.alternates, rows, strict=True):
            variant: Row = {
                "chrom": record.contig,
                "pos": record.start + 1,
                "id": record.identifier,
                "ref": record.reference.decode(errors="surrogateescape"),
                "alt": alternate.decode(errors="surrogateescape"),
            }
            row = variant | row
            lines.append(table_line(row.values()) if self._layout is Layout.TSV else json_line(row))
        return b"".join(lines)


def _status(pair: WindowPair) -> str:
    """The status of a scored allele."""
    letters = pair.reference.sequence + pair.alternate.sequence
    notes = [Status.EDGE] * pair.at_edge + [Status.NONACGT] * bool(letters.translate(None, ACGT))
    return "&".join(notes or [Status.OK])


def _provenance(
    options: ScoreOptions, reference: Path, window: int, model: StripedHyena2
) -> list[str]:
    """Header lines that tell what made the scores; the same wherever and whenever it ran."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    dtype = str(model.embedding.weight.dtype).removeprefix("torch.")
    return [
        f"##evo2Version={__version__}",
        f"##evo2Command=evo2 score --model {Path(options.model).name} --reference {reference.name} "
        f"--window {window} --strand {options.strand} --on-ref-mismatch {options.on_ref_mismatch}",
        f"##evo2Model={model.config.stripes}, {parameters} parameters, {dtype}, "
        f"fingerprint {fingerprint(model.config, model.state_dict())}",
    ]


def _identity(file: Path) -> tuple[str, int, int]:
    """What tells a file from another version of it: where it is, its size and its time."""
    status = file.stat()
    return str(file.absolute()), status.st_size, status.st_mtime_ns


def _reference_of(header: Header, source: Path) -> Path:
    """The file that `##reference=` names, relative to the VCF.

    Raises:
        UserError: It names none, or none that is there.
    """
    named = header.value("reference")
    if not named:
        raise UserError(f"{source}: its header names no ##reference; give a FASTA by --reference")
    text = unquote(urlsplit(named).path) if named.startswith("file:") else named
    path = source.parent / text
    if not path.is_file():
        raise UserError(f"{source}: its ##reference={named} is not there; give it by --reference")
    return path


def _report(options: ScoreOptions, counts: Counter[str]) -> None:
    """Tell what became of the alleles."""
    total = counts.total()
    skipped = sum(count for status, count in counts.items() if not _is_scored(status))
    listed = ", ".join(f"{status} {count:,}" for status, count in sorted(counts.items()))
    console.say(f"{total - skipped:,} of {total:,} alleles scored" + (listed and f": {listed}"))
    denied = counts[Status.REF_MISMATCH]
    checked = total - skipped + denied
    if denied > max(FEW_MISMATCHES, MUCH_MISMATCH * checked):
        console.warn(
            f"the reference contradicts REF of {denied:,} of {checked:,} alleles: is it ANOTHER "
            "GENOME BUILD than the VCF was made for?"
        )
    options.check_skipped(skipped, total)


def _is_scored(status: str) -> bool:
    return not {Status.OK, Status.EDGE, Status.NONACGT}.isdisjoint(status.split("&"))
