"""`evo2 score`: log-likelihoods of the records of a FASTA, or of the alleles of a VCF."""

from evo2cli.errors import UserError
from evo2cli.genome.source import first_bytes
from evo2cli.workflows.score_fasta import score_fasta
from evo2cli.workflows.score_options import ScoreOptions
from evo2cli.workflows.score_variants import score_variants

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def score(options: ScoreOptions) -> None:
    """Score what `options.source` proves to be by its first bytes.

    Raises:
        UserError: It is neither FASTA nor VCF, or cannot be scored as asked.
        TooManySkippedError: The output is complete, but too many records have no score.
        UntrustedNumericsError: A log-likelihood is no finite number.
    """
    start = first_bytes(options.source).removeprefix(_BYTE_ORDER_MARK).lstrip()
    if start.startswith((b"##", b"#CHROM")):
        score_variants(options)
    elif start.startswith((b">", b";")):
        score_fasta(options)
    elif start.startswith(b"BCF"):
        raise UserError(
            f"{options.source}: BCF is not read yet; convert it by `bcftools view "
            f"{options.source} -o variants.vcf`"
        )
    elif not start:
        raise UserError(f"{options.source}: the file is empty")
    else:
        kind = "FASTQ" if start.startswith(b"@") else "its first line"
        raise UserError(
            f"{options.source}: {kind} is neither FASTA ('>') nor VCF ('##'), so there is nothing "
            "to score"
        )
