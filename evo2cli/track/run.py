"""`evo2 score --track`: what a model makes of every base, along records of a FASTA or regions.

Pieces run through the model with exact state, so memory does not grow with the length. L tokens, V
vocabulary.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from evo2cli import console
from evo2cli.errors import UserError
from evo2cli.files import open_output
from evo2cli.genome.alphabet import ACGT
from evo2cli.genome.fasta import read_records, require_nucleotides
from evo2cli.genome.interval import Interval
from evo2cli.genome.reference import Reference
from evo2cli.genome.regions import read_bed
from evo2cli.genome.source import STDIN
from evo2cli.genome.windows import upper_dna
from evo2cli.models import memory_explained, open_model
from evo2cli.options import Strand
from evo2cli.score.options import IndelMode, Quantity, ScoreOptions, Track
from evo2cli.track.formats import (
    BEDGRAPH,
    BIGWIG,
    PutTrack,
    bedgraph_lines,
    import_bigwig,
    open_bigwig,
)
from stripedhyena2 import StripedHyena2, scoring
from stripedhyena2.scoring import ScoringState, require_finite, token_logprobs

DEFAULT_LEAD = 8192  # bases read before a region, at most the model's context


@dataclass(frozen=True)
class Section:
    """Bases that get a value each, except the first of a contig, which has no prediction.

    Attributes:
        name: Of the record or contig.
        start: Where they begin in it, 0-based.
        lead: Upper-case bases right before them, read but not told of.
        bases: Upper-case.
    """

    name: str
    start: int
    lead: bytes
    bases: bytes


def score_tracks(options: ScoreOptions) -> None:
    """Write the track that was asked for.

    Raises:
        UserError: The input or the output will not do.
        UntrustedNumericsError: A log-likelihood is no finite number.
    """
    _check(options)
    track = Track(options.track or "")
    lengths, sizes = _measure(options)
    model = open_model(
        options.model, config=options.config, device=options.device, dtype=options.dtype
    )
    lead = 0
    if _by_region(options):
        lead = options.window or min(DEFAULT_LEAD, model.config.context)
    longest, context = max(sizes, default=0), model.config.context
    if longest > context:
        console.warn(
            f"{longest:,} bases in a row: the model was trained on {context:,}; beyond them it "
            "extrapolates"
        )
    total = sum(sizes)
    with (
        memory_explained(f"--track on {options.device}", "take shorter --regions"),
        _open_track(options, lengths) as put,
        console.progress("score", total, "bases") as bar,
    ):
        for section in _sections(options, lead):
            for start, values in track_pieces(model, track, section, bar.advance):
                put(section.name, start, values)
    console.say(f"{track} of {total:,} bases")


def _measure(options: ScoreOptions) -> tuple[dict[str, int], list[int]]:
    """The length of each record, or of each contig of a genome; and that of each section.

    Reading the input once more is fast, and a bad record is found before hours of work.
    """
    sections = [(section.name, len(section.bases)) for section in _sections(options, 0)]
    sizes = [size for _, size in sections]
    if _by_region(options):
        with Reference.open(options.source) as genome:
            return {name: genome.length(name) for name in genome.names}, sizes
    lengths = dict(sections)
    if len(lengths) < len(sections):
        raise UserError(f"{options.source}: records share a name; a track needs one for each")
    return lengths, sizes


def _by_region(options: ScoreOptions) -> bool:
    """Whether the FASTA is a genome of which parts are asked for."""
    return bool(options.regions or options.bed)


def track_pieces(
    model: StripedHyena2,
    track: Track,
    section: Section,
    advance: Callable[[int], None] = lambda _: None,
) -> Iterator[tuple[int, list[float]]]:
    """The values of a section, a piece at a time: where each piece starts, and its values.

    Raises:
        UntrustedNumericsError: A log-likelihood is no finite number.
    """
    so_far = ScoringState.start(model).extend(section.lead)
    for offset in range(0, len(section.bases), scoring.CHUNK):
        piece = section.bases[offset : offset + scoring.CHUNK]
        so_far, ids_L, logprobs_LV = so_far.predict(piece)
        require_finite(so_far.logprob, model, piece, f"{section.name}: from base {offset + 1:,} on")
        found_L = (
            token_logprobs(logprobs_LV, ids_L) if track is Track.LOGPROB else entropy(logprobs_LV)
        )
        yield section.start + offset + len(piece) - len(found_L), found_L.tolist()
        advance(len(piece))


def entropy(logprobs_LV: Tensor) -> Tensor:
    """Entropy [L] in bits of the predictions, shared out among A, C, G and T alone: 0 to 2."""
    among_L4 = logprobs_LV[:, list(ACGT)].double().log_softmax(dim=-1)
    bits_L = -(among_L4.exp() * among_L4).sum(dim=-1) / math.log(2)
    return bits_L.clamp(min=0)


def _check(options: ScoreOptions) -> None:
    """Refuse what has no track."""
    for flag, is_given in (
        ("--strand", options.sequence_strand is not Strand.FORWARD),
        ("--context-parallel", options.context_parallel > 1),
        ("--json", options.json),
        ("--reference", options.reference is not None),
        ("--background", options.background is not None),
        ("--shard", options.shard is not None),
        ("--dry-run", options.dry_run),
        ("--precision-check", options.precision_check is not None),
        ("--score", options.score != Quantity.DELTA),
        ("--windows", options.windows != "centred"),
        ("--indel-mode", options.indel_mode != IndelMode.FIXED),
        ("--on-ref-mismatch", options.on_ref_mismatch != "skip"),
        ("--max-skipped", options.max_skipped != 1),
        ("--max-memory", options.max_memory is not None),
        *((f, f not in ("--regions", "--bed")) for f in options.filters),
    ):
        if is_given:
            raise UserError(f"{flag} does not go with --track, which reads a FASTA forward")
    if options.window is not None and not _by_region(options):
        raise UserError("--window is what is read before --regions; records are read whole")
    if options.source == STDIN:
        raise UserError("--track reads its FASTA twice; give a file in place of stdin")
    if options.output is None:
        return
    suffix = Path(options.output.name.removesuffix(".gz")).suffix
    if options.output.suffix in BIGWIG:
        import_bigwig(options.output)
    elif suffix not in BEDGRAPH:
        raise UserError(f"--output {options.output}: needs .bedgraph, .bedgraph.gz or .bw")


@contextmanager
def _open_track(options: ScoreOptions, lengths: dict[str, int]) -> Iterator[PutTrack]:
    if options.output is not None and options.output.suffix in BIGWIG:
        with open_bigwig(options.output, lengths) as put:
            yield put
        return
    with open_output(options.output) as write:
        yield lambda *piece: write(bedgraph_lines(*piece))


def _sections(options: ScoreOptions, lead: int) -> Iterator[Section]:
    """The records of the FASTA, or its regions in order, with `lead` bases before each."""
    if not _by_region(options):
        for record in read_records(options.source):
            require_nucleotides(options.source, record)
            yield Section(record.name, 0, b"", upper_dna(record.sequence))
        return
    with Reference.open(options.source) as genome:
        for region in _regions(options, genome):
            first = max(0, region.start - lead)
            letters = upper_dna(genome.fetch(Interval(region.name, first, region.end)))
            cut = region.start - first
            yield Section(region.name, region.start, letters[:cut], letters[cut:])


def _regions(options: ScoreOptions, genome: Reference) -> list[Interval]:
    """What was asked for, in the genome's order, joined where it overlaps or touches."""
    order = {name: place for place, name in enumerate(genome.names)}
    asked = [(f"--regions {text}", genome.region(text)) for text in options.regions]
    if options.bed:
        asked += [(f"{options.bed}: {region}", region) for region in read_bed(options.bed)]
    found = [genome.resolve(region, who) for who, region in asked]
    joined: list[Interval] = []
    for region in sorted(found, key=lambda r: (order[r.name], r.start, r.end)):
        if joined and joined[-1].name == region.name and region.start <= joined[-1].end:
            last = joined.pop()
            region = Interval(last.name, last.start, max(last.end, region.end))
        joined.append(region)
    return joined
