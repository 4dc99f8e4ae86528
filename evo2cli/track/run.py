"""`evo2 track`: a value for every base, along the records of a FASTA or regions of a genome.

Sequences are read in chunks, and the state between chunks is exact. Memory holds the KV cache of
the bases read, and the time of attention grows with the square of the length.

A journal keeps the values of each chunk, but not the state after it. A run that resumes within a
section therefore reads the finished part of that section again, for its state alone.

L tokens, V vocabulary.
"""

import math
import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple

import numpy as np
from torch import Tensor

from evo2cli import __version__, console
from evo2cli.errors import UserError, counted
from evo2cli.files import locks_output
from evo2cli.genome.alphabet import ACGT, upper_dna
from evo2cli.genome.fasta import Record, read_records, require_nucleotides
from evo2cli.genome.interval import Interval
from evo2cli.genome.reference import Reference
from evo2cli.genome.regions import read_bed
from evo2cli.journal import Recall, open_journal, recall_all
from evo2cli.models import memory_explained, open_model, precision_name, warn_beyond_context
from evo2cli.track.formats import check_track, open_track
from evo2cli.track.options import TrackOptions, Value
from stripedhyena2 import StripedHyena2, scoring
from stripedhyena2.fingerprint import fingerprint
from stripedhyena2.progress import Progress, ignore_progress
from stripedhyena2.scoring import ScoringState, require_finite, token_logprobs

DEFAULT_LEAD = 8192  # bases read before a region, unless the model's context is shorter


@dataclass(frozen=True)
class Section:
    """A sequence whose bases get values, except a first base without any base before it.

    Attributes:
        name: Name of the record or contig.
        start: 0-based position of the first base.
        lead: Upper-case bases before it, which are context without values of their own.
        bases: Upper-case bases.
    """

    name: str
    start: int
    lead: bytes
    bases: bytes

    @property
    def chunks(self) -> list["Chunk"]:
        """The chunks in which its bases are read, in order."""
        checksum, found = zlib.crc32(self.lead), []
        for start in range(0, len(self.bases), scoring.CHUNK):
            chunk = self.bases[start : start + scoring.CHUNK]
            checksum = zlib.crc32(chunk, checksum)
            end = start + len(chunk)
            found.append(Chunk(start, end, f"{len(self.lead)} {start}-{end} {checksum:08x}"))
        return found


class Chunk(NamedTuple):
    """Bases of a section that are read in one forward pass.

    Attributes:
        start: Index of its first base in the section.
        end: Index after its last base.
        key: Its key in the journal, with a checksum of all bases of the section up to its end,
            and of those before the section.
    """

    start: int
    end: int
    key: str


@locks_output
def write_track(options: TrackOptions) -> None:
    """Write the value of every base to the output.

    Raises:
        UserError: The input cannot be read, or the output cannot be written.
        NonFiniteError: A log-likelihood is NaN or infinite.
    """
    check_track(options.output)
    if options.by_region:
        with Reference.open(options.source) as genome:
            lengths = {name: genome.length(name) for name in genome.names}
            sizes = [len(region) for region in _regions(options, genome)]
        if not sizes:
            raise UserError(f"--bed {options.bed}: has no interval with a base")
    else:
        # Reading the input twice is fast, and an invalid record is found before hours of work.
        records = [(record.name, len(record.sequence)) for record in _records(options)]
        lengths, sizes = dict(records), [size for _, size in records]
        if len(lengths) < len(records):
            raise UserError(
                f"{options.source}: records share a name; a track needs different names"
            )
    if "" in lengths:
        raise UserError(f"{options.source}: a record has no name; a track needs a name for each")
    model = open_model(options)
    lead, longest, total = options.window, max(sizes, default=0), sum(sizes)
    if options.by_region:
        lead = lead or min(DEFAULT_LEAD, model.config.context)
    elif lead is not None:
        longest = min(longest, 2 * lead)
    warn_beyond_context(model, longest, f"a sequence of {longest:,} bases")
    with (
        memory_explained(f"evo2 track on {options.device}", "use shorter --regions"),
        open_journal(options.output, _settings(options, model, lead)) as recall,
        open_track(options.output, lengths) as write,
        console.progress("score", total, "bases") as bar,
    ):
        for section in _sections(options, lead):
            for start, values in _recalled(model, options.value, section, recall, bar.advance):
                write(section.name, start, values)
    console.say(f"{options.value} of {counted(total, 'base')}")


