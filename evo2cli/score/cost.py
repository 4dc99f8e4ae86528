"""`--dry-run`: number of bases that a run would compute, and an estimate of its time."""

import time
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from itertools import islice

from evo2cli import console
from evo2cli.devices import pick_devices
from evo2cli.errors import counted
from evo2cli.genome.alphabet import ACGT
from evo2cli.genome.vcf import is_scored
from evo2cli.models import open_model, warn_beyond_context
from evo2cli.score.alleles import VariantScorer
from evo2cli.score.input import Read, check_contigs, check_regions, count_shard
from evo2cli.score.options import Feature, ScoreOptions, VariantOptions
from evo2cli.score.report import status_table
from evo2cli.score.variants import find_reference, open_reference
from stripedhyena2.scoring import ScoringState


def estimate_cost(options: VariantOptions, read: Read) -> None:
    """Print to stderr the number of bases that a run would compute, and an estimate of its time.

    All windows are cut, but only one is computed, to measure the speed.

    Args:
        options: Options of the command.
        read: Opens its variants.

    Raises:
        UserError: As `score_to_output`.
    """
    devices = pick_devices(options.device)
    variants = read()
    path = find_reference(options, variants)
    shard = count_shard(options, read)
    records, total = variants.records, None
    if shard is not None:
        records, total = islice(records, shard.start, shard.stop), len(shard)
    counts: Counter[str] = Counter()
    with (
        open_reference(path, options) as genome,
        console.progress("count", total, "records") as bar,
    ):
        check_contigs(variants.header, genome)
        if isinstance(options, ScoreOptions) and genome.names:
            check_regions(options, genome)
        model = open_model(replace(options, device=devices[0]))
        scorer = VariantScorer(model, genome, options, counts_only=True)
        warn_beyond_context(model, scorer.window, f"--window {scorer.window:,}")
        for record in records:
            counts.update(str(row["EVO2_STATUS"]) for row in scorer.score(record))
            bar.advance()
    bases = (bytes(sorted(ACGT)) * scorer.window)[: scorer.window]
    seconds = 0.0
    for _ in range(2):  # the first is a warm-up
        started = time.perf_counter()
        ScoringState.start(model).extend(bases)  # returns numbers, so it waits for a GPU
        seconds = time.perf_counter() - started
    rate = len(devices) * scorer.window / seconds
    num_scored = sum(count for status, count in counts.items() if is_scored(status))
    console.say(f"{num_scored:,} of {counted(counts.total(), 'allele')} would be scored")
    if counts:
        console.write_page(status_table(counts), stderr=True)
    if num_scored and Feature.EMBEDDING in options.wanted_features:
        console.warn(
            "the estimate leaves out --features embedding, which reads two more windows per allele"
        )
    if num_scored:
        whole = 2 * scorer.window * len(options.variant_strand.single) * num_scored
        fewer = f"{whole / scorer.num_bases:.1f} times fewer than two windows an allele"
        console.say(
            f"{scorer.num_bases:,} bases to compute{f', {fewer}' * (path is not None)}; at "
            f"{rate:,.0f} bases a second here {timedelta(seconds=round(scorer.num_bases / rate))}"
        )
