"""Rotary position embedding in one pass over memory.

B batch, H heads, L tokens, W channels of a head, V = W / 2 rotated pairs.
"""

import torch
import triton
import triton.language as tl

from hyenakernels.dispatch import batch_stride
from hyenakernels.launch import next_power_of_two


@triton.jit(do_not_specialize=["length"])
def _rotary_kernel(
    x,
    cos,
    sin,
    y,
    length,
    x_batch_stride,
    x_row_stride,
    angle_batch_stride,
    sign: tl.constexpr,
    H: tl.constexpr,
    V: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    row, batch = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    pair = tl.arange(0, BLOCK_V)
    angle = batch * angle_batch_stride + row * V + pair
    cosine = tl.load(cos + angle, mask=pair < V, other=0.0)[None, :]
    sine = sign * tl.load(sin + angle, mask=pair < V, other=0.0)[None, :]
    x += batch * x_batch_stride + row * x_row_stride
    y += (batch * length + row) * (2 * H * V)
    for first in tl.static_range(0, H, BLOCK_H):
        head = first + tl.arange(0, BLOCK_H)
        at = head[:, None] * (2 * V) + pair[None, :]
        inside = (head[:, None] < H) & (pair[None, :] < V)
        a = tl.load(x + at, mask=inside, other=0.0).to(cosine.dtype)
        b = tl.load(x + at + V, mask=inside, other=0.0).to(cosine.dtype)
        tl.store(y + at, (a * cosine - b * sine).to(y.dtype.element_ty), mask=inside)
        tl.store(y + at + V, (a * sine + b * cosine).to(y.dtype.element_ty), mask=inside)


def rotary(x_BLHW, cos_BLV, sin_BLV, *, backward):
    """`reference.rotary`, or its transpose (the inverse rotation) if `backward`; [B, L, H, W]."""
    batch, length, heads, width = x_BLHW.shape
    y_BLHW = torch.empty(x_BLHW.shape, dtype=x_BLHW.dtype, device=x_BLHW.device)
    _rotary_kernel[(length, batch)](
        x_BLHW,
        cos_BLV,
        sin_BLV,
        y_BLHW,
        length,
        batch_stride(x_BLHW),
        x_BLHW.stride(1),
        batch_stride(cos_BLV),
        sign=-1 if backward else 1,
        H=heads,
        V=width // 2,
        BLOCK_H=min(16, next_power_of_two(heads)),
        BLOCK_V=next_power_of_two(width // 2),
        num_warps=4,
    )
    return y_BLHW
