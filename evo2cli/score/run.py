"""`evo2 score`: log-likelihoods of variants, or of the sequences of a FASTA."""

import os
from functools import partial

from evo2cli.errors import UserError
from evo2cli.gpus import check_communication
from evo2cli.models import say_demonstration
from evo2cli.options import arguments, given
from evo2cli.score.cost import estimate_cost
from evo2cli.score.input import holds_variants, read_variants, warn_of_unused_index
from evo2cli.score.options import FOR_SEQUENCES, FOR_VARIANTS, ScoreOptions
from evo2cli.score.sequences import score_fasta
from evo2cli.score.variants import score_to_output


def score(options: ScoreOptions) -> None:
    """Score variants, or the sequences of a FASTA.

    Raises:
        UserError: The input is neither, or an option does not apply to it.
        TooManySkippedError: The output is complete, but too many records have no score.
        NonFiniteError: A log-likelihood is NaN or infinite.
    """
    _score(options)
    if "WORLD_SIZE" not in os.environ:  # not in one of several ranks
        say_demonstration(options.model)


def _score(options: ScoreOptions) -> None:
    if holds_variants(options.inputs):
        if flags := given(options, *FOR_SEQUENCES):
            raise UserError(
                f"{', '.join(flags)}: only for sequences, and {options.source} holds variants"
            )
        warn_of_unused_index(options)
        run = estimate_cost if options.dry_run else score_to_output
        run(options, partial(read_variants, options))
        return
    if flags := given(options, *FOR_VARIANTS):
        raise UserError(f"{', '.join(flags)}: only for variants, and {options.source} is a FASTA")
    if options.context_parallel == 1 or "WORLD_SIZE" in os.environ:
        score_fasta(options)
        return
    from evo2cli.launch.ranks import Group, run_ranks  # imports torch's launcher, which is slow

    check_communication(options.context_parallel, options.device)
    program = ["-m", "evo2cli", "score", *arguments(options)]
    run_ranks(Group(options.context_parallel), program, "torchrun")
