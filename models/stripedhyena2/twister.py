"""Jump ahead in the random numbers of torch's CPU generator, the Mersenne twister MT19937.

Its words follow a linear recurrence over GF(2), so the word n positions ahead is a sum of the next
19,937 words, selected by the coefficients of x^n modulo the characteristic polynomial. The
polynomial: Matsumoto and Nishimura 1998, appendix A. Jumps: Haramoto et al. 2008.

Polynomials over GF(2) are Python integers, with bit i as the coefficient of x^i.
"""

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator

_N, _M, _DEGREE, _MATRIX = 624, 397, 19_937, 0x9908B0DF
# The position of the words, 8 bytes each, in the state of a torch generator.
_WORDS = slice(24, 24 + 8 * _N)


def jump(generator: Generator, count: int) -> None:
    """Advance a generator as `count` draws of a 32-bit number would."""
    state = generator.get_state()
    words = state[_WORDS].view(torch.int64).numpy()  # shares memory with `state`
    following = _following(words.astype(np.uint32))
    sum_ = np.zeros(_N, np.uint32)
    for index in _terms(count):
        sum_ ^= following[index : index + _N]
    words[:] = sum_
    generator.set_state(state)


def _following(words: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """The words, followed by the next ones that a jump needs."""
    x = np.empty(_N + _DEGREE, np.uint32)
    x[:_N] = words
    step = _N - _M  # words that depend on earlier ones only
    for start in range(_N, len(x), step):
        end = min(start + step, len(x))
        old = slice(start - _N, end - _N)
        mixed = (x[old] & 0x80000000) | (x[start - _N + 1 : end - _N + 1] & 0x7FFFFFFF)
        odd = (mixed & 1) * np.uint32(_MATRIX)
        x[start:end] = x[start - step : end - step] ^ (mixed >> 1) ^ odd
    return x


@cache
def _terms(count: int) -> list[int]:
    """The exponents in x^count modulo the characteristic polynomial."""
    modulus, power = _characteristic(), 1
    for bit in f"{count:b}":
        power = int("0".join(f"{power:b}"), 2)  # squared: its bits move apart
        power <<= int(bit)
        while (excess := power.bit_length() - modulus.bit_length()) >= 0:
            power ^= modulus << excess
    return [index for index, bit in enumerate(reversed(f"{power:b}")) if bit == "1"]


def _characteristic() -> int:
    inner = 1
    for index in range(31):
        inner = inner << _N - 1 ^ inner << _M - 1 ^ _MATRIX >> index & 1
    return inner << _N ^ inner << _M ^ _MATRIX >> 31
