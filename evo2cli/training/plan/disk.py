"""Bytes of a run on disk.

Bytes per parameter in a checkpoint, with e = 2 in bf16 and 4 in fp32:

                       all engines   plain, with averages   DeepSpeed, ZeRO 1 and 2
exported fp32 weights  4
fp32 weights, moments  12
besides                              4                      e, its copy of the weights

The exported weights are in inference form, the others in training form. With
checkpoint.optimizer = false there are the exported weights only, as in final/.

Fine-tuning keeps the best weights so far in best/, which becomes final/.
"""

import math
from dataclasses import dataclass

from evo2cli.training.plan.activations import FP32
from evo2cli.training.plan.memory import MOMENTS, Setup, Sizes
from evo2cli.training.recipe import Checkpoint, Recipe


@dataclass(frozen=True)
class Disk:
    """What a run writes.

    Attributes:
        checkpoint: Bytes of a checkpoint, the files of all ranks together.
        final: Bytes of the model of the finished run.
        best: Bytes of the best weights so far; 0 if the run does not keep them.
        kept: Checkpoints at its end.
        most: Checkpoints at any time, with the one that is being written.
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
        """Bytes at any time; old checkpoints are deleted before final/ is written.

        Better weights are written beside those that they replace, but no checkpoint is written
        then, and one is at least as large.
        """
        return max(self.most * self.checkpoint + self.best, self.at_end)


def disk(recipe: Recipe, counts: Sizes, setup: Setup) -> Disk:
    """What a run writes.

    Args:
        recipe: Its recipe.
        counts: Numbers of parameters.
        setup: Which engine writes, and how.
    """
    checkpoint = recipe.checkpoint
    final = FP32 * (counts.folded if setup.frozen is None else setup.frozen.trained)
    each = final + (_engine_bytes(counts, setup) if checkpoint.optimizer else 0)
    written = -(-recipe.optimizer.steps // checkpoint.every)  # the last step always has one
    before_last = _num_kept(checkpoint, written - 1)
    best = 0 if recipe.finetune is None else final
    return Disk(each, final, best, _num_kept(checkpoint, written), before_last + 1)


def _engine_bytes(counts: Sizes, setup: Setup) -> int:
    """Bytes from which an engine resumes: weights and moments."""
    each = FP32 + MOMENTS
    if setup.frozen is None:
        each += FP32 if setup.averaged else 0
        each += setup.dtypes.compute if setup.zero in (1, 2) else 0
    return each * setup.trained(counts)


def _num_kept(checkpoint: Checkpoint, written: int) -> int:
    """Checkpoints that are left once so many are written, every `checkpoint.every` steps."""
    newest = min(checkpoint.keep, written)
    if checkpoint.keep_every is None:
        return newest
    older = (written - newest) * checkpoint.every
    return newest + older // math.lcm(checkpoint.every, checkpoint.keep_every)
