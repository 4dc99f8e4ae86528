"""Programmatic dependent launch (Hopper and newer): a kernel starts before its predecessor ends.

A decoding step is a chain of short launches, each of which takes about as long to start as to
compute. With programmatic dependent launch the next kernel is already resident on the GPU and waits
while its predecessor still works.
"""

import triton
import triton.language as tl

from hyenakernels.launch import architecture


@triton.jit
def wait_for_previous(OVERLAPS: tl.constexpr):
    """Wait until all earlier launches have ended; before, read only what no launch writes."""
    if OVERLAPS:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


def overlap_options():
    """Launch options of a kernel that calls `wait_for_previous`."""
    if architecture() >= (9, 0):
        return {"OVERLAPS": True, "launch_pdl": True}
    return {"OVERLAPS": False}
