"""`evo2 saturate`: in-silico saturation mutagenesis, the score of every SNV of regions."""

from collections.abc import Iterator
from functools import partial

from evo2cli.genome.interval import Interval
from evo2cli.genome.reference import Reference
from evo2cli.genome.vcf import VariantRecord
from evo2cli.saturate.options import SaturateOptions
from evo2cli.saturate.plot import also_draw
from evo2cli.saturate.records import locate_regions, snv_records
from evo2cli.score.cost import estimate_cost
from evo2cli.score.input import Variants
from evo2cli.score.variants import score_to_output


def saturate(options: SaturateOptions) -> None:
    """Score every SNV of the regions, as `evo2 score` would score a VCF of them.

    Raises:
        UserError: A region is not valid, or the genome or the model cannot be read.
        NonFiniteError: A log-likelihood is NaN or infinite.
    """
    read = partial(read_snvs, options)
    if options.dry_run:
        estimate_cost(options, read)
        return
    with Reference.open(options.reference, options.names) as genome:
        regions = _regions(options, genome)
    score_to_output(options, read, partial(also_draw, options.plot, regions))


def read_snvs(options: SaturateOptions) -> Variants:
    """Open the SNVs of the regions."""

    def records() -> Iterator[VariantRecord]:
        with Reference.open(options.reference, options.names) as genome:
            for region in _regions(options, genome):
                yield from snv_records(genome, region)

    return Variants(records())


def _regions(options: SaturateOptions, genome: Reference) -> list[Interval]:
    return locate_regions(genome, options.regions, options.bed)
