"""`--precision-check`: measure the rounding noise of EVO2_DELTA, and mark deltas below it.

A sample of alleles is scored again at a higher precision: fp32 on the same device for bf16, fp64 on
the CPU for fp32, bf16 and fp32 for fp8. The noise is the largest difference of EVO2_DELTA from the
highest precision.

The sample has the lowest hashes of contig, position, REF and ALT among all alleles that pass the
filters and can be scored, in all shards. So it is spread evenly over the input, and depends neither
on the order of the records nor on the number of shards.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median

from evo2cli import console
from evo2cli.errors import UserError, counted
from evo2cli.genome.vcf import Status, VariantRecord, add_status
from evo2cli.models import open_model
from evo2cli.options import ModelOptions, shared
from evo2cli.score.alleles import VariantScorer
from evo2cli.tables import Row, cell, rounded
from stripedhyena2.float8.inference import PRODUCTS, float8_parts

_NAMES = {"bfloat16": "bf16", "float32": "fp32"}
_HIGHER = {"fp8": ("bf16", "fp32"), "bf16": ("fp32",), "fp32": ("fp64",)}


@dataclass(frozen=True)
class Noise:
    """Absolute differences of EVO2_DELTA between two precisions, in nats.

    Attributes:
        num_alleles: Number of alleles scored at both.
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
            f"EVO2_DELTA of {counted(self.num_alleles, 'allele')} in {lower} differs from that in "
            f"{higher} by {cell(self.median)} nats (median), {cell(self.largest)} at most"
        )

    @property
    def header_line(self) -> str:
        """The line for the header of a VCF."""
        return f"##evo2Noise={self}"

    def mark(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Add NOISE to the status of alleles whose EVO2_DELTA is not larger than the noise."""
        return [
            {**row, "EVO2_STATUS": add_status(str(row["EVO2_STATUS"]), Status.NOISE)}
            if isinstance(delta := row["EVO2_DELTA"], float) and abs(delta) <= self.largest
            else row
            for row in rows
        ]


def measure_noise(
    options: ModelOptions, scorer: VariantScorer, count: int, records: Iterable[VariantRecord]
) -> list[Noise]:
    """Measure the noise on a sample of alleles, and print it to stderr.

    Args:
        options: The model, to load it again at a higher precision.
        scorer: Scorer of the run.
        count: Number of alleles in the sample.
        records: Records to sample from.

    Returns:
        The noise against each higher precision, the highest last; empty if no allele can be scored.

    Raises:
        UserError: There is no higher precision.
    """
    model, genome, alleles = scorer.model, scorer.genome, scorer.options
    name = str(model.embedding.weight.dtype).removeprefix("torch.")
    if name not in _NAMES:
        raise UserError(
            f"--precision-check: --dtype {options.dtype} is already the highest precision"
        )
    narrow = float8_parts(model)
    lower = "fp8" if narrow == PRODUCTS else _NAMES[name]
    plain = VariantScorer(model, genome, alleles)
    sample = sample_alleles(records, plain, count)
    if not sample:
        console.warn("--precision-check: no allele can be scored")
        return []
    noises = []
    with console.progress("check", (1 + len(_HIGHER[lower])) * len(sample), "alleles") as bar:

        def deltas_by(scorer: VariantScorer) -> list[float]:
            deltas = []
            for [row] in scorer.score_all(sample):
                delta = row["EVO2_DELTA"]
                assert isinstance(delta, float)
                deltas.append(delta)
                bar.advance()
            return deltas

        coarse = deltas_by(plain)
        for higher in _HIGHER[lower]:
            device = "cpu" if higher == "fp64" else options.device
            finer = shared(options, ModelOptions, device=device, dtype=higher)
            # No variable refers to the model, so it is freed before the next one is loaded.
            fine = deltas_by(VariantScorer(open_model(finer), genome, alleles))
            differences = [abs(one - other) for one, other in zip(coarse, fine, strict=True)]
            noises.append(
                Noise(
                    len(differences),
                    rounded(median(differences)),
                    rounded(max(differences)),
                    (f"{lower} with {narrow}" if narrow and lower != "fp8" else lower, higher),
                )
            )
    for noise in noises:
        console.say(str(noise))
    return noises


def sample_alleles(
    records: Iterable[VariantRecord], scorer: VariantScorer, count: int
) -> list[VariantRecord]:
    """At most `count` different alleles, those with the lowest hashes; each is one record."""
    sample: dict[bytes, VariantRecord] = {}
    highest: bytes | None = None  # hash in the sample, once it is full
    for record in records:
        for alternate in record.alternates:
            position = f"{record.contig}:{record.start} ".encode(errors="surrogateescape")
            alleles = (record.reference + b">" + alternate).upper()
            digest = hashlib.blake2b(position + alleles, digest_size=16).digest()
            if digest in sample or (highest is not None and digest > highest):
                continue
            if isinstance(scorer.windows(record, alternate), Status):
                continue
            sample[digest] = replace(record, alternates=(alternate,))
            if len(sample) > count:
                del sample[max(sample)]
            highest = max(sample) if len(sample) == count else None
    return sorted(sample.values(), key=lambda record: (record.contig, record.start))
