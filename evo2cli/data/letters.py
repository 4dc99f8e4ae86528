"""Counting the bytes of a sequence."""

import numpy as np
import numpy.typing as npt

_COMMON = list(b"ACGTNacgtn")
_BLOCK = 1 << 17  # fits the CPU cache


def count_bytes(sequence: bytes) -> npt.NDArray[np.int64]:
    """Number of occurrences of each byte, [256]."""
    array = np.frombuffer(sequence, np.uint8)
    if len(array) < _BLOCK:
        return np.bincount(array, minlength=256)
    counts = np.zeros(256, np.int64)
    for start in range(0, len(array), _BLOCK):
        block = array[start : start + _BLOCK]
        # If a block has only common letters, counting each is twice as fast as a histogram.
        common = [np.count_nonzero(block == letter) for letter in _COMMON]
        if sum(common) == len(block):
            counts[_COMMON] += common
        else:
            counts += np.bincount(block, minlength=256)
    return counts
