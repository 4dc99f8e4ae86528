"""Launches that begin before the one in front of them has ended: Hopper and newer.

A step of decoding is a chain of short launches, and each takes as long to begin as to compute. With
programmatic dependent launch the next one is in place, and waits, while this one still works.
"""

import triton
import triton.language as tl

from hyenakernels.launch import architecture


@triton.jit
def wait(OVERLAPS: tl.constexpr):
    """Until all launches before have ended; before it, only read what no launch writes."""
    if OVERLAPS:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


def overlapped():
    """Arguments of a launch whose kernel calls `wait`."""
    if architecture() >= (9, 0):
        return {"OVERLAPS": True, "launch_pdl": True}
    return {"OVERLAPS": False}
