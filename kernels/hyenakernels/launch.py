"""Launch shapes of the kernels: a small measured table per GPU architecture, and a fallback.

Nothing is searched at run time. Segments cut the sequence into independent programs; they depend
on nothing but the architecture, so that a result never depends on batch or length.
"""

from dataclasses import dataclass
from functools import cache

import torch


@dataclass(frozen=True)
class FirLaunch:
    """How the two-stage block convolution is cut.

    Attributes:
        block: Rows of a Toeplitz tile.
        rows: Rows a thread holds; they divide `block`.
        parts: Groups of channels a program takes, cut to 16 channels at most.
        num_warps: Warps a program.
        segment: Rows a program walks through, a multiple of `block`.
    """

    block: int
    rows: int
    parts: int
    num_warps: int
    segment: int


@dataclass(frozen=True)
class RowLaunch:
    """How the kernels that walk down the rows are cut.

    Attributes:
        block_d: Channels a program.
        rows: Rows a thread holds; they divide the segment.
        num_warps: Warps a program.
    """

    block_d: int
    rows: int
    num_warps: int


# Rows a program of the row kernels walks through.
MODAL_SEGMENT, GATE_SEGMENT = 512, 256

# Measured on an H200 (compute capability 9.0); tests/benchmarks/results/kernels.md.
_FIR = {(9, 0): FirLaunch(block=32, rows=8, parts=4, num_warps=4, segment=1024)}
_FIR_GRADIENT = {(9, 0): FirLaunch(block=16, rows=4, parts=4, num_warps=4, segment=1024)}
_MODAL = {(9, 0): RowLaunch(block_d=128, rows=8, num_warps=2)}
_MODAL_GRADIENT = {(9, 0): RowLaunch(block_d=64, rows=4, num_warps=2)}
_GATE = {(9, 0): RowLaunch(block_d=128, rows=8, num_warps=2)}

# Small tiles that fit every GPU Triton knows, and the interpreter.
_ANY_FIR = FirLaunch(block=16, rows=4, parts=4, num_warps=4, segment=512)
_ANY_ROWS = RowLaunch(block_d=64, rows=4, num_warps=2)


@cache
def _architecture() -> tuple[int, int]:
    return torch.cuda.get_device_capability() if torch.cuda.is_available() else (0, 0)


def fir_launch() -> FirLaunch:
    """For the forward pass, and the gradient of the input."""
    return _FIR.get(_architecture(), _ANY_FIR)


def fir_gradient_launch() -> FirLaunch:
    """For the gradient of the taps, which keeps a Gram tile for every Toeplitz tile."""
    return _FIR_GRADIENT.get(_architecture(), _ANY_FIR)


def modal_launch() -> RowLaunch:
    """For the modal scan and its adjoint."""
    return _MODAL.get(_architecture(), _ANY_ROWS)


def modal_gradient_launch() -> RowLaunch:
    """For the gradients of poles and residues, which keep six values a mode."""
    return _MODAL_GRADIENT.get(_architecture(), _ANY_ROWS)


def gate_launch() -> RowLaunch:
    """For the gradient of featurizer and gates."""
    return _GATE.get(_architecture(), _ANY_ROWS)
