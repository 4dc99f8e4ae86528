"""`evo2 score --precision-check`: how far rounding moves a delta, and which deltas are within that.

Some alleles are scored twice: as the run does, and one precision higher (fp32 for bf16 on the same
device, fp64 on the CPU for fp32). The largest difference found is the noise.

Which alleles: those that can be scored and whose hash of contig, position, REF and ALT is lowest,
out of all that the filters let through, whatever the shard. So neither the order of records nor the
number of shards changes a mark, and the choice is spread evenly over the file.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median

from evo2cli import console
from evo2cli.errors import UserError
from evo2cli.genome.reference import Reference
from evo2cli.genome.source import STDIN
from evo2cli.genome.vcf import Status, VariantRecord, with_note
from evo2cli.models import open_model
from evo2cli.score.alleles import VariantScorer
from evo2cli.score.input import filtered_variants
from evo2cli.score.options import ScoreOptions
from evo2cli.tables import Row, cell, rounded
from stripedhyena2 import StripedHyena2
from stripedhyena2.float8.inference import has_scales

_HIGHER = {"bfloat16": ("bf16", "fp32"), "float32": ("fp32", "fp64")}


@dataclass(frozen=True)
class Noise:
    """Differences of EVO2_DELTA between two precisions, in nats.

    Attributes:
        alleles: How many were scored twice.
        median: Of their differences, without sign.
        most: The largest of them.
        dtypes: The precision of the run, and the one it was compared with.
    """

    alleles: int
    median: float
    most: float
    dtypes: tuple[str, str]

    def __str__(self) -> str:
        lower, higher = self.dtypes
        return (
            f"EVO2_DELTA of {self.alleles:,} alleles in {lower} differs from that in {higher} by "
            f"{cell(self.median)} nats (median), {cell(self.most)} at most"
        )


def measure_noise(
    options: ScoreOptions, model: StripedHyena2, genome: Reference, scorer: VariantScorer
) -> Noise | None:
    """The noise of a run, told on stderr too; None where it was not asked for.

    Raises:
        UserError: There is no higher precision, or no way to read the variants twice.
    """
    if options.precision_check is None:
        return None
    if options.source == STDIN and options.saturate is None:
        raise UserError("--precision-check reads its variants twice; give a file, not stdin")
    name = str(model.embedding.weight.dtype).removeprefix("torch.")
    if name not in _HIGHER:
        raise UserError(f"--precision-check: nothing is more precise than --dtype {options.dtype}")
    lower, higher = _HIGHER[name]
    device = "cpu" if higher == "fp64" else options.device
    chosen = choose_alleles(filtered_variants(options).records, scorer, options.precision_check)
    precise = open_model(options.model, config=options.config, device=device, dtype=higher)
    precise_scorer = VariantScorer(precise, genome, options)
    differences = []
    with console.progress("check", len(chosen), "alleles") as bar:
        for record in chosen:
            one, other = (by.score(record)[0]["EVO2_DELTA"] for by in (scorer, precise_scorer))
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
    """At most `count` different alleles that can be scored, as records of their own."""
    chosen: dict[bytes, VariantRecord] = {}
    border: bytes | None = None  # the highest of as many as were asked for
    for record in records:
        for alternate in record.alternates:
            digest = _digest(record, alternate)
            if digest in chosen or (border is not None and digest > border):
                continue
            if isinstance(scorer.windows(record, alternate), Status):
                continue
            chosen[digest] = replace(record, alternates=(alternate,))
            if len(chosen) > count:
                del chosen[max(chosen)]
            border = max(chosen) if len(chosen) == count else None
    return sorted(chosen.values(), key=lambda record: (record.contig, record.start))


def _digest(record: VariantRecord, alternate: bytes) -> bytes:
    place = f"{record.contig}:{record.start} ".encode(errors="surrogateescape")
    alleles = (record.reference + b">" + alternate).upper()
    return hashlib.blake2b(place + alleles, digest_size=16).digest()


def noise_line(noise: Noise | None) -> list[str]:
    """The header line that tells it."""
    return [f"##evo2Noise={noise}"] if noise else []


def with_noise(noise: Noise | None, rows: Sequence[Row]) -> Sequence[Row]:
    """The rows of alleles, marked where the delta is no larger than the noise."""
    if noise is None:
        return rows
    return [
        {**row, "EVO2_STATUS": with_note(str(row["EVO2_STATUS"]), Status.NOISE)}
        if isinstance(delta := row["EVO2_DELTA"], float) and abs(delta) <= noise.most
        else row
        for row in rows
    ]
