"""`evo2 saturate`."""

from evo2cli.options import takes
from evo2cli.saturate.options import SaturateOptions


@takes(SaturateOptions)
def saturate(options: SaturateOptions) -> None:
    """Score every single-nucleotide variant of regions of a genome.

    Each position gets its three alternate bases, each with EVO2_DELTA = log P(window with ALT) -
    log P(window with REF), in nats, as in `evo2 score`. --plot draws a heat map.
    """
    from evo2cli.saturate.run import saturate

    saturate(options)
