"""`evo2 track`: a value for every base, along the records of a FASTA or regions of a genome.

Sequences are read in chunks with exact state, so memory does not grow with their length.

L tokens, V vocabulary.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from evo2cli import console
from evo2cli.errors import UserError, counted
from evo2cli.files import locks_output
from evo2cli.genome.alphabet import ACGT, upper_dna
from evo2cli.genome.fasta import read_records, require_nucleotides
from evo2cli.genome.interval import Interval
from evo2cli.genome.reference import Reference
from evo2cli.genome.regions import read_bed
from evo2cli.models import memory_explained, open_model, warn_beyond_context
from evo2cli.track.formats import check_track, open_track
from evo2cli.track.options import TrackOptions, Value
from stripedhyena2 import StripedHyena2, scoring
from stripedhyena2.progress import ignore_progress
from stripedhyena2.scoring import (
    ScoringState,
    require_finite,
    token_logprobs,
)

DEFAULT_LEAD = 8192  # bases read before a region, if the model's context allows


@dataclass(frozen=True)
class Section:
    """A sequence whose bases get values, except the first of a contig, which has no prediction.

    Attributes:
        name: Name of the record or contig.
        start: 0-based position of the first base.
        lead: Upper-case bases right before it, which are read but get no values.
        bases: Upper-case bases.
    """

    name: str
    start: int
    lead: bytes
    bases: bytes


@locks_output
def write_track(options: TrackOptions) -> None:
    """Write the value of every base to the output.

    Raises:
        UserError: The input cannot be read, or the output not written.
        NonFiniteError: A log-likelihood is NaN or infinite.
    """
    check_track(options.output)
    # Reading the input once more is fast, and an invalid record is found before hours of work.
    sections = [(section.name, len(section.bases)) for section in _sections(options, 0)]
    lengths = dict(sections)
    if options.by_region:
        with Reference.open(options.source) as genome:
            lengths = {name: genome.length(name) for name in genome.names}
    elif len(lengths) < len(sections):
        raise UserError(f"{options.source}: records share a name; a track needs different names")
    if "" in lengths:
        raise UserError(f"{options.source}: a record has no name; a track needs a name for each")
    model = open_model(options)
    context = model.config.context
    longest = max((size for _, size in sections), default=0)
    warn_beyond_context(model, longest, f"a sequence of {longest:,} bases")
    lead = 0
    if options.by_region:
        lead = options.window or min(DEFAULT_LEAD, context)
    total = sum(size for _, size in sections)
    with (
        memory_explained(f"evo2 track on {options.device}", "use shorter --regions"),
        open_track(options.output, lengths) as put,
        console.progress("score", total, "bases") as bar,
    ):
        for section in _sections(options, lead):
            for start, values in section_values(model, options.value, section, bar.advance):
                put(section.name, start, values)
    console.say(f"{options.value} of {counted(total, 'base')}")


def section_values(
    model: StripedHyena2,
    value: Value,
    section: Section,
    advance: Callable[[int], None] = ignore_progress,
) -> Iterator[tuple[int, list[float]]]:
    """The values of a section, chunk by chunk: the position of the first value, and the values.

    Raises:
        NonFiniteError: A log-likelihood is NaN or infinite.
    """
    state = ScoringState.start(model).extend(section.lead)
    for offset in range(0, len(section.bases), scoring.CHUNK):
        chunk = section.bases[offset : offset + scoring.CHUNK]
        state, ids_L, logprobs_LV = state.predict(chunk)
        require_finite(state.logprob, model, chunk, f"{section.name}: from base {offset + 1:,} on")
        found_L = (
            token_logprobs(logprobs_LV, ids_L) if value is Value.LOGPROB else entropy(logprobs_LV)
        )
        yield section.start + offset + len(chunk) - len(found_L), found_L.tolist()
        advance(len(chunk))


def entropy(logprobs_LV: Tensor) -> Tensor:
    """Entropy [L] in bits of predictions [L, V], normalised to A, C, G and T: 0 to 2."""
    among_L4 = logprobs_LV[:, list(ACGT)].double().log_softmax(dim=-1)
    bits_L = -(among_L4.exp() * among_L4).sum(dim=-1) / math.log(2)
    return bits_L.clamp(min=0)


def _sections(options: TrackOptions, lead: int) -> Iterator[Section]:
    """The records of the FASTA; or the regions, with up to `lead` bases before each."""
    if not options.by_region:
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


def _regions(options: TrackOptions, genome: Reference) -> list[Interval]:
    """The regions in the order of the genome, joined if they overlap or touch."""
    order = {name: index for index, name in enumerate(genome.names)}
    asked = [(f"--regions {text}", genome.region(text)) for text in options.regions]
    if options.bed:
        asked += [(f"{options.bed}: {region}", region) for region in read_bed(options.bed)]
    found = [genome.resolve(region, origin) for origin, region in asked]
    joined: list[Interval] = []
    for region in sorted(found, key=lambda r: (order[r.name], r.start, r.end)):
        if joined and joined[-1].name == region.name and region.start <= joined[-1].end:
            last = joined.pop()
            region = Interval(last.name, last.start, max(last.end, region.end))
        joined.append(region)
    return joined
