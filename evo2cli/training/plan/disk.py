"""Disk space of a run.

Bytes per parameter in a checkpoint, with e = 2 in bf16 and 4 in fp32:

                       all engines   plain, with EMA   DeepSpeed, ZeRO 1 and 2
exported fp32 weights  4
fp32 weights, moments  12
in addition                          4                 e, its copy of the weights

The exported weights are in inference form, the others in training form. With
checkpoint.optimizer = false only the exported weights are written, as in final/.

Fine-tuning keeps the best weights so far in best/, which becomes final/.
"""

import math
from dataclasses import dataclass

from evo2cli.training.plan.activations import FP32
from evo2cli.training.plan.memory import MOMENTS, Setup, Sizes
from evo2cli.training.recipe import Checkpoint, Recipe


@dataclass(frozen=True)
class Disk:
    """Sizes and numbers of what a run writes.

    Attributes:
        checkpoint: Bytes of a checkpoint, with the files of all ranks.
        final: Bytes of the final model.
        best: Bytes of the best weights so far; 0 if the run does not keep them.
        kept: Number of checkpoints at the end.
        most: Largest number of checkpoints at a time, including the one being written.
    """

    checkpoint: int
    final: int
    best: int
    kept: int
    most: int

    @property
    def at_end(self) -> int:
        """Bytes of a finished run."""
        return self.kept * self.checkpoint + self.final

    @property
    def peak(self) -> int:
        """The most bytes at any time; old checkpoints are deleted before final/ is written.

        New best weights are written before the old ones are deleted. That needs no extra space: no
        checkpoint is being written then, and a checkpoint is at least as large.
        """
        return max(self.most * self.checkpoint + self.best, self.at_end)


def disk(recipe: Recipe, counts: Sizes, setup: Setup) -> Disk:
    """The disk space that a run needs.

    Args:
        recipe: The recipe.
        counts: Numbers of parameters.
        setup: How the run uses its GPUs.
    """
    checkpoint = recipe.checkpoint
    final = FP32 * (counts.folded if setup.frozen is None else setup.frozen.trainable)
    size = final + (_engine_bytes(counts, setup) if checkpoint.optimizer else 0)
    written = -(-recipe.optimizer.steps // checkpoint.every)  # the last step always has one
    before_last = _num_kept(checkpoint, written - 1)
    best = 0 if recipe.finetune is None else final
    return Disk(size, final, best, _num_kept(checkpoint, written), before_last + 1)


def _engine_bytes(counts: Sizes, setup: Setup) -> int:
    """Bytes of the state of the engine in a checkpoint: weights and moments."""
    per_parameter = FP32 + MOMENTS
    if setup.frozen is None:
        per_parameter += FP32 if setup.ema else 0
        per_parameter += setup.dtypes.compute if setup.zero in (1, 2) else 0
    return per_parameter * setup.num_trainable(counts)


def _num_kept(checkpoint: Checkpoint, written: int) -> int:
    """Number of checkpoints left after `written` of them, one every `checkpoint.every` steps."""
    newest = min(checkpoint.keep, written)
    if checkpoint.keep_every is None:
        return newest
    older = (written - newest) * checkpoint.every
    return newest + older // math.lcm(checkpoint.every, checkpoint.keep_every)
