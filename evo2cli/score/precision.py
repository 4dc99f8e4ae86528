"""`--precision-check`: how much rounding changes EVO2_DELTA, and which deltas are smaller.

Some alleles are scored twice: at the precision of the run, and at the next higher one (fp32 on the
same device for bf16, fp64 on the CPU for fp32). The largest difference of EVO2_DELTA is the noise.

The alleles are those that can be scored and whose hash of contig, position, REF and ALT is lowest
among all that pass the filters, whatever the shard. So neither the order of the records nor the
number of shards changes which deltas are marked, and the sample is spread evenly over the input.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median

from evo2cli import console
from evo2cli.errors import UserError
from evo2cli.genome.reference import Reference
from evo2cli.genome.vcf import Status, VariantRecord, with_note
from evo2cli.models import open_model
from evo2cli.options import ModelOptions, shared
from evo2cli.score.alleles import VariantScorer
from evo2cli.score.options import VariantOptions
from evo2cli.tables import Row, cell, rounded
from stripedhyena2 import StripedHyena2
from stripedhyena2.float8.inference import has_scales

_NEXT_HIGHER = {"bfloat16": ("bf16", "fp32"), "float32": ("fp32", "fp64")}


@dataclass(frozen=True)
class Noise:
    """Absolute differences of EVO2_DELTA between two precisions, in nats.

    Attributes:
        num_alleles: Number of alleles that were scored twice.
        median: Median of the differences.
        largest: Largest difference.
        dtypes: The precision of the run, and the higher one.
    """

    num_alleles: int
    median: float
    largest: float
    dtypes: tuple[str, str]

    def __str__(self) -> str:
        lower, higher = self.dtypes
        return (
            f"EVO2_DELTA of {self.num_alleles:,} alleles in {lower} differs from that in {higher} "
            f"by {cell(self.median)} nats (median), {cell(self.largest)} at most"
        )

    @property
    def header_line(self) -> str:
        """The line for the header of a VCF."""
        return f"##evo2Noise={self}"

    def mark(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Add NOISE to the status of alleles whose EVO2_DELTA is not larger than the noise."""
        return [
            {**row, "EVO2_STATUS": with_note(str(row["EVO2_STATUS"]), Status.NOISE)}
            if isinstance(delta := row["EVO2_DELTA"], float) and abs(delta) <= self.largest
            else row
            for row in rows
        ]


def measure_noise(
    options: VariantOptions,
    records: Iterable[VariantRecord],
    model: StripedHyena2,
    genome: Reference,
    scorer: VariantScorer,
) -> Noise | None:
    """Measure the noise on `options.precision_check` of the records, and print it to stderr.

    Returns:
        None if no allele can be scored.

    Raises:
        UserError: There is no higher precision.
    """
    assert options.precision_check is not None
    name = str(model.embedding.weight.dtype).removeprefix("torch.")
    if name not in _NEXT_HIGHER:
        raise UserError(
            f"--precision-check: --dtype {options.dtype} is already the highest precision"
        )
    lower, higher = _NEXT_HIGHER[name]
    device = "cpu" if higher == "fp64" else options.device
    chosen = choose_alleles(records, scorer, options.precision_check)
    precise = open_model(shared(options, ModelOptions, device=device, dtype=higher))
    precise_scorer = VariantScorer(precise, genome, options)
    differences = []
    with console.progress("check", len(chosen), "alleles") as bar:
        both = (by.score_all(chosen) for by in (scorer, precise_scorer))
        for rows in zip(*both, strict=True):
            one, other = (row["EVO2_DELTA"] for [row] in rows)
            assert isinstance(one, float)
            assert isinstance(other, float)
            differences.append(abs(one - other))
            bar.advance()
    if not differences:
        console.warn("--precision-check: no allele can be scored")
        return None
    noise = Noise(
        len(differences),
        rounded(median(differences)),
        rounded(max(differences)),
        (f"{lower} with FP8" if has_scales(model) else lower, higher),
    )
    console.say(str(noise))
    return noise


def choose_alleles(
    records: Iterable[VariantRecord], scorer: VariantScorer, count: int
) -> list[VariantRecord]:
    """The `count` different alleles with the lowest hashes, or fewer, as records of their own."""
    chosen: dict[bytes, VariantRecord] = {}
    highest: bytes | None = None  # of the chosen ones, once there are enough
    for record in records:
        for alternate in record.alternates:
            position = f"{record.contig}:{record.start} ".encode(errors="surrogateescape")
            alleles = (record.reference + b">" + alternate).upper()
            digest = hashlib.blake2b(position + alleles, digest_size=16).digest()
            if digest in chosen or (highest is not None and digest > highest):
                continue
            if isinstance(scorer.windows(record, alternate), Status):
                continue
            chosen[digest] = replace(record, alternates=(alternate,))
            if len(chosen) > count:
                del chosen[max(chosen)]
            highest = max(chosen) if len(chosen) == count else None
    return sorted(chosen.values(), key=lambda record: (record.contig, record.start))
