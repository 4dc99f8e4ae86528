"""`evo2 score`: log-likelihoods of the records of a FASTA, or of the alleles of variants."""

import os

from evo2cli.errors import UserError
from evo2cli.genome.source import STDIN
from evo2cli.gpus import check_communication
from evo2cli.score.estimate import estimate_variants
from evo2cli.score.input import holds_variants
from evo2cli.score.options import IndelMode, Quantity, ScoreOptions
from evo2cli.score.sequences import score_fasta
from evo2cli.score.variants import score_variants
from evo2cli.track.run import score_tracks


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
        if options.max_memory is not None:
            raise UserError(
                "--max-memory is for sequences of a FASTA; variants need less with a smaller "
                "--window"
            )
        (estimate_variants if options.dry_run else score_variants)(options)
    else:
        _refuse_options_of_variants(options)
        score_fasta(options)


def _refuse_options_of_variants(options: ScoreOptions) -> None:
    for flag, is_given in (
        ("--windows", options.windows != "centred"),
        ("--indel-mode", options.indel_mode != IndelMode.FIXED),
        ("--score", options.score != Quantity.DELTA),
        ("--precision-check", options.precision_check is not None),
        ("--dry-run", options.dry_run),
        ("--background", options.background is not None),
        ("--shard", options.shard is not None),
        *((flag, True) for flag in options.filters),
        ("--reference", options.reference is not None),
        ("--window", options.window is not None),
    ):
        if is_given:
            raise UserError(f"{flag} is for variants, but {options.source} is FASTA")


def _start_ranks(options: ScoreOptions) -> None:
    """Run the same command on as many ranks."""
    if options.source == STDIN:
        raise UserError("--context-parallel: several processes cannot read stdin; give a file")
    if holds_variants(options):
        raise UserError(
            f"--context-parallel is for sequences of a FASTA, but {options.source} has variants"
        )
    if options.device == "all" or "," in options.device:
        raise UserError(
            f"--context-parallel: shares single sequences, --device {options.device} the records; "
            "choose one"
        )
    from evo2cli.launch.ranks import Group, run_ranks

    check_communication(options.context_parallel, options.device)
    program = ["-m", "evo2cli", "score", *options.arguments()]
    run_ranks(Group(options.context_parallel), program, "torchrun")
