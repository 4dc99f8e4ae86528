"""`evo2 score`: log-likelihoods of the records of a FASTA, or of the alleles of variants."""

import os

from evo2cli.errors import UserError
from evo2cli.genome.source import STDIN
from evo2cli.workflows.launch_checks import check_gpus
from evo2cli.workflows.score_estimate import estimate_variants
from evo2cli.workflows.score_fasta import score_fasta
from evo2cli.workflows.score_input import holds_variants
from evo2cli.workflows.score_options import ScoreOptions
from evo2cli.workflows.score_tracks import score_tracks
from evo2cli.workflows.score_variants import score_variants


def score(options: ScoreOptions) -> None:
    """Score what `options.source` proves to be: variants of some kind, or else a FASTA.

    Raises:
        UserError: It is neither, or cannot be scored as asked.
        TooManySkippedError: The output is complete, but too many records have no score.
        UntrustedNumericsError: A log-likelihood is no finite number.
    """
    if options.track is not None:
        score_tracks(options)
    elif options.context_parallel > 1 and "WORLD_SIZE" not in os.environ:
        _start_ranks(options)
    elif holds_variants(options):
        (estimate_variants if options.dry_run else score_variants)(options)
    elif options.dry_run:
        raise UserError(f"--dry-run is for variants, but {options.source} is FASTA")
    elif options.background is not None:
        raise UserError(f"--background is for variants, but {options.source} is FASTA")
    elif options.shard is not None:
        raise UserError(f"--shard is for variants, but {options.source} is FASTA")
    elif options.filters:
        flag = next(iter(options.filters))
        raise UserError(f"{flag} is for variants, but {options.source} is FASTA")
    else:
        score_fasta(options)


def _start_ranks(options: ScoreOptions) -> None:
    """Run the same command on as many ranks."""
    if options.source == STDIN:
        raise UserError("--context-parallel: several processes cannot read stdin; give a file")
    if holds_variants(options):
        raise UserError(
            f"--context-parallel is for sequences of a FASTA, but {options.source} has variants"
        )
    from evo2cli.workflows.launch_ranks import Group, run_ranks

    check_gpus(options.context_parallel, options.device)
    program = ["-m", "evo2cli", "score", *options.arguments()]
    run_ranks(Group(options.context_parallel), program, "torchrun")
