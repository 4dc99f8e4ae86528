"""Log-likelihoods of variants and sequences: `evo2 score`.

In Python::

    from evo2cli.score import score_sequences, score_variants

    for row in score_variants("variants.vcf", "genome.fa", "nano"):
        print(row["chrom"], row["pos"], row["ref"], row["alt"], row["EVO2_DELTA"])
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evo2cli.score.sequences import score_sequences
    from evo2cli.score.variants import score_variants

__all__ = ["score_sequences", "score_variants"]


def __getattr__(name: str) -> Any:
    # Imported on first use: `evo2 --help` imports the options in this package, but must not import
    # torch.
    if name in __all__:
        return getattr(import_module(f"evo2cli.score.{name.removeprefix('score_')}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
