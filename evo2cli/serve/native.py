"""Our own paths: scores of sequences and variants, saturation, tracks and genes."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field

from evo2cli import console
from evo2cli.errors import UserError
from evo2cli.genome.alphabet import reverse_complement, upper_dna
from evo2cli.genome.interval import Interval
from evo2cli.genome.reference import Reference
from evo2cli.genome.variant_names import read_variant_name
from evo2cli.genome.vcf import VariantRecord, read_line
from evo2cli.options import Strand
from evo2cli.saturate.records import locate_region, snv_records
from evo2cli.score import score_sequences
from evo2cli.score.alleles import DEFAULT_WINDOW, VariantScorer
from evo2cli.score.background import Background
from evo2cli.score.options import AlleleOptions, IndelMode, OnRefMismatch, Windows
from evo2cli.score.output import FIELDS, PERCENTILE, WINDOW_COLUMNS, allele_rows
from evo2cli.score.precision import Noise
from evo2cli.serve.answers import Json, results
from evo2cli.serve.engine import Engine, Served, Task
from evo2cli.serve.reading import (
    MAX_SEQUENCES,
    Fields,
    check_length,
    check_number,
    naming,
    read_dna,
)
from evo2cli.serve.refusal import Refusal
from evo2cli.tables import Row, rounded
from evo2cli.track.options import Value
from evo2cli.track.run import DEFAULT_LEAD, Section, section_values

MAX_VARIANTS = 10_000  # of a request
ROW_FIELDS = tuple(field for field in (*FIELDS, *WINDOW_COLUMNS) if field != PERCENTILE)
Scored = tuple[int, list[Row]] | None  # index of a record and rows of an allele; None in between
SEQUENCE = "sequence"  # the contig of a sequence that is scored without a genome


class Score(Fields):
    """A request for log-likelihoods of sequences."""

    sequences: list[str] = Field(min_length=1)
    strand: Literal["fwd", "rc", "both"] = "fwd"
    per_base: bool = Field(False, description="Also return the log-probability of each base.")


class WindowFields(Fields):
    """The windows around an allele, as in `evo2 score`."""

    window: int | None = Field(None, ge=2)
    windows: Windows = Windows.CENTRED
    strand: Literal["fwd", "rc", "both"] = "both"
    indel_mode: IndelMode = IndelMode.FIXED
    on_ref_mismatch: OnRefMismatch = OnRefMismatch.SKIP


class Variants(WindowFields):
    """A request for scores of variants."""

    variants: list[str] = Field(
        min_length=1, description="chrom-pos-ref-alt, chrom:pos:ref>alt, or lines of a VCF."
    )
    percentiles: bool = Field(
        True, description="Add EVO2_PCT, if the server has a background and windows are default."
    )


class Target(Fields):
    """Either a region of the genome, or a sequence."""

    region: str | None = Field(None, description="chr:from-to, 1-based, both ends included.")
    sequence: str | None = None


class Saturate(Target, WindowFields):
    """A request for the scores of all SNVs of a region, or of a sequence."""


class Track(Target):
    """A request for a value of every base of a region, or of a sequence."""

    value: Value = Value.LOGPROB
    strand: Literal["fwd", "rc"] = Field(
        "fwd", description="rc reads the reverse complement: each base given those to its right."
    )
    window: int | None = Field(
        None, ge=0, description="Bases to read before a region; 8192 by default."
    )


class InRegion(Fields):
    """A request for the genes of a region."""

    region: str = Field(description="chr:from-to, 1-based, both ends included.")


@dataclass(frozen=True)
class Annotator:
    """Adds percentiles and the status NOISE to rows.

    Attributes:
        background: Percentiles; None for none.
        noise: Rounding noise; None if it is unknown.
        fields: Fields of a row.
    """

    background: Background | None = None
    noise: Noise | None = None
    fields: Sequence[str] = ROW_FIELDS

    def steps(self, record: VariantRecord) -> Iterator[None]:
        """Score the random variants that a record needs for its percentiles, one per step."""
        if self.background is not None:
            try:
                yield from self.background.prepare(record)
            except UserError as error:  # e.g. a full disk, which is not a mistake of the client
                console.warn(str(error))

    def rows(self, record: VariantRecord, rows: Sequence[Row]) -> list[Row]:
        """The rows of the response for the alleles of a record."""
        if self.background is not None:
            rows = self.background.add_percentiles(record, rows)
        if self.noise is not None:
            rows = self.noise.mark(rows)
        return list(allele_rows(record, rows, self.fields))


PLAIN = Annotator()  # adds nothing


def routes(engine: Engine) -> APIRouter:
    """The router of the paths."""
    router = APIRouter(prefix="/v1", tags=["evo2"])

    @router.post("/score")
    async def score(body: Score, request: Request) -> Response:
        """Log-likelihoods of sequences, in nats; rows are those of `evo2 score`."""
        check_number("sequences", len(body.sequences), MAX_SEQUENCES)
        served = engine.require_served()
        for index, text in enumerate(body.sequences):
            field = f"sequences[{index}]"
            tag, bases = read_dna(served, field, text)
            if body.per_base and (tag or body.strand == "both" or len(bases) < 2):
                raise Refusal(
                    422,
                    f"{field}: per_base needs two bases or more, one strand and no lineage tag",
                )

        def work(served: Served) -> Iterator[dict[str, Any]]:
            for index, text in enumerate(body.sequences):
                named = [(f"sequence {index}", text)]
                rows = score_sequences(named, served.model, strand=body.strand)
                row: dict[str, Any] = dict(next(rows))
                if body.per_base:
                    strand: Literal["fwd", "rc"] = "rc" if body.strand == "rc" else "fwd"
                    (logprobs_L,) = served.model.score([text], reduce="none", strand=strand)
                    row["logprobs"] = [rounded(value) for value in logprobs_L.tolist()]
                yield row

        scores = await results(engine, Task(work, engine.deadline()), request)
        return Json({"scores": scores})

    @router.post("/variants")
    async def variants(body: Variants, request: Request) -> Response:
        """Scores of variants against the genome; rows are those of `evo2 score`."""
        check_number("variants", len(body.variants), MAX_VARIANTS)
        options = _options(body, engine.require_served())
        records = [read_variant(f"variants[{i}]", text) for i, text in enumerate(body.variants)]
        check_number("alleles", sum(len(record.alternates) for record in records), MAX_VARIANTS)

        def work(served: Served) -> Iterator[Scored]:
            scorer = VariantScorer(served.model, genome_of(served), options, brief=True)
            annotator = _annotator(served, options, body.percentiles)
            yield from score_in_pieces(scorer, records, annotator)

        return await _rows(engine, work, request)

    @router.post("/saturate")
    async def saturate(body: Saturate, request: Request) -> Response:
        """Scores of all SNVs of a region or a sequence; rows are those of `evo2 saturate`."""
        options = _options(body, engine.require_served())

        def work(served: Served) -> Iterator[Scored]:
            genome, region = _resolve_target(served, body)
            scorer = VariantScorer(served.model, genome, options, brief=True)
            # Without percentiles: random variants of all 96 kinds would take too long.
            annotator = _annotator(served, options, False) if genome is served.genome else PLAIN
            yield from score_in_pieces(scorer, list(snv_records(genome, region)), annotator)

        return await _rows(engine, work, request)

    @router.post("/track")
    async def track(body: Track, request: Request) -> Response:
        """A value for every base: log-probability (nats) or entropy (bits), by `evo2 track`."""
        if body.window is not None:
            check_length(engine.require_served(), "window", body.window)
        is_forward = body.strand == "fwd"

        def work(served: Served) -> Iterator[Section | list[float]]:
            genome, region = _resolve_target(served, body)
            context = served.model.config.context
            lead = min(DEFAULT_LEAD, context) if body.window is None else body.window
            first, end = max(0, region.start - lead), region.end
            if not is_forward:
                first, end = region.start, min(region.end + lead, genome.length(region.name))
            letters = upper_dna(genome.fetch(Interval(region.name, first, end)))
            if not is_forward:
                letters = reverse_complement(letters)
            cut = len(letters) - len(region)
            section = Section(region.name, region.start, letters[:cut], letters[cut:])
            yield section
            for _, values in section_values(served.model, body.value, section):
                yield values

        section, *parts = await results(engine, Task(work, engine.deadline()), request)
        values = [rounded(value) for part in parts for value in part]
        # A first base without any base before it has no value.
        missing = len(section.bases) - len(values)
        bases, start = section.bases[missing:], section.start + missing
        if not is_forward:
            values, bases, start = values[::-1], reverse_complement(bases), section.start
        return Json(
            {"name": section.name, "start": start, "bases": bases.decode(), "values": values}
        )

    @router.post("/genes")
    async def genes(body: InRegion) -> Response:
        """Genes of a region, with all their exons and coding parts: [start, end), 0-based."""
        served = engine.require_served()
        region = _read_region(served, body.region)
        if served.genes is None:
            raise UserError("this server has no genes; start it with --gff genes.gff3")
        overlapping = served.genes.overlapping(region.name, region.start, region.end)
        return Json({"genes": [asdict(gene) for gene in overlapping]})

    return router


async def _rows(engine: Engine, work: Any, request: Request) -> Response:
    scored = await results(engine, Task(work, engine.deadline()), request)
    return Json({"variants": in_order(scored)})


def in_order(scored: Iterable[Scored]) -> list[Row]:
    """The rows of alleles from `score_in_pieces`, in the order of the records."""
    pairs = sorted(filter(None, scored), key=lambda pair: pair[0])
    return [row for _, rows in pairs for row in rows]


def _options(body: WindowFields, served: Served) -> AlleleOptions:
    if body.window is not None:
        check_length(served, "window", body.window)
    fields: dict[str, Any] = {name: getattr(body, name) for name in WindowFields.model_fields}
    return AlleleOptions(**fields)


def _annotator(served: Served, options: AlleleOptions, has_percentiles: bool) -> Annotator:
    """Create the annotator of a request; noise and percentiles exist only for default windows."""
    background = served.background if has_percentiles else None
    fields = ROW_FIELDS if background is None else (*FIELDS, *WINDOW_COLUMNS)
    defaults = AlleleOptions(on_ref_mismatch=options.on_ref_mismatch, strand=Strand.BOTH)
    default_window = min(DEFAULT_WINDOW, served.model.config.context)
    given = replace(options, window=None if options.window == default_window else options.window)
    if given != defaults:
        return Annotator(fields=fields)
    return Annotator(background, served.noise, fields)


def genome_of(served: Served) -> Reference:
    """The genome of the server.

    Raises:
        UserError: It has none.
    """
    if served.genome is None:
        raise UserError("this server has no genome; start it with --reference genome.fa")
    return served.genome


def read_variant(field: str, text: str) -> VariantRecord:
    """Parse a variant, written as one word or as a line of a VCF.

    Args:
        field: Field of the request, for messages, e.g. "variants[2]".
        text: The variant.

    Raises:
        UserError: It is not a variant.
    """
    clean = text.encode(errors="replace").decode().strip("\r\n")
    with naming(field):
        if "\t" not in clean.strip():
            return read_variant_name(clean)
        try:
            return read_line(clean.encode())
        except ValueError as error:
            raise UserError(str(error)) from None


def score_in_pieces(
    scorer: VariantScorer, records: Sequence[VariantRecord], annotator: Annotator = PLAIN
) -> Iterator[Scored]:
    """Yield the index of a record and the rows of an allele, one allele per step.

    Alleles are scored in the order of their positions, so that neighbours share windows. Further
    steps yield None.
    """
    order = sorted(range(len(records)), key=lambda i: (records[i].contig, records[i].start))
    alleles = [(index, alternate) for index in order for alternate in records[index].alternates]
    single = [replace(records[index], alternates=(alternate,)) for index, alternate in alleles]
    for (index, _), record, rows in zip(alleles, single, scorer.score_all(single), strict=True):
        yield from annotator.steps(record)
        yield index, annotator.rows(record, rows)


def _read_region(served: Served, text: str) -> Interval:
    """Parse the field `region`."""
    genome = genome_of(served)
    with naming("region"):
        region = locate_region(genome, text)
    check_length(served, "region", len(region))
    return region


def _resolve_target(served: Served, body: Target) -> tuple[Reference, Interval]:
    """The genome and the region of a request; a sequence is a genome with one contig."""
    if (body.region is None) == (body.sequence is None):
        raise UserError("give either a region or a sequence")
    if body.region is not None:
        return genome_of(served), _read_region(served, body.region)
    tag, bases = read_dna(served, SEQUENCE, body.sequence or "")
    if tag or len(bases) < 2:
        raise UserError("sequence: needs two bases or more, and no lineage tag")
    whole = Interval(SEQUENCE, 0, len(bases))
    return Reference.from_sequences({SEQUENCE: bases}), whole