def _settings(options: TrackOptions, model: StripedHyena2, lead: int | None) -> list[object]:
    """Everything besides the bases that determines the values."""
    return [
        "evo2 track",
        __version__,
        fingerprint(model.config, model.state_dict()),
        precision_name(model),
        options.value,
        lead,
    ]


def _recalled(
    model: StripedHyena2, value: Value, section: Section, recall: Recall, progress: Progress
) -> Iterator[tuple[int, list[float]]]:
    """As `section_values`, from the journal as far as it goes."""

    def compute(remaining: Sequence[Chunk]) -> Iterator[str]:
        first = remaining[0].start
        progress(-first)  # counted from the journal; these bases are read again
        for _, values in section_values(model, value, section, first, progress):
            # In fp32, the last decimals of a bedGraph would change.
            yield b64encode(np.array(values, "<f8").tobytes()).decode()

    chunks = section.chunks
    stored = recall_all(recall, chunks, compute, key=attrgetter("key"))
    for chunk, text in zip(chunks, stored, strict=True):
        values = np.frombuffer(b64decode(text), "<f8").tolist()
        yield section.start + chunk.end - len(values), values
        progress(chunk.end - chunk.start)


def section_values(
    model: StripedHyena2,
    value: Value,
    section: Section,
    first: int = 0,
    progress: Progress = ignore_progress,
) -> Iterator[tuple[int, list[float]]]:
    """Yield the values of a section by chunk: the position of the first value, and the values.

    Args:
        model: The model.
        value: What to compute of each base.
        section: The section.
        first: Start of the first chunk that gets values; bases before it are only read.
        progress: Called with the number of bases of the section that were only read.

    Raises:
        NonFiniteError: A log-likelihood is NaN or infinite.
    """
    state = ScoringState.start(model).extend(section.lead)
    state = state.extend(section.bases[:first], progress)
    for offset in range(first, len(section.bases), scoring.CHUNK):
        chunk = section.bases[offset : offset + scoring.CHUNK]
        state, ids_L, logprobs_LV = state.predict(chunk)
        require_finite(state.logprob, model, chunk, f"{section.name}: from base {offset + 1:,} on")
        values_L = (
            token_logprobs(logprobs_LV, ids_L) if value is Value.LOGPROB else entropy(logprobs_LV)
        )
        yield section.start + offset + len(chunk) - len(values_L), values_L.tolist()


def entropy(logprobs_LV: Tensor) -> Tensor:
    """Entropy [L] in bits of predictions [L, V], normalised to A, C, G and T: 0 to 2."""
    acgt_L4 = logprobs_LV[:, list(ACGT)].double().log_softmax(dim=-1)
    bits_L = -(acgt_L4.exp() * acgt_L4).sum(dim=-1) / math.log(2)
    return bits_L.clamp(min=0)


def _records(options: TrackOptions) -> Iterator[Record]:
    """Yield the records of the FASTA, after a check of their letters."""
    for record in read_records(options.source):
        require_nucleotides(options.source, record)
        yield record


def _sections(options: TrackOptions, lead: int | None) -> Iterator[Section]:
    """Yield the sections: regions with up to `lead` bases before each, or records.

    With a lead, a record is cut into sections of `lead` bases, each with the previous one as its
    lead; without, it is one section.
    """
    if not options.by_region:
        for record in _records(options):
            bases = upper_dna(record.sequence)
            size = lead or max(len(bases), 1)
            for start in range(0, len(bases), size):
                before = bases[max(start - size, 0) : start]
                yield Section(record.name, start, before, bases[start : start + size])
        return
    assert lead is not None
    with Reference.open(options.source) as genome:
        for region in _regions(options, genome):
            first = max(0, region.start - lead)
            letters = upper_dna(genome.fetch(Interval(region.name, first, region.end)))
            cut = region.start - first
            yield Section(region.name, region.start, letters[:cut], letters[cut:])


def _regions(options: TrackOptions, genome: Reference) -> list[Interval]:
    """The union of all regions, in the order of the genome."""
    regions = [(f"--regions {text}", genome.region(text)) for text in options.regions]
    if options.bed:
        regions += [(f"--bed {options.bed}: {each}", each) for each in read_bed(options.bed)]
    return genome.union(genome.resolve(region, origin) for origin, region in regions)
