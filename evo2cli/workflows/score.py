"""`evo2 score`: log-likelihoods of the records of a FASTA, or of the alleles of a VCF."""

from evo2cli.genome.vcf import is_variants
from evo2cli.workflows.score_fasta import score_fasta
from evo2cli.workflows.score_options import ScoreOptions
from evo2cli.workflows.score_variants import score_variants


def score(options: ScoreOptions) -> None:
    """Score what `options.source` proves to be by its first bytes: a VCF, or else a FASTA.

    Raises:
        UserError: It is neither, or cannot be scored as asked.
        TooManySkippedError: The output is complete, but too many records have no score.
        UntrustedNumericsError: A log-likelihood is no finite number.
    """
    if is_variants(options.source):
        score_variants(options)
    else:
        score_fasta(options)
