"""Bytes of a training checkpoint on disk.

Bytes a parameter, with e = 2 in bf16 and 4 in fp32:

                       all engines   plain, with averages   DeepSpeed, ZeRO 1 and 2
exported fp32 weights  4
fp32 weights, moments  12
besides                              4                      e, its copy of the weights

The exported weights are in inference form, the others in training form.
"""

from evo2cli.training.plan.activations import FP32
from evo2cli.training.plan.memory import MOMENTS, Setup, Sizes


def checkpoint_bytes(counts: Sizes, setup: Setup) -> int:
    """Bytes of one checkpoint, the files of all ranks together.

    Args:
        counts: Numbers of parameters.
        setup: Which engine writes it, and how.
    """
    each = FP32 + MOMENTS
    if setup.frozen is not None:
        return (FP32 + each) * setup.frozen.trained
    if setup.averaged:
        each += FP32
    if setup.zero in (1, 2):
        each += setup.dtypes.compute
    return FP32 * counts.folded + each * counts.all
