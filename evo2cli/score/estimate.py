"""What scoring would cost: all but the model runs, and the model only to see how fast it is."""

import time
from collections import Counter
from dataclasses import replace
from datetime import timedelta

from evo2cli import console
from evo2cli.devices import pick_devices
from evo2cli.genome.alphabet import ACGT
from evo2cli.genome.reference import Reference
from evo2cli.models import open_model
from evo2cli.score.alleles import VariantScorer
from evo2cli.score.input import count_variants, open_variants
from evo2cli.score.options import ScoreOptions
from evo2cli.score.output import SCORED, status_table
from evo2cli.score.variants import reference_of
from stripedhyena2 import StripedHyena2
from stripedhyena2.scoring import ScoringState


def estimate_variants(options: ScoreOptions) -> None:
    """Tell on stderr how many bases a run would send through the model, and for how long.

    Raises:
        UserError: What a run would raise for its input.
    """
    devices = pick_devices(options.device)
    variants = open_variants(options)
    path = options.reference or reference_of(variants.header, options.source)
    total = count_variants(options)
    counts: Counter[str] = Counter()
    with Reference.open(path) as genome, console.progress("count", total, "records") as bar:
        model = open_model(
            options.model, config=options.config, device=devices[0], dtype=options.dtype
        )
        scorer = VariantScorer(model, genome, options, count_bases)
        scorer.warn_of_extrapolation()
        for record in variants.records:
            counts.update(str(row["EVO2_STATUS"]) for row in scorer.score(record))
            bar.advance()
        rate = len(devices) * _bases_a_second(model, scorer.window)
    scored = sum(n for status, n in counts.items() if not SCORED.isdisjoint(status.split("&")))
    plain = 2 * scorer.window * len(options.variant_strand.single) * scored
    console.say(f"{scored:,} of {counts.total():,} alleles would be scored")
    if counts:
        console.write_page(status_table(counts), stderr=True)
    if scored:
        console.say(
            f"{scorer.num_bases:,} bases through the model, {plain / scorer.num_bases:.1f} times "
            f"fewer than two windows an allele; at {rate:,.0f} bases a second here "
            f"{timedelta(seconds=round(scorer.num_bases / rate))}"
        )


def count_bases(state: ScoringState, bases: bytes) -> ScoringState:
    """In place of `ScoringState.extend`: nothing is computed."""
    return replace(state, logprob=state.logprob + len(bases))


def _bases_a_second(model: StripedHyena2, window: int) -> float:
    """Of the second run over a window of DNA; the first one warms up."""
    bases = (bytes(sorted(ACGT)) * window)[:window]
    seconds = 0.0
    for _ in range(2):
        started = time.perf_counter()
        ScoringState.start(model).extend(bases)  # ends in a number, so that a GPU is done too
        seconds = time.perf_counter() - started
    return window / seconds
