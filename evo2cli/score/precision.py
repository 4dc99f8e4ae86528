"""`--precision-check`: how much rounding changes EVO2_DELTA, and which deltas are smaller.

Some alleles are scored again: at the next precision above that of the run (fp32 on the same device
for bf16, fp64 on the CPU for fp32), and for fp8 at bf16 and at fp32. The largest difference of
EVO2_DELTA from that at the highest is the noise.

The alleles are those that can be scored and whose hash of contig, position, REF and ALT is lowest
among all that pass the filters, whatever the shard. So neither the order of the records nor the
number of shards changes which deltas are marked, and the sample is spread evenly over the input.
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
    """Measure the noise on some of the records, and print it to stderr.

    Args:
        options: Which model it is, to open it again at a higher precision.
        scorer: What scores the alleles of the run.
        count: How many alleles are scored again.
        records: What they are chosen from.

    Returns:
        The noise against each higher precision, the highest last; none if no allele can be scored.

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
    chosen = choose_alleles(records, plain, count)
    if not chosen:
        console.warn("--precision-check: no allele can be scored")
        return []
    noises = []
    with console.progress("check", (1 + len(_HIGHER[lower])) * len(chosen), "alleles") as bar:

        def deltas(by: VariantScorer) -> list[float]:
            found = []
            for [row] in by.score_all(chosen):
                delta = row["EVO2_DELTA"]
                assert isinstance(delta, float)
                found.append(delta)
                bar.advance()
            return found

        coarse = deltas(plain)
        for higher in _HIGHER[lower]:
            device = "cpu" if higher == "fp64" else options.device
            finer = shared(options, ModelOptions, device=device, dtype=higher)
            # No name is bound to the model, so that it is gone before the next is loaded.
            fine = deltas(VariantScorer(open_model(finer), genome, alleles))
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
