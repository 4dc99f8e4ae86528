"""`evo2 score`."""

from collections.abc import Mapping
from typing import ClassVar

from evo2cli.options import Command, takes
from evo2cli.score.options import ScoreOptions


class Score(Command):
    """`evo2 score`, some of whose options became commands."""

    moved: ClassVar[Mapping[str, str]] = {
        "--saturate": "use `evo2 saturate REGION -R genome.fa`",
        "--plot": "use `evo2 saturate REGION -R genome.fa --plot x.png`",
        "--track": "use `evo2 track genome.fa --value logprob`",
    }


@takes(ScoreOptions)
def score(options: ScoreOptions) -> None:
    """Score variants, or the sequences of a FASTA, by their log-likelihood in nats.

    Each alternate allele gets EVO2_DELTA = log P(window with ALT) - log P(window with REF); it is
    negative if the model finds the alternate allele less likely. Each record of a FASTA gets the
    sum and the mean of the log-probabilities of its bases. Window coordinates in tables are 0-based
    and half-open.
    """
    from evo2cli.score.run import score

    score(options)
